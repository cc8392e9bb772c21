"""What an attempt needs before it can start, fetched from the object store: files from the cache, unsealed variables.

Retries while it may help, for a bounded time, then gives the attempt up as lost. Plain values of variables exist in
memory only; nothing here logs or keeps them.
"""

import errno
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from schemas.ids import variables_key
from schemas.parts import PinnedObject, TrainingSpec
from schemas.reason import Reason
from services.backbone.errors import ObjectMissing, SealBroken, TransientError
from services.backbone.objects import Objects
from services.backbone.retry import until_it_works
from services.backbone.sealing import SealingKey, unseal
from services.runner.cache import Cache
from services.runner.folder import Contents
from services.runner.outcome import Lost

PATIENCE_S = 60.0

VARIABLES: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])

Result = TypeVar("Result")


class GivenUp(Exception):
    """The attempt cannot go on here; `lost` says why."""

    def __init__(self, lost: Lost) -> None:
        super().__init__(lost.message)
        self.lost = lost


@dataclass(frozen=True, slots=True)
class Supplies:
    """Where attempts get their things from."""

    objects: Objects
    cache: Cache
    keys: Mapping[str, SealingKey] = field(repr=False)

    async def variables(self, run_id: str, spec: TrainingSpec) -> dict[str, str]:
        """Fetch and unseal the script's own variables.

        Raises:
            GivenUp: they are gone, because the run has ended; or no key here opens them.
        """
        if not spec.variable_names:
            return {}
        sealed = await patiently(lambda: self.objects.get(variables_key(run_id)))
        try:
            return VARIABLES.validate_json(unseal(dict(self.keys), run_id, sealed))
        except SealBroken as error:
            raise GivenUp(Lost(Reason.FETCH_FAILED, f"the variables cannot be unsealed: {error}")) from error
        except ValidationError:  # its text would hold the values
            raise GivenUp(Lost(Reason.FETCH_FAILED, "the variables are not a JSON object of texts")) from None

    async def fetch(self, spec: TrainingSpec) -> None:
        """Fetch the files into the cache, so that `files` has them at once; may be abandoned at any time."""
        async with self.files(spec):
            return

    @asynccontextmanager
    async def files(self, spec: TrainingSpec) -> AsyncIterator[Contents]:
        """Fetch scripts, data assets and dataset, and keep them in the cache until the end of the block.

        Raises:
            GivenUp: they cannot be had.
        """
        scripts, data = files_of(spec)
        wanted = [*scripts.values(), *data.values()]
        async with AsyncExitStack() as holding:
            paths = await patiently(lambda: holding.enter_async_context(self.cache.hold(wanted)))
            yield Contents(_placed(scripts, paths), _placed(data, paths))


def files_of(spec: TrainingSpec) -> tuple[dict[str, PinnedObject], dict[str, PinnedObject]]:
    """Tell what lies in the code and in the data folder, by file name; the dataset wins over an asset of its name."""
    scripts: dict[str, PinnedObject] = {a.filename: a for a in spec.assets if a.asset_type == "script"}
    data: dict[str, PinnedObject] = {a.filename: a for a in spec.assets if a.asset_type == "data"}
    return scripts, data | {spec.dataset.filename: spec.dataset}


async def patiently(
    attempt: Callable[[], Awaitable[Result]], reason: Reason = Reason.FETCH_FAILED, patience_s: float = PATIENCE_S
) -> Result:
    """Use the object store, with retries for a bounded time.

    Raises:
        GivenUp: with that reason, or because the disk is full.
    """
    began = time.monotonic()

    async def once() -> Result:
        try:
            return await attempt()
        except ObjectMissing as error:
            raise GivenUp(Lost(reason, f"not in the object store: {error}")) from error
        except (TransientError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise GivenUp(Lost(Reason.DISK_FULL, "the runner's disk is full")) from error
            if time.monotonic() - began > patience_s:
                told = f"the object store could not be used for {patience_s:.0f} s; the runner's log says why"
                raise GivenUp(Lost(reason, told)) from error
            raise

    return await until_it_works("object store", once)


def _placed(files: Mapping[str, PinnedObject], paths: Mapping[str, Path]) -> dict[str, Path]:
    return {name: paths[pinned.sha256] for name, pinned in files.items()}

"""Keeping checkpoints: while a container runs, its script's folder is looked at and what is new goes to the store.

It is a task beside the watch of the container, one upload at a time, ended with it. Whatever fails here is tried again
at a later look or left; it never ends a run, delays its end by more than a bounded time, or touches another attempt's.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from schemas.parts import RunAttempt
from schemas.reason import Reason
from services.runner.artifact import ChangedError, RefusedError
from services.runner.checkpoint import NOTHING, Look, Pace, look_at, take
from services.runner.checkpoint_store import CheckpointStore
from services.runner.supplies import GivenUp, patiently

UPLOAD_PATIENCE_S = 60.0
"""How long one snapshot is tried again while the store does not answer; afterwards a fresh one is taken."""
PARTING_S = 5.0
"""How long a runner that stops takes for a last one: well below what its supervisor waits."""
LAST_WITHIN_S = 120.0
"""How long an attempt that is lost may take for its last one before it is told as lost."""

log = structlog.get_logger()


@dataclass
class Keeper:
    """Keeps the checkpoints of one attempt.

    Attributes:
        out_folder: the run's `out`.
        every_s: seconds between two looks.
    """

    ref: RunAttempt
    out_folder: Path
    store: CheckpointStore
    every_s: float
    _pace: Pace = field(default_factory=Pace)
    _refused: str | None = None

    def __post_init__(self) -> None:
        self._log = log.bind(run_id=self.ref.run_id, attempt=self.ref.attempt)

    @asynccontextmanager
    async def while_it_runs(self) -> AsyncIterator[None]:
        """Look now and then for the length of a block; if the runner stops meanwhile, a last time."""
        looking = asyncio.create_task(self._look_on())
        try:
            yield
        except asyncio.CancelledError:
            await _ended(looking)
            await self.keep_last(PARTING_S)
            raise
        finally:
            await _ended(looking)

    async def keep_last(self, within_s: float = LAST_WITHIN_S) -> None:
        """Take what is new, quiet or not; gives up after `within_s`, and raises nothing: an end may hang on it."""
        try:
            async with asyncio.timeout(within_s):
                look = await self._look()
                if look not in (self._pace.kept, NOTHING):
                    await self._keep(look)
        except TimeoutError:
            self._log.warning("checkpoint_not_kept", why=f"not within {within_s:.0f} s")
        except Exception:  # noqa: BLE001 - the edge, as below
            self._log.exception("checkpoint_broke")

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(self.every_s)
            try:
                look = await self._look()
                if self._pace.is_due(look):
                    await self._keep(look)
            except Exception:  # noqa: BLE001 - the edge: a run goes on, whatever its checkpoints do to us
                self._log.exception("checkpoint_broke")

    async def _look(self) -> Look:
        return await asyncio.to_thread(look_at, self.out_folder, self.store.limits)

    async def _keep(self, look: Look) -> None:
        """Take a snapshot and put it into the store; what was refused is not tried again until it looks different."""
        try:
            await self._take_and_store()
        except ChangedError:
            return
        except GivenUp as problem:
            self._log.warning("checkpoint_not_kept", why=problem.lost.message)
            return
        except RefusedError as problem:
            self._say_refused(problem.what)
        except OSError as problem:
            self._log.warning("checkpoint_not_kept", why=f"it could not be copied: {problem.strerror}")
        self._pace.keep(look)

    async def _take_and_store(self) -> None:
        with self.store.private_file() as archive:
            files = await asyncio.to_thread(take, self.out_folder, archive, self.store.limits)
            if files == 0:
                return
            size_bytes = archive.tell()
            await patiently(partial(self.store.keep, self.ref, archive), Reason.UPLOAD_FAILED, UPLOAD_PATIENCE_S)
        self._refused = None
        self._log.info("checkpoint_kept", files=files, size_bytes=size_bytes)

    def _say_refused(self, why: str) -> None:
        """Say it once: a script that goes on in the same way would fill the log."""
        if why != self._refused:
            self._refused = why
            self._log.warning("checkpoint_refused", why=why)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

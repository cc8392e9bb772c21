"""The values of a run's variables: sealed in the object store from before its acceptance until its end.

The only place of the api that holds them outside a request. Never logs them, never writes them anywhere else.
"""

import json
from dataclasses import dataclass

import structlog

from schemas.ids import variables_key
from services.backbone.errors import ObjectMissing, SealBroken
from services.backbone.objects import Objects
from services.backbone.sealing import SealingKey, seal, unseal

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SealedVariables:
    """Variables by run, sealed with the first of the keys and opened with any."""

    objects: Objects
    keys: tuple[SealingKey, ...]

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """The keys' secrets, the current one first."""
        return tuple(key.secret for key in self.keys)

    async def create(self, run_id: str, variables: dict[str, str]) -> None:
        """Seal a run's variables.

        Raises:
            ObjectExists: a run of that id has some.
        """
        sealed = seal(self.keys[0], run_id, json.dumps(variables).encode())
        await self.objects.create(variables_key(run_id), sealed)

    async def read(self, run_id: str) -> dict[str, str] | None:
        """Open a run's variables; None when they are gone, or sealed by a key that is not configured here."""
        try:
            sealed = await self.objects.get(variables_key(run_id))
            opened: dict[str, str] = json.loads(unseal({key.key_id: key for key in self.keys}, run_id, sealed))
        except ObjectMissing:
            return None
        except SealBroken as error:
            log.warning("variables_not_opened", run_id=run_id, why=str(error))
            return None
        return opened

    async def delete(self, run_id: str) -> None:
        """Forget a run's variables; it is no error if there are none."""
        await self.objects.delete(variables_key(run_id))

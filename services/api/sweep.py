"""Sweeping up behind the api: secrets and checkpoints of ended runs, old keys, old outbox rows, unneeded objects.

Whatever a crash left is found here later. Objects go only when they are a day old, so that an upload whose row is not
committed yet is never touched, and none that was stored since the oldest open run began: it may be an artifact whose
end is still on its way.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg
import structlog

from schemas.ids import CHECKPOINTS, checkpoints_folder
from services.api.store import transaction
from services.api.store_runs import leftover_variables, variables_gone
from services.api.store_sweep import (
    delete_old_keys,
    ended_runs,
    known_runs,
    needed_digests,
    oldest_open_run,
    sweep_outbox,
)
from services.api.variables import SealedVariables
from services.backbone.errors import is_transient
from services.backbone.objects import ListedObject, Objects

UNREFERENCED_FOR = timedelta(days=1)
CLOCKS_DIFFER_BY = timedelta(minutes=10)
"""What is allowed for between the api's clock and the object store's (a file's time alone lags by a kernel tick)."""
BATCH = 500

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sweeper:
    """Sweeps again and again."""

    pool: asyncpg.Pool
    objects: Objects
    variables: SealedVariables

    async def run(self, every_s: float) -> None:
        """Sweep until cancelled; a transient failure only puts it off."""
        while True:
            try:
                await self.sweep(datetime.now(UTC))
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("sweep_put_off", error=repr(error))
            await asyncio.sleep(every_s)

    async def sweep(self, now: datetime) -> None:
        """Sweep once."""
        for run_id in await leftover_variables(self.pool, BATCH):
            await self.variables.delete(run_id)
            await variables_gone(self.pool, run_id)
        await delete_old_keys(self.pool)
        async with transaction(self.pool) as connection:
            await sweep_outbox(connection, BATCH)
        await self._sweep_checkpoints(now - UNREFERENCED_FOR)
        await self._sweep_objects(now - UNREFERENCED_FOR)

    async def _sweep_checkpoints(self, before: datetime) -> None:
        """Delete what an attempt that was cut off has kept after its run's end; of unknown runs what is old."""
        newest: dict[str, datetime] = {}
        async for found in self.objects.listing(CHECKPOINTS):
            run_id = found.key.split("/")[1]
            newest[run_id] = max(found.stored_at, newest.get(run_id, found.stored_at))
        ended, known = await ended_runs(self.pool, list(newest)), await known_runs(self.pool, list(newest))
        for run_id, stored_at in newest.items():
            if run_id in ended or (run_id not in known and stored_at < before):
                await self.objects.delete_below(checkpoints_folder(run_id))
                log.info("checkpoints_swept", run_id=run_id)

    async def _sweep_objects(self, before: datetime) -> None:
        oldest = await oldest_open_run(self.pool)
        untouchable = before if oldest is None else oldest - CLOCKS_DIFFER_BY
        async for batch in _old(self.objects, "objects", min(before, untouchable)):
            needed = await needed_digests(self.pool, list(batch))
            await self._delete({digest: key for digest, key in batch.items() if digest not in needed}, before)
        async for batch in _old(self.objects, "variables", before):
            known = await known_runs(self.pool, list(batch))
            await self._delete({run_id: key for run_id, key in batch.items() if run_id not in known}, before)
        async for batch in _old(self.objects, "uploads", before):
            await self._delete(batch, before)
        if unfinished := await self.objects.remove_unfinished(before):
            log.info("unfinished_uploads_swept", files=unfinished)

    async def _delete(self, keys: dict[str, str], before: datetime) -> None:
        """Delete objects, but none that was stored again since it was listed."""
        for key in keys.values():
            stored_at = await self.objects.stored_at(key)
            if stored_at is not None and stored_at < before:
                await self.objects.delete(key)
        if keys:
            log.info("objects_swept", objects=len(keys))


async def _old(objects: Objects, prefix: str, before: datetime) -> AsyncIterator[dict[str, str]]:
    """List objects written before a time, in batches: the last part of each key, and the key."""
    batch: dict[str, str] = {}
    found: ListedObject
    async for found in objects.listing(prefix):
        if found.stored_at < before:
            batch[found.key.rpartition("/")[2]] = found.key
        if len(batch) == BATCH:
            yield batch
            batch = {}
    if batch:
        yield batch

"""What the scheduler does with each batch of `runyard.runs`: fold it into its own table, in one transaction.

Every instance folds; only the leader decides, and is woken. Folding again what was folded changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from schemas.cloudevents import CloudEvent
from schemas.events import RunFact
from services.backbone.consumer import Received
from services.backbone.crash_points import crash_point
from services.scheduler import store
from services.scheduler.folding import begun, fold


@dataclass(frozen=True, slots=True)
class Folds:
    """The handler of the consumer group `scheduler`."""

    pool: asyncpg.Pool

    async def on_run_facts(self, batch: Sequence[Received]) -> None:
        """Fold a batch, all or nothing."""
        facts = [
            each.event for each in batch if isinstance(each.event, CloudEvent) and isinstance(each.event.data, RunFact)
        ]
        run_ids = [event.data.run_id for event in facts if isinstance(event.data, RunFact)]
        async with self.pool.acquire() as connection, connection.transaction():
            await store.begin_runs(connection, [run for event in facts if (run := begun(event)) is not None])
            known = await store.lock_runs(connection, run_ids)
            await store.save_runs(connection, list(fold(known, facts).values()))
            await store.wake_leader(connection)
            crash_point("before_queue_commit")
        crash_point("after_queue_commit")

"""What the scheduler does with each batch of `runyard.runs`: fold it into its own table, in one transaction.

Every instance folds; only the leader decides, and is woken. Folding again what was folded changes nothing. A request
that no runner could take is poison here: dispatched, it would be poison there, again and again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from schemas.cloudevents import CloudEvent
from schemas.events import RunFact, TrainingRequested
from schemas.ids import is_name
from services.backbone.consumer import Received
from services.backbone.crash_points import crash_point
from services.backbone.errors import PoisonError
from services.scheduler import store
from services.scheduler.folding import begun, fold

LONGEST_RUN_S = 366 * 86_400
"""Ends are forecast for a thousand runs in a row: more than a year each, and the calendar has no word for the last."""


@dataclass(frozen=True, slots=True)
class Folds:
    """The handler of the consumer group `scheduler`."""

    pool: asyncpg.Pool

    async def on_run_facts(self, batch: Sequence[Received]) -> None:
        """Fold a batch, all or nothing."""
        facts = [
            each.event for each in batch if isinstance(each.event, CloudEvent) and isinstance(each.event.data, RunFact)
        ]
        for event in facts:
            if isinstance(event.data, TrainingRequested):
                _refuse_impossible(event.data)
        run_ids = [event.data.run_id for event in facts if isinstance(event.data, RunFact)]
        async with self.pool.acquire() as connection, connection.transaction():
            await store.begin_runs(connection, [run for event in facts if (run := begun(event)) is not None])
            known = await store.lock_runs(connection, run_ids)
            await store.save_runs(connection, list(fold(known, facts).values()))
            await store.wake_leader(connection)
            crash_point("before_queue_commit")
        crash_point("after_queue_commit")


def _refuse_impossible(requested: TrainingRequested) -> None:
    if not is_name(requested.run_id):
        raise PoisonError(f"{requested.run_id[:100]!r} cannot be the id of a run")
    if requested.spec.timeout_s > LONGEST_RUN_S:
        raise PoisonError(f"a time limit of {requested.spec.timeout_s} s is above {LONGEST_RUN_S} s")

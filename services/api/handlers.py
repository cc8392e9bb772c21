"""Folds `runyard.runs` into the registry: what clients see of a run, its model and its versions, all of one mind.

A run's end, its version, the release of its model and ModelVersionCreated's outbox row are one transaction. Never
decides how a run ended: the order on its partition does (`schemas.run.evolve`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg
import structlog

from schemas.cloudevents import CloudEvent
from schemas.events import RunFact
from schemas.ids import checkpoints_folder
from schemas.run import Run, evolve
from services.api.answering import now_utc
from services.api.events import model_version_created
from services.api.store import transaction
from services.api.store_runs import insert_next_version, lock_run, release_model, update_run, variables_gone
from services.api.variables import SealedVariables
from services.backbone.consumer import Received
from services.backbone.crash_points import crash_point
from services.backbone.objects import Objects
from services.backbone.outbox import enqueue, to_its_topic
from services.backbone.postgres import Connection

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Handlers:
    """The api's handlers of `runyard.runs`."""

    pool: asyncpg.Pool
    variables: SealedVariables
    objects: Objects

    async def on_run_facts(self, batch: Sequence[Received]) -> None:
        """Fold a batch, each fact in a transaction of its own; events of unknown types do not concern the registry."""
        for received in batch:
            event = received.event
            if isinstance(event, CloudEvent) and isinstance(event.data, RunFact):
                await self._fold(event, event.data)

    async def _fold(self, event: CloudEvent, fact: RunFact) -> None:
        async with transaction(self.pool) as connection:
            run = await fold(connection, event, fact)
            crash_point("before_fold_commit")
        crash_point("after_fold_commit")
        if run is not None and run.status.is_end:
            await self._forget(run)

    async def _forget(self, run: Run) -> None:
        """Delete what a run needs no more at its end: its variables and its checkpoints."""
        if run.spec.variable_names:
            crash_point("before_variables_deletion")
            await self.variables.delete(run.run_id)
            crash_point("after_variables_deletion")
            await variables_gone(self.pool, run.run_id)
            crash_point("after_variables_marked")
        crash_point("before_checkpoints_deletion")
        await self.objects.delete_below(checkpoints_folder(run.run_id))
        crash_point("after_checkpoints_deletion")


async def fold(connection: Connection, event: CloudEvent, fact: RunFact) -> Run | None:
    """Fold one fact; returns the run if the fact changed it."""
    before = await lock_run(connection, fact.run_id)
    evolution = evolve(before, fact, event.time)
    after = evolution.run
    if before is None or after is None or evolution.stale is not None:
        log.debug("fact_without_effect", run_id=fact.run_id, type=fact.type, why=evolution.stale or "unknown_run")
        return None
    if after.status.is_end and not before.status.is_end:
        after = await _end(connection, after, event.traceparent)
    await update_run(connection, after)
    log.info("run_folded", run_id=after.run_id, type=fact.type, status=after.status, reason=after.reason)
    return after


async def _end(connection: Connection, run: Run, traceparent: str | None) -> Run:
    """Release the model and, if the run made something, create its version."""
    await release_model(connection, run)
    if run.artifact is None:
        return run
    now = now_utc()
    version = await insert_next_version(connection, run, now)
    await enqueue(connection, [to_its_topic(model_version_created(run, version, now, traceparent))])
    crash_point("before_version_commit")
    log.info("version_created", run_id=run.run_id, model_id=run.model_id, version=version)
    return run.model_copy(update={"version": version})

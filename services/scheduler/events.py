"""Every event that the scheduler emits is constructed here, and nowhere else. Pure: the time is an argument.

Ids are deterministic, so an event that is said again is the same event. Never decides anything.
"""

from datetime import datetime

from schemas.cloudevents import CloudEvent
from schemas.events import (
    AnyEvent,
    RunCancelled,
    RunFailed,
    RunQueued,
    RunRequeued,
    RunRevoked,
    RunWaiting,
    SchedulerBeacon,
    SchedulerLoad,
)
from schemas.ids import event_id
from schemas.reason import Reason
from schemas.topics import BEACON_KEY, LOAD_KEY
from services.scheduler.folding import FoldedRun
from services.scheduler.placement import Wait
from services.scheduler.recovery import Cancel, GiveUp, Requeue, Revoke

SOURCE = "/runyard/scheduler"

SCHEDULERS_END = 1
"""Sequence of an end that the scheduler declares; the runner's own end of the same attempt has 0, and another id."""


def run_waiting(folded: FoldedRun, wait: Wait, now: datetime) -> CloudEvent:
    """The run cannot start now."""
    data = RunWaiting(
        run_id=wait.run_id,
        attempt=wait.attempt,
        reason=wait.reason,
        message=wait.message,
        estimated_start_at=wait.estimated_start_at,
    )
    return _about_run(folded, data, now, sequence=folded.told_count + 1)


def run_queued(folded: FoldedRun, runner_id: str, now: datetime) -> CloudEvent:
    """The runner shall run the current attempt."""
    run = folded.run
    data = RunQueued(
        run_id=run.run_id,
        attempt=run.attempt,
        runner_id=runner_id,
        tenant_id=run.tenant_id,
        model_id=run.model_id,
        spec=run.spec,
    )
    return _about_run(folded, data, now)


def run_revoked(folded: FoldedRun, revoke: Revoke, now: datetime) -> CloudEvent:
    """The runner shall stop an attempt."""
    data = RunRevoked(run_id=revoke.run_id, attempt=revoke.attempt, runner_id=revoke.runner_id, reason=revoke.reason)
    return _about_run(folded, data, now)


def run_requeued(folded: FoldedRun, requeue: Requeue, now: datetime) -> CloudEvent:
    """The attempt was lost; the next one follows."""
    data = RunRequeued(
        run_id=requeue.run_id, attempt=requeue.attempt + 1, reason=requeue.reason, message=requeue.message
    )
    return _about_run(folded, data, now)


def run_failed(folded: FoldedRun, give_up: GiveUp, now: datetime) -> CloudEvent:
    """The last attempt was lost."""
    data = RunFailed(
        run_id=give_up.run_id,
        attempt=give_up.attempt,
        runner_id=folded.run.runner_id,
        reason=Reason.ATTEMPTS_EXHAUSTED,
        message=give_up.message,
        started_at=folded.run.started_at,
        ended_at=now,
    )
    return _about_run(folded, data, now, sequence=SCHEDULERS_END)


def run_cancelled(folded: FoldedRun, cancel: Cancel, now: datetime) -> CloudEvent:
    """The run is over because somebody asked for it."""
    data = RunCancelled(
        run_id=cancel.run_id,
        attempt=cancel.attempt,
        runner_id=folded.run.runner_id,
        reason=Reason.USER_REQUEST,
        started_at=folded.run.started_at,
        ended_at=now,
    )
    return _about_run(folded, data, now, sequence=SCHEDULERS_END)


def beacon(epoch: int, beat: int, now: datetime) -> CloudEvent:
    """The leader hears itself."""
    data = SchedulerBeacon(epoch=epoch, beat=beat)
    return CloudEvent(event_id(BEACON_KEY, epoch, data.type, beat), SOURCE, BEACON_KEY, now, data)


def load_published(load: SchedulerLoad, sequence: int, now: datetime) -> CloudEvent:
    """Queue and capacity as the leader sees them."""
    return CloudEvent(event_id(LOAD_KEY, load.epoch, load.type, sequence), SOURCE, LOAD_KEY, now, load)


def _about_run(folded: FoldedRun, data: AnyEvent, now: datetime, sequence: int = 0) -> CloudEvent:
    run_id, attempt = folded.run.run_id, getattr(data, "attempt", 0)
    return CloudEvent(event_id(run_id, attempt, data.type, sequence), SOURCE, run_id, now, data, folded.traceparent)

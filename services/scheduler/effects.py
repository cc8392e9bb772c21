"""What a decision changes and says, once its run's row is locked: guards, rows and messages. Pure.

A decision that was made on what is not so any more has no effect. Never touches the database or the broker.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import assert_never
from uuid import UUID

from schemas.cloudevents import CloudEvent
from schemas.reason import Reason, RunStatus
from schemas.topics import DISPATCH
from services.backbone.outbox import Message, to_its_topic
from services.scheduler import events
from services.scheduler.folding import FoldedRun
from services.scheduler.placement import Assign, Wait
from services.scheduler.recovery import Cancel, GiveUp, Requeue, Revoke

ASSIGNED = (RunStatus.STARTING, RunStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class QueueAgain:
    """The runner does not seem to know an attempt that it was given."""

    run_id: str
    attempt: int
    runner_id: str


@dataclass(frozen=True, slots=True)
class RevokeAgain:
    """The runner still has an attempt that it should not have."""

    run_id: str
    attempt: int
    runner_id: str


Decision = Assign | Wait | Requeue | GiveUp | Cancel | Revoke | QueueAgain | RevokeAgain


@dataclass(frozen=True, slots=True)
class Effect:
    """What is written for one decision. `again` is sent again as it stands in the outbox, if it stands there."""

    run_id: str
    attempt: int
    messages: tuple[Message, ...] = ()
    pending: UUID | None = None
    assigned_to: str | None = None
    told: Wait | None = None
    revoked: bool = False
    again: Message | None = None


def effect_of(
    decision: Decision, folded: FoldedRun | None, partitions: Mapping[str, int], now: datetime
) -> Effect | None:
    """Turn a decision into what is written; None where it does not hold any more.

    Args:
        decision: made a moment ago, on what was read then.
        folded: the run as its locked row has it; None when it is unknown.
        partitions: dispatch partitions by runner, as the runners announce them.
        now: aware UTC.
    """
    if folded is None:
        return None
    if isinstance(decision, QueueAgain | RevokeAgain):
        return _again(decision, folded, partitions, now)
    if folded.pending is not None or folded.run.attempt != decision.attempt:
        return None
    queued, assigned = folded.run.status == RunStatus.QUEUED, folded.run.status in ASSIGNED
    match decision:
        case Assign():
            return _assigned(decision, folded, partitions, now) if queued else None
        case Wait():
            told = events.run_waiting(folded, decision, now)
            return _effect(decision, messages=(to_its_topic(told),), told=decision) if queued else None
        case Revoke():
            return (
                _effect(decision, messages=(_revocation(decision, folded, partitions, now),), revoked=True)
                if assigned
                else None
            )
        case Requeue() | GiveUp() | Cancel():
            holds = assigned or (queued and isinstance(decision, Cancel))
            return _concluded(decision, folded, partitions, now) if holds else None
        case _:
            assert_never(decision)


def _assigned(decision: Assign, folded: FoldedRun, partitions: Mapping[str, int], now: datetime) -> Effect:
    """Say RunQueued to the world first, and the same event to the runner."""
    queued = events.run_queued(folded, decision.runner_id, now)
    dispatch = _dispatch(queued, decision.runner_id, partitions.get(decision.runner_id))
    return _effect(
        decision,
        messages=(to_its_topic(queued), dispatch),
        pending=queued.id,
        assigned_to=decision.runner_id,
    )


def _concluded(
    decision: Requeue | GiveUp | Cancel, folded: FoldedRun, partitions: Mapping[str, int], now: datetime
) -> Effect:
    match decision:
        case Requeue():
            said = events.run_requeued(folded, decision, now)
        case GiveUp():
            said = events.run_failed(folded, decision, now)
        case Cancel():
            said = events.run_cancelled(folded, decision, now)
    revoke = decision.revoke
    revocation = (_revocation(revoke, folded, partitions, now),) if revoke else ()
    return _effect(decision, messages=(to_its_topic(said), *revocation), pending=said.id, revoked=revoke is not None)


def _again(
    decision: QueueAgain | RevokeAgain, folded: FoldedRun, partitions: Mapping[str, int], now: datetime
) -> Effect | None:
    run = folded.run
    if isinstance(decision, QueueAgain):
        if run.attempt != decision.attempt or run.status not in ASSIGNED:
            return None
        queued = events.run_queued(folded, decision.runner_id, now)
        return _effect(decision, again=_dispatch(queued, decision.runner_id, partitions.get(decision.runner_id)))
    if run.status.is_end or run.attempt > decision.attempt:
        reason = Reason.USER_REQUEST if run.cancellation_requested else Reason.RUNNER_LOST
    elif run.cancellation_requested and run.attempt == decision.attempt:
        reason = Reason.USER_REQUEST
    else:
        return None
    revoke = Revoke(decision.run_id, decision.attempt, decision.runner_id, None, reason)
    return _effect(decision, again=_revocation(revoke, folded, partitions, now), revoked=True)


def _effect(decision: Decision, **changes: object) -> Effect:
    return replace(Effect(decision.run_id, decision.attempt), **changes)  # type: ignore[arg-type]


def _revocation(revoke: Revoke, folded: FoldedRun, partitions: Mapping[str, int], now: datetime) -> Message:
    """Tell the runner where it listens now, or, if it is gone, where it listened when it got the attempt."""
    said = events.run_revoked(folded, revoke, now)
    return _dispatch(said, revoke.runner_id, partitions.get(revoke.runner_id, revoke.dispatch_partition))


def _dispatch(event: CloudEvent, runner_id: str, partition: int | None) -> Message:
    return Message(DISPATCH.name, runner_id, event, partition)

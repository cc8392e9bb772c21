"""Every event that a runner emits is made here, and nowhere else: data, attributes, and the bytes that travel.

Ids are derived from what an event says, so that a repeated event is the same event. What was made once is journaled or
made again with the same id; nothing here publishes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from schemas.cloudevents import CloudEvent, encode
from schemas.events import (
    AnyEvent,
    AttemptLost,
    LogsAppended,
    MetricsReported,
    RunCancelled,
    RunFailed,
    RunnerHeartbeat,
    RunStarted,
    RunSucceeded,
)
from schemas.ids import event_id
from schemas.parts import Capacity, LogLine, MetricPoint, RunAttempt, Runtime, Usage
from schemas.reason import Reason, RunStatus
from schemas.topics import address_of
from services.runner.outcome import Ended, Lost


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event as it travels; what the publisher sends and the journal keeps."""

    topic: str
    key: str
    headers: list[tuple[str, bytes]]
    value: bytes
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Pen:
    """Who writes about which attempt, and in which trace."""

    runner_id: str
    ref: RunAttempt
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What an end tells beside its outcome."""

    ended_at: datetime
    started_at: datetime | None = None
    usage: Usage | None = None
    output_sequence: int = 0


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a heartbeat tells."""

    capacity: Capacity
    runtimes: tuple[Runtime, ...]
    dispatch_partition: int
    accepted: tuple[RunAttempt, ...] = ()
    running: tuple[RunAttempt, ...] = ()
    ended: tuple[RunAttempt, ...] = field(default=())


def run_started(pen: Pen, container_id: str, started_at: datetime) -> Outgoing:
    """The container runs."""
    data = RunStarted(**_who(pen), runner_id=pen.runner_id, container_id=container_id, started_at=started_at)
    return _about_attempt(pen, data, started_at)


def run_ended(pen: Pen, ended: Ended, aftermath: Aftermath) -> Outgoing:
    """The end of the run: one of three events, by its status."""
    fields = _who(pen) | {
        "runner_id": pen.runner_id,
        "exit_code": ended.exit_code,
        "message": ended.message,
        "started_at": aftermath.started_at,
        "ended_at": aftermath.ended_at,
        "usage": aftermath.usage,
        "output_sequence": aftermath.output_sequence,
        "reason": ended.reason,
    }
    data: RunSucceeded | RunCancelled | RunFailed
    if ended.status is RunStatus.SUCCEEDED:
        data = RunSucceeded.model_validate(fields | {"artifact": ended.artifact})
    elif ended.status is RunStatus.CANCELLED:
        data = RunCancelled.model_validate(fields)
    else:
        data = RunFailed.model_validate(fields)
    return _about_attempt(pen, data, aftermath.ended_at)


def attempt_lost(pen: Pen, lost: Lost, now: datetime) -> Outgoing:
    """The attempt could not be run to its end."""
    data = AttemptLost(**_who(pen), runner_id=pen.runner_id, reason=Reason(lost.reason), message=lost.message)
    return _about_attempt(pen, data, now)


def logs_appended(pen: Pen, lines: Sequence[LogLine], dropped: int, sequence: int, now: datetime) -> Outgoing:
    """Lines of output; `sequence` is the first that this event covers."""
    data = LogsAppended(**_who(pen), lines=tuple(lines), dropped_lines=dropped)
    return _about_attempt(pen, data, now, sequence)


def metrics_reported(pen: Pen, points: Sequence[MetricPoint], now: datetime) -> Outgoing:
    """Metric values; there must be at least one."""
    return _about_attempt(pen, MetricsReported(**_who(pen), points=tuple(points)), now, points[0].sequence)


def runner_heartbeat(runner_id: str, beat: int, told: Announcement, now: datetime) -> Outgoing:
    """The runner is there."""
    data = RunnerHeartbeat(
        runner_id=runner_id,
        beat=beat,
        capacity=told.capacity,
        runtimes=told.runtimes,
        dispatch_partition=told.dispatch_partition,
        accepted=told.accepted,
        running=told.running,
        ended=told.ended,
    )
    identity = event_id(runner_id, 0, data.type, beat)
    return _outgoing(identity, runner_id, runner_id, (data, now, None))


def _who(pen: Pen) -> dict[str, object]:
    return {"run_id": pen.ref.run_id, "attempt": pen.ref.attempt}


def _about_attempt(pen: Pen, data: AnyEvent, now: datetime, sequence: int = 0) -> Outgoing:
    identity = event_id(pen.ref.run_id, pen.ref.attempt, data.type, sequence)
    return _outgoing(identity, pen.runner_id, pen.ref.run_id, (data, now, pen.traceparent))


def _outgoing(identity: UUID, runner_id: str, subject: str, what: tuple[AnyEvent, datetime, str | None]) -> Outgoing:
    data, now, traceparent = what
    topic, key = address_of(data)
    headers, value = encode(CloudEvent(identity, f"/runyard/runner/{runner_id}", subject, now, data, traceparent))
    return Outgoing(topic.name, key, headers, value)

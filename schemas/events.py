"""Every event of Runyard: frozen models in one discriminated union. Past tense, subject first, versioned type names.

A model is the event's *data*; its attributes (id, source, subject, time) are added by `schemas.cloudevents`.
The field `type` tells them apart in code and travels as the `ce_type` header, not in the JSON value.
Adding an optional field is compatible; anything else is a new version (`…v2`).
"""

from typing import Annotated, Literal

from pydantic import Field

from schemas.parts import (
    Artifact,
    Capacity,
    Demand,
    LogLine,
    MetricPoint,
    Occupation,
    Part,
    RunAttempt,
    RunnerLoad,
    Runtime,
    TrainingSpec,
    Usage,
    UtcTime,
)
from schemas.reason import Reason


class Event(Part):
    """What every event is."""

    type: str


class RunEvent(Event):
    """An event about one run."""

    run_id: str


class AttemptEvent(RunEvent):
    """An event about one attempt of a run."""

    attempt: int = Field(ge=1)


class TrainingRequested(RunEvent):
    """A request was accepted and committed: from here on the run exists."""

    type: Literal["runyard.run.training_requested.v1"] = "runyard.run.training_requested.v1"
    tenant_id: str
    actor: str
    request_id: str
    model_id: str
    model_type: Literal["custom"] = "custom"
    spec: TrainingSpec
    estimated_start_at: UtcTime | None = None


class RunWaiting(AttemptEvent):
    """The run cannot start now; told again only when reason or estimate change."""

    type: Literal["runyard.run.waiting.v1"] = "runyard.run.waiting.v1"
    reason: Reason
    message: str
    estimated_start_at: UtcTime | None = None


class RunQueued(AttemptEvent):
    """Compute is assigned: this runner shall run this attempt. Holds all that the runner needs."""

    type: Literal["runyard.run.queued.v1"] = "runyard.run.queued.v1"
    runner_id: str
    tenant_id: str
    model_id: str
    spec: TrainingSpec


class RunStarted(AttemptEvent):
    """The container runs."""

    type: Literal["runyard.run.started.v1"] = "runyard.run.started.v1"
    runner_id: str
    container_id: str
    started_at: UtcTime


class CancellationRequested(RunEvent):
    """Somebody asked to stop the run."""

    type: Literal["runyard.run.cancellation_requested.v1"] = "runyard.run.cancellation_requested.v1"
    tenant_id: str
    model_id: str
    actor: str
    request_id: str


class AttemptLost(AttemptEvent):
    """The attempt could not be run to its end, and not by the script's fault."""

    type: Literal["runyard.run.attempt_lost.v1"] = "runyard.run.attempt_lost.v1"
    runner_id: str
    reason: Reason
    message: str


class RunRequeued(AttemptEvent):
    """The attempt before this one was lost; `attempt` is the one that follows."""

    type: Literal["runyard.run.requeued.v1"] = "runyard.run.requeued.v1"
    reason: Reason
    message: str


class RunEnd(AttemptEvent):
    """The end of a run, as the runner saw it; `runner_id` is null where no attempt existed.

    `output_sequence` is the last sequence of the attempt's output: logs are complete when it is stored.
    """

    runner_id: str | None = None
    exit_code: int | None = None
    message: str | None = None
    started_at: UtcTime | None = None
    ended_at: UtcTime
    usage: Usage | None = None
    output_sequence: int = Field(default=0, ge=0)


class RunSucceeded(RunEnd):
    """The script exited 0; without an artifact the reason is `no_artifact` and no version follows."""

    type: Literal["runyard.run.succeeded.v1"] = "runyard.run.succeeded.v1"
    reason: Literal[Reason.NO_ARTIFACT] | None = None
    artifact: Artifact | None = None


class RunFailed(RunEnd):
    """The run ended by the script's fault, or could not be run at all."""

    type: Literal["runyard.run.failed.v1"] = "runyard.run.failed.v1"
    reason: Reason


class RunCancelled(RunEnd):
    """The run was stopped: by somebody, or by its time limit."""

    type: Literal["runyard.run.cancelled.v1"] = "runyard.run.cancelled.v1"
    reason: Reason


class ModelVersionCreated(RunEvent):
    """The artifact of a run became a version of its model."""

    type: Literal["runyard.run.model_version_created.v1"] = "runyard.run.model_version_created.v1"
    tenant_id: str
    model_id: str
    version: int = Field(ge=1)
    artifact: Artifact


class RunRevoked(AttemptEvent):
    """The runner shall stop this attempt: it was replaced or cancelled."""

    type: Literal["runyard.run.revoked.v1"] = "runyard.run.revoked.v1"
    runner_id: str
    reason: Reason


class LogsAppended(AttemptEvent):
    """Lines of a script's output, in order. `dropped_lines` counts what a limit kept back before the first of them."""

    type: Literal["runyard.run.logs_appended.v1"] = "runyard.run.logs_appended.v1"
    lines: tuple[LogLine, ...]
    dropped_lines: int = Field(default=0, ge=0)


class MetricsReported(AttemptEvent):
    """Values that a script wrote to METRICS_PATH, or that metric definitions found in its log, in order."""

    type: Literal["runyard.run.metrics_reported.v1"] = "runyard.run.metrics_reported.v1"
    points: tuple[MetricPoint, ...]


class RunnerHeartbeat(Event):
    """A runner is there: what it has, and what it has accepted, is running and has ended lately."""

    type: Literal["runyard.runner.heartbeat.v1"] = "runyard.runner.heartbeat.v1"
    runner_id: str
    beat: int = Field(ge=1)
    capacity: Capacity
    runtimes: tuple[Runtime, ...]
    dispatch_partition: int = Field(ge=0)
    accepted: tuple[RunAttempt, ...] = ()
    running: tuple[RunAttempt, ...] = ()
    ended: tuple[RunAttempt, ...] = ()


class SchedulerBeacon(Event):
    """The leading scheduler hears itself: while these come back, a silent runner is silent, and not the broker."""

    type: Literal["runyard.scheduler.beacon.v1"] = "runyard.scheduler.beacon.v1"
    epoch: int = Field(ge=1)
    beat: int = Field(ge=1)


class SchedulerLoad(Event):
    """Queue and capacity as the leader sees them, so that the api can estimate when a run would start."""

    type: Literal["runyard.scheduler.load.v1"] = "runyard.scheduler.load.v1"
    epoch: int = Field(ge=1)
    runners: tuple[RunnerLoad, ...]
    occupied: tuple[Occupation, ...]
    queue: tuple[Demand, ...]
    unlisted_demands: int = Field(default=0, ge=0)
    typical_run_s: float | None = Field(default=None, ge=0)


class MessageRefused(Event):
    """A message could not be handled and was set aside, with its bytes, its reason and its position.

    Of a value above 512 KiB only the beginning is kept; size and digest are of the whole. `whole` is false where
    anything was left out, of value, key or headers: the record itself has it for as long as its topic keeps it.
    """

    type: Literal["runyard.dead_letter.refused.v1"] = "runyard.dead_letter.refused.v1"
    reason: str
    topic: str
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)
    consumer: str
    key_base64: str | None = None
    value_base64: str | None = None
    value_size_bytes: int | None = Field(default=None, ge=0)
    value_sha256: str | None = None
    headers_base64: tuple[tuple[str, str | None], ...] = ()
    whole: bool = Field(default=True, exclude_if=bool)


class DeadLetterRetried(Event):
    """An operator had a refused message published again, byte for byte; it now stands at another offset too."""

    type: Literal["runyard.dead_letter.retried.v1"] = "runyard.dead_letter.retried.v1"
    topic: str
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)
    new_offset: int = Field(ge=0)


RunFact = (
    TrainingRequested
    | RunWaiting
    | RunQueued
    | RunStarted
    | CancellationRequested
    | AttemptLost
    | RunRequeued
    | RunSucceeded
    | RunFailed
    | RunCancelled
    | ModelVersionCreated
)
"""What travels on `runyard.runs`."""

DispatchEvent = RunQueued | RunRevoked
OutputEvent = LogsAppended | MetricsReported
RunnersEvent = RunnerHeartbeat | SchedulerBeacon
DeadLettersEvent = MessageRefused | DeadLetterRetried

AnyEvent = Annotated[
    RunFact | RunRevoked | OutputEvent | RunnersEvent | SchedulerLoad | DeadLettersEvent,
    Field(discriminator="type"),
]

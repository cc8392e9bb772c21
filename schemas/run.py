"""The life of a run: the transition table as data, and `evolve`, the one function that folds events into a state.

Api, scheduler and auditor all fold with it, in the order of the run's partition on `runyard.runs`, which is the only
arbiter: the first end of the current attempt counts; whatever comes later, or belongs to a replaced attempt, is stale.
Folding never raises, whatever history says. `docs/run-lifecycle.md` shows the table for people.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from schemas.events import (
    AttemptLost,
    CancellationRequested,
    ModelVersionCreated,
    RunCancelled,
    RunEnd,
    RunFact,
    RunFailed,
    RunQueued,
    RunRequeued,
    RunStarted,
    RunSucceeded,
    RunWaiting,
    TrainingRequested,
)
from schemas.parts import Artifact, Part, TrainingSpec, Usage, UtcTime
from schemas.reason import Reason, RunStatus

Q, S, R = RunStatus.QUEUED, RunStatus.STARTING, RunStatus.RUNNING


@dataclass(frozen=True, slots=True)
class Transition:
    """A row of the lifecycle: an event moves a run from one of some statuses to another; None leaves it there."""

    event: type[RunFact]
    from_statuses: frozenset[RunStatus]
    to_status: RunStatus | None


TRANSITIONS: tuple[Transition, ...] = (
    Transition(RunWaiting, frozenset({Q}), None),
    Transition(RunQueued, frozenset({Q}), RunStatus.STARTING),
    Transition(RunStarted, frozenset({S}), RunStatus.RUNNING),
    Transition(CancellationRequested, frozenset({Q, S, R}), None),
    Transition(AttemptLost, frozenset({S, R}), None),
    Transition(RunRequeued, frozenset({S, R}), RunStatus.QUEUED),
    Transition(RunSucceeded, frozenset({S, R}), RunStatus.SUCCEEDED),
    Transition(RunFailed, frozenset({Q, S, R}), RunStatus.FAILED),
    Transition(RunCancelled, frozenset({Q, S, R}), RunStatus.CANCELLED),
    Transition(ModelVersionCreated, frozenset({RunStatus.SUCCEEDED}), None),
)
"""TrainingRequested is missing: it is what a run begins with, in `queued`."""

TRANSITION_OF: dict[type[RunFact], Transition] = {row.event: row for row in TRANSITIONS}


class Run(Part):
    """A run as its events tell it. `attempt` is the current one: the next to be assigned while the run is queued."""

    run_id: str
    tenant_id: str
    actor: str
    model_id: str
    spec: TrainingSpec
    requested_at: UtcTime
    status: RunStatus = RunStatus.QUEUED
    reason: Reason | None = None
    message: str | None = None
    estimated_start_at: UtcTime | None = None
    attempt: int = 1
    runner_id: str | None = None
    attempt_lost: bool = False
    cancellation_requested: bool = False
    started_at: UtcTime | None = None
    ended_at: UtcTime | None = None
    exit_code: int | None = None
    usage: Usage | None = None
    artifact: Artifact | None = None
    output_sequence: int | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Evolution:
    """What one event did to a run: the state after it, and why it was stale if it changed nothing."""

    run: Run | None
    stale: str | None = None


def evolve(run: Run | None, fact: RunFact, occurred_at: datetime) -> Evolution:
    """Fold one event into a run.

    Args:
        run: the state before; None when nothing is known of the run.
        fact: the event's data.
        occurred_at: the event's time attribute.

    Returns:
        The state after; the same state and a word why where the event has no effect.
    """
    if isinstance(fact, TrainingRequested):
        return Evolution(_begin(fact, occurred_at)) if run is None else Evolution(run, "already_requested")
    if run is None:
        return Evolution(None, "unknown_run")
    stale = _why_stale(run, fact)
    if stale is not None:
        return Evolution(run, stale)
    to_status = TRANSITION_OF[type(fact)].to_status or run.status
    return Evolution(run.model_copy(update={"status": to_status, **_changes(fact)}))


def end_of(run: Run) -> RunEnd | None:
    """Write the end of an ended run again, as it was when it was folded; None for a run that has not ended.

    What its runner told can so be told by whoever has folded it, when the broker that had it is lost.
    """
    fields = {"run_id": run.run_id, "attempt": run.attempt, "runner_id": run.runner_id, "reason": run.reason}
    fields |= {name: getattr(run, name) for name in _END_FIELDS}
    match run.status:
        case RunStatus.SUCCEEDED:
            return RunSucceeded.model_validate(fields | {"artifact": run.artifact})
        case RunStatus.FAILED:
            return RunFailed.model_validate(fields)
        case RunStatus.CANCELLED:
            return RunCancelled.model_validate(fields)
        case _:
            return None


def _begin(fact: TrainingRequested, occurred_at: datetime) -> Run:
    return Run(
        run_id=fact.run_id,
        tenant_id=fact.tenant_id,
        actor=fact.actor,
        model_id=fact.model_id,
        spec=fact.spec,
        requested_at=occurred_at,
        estimated_start_at=fact.estimated_start_at,
    )


def _why_stale(run: Run, fact: RunFact) -> str | None:
    if isinstance(fact, ModelVersionCreated) and run.version is not None:
        return "already_versioned"
    if run.status.is_end and not isinstance(fact, ModelVersionCreated):
        return "already_ended"
    if isinstance(fact, RunRequeued):
        if fact.attempt != run.attempt + 1:
            return "not_the_next_attempt"
    elif not isinstance(fact, CancellationRequested | ModelVersionCreated | TrainingRequested) and (
        fact.attempt != run.attempt
    ):
        return "replaced_attempt"
    if run.status not in TRANSITION_OF[type(fact)].from_statuses:
        return f"not_from_{run.status}"
    return None


def _changes(fact: RunFact) -> dict[str, object]:  # noqa: C901 - one flat case per event
    """Name the fields that an effective event sets, besides the status."""
    match fact:
        case RunWaiting():
            return _why(fact) | {"estimated_start_at": fact.estimated_start_at}
        case RunQueued():
            return {"runner_id": fact.runner_id, "reason": None, "message": None, "attempt_lost": False}
        case RunStarted():
            return {"runner_id": fact.runner_id, "started_at": fact.started_at}
        case CancellationRequested():
            return {"cancellation_requested": True}
        case AttemptLost():
            return _why(fact) | {"attempt_lost": True}
        case RunRequeued():
            nobody = {"runner_id": None, "started_at": None, "attempt_lost": False, "estimated_start_at": None}
            return _why(fact) | nobody | {"attempt": fact.attempt}
        case RunSucceeded():
            return _end(fact) | {"reason": fact.reason, "artifact": fact.artifact}
        case RunFailed() | RunCancelled():
            return _end(fact) | {"reason": fact.reason}
        case ModelVersionCreated():
            return {"version": fact.version}
        case TrainingRequested():
            return {}
        case _:
            assert_never(fact)


def _why(fact: RunWaiting | AttemptLost | RunRequeued) -> dict[str, object]:
    return {"reason": fact.reason, "message": _words(fact.message)}


_END_FIELDS = ("message", "started_at", "ended_at", "exit_code", "usage", "output_sequence")


def _end(fact: RunEnd) -> dict[str, object]:
    return {name: getattr(fact, name) for name in _END_FIELDS} | {"message": _words(fact.message)}


def _words(message: str | None) -> str | None:
    """Take NUL out of what somebody said in words: PostgreSQL stores no such text, and no end may be lost for it."""
    return None if message is None else message.replace("\x00", "\N{REPLACEMENT CHARACTER}")

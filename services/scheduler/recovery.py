"""What becomes of an attempt whose runner is gone, that its runner gave up, or that somebody wants stopped. Pure.

An attempt that was lost is followed by the next one, up to the limit; a run that shall be cancelled is never tried
again. Never decides that a runner is lost (`roster`), nor who runs the next attempt (`placement`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.parts import Compute
from schemas.reason import Reason


@dataclass(frozen=True, slots=True)
class Assignment:
    """An attempt that holds compute, with what the folds say about its run. `pending`: a decision is under way."""

    run_id: str
    attempt: int
    runner_id: str
    dispatch_partition: int | None
    compute: Compute
    timeout_s: int
    assigned_at: datetime
    pending: bool = False
    revoked: bool = False
    attempt_lost: bool = False
    cancellation_requested: bool = False
    reason: Reason | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Revoke:
    """The runner shall stop this attempt."""

    run_id: str
    attempt: int
    runner_id: str
    dispatch_partition: int | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class Requeue:
    """The attempt was lost; the next one follows. `revoke` tells a runner that may still be at it."""

    run_id: str
    attempt: int
    reason: Reason
    message: str
    revoke: Revoke | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The attempt was lost, and it was the last."""

    run_id: str
    attempt: int
    message: str
    revoke: Revoke | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """The run is over because somebody asked for it, and no runner is there to say so."""

    run_id: str
    attempt: int
    revoke: Revoke | None = None


Recovery = Revoke | Requeue | GiveUp | Cancel


def recover(assignments: Sequence[Assignment], lost_runner_ids: Collection[str], max_attempts: int) -> list[Recovery]:
    """Decide on every assigned attempt that cannot just go on."""
    decisions = (_recover(each, each.runner_id in lost_runner_ids, max_attempts) for each in assignments)
    return [decision for decision in decisions if decision is not None]


def _recover(assignment: Assignment, runner_lost: bool, max_attempts: int) -> Recovery | None:
    run_id, attempt = assignment.run_id, assignment.attempt
    if assignment.pending:
        return None
    if not (assignment.attempt_lost or runner_lost):
        stop = assignment.cancellation_requested and not assignment.revoked
        return _revocation(assignment, Reason.USER_REQUEST) if stop else None
    reason, message = _why(assignment)
    revoke = _revocation(assignment, reason) if runner_lost and not assignment.revoked else None
    if assignment.cancellation_requested:
        return Cancel(run_id, attempt, revoke)
    if attempt >= max_attempts:
        return GiveUp(run_id, attempt, f"lost {attempt} of {max_attempts} attempts; the last: {message}", revoke)
    return Requeue(run_id, attempt, reason, message, revoke)


def _why(assignment: Assignment) -> tuple[Reason, str]:
    """What the runner said if it gave the attempt up by itself, else that it is gone."""
    if assignment.attempt_lost and assignment.reason is not None:
        return assignment.reason, assignment.message or assignment.reason
    return Reason.RUNNER_LOST, f"runner {assignment.runner_id} was not heard for longer than its lease"


def _revocation(assignment: Assignment, reason: Reason) -> Revoke:
    return Revoke(assignment.run_id, assignment.attempt, assignment.runner_id, assignment.dispatch_partition, reason)

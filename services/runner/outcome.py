"""How an attempt ended: one pure decision from what is known of its container, its cause of death and its artifact.

A cause that was journaled wins over whatever the script did afterwards; an end that nobody can explain is a lost
attempt, never the script's fault. Nothing here reads a clock, a file or a setting.
"""

import signal
from dataclasses import dataclass
from enum import StrEnum

from schemas.parts import Artifact
from schemas.reason import Reason, RunStatus, status_of
from services.runner.artifact import Collected, Collection, Refused
from services.runner.frames import End

MESSAGE_CHARACTERS = 1024
"""Where a message is cut (SageMaker's limit for a failure reason)."""


class Cause(StrEnum):
    """Why an attempt was made to end; journaled before the signal is sent, and the first one counts."""

    USER_REQUEST = "user_request"
    TIMEOUT = "timeout"
    REPLACED = "replaced"
    DISK_QUOTA = "disk_quota"


@dataclass(frozen=True, slots=True)
class Exit:
    """How the container ended, as the engine tells it."""

    exit_code: int | None = None
    oom_killed: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of an attempt that is over: the shim's end record, the engine's words, the script's last words."""

    cause: Cause | None
    end: End | None
    exit: Exit
    last_error_line: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The run ended with this attempt; `reason` is None for a success with an artifact."""

    status: RunStatus
    reason: Reason | None = None
    message: str | None = None
    exit_code: int | None = None
    artifact: Artifact | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt could not be run to its end, by no fault of the script."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Replaced:
    """Another attempt runs instead of this one: nobody waits for its end, so nothing is told."""


Conclusion = Ended | Lost | Replaced


def conclude(evidence: Evidence, artifact: Collection) -> Conclusion:
    """Decide how an attempt ended.

    Args:
        evidence: all that is known but the artifact.
        artifact: what was collected; it only counts for a script that ended well by itself.
    """
    cause, end = evidence.cause, evidence.end
    if cause is Cause.REPLACED:
        return Replaced()
    exit_code = end.exit_code if end else None
    if cause is Cause.USER_REQUEST:
        return _ended(Reason.USER_REQUEST, "stopped on request", exit_code)
    if cause is Cause.DISK_QUOTA:
        return _ended(Reason.SCRIPT_ERROR, "disk quota exceeded: the script kept more than a run may", exit_code)
    if cause is Cause.TIMEOUT or (end and end.timed_out):
        return _ended(Reason.TIMEOUT, "stopped at its time limit", exit_code)
    if end is None:
        return _without_end_record(evidence.exit)
    return _by_itself(end, evidence, artifact)


def _without_end_record(exit_: Exit) -> Conclusion:
    if exit_.oom_killed:
        return _ended(Reason.OUT_OF_MEMORY, "the run used more memory than it asked for", None)
    return Lost(Reason.CONTAINER_LOST, f"the container ended without an end record (exit code {exit_.exit_code})")


def _by_itself(end: End, evidence: Evidence, artifact: Collection) -> Conclusion:
    if end.error is not None:
        return _ended(Reason.SANDBOX_REFUSED, f"the script could not be started: {end.error}", None)
    if end.output_quota_exceeded:
        return _ended(Reason.LOG_QUOTA_EXCEEDED, "the script wrote more output than a run may", end.exit_code)
    if end.terminated:
        return Lost(Reason.CONTAINER_LOST, "somebody else stopped the container")
    if end.exit_code != 0:
        return _failed_script(end, evidence)
    return _good_script(artifact)


def _failed_script(end: End, evidence: Evidence) -> Ended:
    if end.oom_kills or evidence.exit.oom_killed:
        return _ended(Reason.OUT_OF_MEMORY, "the run used more memory than it asked for", end.exit_code)
    message = end.failure or _last_words(end, evidence.last_error_line)
    return _ended(Reason.SCRIPT_ERROR, message, end.exit_code)


def _good_script(artifact: Collection) -> Ended:
    if isinstance(artifact, Refused):
        return _ended(Reason.ARTIFACT_REFUSED, artifact.reason, 0)
    if isinstance(artifact, Collected):
        made = Artifact(kind=artifact.kind, sha256=artifact.sha256, size_bytes=artifact.size_bytes)
        return Ended(RunStatus.SUCCEEDED, exit_code=0, artifact=made)
    return _ended(Reason.NO_ARTIFACT, "the script wrote nothing to MODEL_OUTPUT_PATH", 0)


def _last_words(end: End, last_error_line: str | None) -> str:
    how = f"exit code {end.exit_code}" if end.signal is None else f"killed by {_signal_name(end.signal)}"
    return f"{how}: {last_error_line}" if last_error_line else how


def _signal_name(number: int) -> str:
    """Name a signal.

    >>> _signal_name(11), _signal_name(63)
    ('SIGSEGV', 'signal 63')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _ended(reason: Reason, message: str, exit_code: int | None) -> Ended:
    return Ended(status_of(reason), reason, message[:MESSAGE_CHARACTERS], exit_code)

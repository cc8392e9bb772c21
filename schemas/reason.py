"""Statuses of a run, and the reasons behind them: data, and one total function from reason to status.

A reason is a stable code that programs may switch on; the words for people travel beside it as `message`.
"""

from enum import StrEnum


class RunStatus(StrEnum):
    """What a client sees of a run's place in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        """Whether nothing follows."""
        return self in ENDS


ENDS = frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED})


class Reason(StrEnum):
    """Why a run waits, why an attempt was lost, or why a run ended."""

    # queued: why it waits
    NO_RUNNER = "no_runner"
    NO_GPU_RUNNER = "no_gpu_runner"
    NO_RUNNER_LARGE_ENOUGH = "no_runner_large_enough"
    NO_RUNNER_WITH_RUNTIME = "no_runner_with_runtime"
    WAITING_FOR_CAPACITY = "waiting_for_capacity"
    # queued again: why an attempt was lost, by no fault of the script
    RUNNER_LOST = "runner_lost"
    CONTAINER_LOST = "container_lost"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    FETCH_FAILED = "fetch_failed"
    DISK_FULL = "disk_full"
    UPLOAD_FAILED = "upload_failed"
    # succeeded
    NO_ARTIFACT = "no_artifact"
    # failed
    SCRIPT_ERROR = "script_error"
    OUT_OF_MEMORY = "out_of_memory"
    ARTIFACT_REFUSED = "artifact_refused"
    LOG_QUOTA_EXCEEDED = "log_quota_exceeded"
    SANDBOX_REFUSED = "sandbox_refused"
    REQUIREMENTS_FAILED = "requirements_failed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    # cancelled
    TIMEOUT = "timeout"
    USER_REQUEST = "user_request"


WAITING_REASONS = frozenset(
    {
        Reason.NO_RUNNER,
        Reason.NO_GPU_RUNNER,
        Reason.NO_RUNNER_LARGE_ENOUGH,
        Reason.NO_RUNNER_WITH_RUNTIME,
        Reason.WAITING_FOR_CAPACITY,
    }
)

LOSS_REASONS = frozenset(
    {
        Reason.RUNNER_LOST,
        Reason.CONTAINER_LOST,
        Reason.ENGINE_UNAVAILABLE,
        Reason.FETCH_FAILED,
        Reason.DISK_FULL,
        Reason.UPLOAD_FAILED,
    }
)

STATUS_OF_REASON: dict[Reason, RunStatus] = {
    **dict.fromkeys(WAITING_REASONS | LOSS_REASONS, RunStatus.QUEUED),
    Reason.NO_ARTIFACT: RunStatus.SUCCEEDED,
    Reason.SCRIPT_ERROR: RunStatus.FAILED,
    Reason.OUT_OF_MEMORY: RunStatus.FAILED,
    Reason.ARTIFACT_REFUSED: RunStatus.FAILED,
    Reason.LOG_QUOTA_EXCEEDED: RunStatus.FAILED,
    Reason.SANDBOX_REFUSED: RunStatus.FAILED,
    Reason.REQUIREMENTS_FAILED: RunStatus.FAILED,
    Reason.ATTEMPTS_EXHAUSTED: RunStatus.FAILED,
    Reason.TIMEOUT: RunStatus.CANCELLED,
    Reason.USER_REQUEST: RunStatus.CANCELLED,
}


def status_of(reason: Reason) -> RunStatus:
    """Tell the one status that a reason belongs to; total over `Reason`.

    >>> status_of(Reason.TIMEOUT)
    <RunStatus.CANCELLED: 'cancelled'>
    """
    return STATUS_OF_REASON[reason]

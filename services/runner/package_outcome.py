"""How an install ended: one pure decision from the shim's end record, the engine's words, the proxy's and pip's.

An index that does not answer is nobody's fault: the attempt is lost and another one may do better. What pip refuses, or
what takes more than it may, is for the script's owner to mend. Nothing here reads a clock, a file or a setting.
"""

from dataclasses import dataclass, field

from schemas.reason import Reason
from services.runner.frames import End
from services.runner.outcome import MESSAGE_CHARACTERS, Lost
from services.runner.package_installer import INSTALLED, UNREACHABLE
from services.runner.requirements import RequirementsFailed
from services.runner.seccomp import profile

WORDS = 3
"""How many of pip's errors stand in the message; the log has all that it said last."""
DISK_FULL = "[Errno 28]"
"""As Python tells of ENOSPC: of the runner's disk, or of the container's own /tmp, which is the build's to fill."""


@dataclass(frozen=True, slots=True)
class InstallLimits:
    """What every install gets."""

    timeout_s: float
    max_bytes: int
    memory_bytes: int
    builds_allowed: bool
    oci_runtime: str | None
    seccomp_profile: str = field(default_factory=profile)


@dataclass(frozen=True, slots=True)
class InstallEvidence:
    """What is known of an install that is over; `disk_short` says that the runner's disk has no room for one."""

    end: End | None
    limits: InstallLimits
    oom_killed: bool = False
    too_large: bool = False
    disk_short: bool = False
    refused: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


def judge(evidence: InstallEvidence) -> Lost | RequirementsFailed | None:
    """Decide whether an install went well (None), whose fault it is if not, and what is said about it; pure."""
    end, limits = evidence.end, evidence.limits
    if evidence.too_large:
        return _failed(evidence, f"they take more than {limits.max_bytes} bytes")
    if evidence.oom_killed or (end is not None and end.exit_code != INSTALLED and end.oom_kills > 0):
        return _failed(evidence, f"pip needs more than {limits.memory_bytes} bytes of memory")
    if end is None:
        return Lost(Reason.CONTAINER_LOST, "the install container ended without an end record")
    if end.exit_code == INSTALLED:
        return None
    if evidence.disk_short and any(DISK_FULL in line for line in evidence.lines):
        return Lost(Reason.DISK_FULL, "the runner's disk is full")
    if evidence.unreachable or (end.exit_code == UNREACHABLE and not evidence.refused):
        return Lost(
            Reason.FETCH_FAILED, f"the package index does not answer: {_last_words(evidence)}"[:MESSAGE_CHARACTERS]
        )
    return _not_installed(end, evidence)


def _not_installed(end: End, evidence: InstallEvidence) -> Lost | RequirementsFailed:
    if end.timed_out:
        return _failed(evidence, f"not within {evidence.limits.timeout_s:.0f} s")
    if end.error is not None or end.terminated:
        return Lost(Reason.CONTAINER_LOST, f"the install container was stopped: {end.error or 'by somebody else'}")
    return _failed(evidence, _last_words(evidence))


def _failed(evidence: InstallEvidence, why: str) -> RequirementsFailed:
    refused = tuple(f"[runyard] refused: {reason}" for reason in evidence.refused)
    return RequirementsFailed(
        f"the requirements could not be installed: {why}",
        ("[runyard] the requirements could not be installed; pip said:", *evidence.lines, *refused),
    )


def _last_words(evidence: InstallEvidence) -> str:
    """Pick what matters of what pip said: its errors, else its last line."""
    errors = [line for line in evidence.lines if line.lower().startswith("error:")]
    words = [*errors[-WORDS:], *evidence.unreachable, *evidence.refused] or [*evidence.lines[-1:]]
    return " ".join(words) or "pip said nothing"

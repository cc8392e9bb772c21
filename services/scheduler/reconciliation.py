"""Comparing what a runner says it has with what it was given, heartbeat by heartbeat. Pure.

A difference may be a message under way, so only what stands in several heartbeats in a row is acted upon, and then by
saying the same thing again. Never changes what was decided.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from schemas.events import RunnerHeartbeat
from schemas.parts import RunAttempt
from services.scheduler.recovery import Assignment

PATIENCE_BEATS = 3
"""A difference in so many heartbeats in a row has stood for two intervals: it is no message under way."""


@dataclass(frozen=True, slots=True)
class Differences:
    """Attempts that a runner should have and does not, and that it has and should not (or is to stop)."""

    missing: frozenset[RunAttempt] = frozenset()
    unwanted: frozenset[RunAttempt] = frozenset()


def differences(heartbeat: RunnerHeartbeat, assignments: Collection[Assignment]) -> Differences:
    """Compare a heartbeat with the runner's own open assignments.

    An attempt that is listed as ended while no end is known is missing, too: the same RunQueued makes its runner
    publish the end again.
    """
    held = frozenset(heartbeat.accepted + heartbeat.running)
    settled = [each for each in assignments if not (each.pending or each.attempt_lost)]
    wanted = {RunAttempt(run_id=each.run_id, attempt=each.attempt) for each in assignments if not each.revoked}
    return Differences(
        missing=frozenset(RunAttempt(run_id=each.run_id, attempt=each.attempt) for each in settled) - held,
        unwanted=held - wanted,
    )


def outlasting(counts: Mapping[RunAttempt, int], seen: Collection[RunAttempt]) -> dict[RunAttempt, int]:
    """Count in how many heartbeats in a row each difference has stood; one that was acted upon begins again."""
    return {each: counts.get(each, 0) % PATIENCE_BEATS + 1 for each in seen}


def due(counts: Mapping[RunAttempt, int]) -> frozenset[RunAttempt]:
    """Tell which differences have stood long enough to act upon."""
    return frozenset(each for each, count in counts.items() if count == PATIENCE_BEATS)

"""Folding `runyard.runs` into what the scheduler knows of each run. Pure.

A decision of the scheduler itself counts from its place on the topic like everybody's events: until it comes back the
run is `pending`, and nothing else is decided about it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from schemas.cloudevents import CloudEvent
from schemas.events import RunFact
from schemas.run import Run, evolve


@dataclass(frozen=True, slots=True)
class FoldedRun:
    """A run as the topic tells it, the decision that has not come back yet, and how often it was told to wait."""

    run: Run
    pending: UUID | None = None
    told_count: int = 0
    traceparent: str | None = None


def fold(known: Mapping[str, FoldedRun], events: Iterable[CloudEvent]) -> dict[str, FoldedRun]:
    """Fold events, in order, into the runs that are known; returns those that changed.

    A decision that comes back is not pending any more, whether it had an effect or was stale.
    """
    runs = dict(known)
    for event in events:
        if not isinstance(event.data, RunFact) or event.data.run_id not in runs:
            continue
        before = runs[event.data.run_id]
        after = evolve(before.run, event.data, event.time).run
        pending = None if before.pending == event.id else before.pending
        runs[event.data.run_id] = replace(before, run=after or before.run, pending=pending)
    return {run_id: after for run_id, after in runs.items() if after != known[run_id]}


def begun(event: CloudEvent) -> FoldedRun | None:
    """Make the run that a TrainingRequested begins; None for other events."""
    if not isinstance(event.data, RunFact):
        return None
    run = evolve(None, event.data, event.time).run
    return FoldedRun(run, traceparent=event.traceparent) if run else None


def duration_s(run: Run) -> float | None:
    """Tell how long an ended run ran, by its runner's clock, within its time limit; None if it never did."""
    if not run.status.is_end or run.started_at is None or run.ended_at is None:
        return None
    return min(max(0.0, (run.ended_at - run.started_at).total_seconds()), float(run.spec.timeout_s))

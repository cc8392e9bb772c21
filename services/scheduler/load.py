"""What the leader tells the world about queue and capacity. Pure.

Expected ends are guesses for estimates: nothing is ever decided by them.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from schemas.estimate import subtract
from schemas.events import SchedulerLoad
from schemas.parts import Capacity, Compute, Demand, Occupation, RunnerLoad
from services.scheduler.placement import FORECAST_RUNS, Assign, WaitingRun
from services.scheduler.recovery import Assignment


def occupation(assignment: Assignment, typical_run_s: float | None, now: datetime) -> Occupation:
    """Tell when an attempt may give its compute back: after a typical run, or, once that has passed, at its limit."""
    limit = assignment.assigned_at + timedelta(seconds=assignment.timeout_s)
    typical = assignment.assigned_at + timedelta(seconds=typical_run_s or 0)
    expected = min(typical, limit) if typical > now else limit
    return Occupation(runner_id=assignment.runner_id, compute=assignment.compute, expected_end_at=expected)


def load_after(
    before: SchedulerLoad, queue: Sequence[WaitingRun], assigned: Sequence[Assign], now: datetime
) -> SchedulerLoad:
    """Take what was assigned in a round out of the queue and into the runners; what is listed is bounded.

    Args:
        before: runners and occupations as they were before the round; its queue is ignored.
        queue: all waiting runs of the round, in order.
        assigned: the round's decisions.
        now: aware UTC.
    """
    runner_of = {each.run_id: each.runner_id for each in assigned}
    taken: dict[str, list[Compute]] = {}
    occupied = list(before.occupied)
    for run in queue:
        if runner_id := runner_of.get(run.run_id):
            taken.setdefault(runner_id, []).append(run.compute)
            end = now + timedelta(seconds=run.expected_s)
            occupied.append(Occupation(runner_id=runner_id, compute=run.compute, expected_end_at=end))
    waiting = [run for run in queue if run.run_id not in runner_of]
    return before.model_copy(
        update={
            "runners": tuple(_without(runner, taken.get(runner.runner_id, ())) for runner in before.runners),
            "occupied": tuple(occupied),
            "queue": tuple(_demand(run) for run in waiting[:FORECAST_RUNS]),
            "unlisted_demands": max(0, len(waiting) - FORECAST_RUNS),
        }
    )


def _without(runner: RunnerLoad, computes: Sequence[Compute]) -> RunnerLoad:
    free: Capacity = runner.free
    for compute in computes:
        free = subtract(free, compute)
    return runner.model_copy(update={"free": free})


def _demand(run: WaitingRun) -> Demand:
    return Demand(compute=run.compute, runtime=run.runtime, expected_s=run.expected_s)

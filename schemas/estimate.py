"""How a SchedulerLoad is to be read: the estimate of when a run would start. Pure.

The queue is played forward, first come first served, over the times at which running runs are expected to give their
compute back. An estimate is a promise of nothing; null is the honest answer where it cannot be known.
"""

import heapq
from collections.abc import Sequence
from datetime import datetime, timedelta

from schemas.events import SchedulerLoad
from schemas.parts import Capacity, Compute, Demand, RunnerLoad, Runtime

START_DELAY = timedelta(seconds=1)
"""From assignment to the script's first line on an idle machine, rounded up (benchmarks/)."""


def estimate_start(load: SchedulerLoad | None, demand: Demand, now: datetime) -> datetime | None:
    """Estimate when a run that is submitted now would start.

    Args:
        load: what the scheduler last published; None when nothing was heard.
        demand: what the run asks for.
        now: aware UTC.

    Returns:
        A time not before `now`, or None: nothing heard, no runner that could ever take it, a queue too long to list, or
        a time that no calendar has.
    """
    try:
        return _estimate(load, demand, now)
    except OverflowError:
        return None


def _estimate(load: SchedulerLoad | None, demand: Demand, now: datetime) -> datetime | None:
    if load is None or load.unlisted_demands:
        return None
    if not any(can_ever_take(runner, demand.compute, demand.runtime) for runner in load.runners):
        return None
    free = {runner.runner_id: runner.free for runner in load.runners}
    ends = [(max(o.expected_end_at, now), i, o.runner_id, o.compute) for i, o in enumerate(load.occupied)]
    heapq.heapify(ends)
    at = now
    for place, waiting in enumerate((*load.queue, demand)):
        if not any(can_ever_take(runner, waiting.compute, waiting.runtime) for runner in load.runners):
            continue
        runner_id = _first_fit(load.runners, free, waiting)
        while runner_id is None:
            if not ends:
                return None
            at, _, released, compute = heapq.heappop(ends)
            if released in free:
                free[released] = add(free[released], compute)
            runner_id = _first_fit(load.runners, free, waiting)
        free[runner_id] = subtract(free[runner_id], waiting.compute)
        end = at + timedelta(seconds=waiting.expected_s)
        heapq.heappush(ends, (end, len(load.occupied) + place, runner_id, waiting.compute))
    return at + START_DELAY


def can_ever_take(runner: RunnerLoad, compute: Compute, runtime: Runtime) -> bool:
    """Whether an idle runner of that kind could take a run."""
    return runtime in runner.runtimes and fits(runner.capacity, compute)


def fits(room: Capacity, compute: Compute) -> bool:
    """Whether a run's compute fits into some room; CPU, memory and GPU are hard limits."""
    return compute.cpu_cores <= room.cpu_cores and compute.memory_gb <= room.memory_gb and int(compute.gpu) <= room.gpus


def subtract(room: Capacity, compute: Compute) -> Capacity:
    """Take a run's compute out of some room, never below nothing."""
    return Capacity(
        cpu_cores=max(0, room.cpu_cores - compute.cpu_cores),
        memory_gb=max(0, room.memory_gb - compute.memory_gb),
        gpus=max(0, room.gpus - int(compute.gpu)),
    )


def add(room: Capacity, compute: Compute) -> Capacity:
    """Give a run's compute back to some room."""
    return Capacity(
        cpu_cores=room.cpu_cores + compute.cpu_cores,
        memory_gb=room.memory_gb + compute.memory_gb,
        gpus=room.gpus + int(compute.gpu),
    )


def _first_fit(runners: Sequence[RunnerLoad], free: dict[str, Capacity], demand: Demand) -> str | None:
    for runner in runners:
        if can_ever_take(runner, demand.compute, demand.runtime) and fits(free[runner.runner_id], demand.compute):
            return runner.runner_id
    return None

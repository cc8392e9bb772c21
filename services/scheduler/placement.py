"""Which waiting run goes to which runner, and what the others are told. Pure.

First come, first served among the runs that some connected runner could ever take; the others are told why and hold
nobody up. CPU, memory, GPU and runtime are hard limits. Never looks at a clock, never writes anything.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from schemas.estimate import START_DELAY, add, can_ever_take, fits, subtract
from schemas.parts import Compute, Occupation, RunnerLoad, Runtime
from schemas.reason import Reason

FORECAST_RUNS = 100
"""So many waiting runs get an estimate; behind them it would be a guess on guesses."""

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Told:
    """What was last said about why a run waits."""

    reason: Reason
    estimated_start_at: datetime | None


@dataclass(frozen=True, slots=True)
class WaitingRun:
    """A run in the queue. The runner that lost its last attempt is taken only if no other has room."""

    run_id: str
    attempt: int
    compute: Compute
    runtime: Runtime
    expected_s: float
    avoid_runner_id: str | None = None
    told: Told | None = None


@dataclass(frozen=True, slots=True)
class Assign:
    """The runner shall run this attempt."""

    run_id: str
    attempt: int
    runner_id: str


@dataclass(frozen=True, slots=True)
class Wait:
    """The run cannot start now; the estimate is rounded up to the minute."""

    run_id: str
    attempt: int
    reason: Reason
    message: str
    estimated_start_at: datetime | None = None


Decision = Assign | Wait


def place(
    queue: Sequence[WaitingRun], runners: Sequence[RunnerLoad], occupied: Sequence[Occupation], now: datetime
) -> list[Decision]:
    """Decide on every run of the queue, in its order.

    Args:
        queue: in the order of arrival.
        runners: the connected ones, with what is not assigned.
        occupied: what is assigned, and when it is expected back; for the estimates.
        now: aware UTC.
    """
    play = _Play(runners, occupied, now)
    able_for: dict[tuple[Compute, Runtime], list[RunnerLoad]] = {}
    decisions: list[Decision] = []
    ahead = 0
    for run in queue:
        shape = (run.compute, run.runtime)
        if shape not in able_for:
            able_for[shape] = [runner for runner in runners if can_ever_take(runner, *shape)]
        able = able_for[shape]
        if not able:
            decisions.append(_nobody_can(run, runners))
        elif ahead == 0 and (runner_id := play.room_for(run, able)) is not None:
            play.take(run, runner_id)
            decisions.append(Assign(run.run_id, run.attempt, runner_id))
        else:
            start = play.wait_for(run, able) if ahead < FORECAST_RUNS else None
            decisions.append(_later(run, ahead, start))
            ahead += 1
    return decisions


def is_news(wait: Wait, told: Told | None) -> bool:
    """Whether a wait says something that the last RunWaiting did not: another reason, or another estimate."""
    if told is None or told.reason != wait.reason:
        return True
    before, after = told.estimated_start_at, wait.estimated_start_at
    if before is None or after is None:
        return before is not after
    return abs(after - before) > MINUTE


class _Play:
    """The runners' room, played forward over the ends that are expected."""

    def __init__(self, runners: Sequence[RunnerLoad], occupied: Sequence[Occupation], now: datetime) -> None:
        self._at = now
        self._free = {runner.runner_id: runner.free for runner in runners}
        self._ends = [(max(o.expected_end_at, now), i, o.runner_id, o.compute) for i, o in enumerate(occupied)]
        self._count = len(occupied)
        heapq.heapify(self._ends)

    def room_for(self, run: WaitingRun, able: Sequence[RunnerLoad]) -> str | None:
        """Choose the runner with the least room that is enough: GPUs and large gaps stay for those who need them."""
        fitting = [runner for runner in able if fits(self._free[runner.runner_id], run.compute)]
        best = min(fitting, key=lambda runner: self._preference(run, runner), default=None)
        return best.runner_id if best else None

    def take(self, run: WaitingRun, runner_id: str) -> None:
        """Let a run have its compute from now until its expected end."""
        self._free[runner_id] = subtract(self._free[runner_id], run.compute)
        self._count += 1
        end = self._at + timedelta(seconds=run.expected_s)
        heapq.heappush(self._ends, (end, self._count, runner_id, run.compute))

    def wait_for(self, run: WaitingRun, able: Sequence[RunnerLoad]) -> datetime | None:
        """Play on until there is room, and take it; None when no end is expected that makes any."""
        while (runner_id := self.room_for(run, able)) is None:
            if not self._ends:
                return None
            self._at, _, released, compute = heapq.heappop(self._ends)
            if released in self._free:
                self._free[released] = add(self._free[released], compute)
        self.take(run, runner_id)
        return self._at + START_DELAY

    def _preference(self, run: WaitingRun, runner: RunnerLoad) -> tuple[bool, int, int, int, str]:
        free = self._free[runner.runner_id]
        avoided = runner.runner_id == run.avoid_runner_id
        return (avoided, runner.capacity.gpus, free.cpu_cores, free.memory_gb, runner.runner_id)


def _nobody_can(run: WaitingRun, runners: Sequence[RunnerLoad]) -> Wait:
    """Say why no connected runner could ever take a run: the first of its demands that nobody meets."""
    asked, left = run.compute, list(runners)
    if not left:
        return _wait(run, Reason.NO_RUNNER, f"asks for {_size(asked)}; no runner is connected")
    if asked.gpu:
        left = [runner for runner in left if runner.capacity.gpus]
        if not left:
            return _wait(run, Reason.NO_GPU_RUNNER, "asks for a GPU; no connected runner has one")
    runtimes = sorted({runtime for runner in left for runtime in runner.runtimes})
    left = [runner for runner in left if run.runtime in runner.runtimes]
    if not left:
        have = f"the connected runners have {', '.join(runtimes) or 'no runtime'}"
        return _wait(run, Reason.NO_RUNNER_WITH_RUNTIME, f"asks for {run.runtime}; {have}")
    largest = max(left, key=lambda runner: _share(runner, asked)).capacity
    has = f"{_cores(largest.cpu_cores, 'core')} and {largest.memory_gb} GB"
    message = f"asks for {_size(asked)}; the largest connected runner has {has}"
    return _wait(run, Reason.NO_RUNNER_LARGE_ENOUGH, message)


def _wait(run: WaitingRun, reason: Reason, message: str) -> Wait:
    return Wait(run.run_id, run.attempt, reason, message)


def _later(run: WaitingRun, ahead: int, start: datetime | None) -> Wait:
    message = f"asks for {_size(run.compute)}; the runners that have it are busy"
    if ahead:
        message += f", and {ahead} {'run waits' if ahead == 1 else 'runs wait'} before it"
    estimate = None if start is None else _up_to_the_minute(start)
    return Wait(run.run_id, run.attempt, Reason.WAITING_FOR_CAPACITY, message, estimate)


def _share(runner: RunnerLoad, asked: Compute) -> tuple[float, int, int]:
    """Order runners by how much of what is asked they have."""
    cores, memory = runner.capacity.cpu_cores, runner.capacity.memory_gb
    return (min(1, cores / asked.cpu_cores) + min(1, memory / asked.memory_gb), cores, memory)


def _size(compute: Compute) -> str:
    gpu = ", with a GPU" if compute.gpu else ""
    return f"{_cores(compute.cpu_cores, 'CPU core')} and {compute.memory_gb} GB{gpu}"


def _cores(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _up_to_the_minute(moment: datetime) -> datetime:
    whole = moment.astimezone(UTC).replace(second=0, microsecond=0)
    return whole if whole == moment else whole + MINUTE

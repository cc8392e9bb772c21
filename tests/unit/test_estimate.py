"""Protects the estimate of a start: played forward over the queue, and null where nothing can be known."""

from datetime import UTC, datetime, timedelta

from schemas.estimate import START_DELAY, add, estimate_start, fits, subtract
from schemas.events import SchedulerLoad
from schemas.parts import Capacity, Compute, Demand, Occupation, RunnerLoad

NOW = datetime(2026, 3, 13, 16, 10, tzinfo=UTC)
WHOLE = Capacity(cpu_cores=4, memory_gb=16, gpus=0)
NOTHING = Capacity(cpu_cores=0, memory_gb=0, gpus=0)
ALL = Compute(cpu_cores=4, memory_gb=16)


def demand(compute: Compute = ALL, expected_s: float = 100) -> Demand:
    return Demand(compute=compute, runtime="python3.11", expected_s=expected_s)


def load(
    free: Capacity, *, ends_in_s: float | None = None, queue: tuple[Demand, ...] = (), unlisted: int = 0
) -> SchedulerLoad:
    runner = RunnerLoad(runner_id="a", capacity=WHOLE, free=free, runtimes=("python3.11",))
    busy = ()
    if ends_in_s is not None:
        busy = (Occupation(runner_id="a", compute=ALL, expected_end_at=NOW + timedelta(seconds=ends_in_s)),)
    return SchedulerLoad(epoch=1, runners=(runner,), occupied=busy, queue=queue, unlisted_demands=unlisted)


def test_a_free_runner_takes_a_run_at_once() -> None:
    assert estimate_start(load(WHOLE), demand(), NOW) == NOW + START_DELAY


def test_a_busy_runner_takes_it_when_it_is_free_again() -> None:
    assert estimate_start(load(NOTHING, ends_in_s=50), demand(), NOW) == NOW + timedelta(seconds=50) + START_DELAY


def test_an_end_that_is_overdue_is_expected_now() -> None:
    assert estimate_start(load(NOTHING, ends_in_s=-50), demand(), NOW) == NOW + START_DELAY


def test_those_who_wait_go_first_and_take_their_time() -> None:
    estimated = estimate_start(load(NOTHING, ends_in_s=50, queue=(demand(), demand())), demand(), NOW)
    assert estimated == NOW + timedelta(seconds=250) + START_DELAY


def test_those_whom_nobody_can_take_hold_nobody_up() -> None:
    impossible = demand(Compute(cpu_cores=4, memory_gb=16, gpu=True))
    assert estimate_start(load(WHOLE, queue=(impossible,)), demand(), NOW) == NOW + START_DELAY


def test_nothing_can_be_known_without_a_load_a_fitting_runner_or_the_whole_queue() -> None:
    assert estimate_start(None, demand(), NOW) is None
    assert estimate_start(load(WHOLE), demand(Compute(cpu_cores=1, memory_gb=1, gpu=True)), NOW) is None
    assert estimate_start(load(WHOLE), demand(Compute(cpu_cores=5, memory_gb=1)), NOW) is None
    assert estimate_start(load(WHOLE, unlisted=1), demand(), NOW) is None
    assert estimate_start(load(NOTHING), demand(), NOW) is None


def test_a_time_that_no_calendar_has_cannot_be_known() -> None:
    for_ever = load(WHOLE, queue=(demand(expected_s=1e300),))
    assert estimate_start(for_ever, demand(), NOW) is None


def test_compute_fits_exactly_and_not_one_more() -> None:
    assert fits(WHOLE, ALL)
    assert not fits(WHOLE, Compute(cpu_cores=5, memory_gb=16))
    assert not fits(WHOLE, Compute(cpu_cores=4, memory_gb=17))
    assert not fits(WHOLE, Compute(cpu_cores=4, memory_gb=16, gpu=True))


def test_what_is_taken_comes_back() -> None:
    assert subtract(WHOLE, ALL) == NOTHING
    assert add(subtract(WHOLE, ALL), ALL) == WHOLE

"""Protects placement: first come first served, hard limits that are never passed, and true words for those who wait."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.estimate import START_DELAY
from schemas.parts import Capacity, Compute, Occupation, RunnerLoad, Runtime
from schemas.reason import Reason
from services.scheduler.placement import FORECAST_RUNS, Assign, Decision, Told, Wait, WaitingRun, is_news, place

NOW = datetime(2026, 3, 13, 16, 10, tzinfo=UTC)
PY: tuple[Runtime, ...] = ("python3.11",)
WHOLE = Capacity(cpu_cores=4, memory_gb=16)
NOTHING = Capacity(cpu_cores=0, memory_gb=0)
HALF = Compute(cpu_cores=2, memory_gb=8)
ALL = Compute(cpu_cores=4, memory_gb=16)


def runner(
    name: str, capacity: Capacity = WHOLE, free: Capacity | None = None, runtimes: tuple[Runtime, ...] = PY
) -> RunnerLoad:
    return RunnerLoad(runner_id=name, capacity=capacity, free=capacity if free is None else free, runtimes=runtimes)


def run(
    name: str, compute: Compute = HALF, *, runtime: Runtime = "python3.11", expected_s: float = 600, avoid: str = ""
) -> WaitingRun:
    return WaitingRun(name, 1, compute, runtime, expected_s, avoid or None)


def busy(seconds: float, compute: Compute = ALL, name: str = "a") -> Occupation:
    return Occupation(runner_id=name, compute=compute, expected_end_at=NOW + timedelta(seconds=seconds))


def at_minute(minute: int) -> datetime:
    return NOW + timedelta(minutes=minute)


def assigned(decisions: list[Decision]) -> dict[str, str]:
    return {each.run_id: each.runner_id for each in decisions if isinstance(each, Assign)}


def waits(decisions: list[Decision]) -> dict[str, Wait]:
    return {each.run_id: each for each in decisions if isinstance(each, Wait)}


# -- order


def test_runs_are_placed_in_the_order_of_the_queue_until_the_room_is_taken() -> None:
    decisions = place([run("1"), run("2"), run("3")], [runner("a")], [], NOW)
    assert decisions[:2] == [Assign("1", 1, "a"), Assign("2", 1, "a")]
    assert [each.run_id for each in decisions] == ["1", "2", "3"]
    assert isinstance(decisions[2], Wait)


def test_a_small_run_does_not_overtake_the_head_that_waits() -> None:
    decisions = place(
        [run("large", ALL), run("small", HALF)], [runner("a", free=Capacity(cpu_cores=2, memory_gb=8))], [], NOW
    )
    assert assigned(decisions) == {}


@pytest.mark.parametrize(
    "impossible",
    [
        run("never", Compute(cpu_cores=1, memory_gb=1, gpu=True)),
        run("never", Compute(cpu_cores=5, memory_gb=1)),
        run("never", runtime="python3.12"),
    ],
    ids=["gpu", "size", "runtime"],
)
def test_a_run_that_nobody_could_ever_take_is_never_the_head(impossible: WaitingRun) -> None:
    decisions = place([impossible, run("1"), run("2"), run("3")], [runner("a")], [], NOW)
    assert assigned(decisions) == {"1": "a", "2": "a"}
    assert "before it" not in waits(decisions)["3"].message


def test_a_run_goes_where_the_least_room_is_left_that_is_enough() -> None:
    tight = runner("tight", free=Capacity(cpu_cores=2, memory_gb=8))
    assert assigned(place([run("1")], [runner("empty"), tight], [], NOW)) == {"1": "tight"}


def test_a_run_without_a_gpu_leaves_the_gpus_to_those_who_need_them() -> None:
    with_gpu = runner("a-gpu", Capacity(cpu_cores=2, memory_gb=8, gpus=1))
    assert assigned(place([run("1")], [with_gpu, runner("plain")], [], NOW)) == {"1": "plain"}


def test_the_runner_that_lost_the_last_attempt_is_taken_only_if_no_other_has_room() -> None:
    again = run("1", ALL, avoid="a")
    assert assigned(place([again], [runner("a"), runner("b")], [], NOW)) == {"1": "b"}
    assert assigned(place([again], [runner("a"), runner("b", free=NOTHING)], [], NOW)) == {"1": "a"}


def test_the_attempt_of_the_queue_is_the_one_that_is_decided_on() -> None:
    third = WaitingRun("1", 3, HALF, "python3.11", 60)
    assert place([third], [runner("a")], [], NOW) == [Assign("1", 3, "a")]
    [wait] = place([third], [], [], NOW)
    assert wait.attempt == 3


# -- hard limits


@pytest.mark.parametrize("gpu", [False, True])
def test_a_run_that_fits_exactly_is_placed(gpu: bool) -> None:
    exact = Capacity(cpu_cores=4, memory_gb=16, gpus=int(gpu))
    asked = Compute(cpu_cores=4, memory_gb=16, gpu=gpu)
    assert assigned(place([run("1", asked)], [runner("a", exact)], [], NOW)) == {"1": "a"}


@pytest.mark.parametrize(
    "free",
    [Capacity(cpu_cores=3, memory_gb=16, gpus=1), Capacity(cpu_cores=4, memory_gb=15, gpus=1), WHOLE],
    ids=["a-core", "a-gb", "the-gpu"],
)
def test_a_run_waits_while_one_core_one_gb_or_the_gpu_is_taken(free: Capacity) -> None:
    capacity = Capacity(cpu_cores=4, memory_gb=16, gpus=1)
    asked = Compute(cpu_cores=4, memory_gb=16, gpu=True)
    [wait] = place([run("1", asked)], [runner("a", capacity, free)], [], NOW)
    assert isinstance(wait, Wait)
    assert wait.reason == Reason.WAITING_FOR_CAPACITY


def test_a_gpu_is_given_to_one_run_only() -> None:
    asked = Compute(cpu_cores=1, memory_gb=1, gpu=True)
    gpu = runner("a", Capacity(cpu_cores=8, memory_gb=32, gpus=1))
    assert assigned(place([run("1", asked), run("2", asked)], [gpu], [], NOW)) == {"1": "a"}


# -- what the others are told


@pytest.mark.parametrize(
    ("asked", "runners", "reason", "message"),
    [
        (run("1"), [], Reason.NO_RUNNER, "asks for 2 CPU cores and 8 GB; no runner is connected"),
        (
            run("1", Compute(cpu_cores=1, memory_gb=4, gpu=True)),
            [],
            Reason.NO_RUNNER,
            "asks for 1 CPU core and 4 GB, with a GPU; no runner is connected",
        ),
        (
            run("1", Compute(cpu_cores=99, memory_gb=99, gpu=True), runtime="python3.12"),
            [runner("a")],
            Reason.NO_GPU_RUNNER,
            "asks for a GPU; no connected runner has one",
        ),
        (
            run("1", runtime="python3.12"),
            [runner("a", runtimes=("python3.11", "python3.10")), runner("b")],
            Reason.NO_RUNNER_WITH_RUNTIME,
            "asks for python3.12; the connected runners have python3.10, python3.11",
        ),
        (
            run("1"),
            [runner("a", runtimes=())],
            Reason.NO_RUNNER_WITH_RUNTIME,
            "asks for python3.11; the connected runners have no runtime",
        ),
        (
            run("1", Compute(cpu_cores=5, memory_gb=16)),
            [runner("a", Capacity(cpu_cores=1, memory_gb=2)), runner("b")],
            Reason.NO_RUNNER_LARGE_ENOUGH,
            "asks for 5 CPU cores and 16 GB; the largest connected runner has 4 cores and 16 GB",
        ),
        (
            run("1", Compute(cpu_cores=4, memory_gb=17)),
            [runner("b"), runner("a", Capacity(cpu_cores=64, memory_gb=512), runtimes=("python3.12",))],
            Reason.NO_RUNNER_LARGE_ENOUGH,
            "asks for 4 CPU cores and 17 GB; the largest connected runner has 4 cores and 16 GB",
        ),
        (
            run("1", Compute(cpu_cores=2, memory_gb=2)),
            [runner("a", Capacity(cpu_cores=1, memory_gb=16))],
            Reason.NO_RUNNER_LARGE_ENOUGH,
            "asks for 2 CPU cores and 2 GB; the largest connected runner has 1 core and 16 GB",
        ),
        (
            run("1", ALL),
            [runner("a", free=NOTHING)],
            Reason.WAITING_FOR_CAPACITY,
            "asks for 4 CPU cores and 16 GB; the runners that have it are busy",
        ),
    ],
    ids=["nobody", "nobody-gpu", "gpu", "runtime", "no-runtime", "core", "gb-of-the-runtime", "one-core", "busy"],
)
def test_a_run_that_waits_is_told_why(
    asked: WaitingRun, runners: list[RunnerLoad], reason: Reason, message: str
) -> None:
    assert place([asked], runners, [], NOW) == [Wait("1", 1, reason, message)]


def test_cores_and_memory_of_different_runners_do_not_add_up() -> None:
    runners = [runner("a", Capacity(cpu_cores=8, memory_gb=4)), runner("b", Capacity(cpu_cores=2, memory_gb=32))]
    [wait] = place([run("1", ALL)], runners, [], NOW)
    assert isinstance(wait, Wait)
    assert wait.reason == Reason.NO_RUNNER_LARGE_ENOUGH
    assert wait.message.endswith("the largest connected runner has 2 cores and 32 GB"), "it has more of what is asked"


def test_those_behind_the_head_are_told_how_many_wait_before_them() -> None:
    told = waits(place([run("1"), run("2"), run("3")], [runner("a", free=NOTHING)], [], NOW))
    busy_runners = "asks for 2 CPU cores and 8 GB; the runners that have it are busy"
    assert [told[name].message for name in "123"] == [
        busy_runners,
        f"{busy_runners}, and 1 run waits before it",
        f"{busy_runners}, and 2 runs wait before it",
    ]


# -- estimates


def test_the_head_is_estimated_to_start_when_the_run_before_it_ends_up_to_the_minute() -> None:
    [wait] = place([run("1")], [runner("a", free=NOTHING)], [busy(290)], NOW)
    assert wait == Wait("1", 1, Reason.WAITING_FOR_CAPACITY, wait.message, at_minute(5))  # type: ignore[union-attr]


def test_an_estimate_on_the_full_minute_is_not_rounded_further() -> None:
    end = timedelta(minutes=5) - START_DELAY
    assert waits(place([run("1")], [runner("a", free=NOTHING)], [busy(end.total_seconds())], NOW))[
        "1"
    ].estimated_start_at == at_minute(5)


def test_the_queue_is_played_forward_by_what_each_run_is_expected_to_take() -> None:
    queue = [run("1", ALL, expected_s=600), run("2", ALL, expected_s=1200), run("3", ALL)]
    told = waits(place(queue, [runner("a", free=NOTHING)], [busy(290)], NOW))
    assert [told[name].estimated_start_at for name in "123"] == [at_minute(5), at_minute(15), at_minute(35)]


def test_what_is_placed_in_this_round_delays_those_behind_it() -> None:
    decisions = place([run("1", ALL, expected_s=590), run("2", ALL)], [runner("a")], [], NOW)
    assert assigned(decisions) == {"1": "a"}
    assert waits(decisions)["2"].estimated_start_at == at_minute(10)


def test_an_end_that_is_overdue_is_expected_now() -> None:
    told = waits(place([run("1")], [runner("a", free=NOTHING)], [busy(-600)], NOW))
    assert told["1"].estimated_start_at == at_minute(1)


def test_there_is_no_estimate_where_no_end_makes_room() -> None:
    elsewhere = busy(60, name="gone")
    told = waits(place([run("1")], [runner("a", free=NOTHING)], [elsewhere], NOW))
    assert told["1"].estimated_start_at is None


def test_only_the_first_hundred_that_wait_get_an_estimate() -> None:
    queue = [run(str(number), ALL, expected_s=60) for number in range(FORECAST_RUNS + 2)]
    told = waits(place(queue, [runner("a", free=NOTHING)], [busy(60)], NOW))
    without = [name for name, wait in told.items() if wait.estimated_start_at is None]
    assert without == ["100", "101"]


def test_estimates_change_nothing_about_what_is_placed() -> None:
    queue = [run("1", ALL), run("2", ALL), run("3", ALL)]
    runners = [runner("a"), runner("b", free=NOTHING)]
    assert assigned(place(queue, runners, [busy(60, name="b")], NOW)) == {"1": "a"}


# -- what is news


def waited(reason: Reason = Reason.WAITING_FOR_CAPACITY, estimate: datetime | None = NOW) -> Wait:
    return Wait("1", 1, reason, "whatever", estimate)


@pytest.mark.parametrize(
    ("told", "news"),
    [
        (None, True),
        (Told(Reason.NO_RUNNER, NOW), True),
        (Told(Reason.WAITING_FOR_CAPACITY, NOW), False),
        (Told(Reason.WAITING_FOR_CAPACITY, NOW + timedelta(minutes=1)), False),
        (Told(Reason.WAITING_FOR_CAPACITY, NOW - timedelta(minutes=1)), False),
        (Told(Reason.WAITING_FOR_CAPACITY, NOW + timedelta(seconds=61)), True),
        (Told(Reason.WAITING_FOR_CAPACITY, NOW - timedelta(seconds=61)), True),
        (Told(Reason.WAITING_FOR_CAPACITY, None), True),
    ],
    ids=["never-told", "reason", "same", "later", "earlier", "much-later", "much-earlier", "first-estimate"],
)
def test_a_wait_is_news_by_its_reason_or_by_more_than_a_minute(told: Told | None, news: bool) -> None:
    assert is_news(waited(), told) is news


def test_no_estimate_is_news_once() -> None:
    assert is_news(waited(estimate=None), Told(Reason.WAITING_FOR_CAPACITY, NOW))
    assert not is_news(waited(estimate=None), Told(Reason.WAITING_FOR_CAPACITY, None))


# -- whatever the queue and the runners are

RUNTIMES: list[Runtime] = ["python3.10", "python3.11", "python3.12"]
CAPACITIES = st.builds(Capacity, cpu_cores=st.integers(0, 8), memory_gb=st.integers(0, 16), gpus=st.integers(0, 2))
COMPUTES = st.builds(Compute, cpu_cores=st.integers(1, 6), memory_gb=st.integers(1, 12), gpu=st.booleans())


@st.composite
def some_runners(draw: st.DrawFn) -> list[RunnerLoad]:
    runners = []
    for number in range(draw(st.integers(0, 4))):
        capacity, taken = draw(CAPACITIES), draw(CAPACITIES)
        free = Capacity(
            cpu_cores=max(0, capacity.cpu_cores - taken.cpu_cores),
            memory_gb=max(0, capacity.memory_gb - taken.memory_gb),
            gpus=max(0, capacity.gpus - taken.gpus),
        )
        have = tuple(draw(st.lists(st.sampled_from(RUNTIMES), unique=True)))
        runners.append(runner(f"runner-{number}", capacity, free, have))
    return runners


@st.composite
def some_queue(draw: st.DrawFn) -> list[WaitingRun]:
    shapes = draw(st.lists(st.tuples(COMPUTES, st.sampled_from(RUNTIMES), st.integers(0, 9999)), max_size=12))
    return [run(f"run-{i}", shape, runtime=kind, expected_s=took) for i, (shape, kind, took) in enumerate(shapes)]


OCCUPIED = st.lists(
    st.builds(busy, st.integers(-500, 5000), COMPUTES, st.sampled_from(["runner-0", "runner-1", "gone"])), max_size=5
)


@given(queue=some_queue(), runners=some_runners(), occupied=OCCUPIED)
def test_no_runner_ever_gets_more_than_is_free_nor_what_it_cannot_run(
    queue: list[WaitingRun], runners: list[RunnerLoad], occupied: list[Occupation]
) -> None:
    asked, load_of = {each.run_id: each for each in queue}, {each.runner_id: each for each in runners}
    given_to: dict[str, list[WaitingRun]] = defaultdict(list)
    for run_id, runner_id in assigned(place(queue, runners, occupied, NOW)).items():
        given_to[runner_id].append(asked[run_id])
    for runner_id, runs in given_to.items():
        free = load_of[runner_id].free
        assert sum(each.compute.cpu_cores for each in runs) <= free.cpu_cores
        assert sum(each.compute.memory_gb for each in runs) <= free.memory_gb
        assert sum(each.compute.gpu for each in runs) <= free.gpus
        assert {each.runtime for each in runs} <= set(load_of[runner_id].runtimes)


@given(queue=some_queue(), runners=some_runners(), occupied=OCCUPIED)
def test_every_run_is_decided_on_in_order_and_nobody_overtakes_one_that_waits_for_capacity(
    queue: list[WaitingRun], runners: list[RunnerLoad], occupied: list[Occupation]
) -> None:
    decisions = place(queue, runners, occupied, NOW)
    assert [each.run_id for each in decisions] == [each.run_id for each in queue]
    able = [each for each in decisions if isinstance(each, Assign) or each.reason == Reason.WAITING_FOR_CAPACITY]
    kinds = [isinstance(each, Assign) for each in able]
    assert kinds == sorted(kinds, reverse=True)
    estimates = [each.estimated_start_at for each in able if isinstance(each, Wait)]
    known = [each for each in estimates if each is not None]
    assert known == sorted(known)
    assert all(each > NOW for each in known)

"""Protects the rule of who is lost: silence counts only while the leader would have heard."""

import pytest

from schemas.events import RunnerHeartbeat, SchedulerBeacon
from schemas.parts import Capacity, Compute, RunAttempt
from schemas.run import evolve
from services.scheduler.folding import duration_s
from services.scheduler.roster import Roster, why_impossible
from tests.life_of_a_run import SPEC, at, queued, requested, started, succeeded

LEASE_S, INTERVAL_S = 60.0, 5.0
SOME = Compute(cpu_cores=2, memory_gb=8)


def heartbeat(runner_id: str = "a", cpu_cores: int = 4) -> RunnerHeartbeat:
    return RunnerHeartbeat(
        runner_id=runner_id,
        beat=1,
        capacity=Capacity(cpu_cores=cpu_cores, memory_gb=16),
        runtimes=("python3.11",),
        dispatch_partition=3,
    )


def hear_beacons(roster: Roster, start: float, end: float, epoch: int = 7) -> None:
    at = start
    while at <= end:
        roster.on_beacon(SchedulerBeacon(epoch=epoch, beat=1), at)
        at += INTERVAL_S


@pytest.fixture
def roster() -> Roster:
    return Roster(7, LEASE_S, INTERVAL_S)


def test_a_runner_that_is_silent_for_a_lease_is_lost(roster: Roster) -> None:
    hear_beacons(roster, 100, 100)
    roster.on_heartbeat(heartbeat(), 101)
    hear_beacons(roster, 105, 160)
    assert roster.lost((), 161) == set()
    assert roster.lost((), 161.1) == {"a"}


def test_nobody_is_lost_while_the_beacon_does_not_come_back(roster: Roster) -> None:
    hear_beacons(roster, 100, 100)
    roster.on_heartbeat(heartbeat(), 101)
    assert roster.lost((), 900) == set()


def test_after_a_gap_in_the_beacons_the_lease_begins_anew(roster: Roster) -> None:
    hear_beacons(roster, 100, 100)
    roster.on_heartbeat(heartbeat(), 101)
    hear_beacons(roster, 900, 955)
    assert roster.lost((), 956) == set()
    hear_beacons(roster, 960, 965)
    assert roster.lost((), 965) == {"a"}


def test_a_gap_of_three_intervals_is_jitter(roster: Roster) -> None:
    hear_beacons(roster, 100, 100)
    roster.on_heartbeat(heartbeat(), 100)
    hear_beacons(roster, 115, 160)
    assert roster.lost((), 161) == {"a"}


def test_a_new_leader_waits_a_full_lease_for_runners_that_it_never_heard(roster: Roster) -> None:
    hear_beacons(roster, 100, 155)
    assert roster.lost(["a"], 160) == set()
    hear_beacons(roster, 160, 165)
    assert roster.lost(["a"], 165) == {"a"}


def test_another_leaders_beacon_proves_nothing(roster: Roster) -> None:
    hear_beacons(roster, 100, 300, epoch=6)
    roster.on_heartbeat(heartbeat(), 200)
    assert roster.loads({}, 200) == ()
    assert roster.lost(["a"], 300) == set()


def test_heartbeats_from_before_the_first_beacon_tell_of_the_past(roster: Roster) -> None:
    roster.on_heartbeat(heartbeat(), 99)
    hear_beacons(roster, 100, 100)
    assert roster.loads({}, 100) == ()


def test_what_is_free_is_capacity_minus_assignments_and_nothing_while_silent(roster: Roster) -> None:
    hear_beacons(roster, 100, 100)
    roster.on_heartbeat(heartbeat(), 100)
    (load,) = roster.loads({"a": [SOME]}, 115)
    assert load.free == Capacity(cpu_cores=2, memory_gb=8)
    (load,) = roster.loads({"a": [SOME]}, 115.1)
    assert load.free == Capacity(cpu_cores=0, memory_gb=0)


def test_a_heartbeat_is_news_when_it_changes_what_can_be_placed(roster: Roster) -> None:
    hear_beacons(roster, 100, 100)
    assert roster.on_heartbeat(heartbeat(), 100)
    assert not roster.on_heartbeat(heartbeat(), 105)
    assert roster.on_heartbeat(heartbeat(cpu_cores=8), 110)
    assert roster.on_heartbeat(heartbeat(cpu_cores=8), 130)


def test_a_leader_settles_after_two_intervals_of_hearing(roster: Roster) -> None:
    assert not roster.is_settled(1_000)
    hear_beacons(roster, 100, 100)
    assert not roster.is_settled(109.9)
    assert roster.is_settled(110)


def test_a_lost_runner_comes_back_with_its_heartbeat(roster: Roster) -> None:
    hear_beacons(roster, 100, 100)
    roster.on_heartbeat(heartbeat(), 100)
    roster.forget(["a"])
    assert roster.loads({}, 100) == ()
    assert roster.on_heartbeat(heartbeat(), 101)
    assert roster.partitions() == {"a": 3}


IMPOSSIBLE = {
    "cannot be the id": heartbeat(runner_id="../a"),
    "has no partition 12": heartbeat().model_copy(update={"dispatch_partition": 12}),
    "is above": heartbeat(cpu_cores=2**31),
    "cannot be the id of a run": heartbeat().model_copy(update={"ended": (RunAttempt(run_id="a\0", attempt=1),)}),
    "an attempt is above": heartbeat().model_copy(update={"running": (RunAttempt(run_id="a", attempt=2**31),)}),
}


@pytest.mark.parametrize(("reason", "wrong"), IMPOSSIBLE.items())
def test_a_heartbeat_that_no_row_can_hold_or_nobody_can_answer_is_impossible(
    reason: str, wrong: RunnerHeartbeat
) -> None:
    assert reason in (why_impossible(wrong) or "")
    assert why_impossible(heartbeat()) is None


def test_a_runners_clock_that_is_off_by_ages_makes_no_run_longer_than_its_limit() -> None:
    run = evolve(None, requested(), at(0)).run
    ages = started().model_copy(update={"started_at": at(0).replace(year=1)})
    end = succeeded().model_copy(update={"started_at": at(0).replace(year=1), "ended_at": at(0).replace(year=9999)})
    for fact in (queued(), ages, end):
        run = evolve(run, fact, at(1)).run
    assert run is not None
    assert duration_s(run) == SPEC.timeout_s == 14400

"""Protects reconciliation: what a runner lacks, or has and should not, is said again, once it has stood a while."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import RunnerHeartbeat
from schemas.parts import Capacity, Compute, RunAttempt
from services.scheduler.reconciliation import PATIENCE_BEATS, Differences, differences, due, outlasting
from services.scheduler.recovery import Assignment

ASSIGNED = Assignment(
    run_id="run-1",
    attempt=1,
    runner_id="a",
    dispatch_partition=0,
    compute=Compute(cpu_cores=1, memory_gb=1),
    timeout_s=60,
    assigned_at=datetime(2026, 3, 13, 16, 10, tzinfo=UTC),
)
FIRST = RunAttempt(run_id="run-1", attempt=1)
SECOND = RunAttempt(run_id="run-1", attempt=2)
NO_DIFFERENCE = Differences()
MISSING = Differences(missing=frozenset({FIRST}))
UNWANTED = Differences(unwanted=frozenset({FIRST}))


def heartbeat(
    *, accepted: tuple[RunAttempt, ...] = (), running: tuple[RunAttempt, ...] = (), ended: tuple[RunAttempt, ...] = ()
) -> RunnerHeartbeat:
    return RunnerHeartbeat(
        runner_id="a",
        beat=1,
        capacity=Capacity(cpu_cores=2, memory_gb=8),
        runtimes=("python3.11",),
        dispatch_partition=0,
        accepted=accepted,
        running=running,
        ended=ended,
    )


# -- one heartbeat


def test_what_is_accepted_or_running_as_assigned_is_no_difference() -> None:
    assert differences(heartbeat(), []) == NO_DIFFERENCE
    assert differences(heartbeat(accepted=(FIRST,)), [ASSIGNED]) == NO_DIFFERENCE
    assert differences(heartbeat(running=(FIRST,)), [ASSIGNED]) == NO_DIFFERENCE
    assert differences(heartbeat(accepted=(FIRST,), running=(FIRST,)), [ASSIGNED]) == NO_DIFFERENCE


def test_what_was_assigned_and_is_not_listed_is_missing() -> None:
    assert differences(heartbeat(), [ASSIGNED]) == MISSING


def test_what_is_listed_as_ended_while_no_end_is_known_is_missing() -> None:
    assert differences(heartbeat(ended=(FIRST,)), [ASSIGNED]) == MISSING


def test_what_was_revoked_is_missing_while_no_end_of_it_is_known() -> None:
    assert differences(heartbeat(), [replace(ASSIGNED, revoked=True)]) == MISSING


def test_what_ended_and_is_assigned_no_more_is_no_difference() -> None:
    assert differences(heartbeat(ended=(FIRST,)), []) == NO_DIFFERENCE


@pytest.mark.parametrize(
    "held", [heartbeat(accepted=(FIRST,)), heartbeat(running=(FIRST,))], ids=["accepted", "running"]
)
def test_what_is_held_and_not_assigned_is_unwanted(held: RunnerHeartbeat) -> None:
    assert differences(held, []) == UNWANTED


def test_what_is_held_and_was_revoked_is_unwanted() -> None:
    assert differences(heartbeat(running=(FIRST,)), [replace(ASSIGNED, revoked=True)]) == UNWANTED


def test_a_replaced_attempt_is_unwanted_and_the_one_that_replaced_it_is_missing() -> None:
    found = differences(heartbeat(running=(FIRST,)), [replace(ASSIGNED, attempt=2)])
    assert found == Differences(missing=frozenset({SECOND}), unwanted=frozenset({FIRST}))


@pytest.mark.parametrize("unsettled", [{"pending": True}, {"attempt_lost": True}], ids=["pending", "lost"])
def test_what_is_being_decided_on_is_neither_missing_nor_unwanted(unsettled: dict[str, bool]) -> None:
    assignment = replace(ASSIGNED, **unsettled)  # type: ignore[arg-type]
    assert differences(heartbeat(), [assignment]) == NO_DIFFERENCE
    assert differences(heartbeat(accepted=(FIRST,)), [assignment]) == NO_DIFFERENCE


# -- heartbeat by heartbeat


def acted_upon(beats: Iterable[set[RunAttempt]]) -> list[frozenset[RunAttempt]]:
    """Tell what is due after each of several heartbeats that showed these differences."""
    counts: dict[RunAttempt, int] = {}
    acted = []
    for seen in beats:
        counts = outlasting(counts, seen)
        acted.append(due(counts))
    return acted


def test_a_difference_is_acted_upon_when_it_has_stood_in_three_heartbeats_in_a_row() -> None:
    assert PATIENCE_BEATS == 3
    assert acted_upon([{FIRST}] * 3) == [frozenset(), frozenset(), frozenset({FIRST})]


def test_a_difference_that_was_acted_upon_is_given_time_again() -> None:
    assert [bool(each) for each in acted_upon([{FIRST}] * 9)] == [False, False, True] * 3


def test_a_difference_that_went_away_in_between_begins_again() -> None:
    beats = [{FIRST}, {FIRST}, set[RunAttempt](), {FIRST}, {FIRST}, {FIRST}]
    assert [bool(each) for each in acted_upon(beats)] == [False] * 5 + [True]


def test_each_difference_has_its_own_time() -> None:
    beats = [{FIRST}, {FIRST, SECOND}, {FIRST, SECOND}, {SECOND}]
    assert acted_upon(beats) == [frozenset(), frozenset(), frozenset({FIRST}), frozenset({SECOND})]


def test_what_is_gone_is_forgotten() -> None:
    assert outlasting({FIRST: 2}, set()) == {}


@given(st.lists(st.booleans(), max_size=30))
def test_nothing_is_acted_upon_that_did_not_stand_in_the_last_heartbeats(stood: list[bool]) -> None:
    acted = acted_upon({FIRST} if each else set() for each in stood)
    for beat, found in enumerate(acted):
        if found:
            assert beat + 1 >= PATIENCE_BEATS
            assert all(stood[beat + 1 - PATIENCE_BEATS : beat + 1])

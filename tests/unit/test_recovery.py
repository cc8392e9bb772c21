"""Protects recovery: a lost attempt is followed by the next or by an end, a cancelled run is never tried again."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from schemas.parts import Compute
from schemas.reason import Reason
from services.scheduler.recovery import Assignment, Cancel, GiveUp, Recovery, Requeue, Revoke, recover

MAX_ATTEMPTS = 3
SILENT = "runner a was not heard for longer than its lease"

RUNNING = Assignment(
    run_id="run-1",
    attempt=1,
    runner_id="a",
    dispatch_partition=7,
    compute=Compute(cpu_cores=2, memory_gb=8),
    timeout_s=3600,
    assigned_at=datetime(2026, 3, 13, 16, 10, tzinfo=UTC),
)
LAST = replace(RUNNING, attempt=MAX_ATTEMPTS)
GIVEN_UP = replace(RUNNING, attempt_lost=True, reason=Reason.DISK_FULL, message="no space left")
REVOKE = Revoke("run-1", 1, "a", 7, Reason.RUNNER_LOST)


def decided(assignment: Assignment, *lost: str) -> list[Recovery]:
    return recover([assignment], set(lost), MAX_ATTEMPTS)


def test_an_attempt_whose_runner_is_there_goes_on() -> None:
    assert decided(RUNNING) == decided(RUNNING, "another") == []


# -- the runner is lost


def test_a_lost_runner_is_told_to_stop_and_the_next_attempt_follows() -> None:
    assert decided(RUNNING, "a") == [Requeue("run-1", 1, Reason.RUNNER_LOST, SILENT, REVOKE)]


def test_a_lost_runner_that_was_told_already_is_not_told_twice() -> None:
    assert decided(replace(RUNNING, revoked=True), "a") == [Requeue("run-1", 1, Reason.RUNNER_LOST, SILENT, None)]


@pytest.mark.parametrize("attempt", [1, 2])
def test_there_is_a_next_attempt_below_the_limit(attempt: int) -> None:
    [decision] = decided(replace(RUNNING, attempt=attempt), "a")
    assert isinstance(decision, Requeue)
    assert decision.attempt == attempt


@pytest.mark.parametrize("attempt", [3, 4])
def test_the_run_is_given_up_at_the_limit_and_beyond(attempt: int) -> None:
    revoke = replace(REVOKE, attempt=attempt)
    message = f"lost {attempt} of 3 attempts; the last: {SILENT}"
    assert decided(replace(RUNNING, attempt=attempt), "a") == [GiveUp("run-1", attempt, message, revoke)]


def test_with_one_attempt_only_the_first_loss_ends_the_run() -> None:
    assert recover([RUNNING], {"a"}, 1) == [GiveUp("run-1", 1, f"lost 1 of 1 attempts; the last: {SILENT}", REVOKE)]


@pytest.mark.parametrize("attempt", [1, MAX_ATTEMPTS])
def test_a_lost_run_that_shall_be_cancelled_is_over(attempt: int) -> None:
    assignment = replace(RUNNING, attempt=attempt, cancellation_requested=True)
    assert decided(assignment, "a") == [Cancel("run-1", attempt, replace(REVOKE, attempt=attempt))]
    assert decided(replace(assignment, revoked=True), "a") == [Cancel("run-1", attempt, None)]


# -- the runner gave the attempt up


def test_what_a_runner_gave_up_is_tried_again_for_its_reason_and_there_is_nobody_to_tell() -> None:
    assert decided(GIVEN_UP) == [Requeue("run-1", 1, Reason.DISK_FULL, "no space left", None)]


def test_what_a_runner_gave_up_at_the_last_attempt_ends_the_run_with_its_words() -> None:
    last = replace(GIVEN_UP, attempt=MAX_ATTEMPTS)
    assert decided(last) == [GiveUp("run-1", 3, "lost 3 of 3 attempts; the last: no space left", None)]


def test_what_a_runner_gave_up_is_over_if_somebody_wants_it_cancelled() -> None:
    assert decided(replace(GIVEN_UP, cancellation_requested=True)) == [Cancel("run-1", 1, None)]
    assert decided(replace(GIVEN_UP, cancellation_requested=True, revoked=True)) == [Cancel("run-1", 1, None)]


def test_a_runner_that_gave_up_and_was_lost_then_is_told_too_but_its_reason_stands() -> None:
    revoke = replace(REVOKE, reason=Reason.DISK_FULL)
    assert decided(GIVEN_UP, "a") == [Requeue("run-1", 1, Reason.DISK_FULL, "no space left", revoke)]


def test_a_loss_without_words_is_told_by_its_reason() -> None:
    [decision] = decided(replace(GIVEN_UP, message=None))
    assert isinstance(decision, Requeue)
    assert decision.message == "disk_full"


def test_a_reason_from_before_the_assignment_is_not_the_reason_of_a_lost_runner() -> None:
    stale = replace(RUNNING, reason=Reason.WAITING_FOR_CAPACITY, message="busy")
    assert decided(stale, "a") == decided(RUNNING, "a")


# -- somebody wants it stopped


def test_a_running_attempt_that_shall_be_cancelled_is_revoked_once() -> None:
    asked = replace(RUNNING, cancellation_requested=True)
    assert decided(asked) == [Revoke("run-1", 1, "a", 7, Reason.USER_REQUEST)]
    assert decided(replace(asked, revoked=True)) == []


def test_a_runner_that_never_announced_a_partition_is_revoked_by_its_key() -> None:
    [decision] = decided(replace(RUNNING, cancellation_requested=True, dispatch_partition=None))
    assert isinstance(decision, Revoke)
    assert decision.dispatch_partition is None


# -- a decision is under way


@pytest.mark.parametrize(
    "assignment",
    [RUNNING, LAST, GIVEN_UP, replace(RUNNING, cancellation_requested=True)],
    ids=["lost", "last", "given-up", "cancelled"],
)
def test_nothing_is_decided_while_a_decision_is_under_way(assignment: Assignment) -> None:
    assert decided(replace(assignment, pending=True), "a") == []


def test_each_attempt_is_decided_on_by_itself() -> None:
    others = [replace(RUNNING, run_id=f"run-{number}", runner_id=name) for number, name in enumerate("abab")]
    assert [each.run_id for each in recover(others, {"b"}, MAX_ATTEMPTS)] == ["run-1", "run-3"]

"""Protects the one arbiter of a run: what each fact does from each status, and that history never breaks folding."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import RunFact
from schemas.reason import ENDS, Reason, RunStatus, status_of
from schemas.run import TRANSITION_OF, TRANSITIONS, Run, evolve
from tests import life_of_a_run as life

Q, S, R = RunStatus.QUEUED, RunStatus.STARTING, RunStatus.RUNNING
HISTORIES: dict[RunStatus, list[RunFact]] = {
    Q: [life.requested()],
    S: [life.requested(), life.queued()],
    R: [life.requested(), life.queued(), life.started()],
    RunStatus.SUCCEEDED: [life.requested(), life.queued(), life.started(), life.succeeded()],
    RunStatus.FAILED: [life.requested(), life.queued(), life.started(), life.failed()],
    RunStatus.CANCELLED: [life.requested(), life.cancelled()],
}
FACTS: list[RunFact] = [
    *(life.waiting(), life.queued(), life.started(), life.cancellation(), life.lost(), life.requeued()),
    *(life.succeeded(), life.failed(), life.cancelled(), life.versioned()),
]


def folded(*facts: RunFact) -> Run | None:
    run: Run | None = None
    for fact in facts:
        run = evolve(run, fact, life.START).run
    return run


def test_a_whole_life() -> None:
    run = folded(*life.whole_life())
    assert run is not None
    assert (run.status, run.reason, run.version, run.attempt) == (RunStatus.SUCCEEDED, None, 1, 1)
    assert (run.exit_code, run.artifact, run.runner_id) == (0, life.ARTIFACT, life.RUNNER)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
@pytest.mark.parametrize("status", HISTORIES, ids=str)
def test_every_fact_from_every_status(status: RunStatus, fact: RunFact) -> None:
    before = folded(*HISTORIES[status])
    assert before is not None
    assert before.status == status
    evolution = evolve(before, fact, life.at(100))
    row = TRANSITION_OF[type(fact)]
    if status in row.from_statuses:
        assert evolution.stale is None
        assert evolution.run is not None
        assert evolution.run.status == (row.to_status or status)
    else:
        assert evolution.stale
        assert evolution.run == before


def test_the_table_names_every_fact_but_the_first_once() -> None:
    assert len(TRANSITIONS) == len(TRANSITION_OF) == len(FACTS)
    assert {type(fact) for fact in FACTS} == set(TRANSITION_OF)


def test_nothing_but_a_version_follows_an_end() -> None:
    for row in TRANSITIONS:
        assert not row.from_statuses & ENDS or row.event.__name__ == "ModelVersionCreated"


def test_facts_of_a_replaced_attempt_are_stale() -> None:
    run = folded(life.requested(), life.queued(), life.started(), life.requeued(attempt=2))
    assert run is not None
    assert (run.status, run.attempt, run.runner_id) == (Q, 2, None)
    for fact in (life.succeeded(attempt=1), life.failed(attempt=1), life.lost(attempt=1), life.queued(attempt=1)):
        assert evolve(run, fact, life.at(9)).stale == "replaced_attempt"


def test_an_end_that_stands_before_the_requeue_ends_the_run() -> None:
    run = folded(life.requested(), life.queued(), life.started(), life.succeeded(), life.requeued(attempt=2))
    assert run is not None
    assert (run.status, run.attempt) == (RunStatus.SUCCEEDED, 1)


def test_only_the_next_attempt_can_follow() -> None:
    run = folded(life.requested(), life.queued())
    for attempt in (1, 3):
        assert evolve(run, life.requeued(attempt=attempt), life.at(9)).stale == "not_the_next_attempt"


def test_facts_about_an_unknown_run_change_nothing() -> None:
    for fact in FACTS:
        assert evolve(None, fact, life.at(1)).run is None


def test_nul_in_what_a_runner_says_reaches_no_table() -> None:
    for fact in (life.failed(), life.lost()):
        run = folded(life.requested(), life.queued(), fact.model_copy(update={"message": "a\0b"}))
        assert run is not None
        assert run.message == "a\N{REPLACEMENT CHARACTER}b"


def test_every_reason_has_one_status() -> None:
    assert {status_of(reason) for reason in Reason} == {Q, *ENDS}


ANY_FACT = st.sampled_from(
    [life.requested(), *FACTS, *(make(attempt=2) for make in (life.queued, life.started, life.succeeded, life.failed))]
)


@given(st.lists(ANY_FACT, max_size=30))
def test_folding_any_history_never_raises_and_never_leaves_an_end(facts: list[RunFact]) -> None:
    states = [folded(*facts[:length]) for length in range(len(facts) + 1)]
    for before, after in pairwise(states):
        if before is not None:
            assert after is not None
            assert after.attempt >= before.attempt
            if before.status.is_end:
                assert after.model_copy(update={"version": before.version}) == before


@given(st.lists(ANY_FACT, max_size=20), st.integers(0, 19))
def test_a_fact_that_is_told_twice_in_a_row_counts_once(facts: list[RunFact], place: int) -> None:
    twice = [*facts[: place + 1], *facts[place : place + 1], *facts[place + 1 :]]
    assert folded(*facts) == folded(*twice)

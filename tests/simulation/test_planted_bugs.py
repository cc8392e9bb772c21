"""Plants a bug in one rule of the protocol or in one decision, and sees the simulation catch it within some seeds."""

import re

import pytest

import schemas.run
from schemas.events import RunEnd, RunFact
from schemas.run import Run
from services.scheduler.roster import Roster
from tests.simulation.faults import BAD_ENDS
from tests.simulation.planted import beyond_the_last, claim_unguarded, what_was_sent
from tests.simulation.simulation import DEFAULT, Broken, simulate
from tests.simulation.system import Rules

MOST_SEEDS = 1000


def caught(rules: Rules = DEFAULT, first: int = 0) -> str:
    """Tell how the first seed that catches a bug says so; empty if none does."""
    for seed in range(first, first + MOST_SEEDS):
        try:
            simulate(seed, rules)
        except Broken as broken:
            return str(broken)
    return ""


@pytest.mark.parametrize(
    ("rules", "symptom"),
    [
        pytest.param(Rules(claim=claim_unguarded), "is claimed by", id="the_claim_of_a_model_has_no_guard"),
        pytest.param(
            Rules(commit_first=True),
            "not at rest|differ|not in the ledger",
            id="offsets_are_committed_before_the_database",
        ),
        pytest.param(Rules(choose=beyond_the_last), "not at rest", id="the_relay_takes_what_is_beyond_the_last_id"),
        pytest.param(Rules(sees_pending=False), "assigned already", id="a_pending_decision_is_made_again"),
        pytest.param(
            Rules(reads_to_the_end=False), "could read dispatch", id="a_runner_starts_before_it_has_read_dispatch"
        ),
        pytest.param(
            Rules(asks_the_gate_again=False), "could read dispatch", id="a_runner_starts_what_it_set_up_while_cut_off"
        ),
    ],
)
def test_a_broken_rule_of_the_protocol_is_caught(rules: Rules, symptom: str) -> None:
    told = caught(rules)
    assert re.search(symptom, told)
    assert "replay: python -m tests.simulation --seed" in told


def test_a_new_cluster_that_is_told_only_what_is_marked_as_sent_is_caught() -> None:
    assert re.search("not at rest|differ", caught(Rules(keep=what_was_sent), first=BAD_ENDS))


def test_an_end_of_a_replaced_attempt_that_counts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    why_stale = schemas.run._why_stale

    def careless(run: Run, fact: RunFact) -> str | None:
        stale = why_stale(run, fact)
        return None if stale == "replaced_attempt" and isinstance(fact, RunEnd) else stale

    monkeypatch.setattr(schemas.run, "_why_stale", careless)
    assert "took effect on queued" in caught()
    told = caught(first=7)
    assert "of attempt 1 took effect on attempt 2" in told or "differ" in told


def test_a_leader_that_does_not_listen_for_its_own_beacon_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Roster, "_hears", lambda *_: True)
    told = caught()
    assert "was called lost" in told

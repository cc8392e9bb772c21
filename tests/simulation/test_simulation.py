"""Tries to break every promise in thousands of worlds; a failure names its seed and the command that replays it."""

import os
import subprocess
import sys

import pytest

from tests.simulation.faults import BAD_ENDS
from tests.simulation.simulation import simulate

CASES, SEEDS = 15, 140
FEWEST_RUNS = 1_250
"""Of each case, and of the worlds that lose their broker: together they are 20,000."""


@pytest.mark.parametrize("case", range(CASES))
def test_no_promise_is_broken_in_any_world(case: int) -> None:
    runs = sum(simulate(seed).runs for seed in range(case * SEEDS, (case + 1) * SEEDS))
    assert runs >= FEWEST_RUNS


def test_no_promise_is_broken_where_the_broker_is_lost_while_the_database_fails() -> None:
    assert sum(simulate(seed).runs for seed in range(BAD_ENDS, BAD_ENDS + SEEDS)) >= FEWEST_RUNS


@pytest.mark.parametrize("seed", [3, 1585, BAD_ENDS])
def test_the_same_seed_gives_the_same_trace_twice(seed: int) -> None:
    first, second = simulate(seed, traced=True), simulate(seed, traced=True)
    assert len(first.trace) > 50
    assert first == second


def test_a_seed_is_replayed_exactly_by_another_process_whatever_its_hashes() -> None:
    traces = [_replayed(hash_seed) for hash_seed in ("1", "2")]
    assert traces[0] == traces[1] == list(simulate(11, traced=True).trace)


def _replayed(hash_seed: str) -> list[str]:
    command = [sys.executable, "-m", "tests.simulation", "--seed", "11", "--trace"]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()[:-1]

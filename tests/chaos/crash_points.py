"""A campaign: one system, every scenario, every crash point armed and gone off, and then all promises asked.

`python -m tests.chaos.crash_points --kills 5` plays it five times over, prints a table, and ends with 1 on a violation
or on a point that nobody reached.
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from tests.chaos.crash_arming import Armory, Kill, NeverReached, armed_in
from tests.chaos.crash_places import Place, all_places
from tests.chaos.crash_scenarios import SCENARIOS, Scenario, covered
from tests.chaos.crash_scenes import PACKAGE, Stage
from tests.chaos.gathering import Witnesses, at_rest, gather, gather_after, let_a_day_pass, open_runs
from tests.chaos.harness import ChaosOptions, chaos_system
from tests.chaos.invariants import check
from tests.chaos.observing import Observer
from tests.chaos.submitting import Book
from tests.integration.package_index_scene import serving, wheel

TRIES = 4
"""How often a scene is played for a point that it passes only now and then, such as the second of two in a batch."""
SIDE_BY_SIDE = 4
LEASE_S = 12.0
SETTLE_S = 120.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a campaign found: each kill, and what is wrong, in words."""

    kills: Sequence[Kill]
    wrong: Sequence[str]
    runs: int
    took_s: float


async def campaign(folder: Path, rounds: int, scenarios: Sequence[Scenario] = SCENARIOS) -> Outcome:
    """Play scenarios so often, each time with all of their points armed, then ask all invariants.

    Must be called on the main thread.
    """
    with serving({f"{PACKAGE}-1.0-py3-none-any.whl": wheel(PACKAGE, "1.0", "WORD = 'small'\n")}) as index:
        return await _campaign(folder, rounds, scenarios, index.url)


async def _campaign(folder: Path, rounds: int, scenarios: Sequence[Scenario], index_url: str) -> Outcome:
    began = time.monotonic()
    environment = {
        "RUNYARD_SWEEP_EVERY_S": "2",
        "RUNYARD_CHECKPOINT_EVERY_S": "0.5",
        "RUNYARD_PACKAGE_INDEX_URL": index_url,
    }
    options = ChaosOptions(lease_s=LEASE_S, environment=environment, environment_of=armed_in(folder / "armed"))
    async with chaos_system(folder / "system", options) as chaos:
        armory, book, observer = Armory(chaos, folder / "armed"), Book(folder / "told.jsonl"), Observer()
        stage = Stage(chaos, armory, book, f"canary{secrets.token_hex(16)}")
        observer.start()
        try:
            wrong = []
            for turn in range(rounds):
                wrong += await _round(stage, _begun_at(scenarios, turn * 7))
                log.info("round_played", round=turn + 1, of=rounds, kills=len(armory.kills), wrong=wrong)
            stopped = time.time()
            let_a_day_pass(chaos)
            if not await at_rest(chaos, book, SETTLE_S):
                wrong.append(f"it does not come to rest; open runs: {await open_runs(chaos, book)}")
        finally:
            observer.stop()
        deaths = armory.unexplained_deaths()
        wrong += [f"the {name} died {count} times more than it was killed" for name, count in deaths.items()]
        witnesses = Witnesses(book, observer, armory.outages(), stopped, (stage.canary,))
        evidence = await gather(chaos, witnesses)
    wrong += [str(violation) for violation in await check(gather_after(evidence, chaos))]
    return Outcome(armory.kills, wrong, len(book.accepted()), time.monotonic() - began)


def _begun_at(scenarios: Sequence[Scenario], first: int) -> Sequence[Scenario]:
    """Begin elsewhere in each round, so that other scenarios meet."""
    first %= len(scenarios)
    return [*scenarios[first:], *scenarios[:first]]


async def _round(stage: Stage, scenarios: Sequence[Scenario]) -> list[str]:
    """Play every scenario once, several side by side; then those that have to be alone."""
    room = asyncio.Semaphore(SIDE_BY_SIDE)

    async def turn(scenario: Scenario) -> str | None:
        async with room:
            return await _played(stage, scenario)

    together = await asyncio.gather(*(turn(scenario) for scenario in scenarios if not scenario.alone))
    alone = [await _played(stage, scenario) for scenario in scenarios if scenario.alone]
    return [wrong for wrong in (*together, *alone) if wrong is not None]


async def _played(stage: Stage, scenario: Scenario) -> str | None:
    """Play a scenario until all of its points have gone off; returns what went wrong."""
    try:
        async with stage.armory.armed(scenario.places) as armed:
            for _ in range(TRIES):
                await scenario.scene(stage)
                if not (left := armed.left()):
                    return None
            raise NeverReached(f"nothing passed {', '.join(str(place) for place in left)}")
    except Exception as error:  # noqa: BLE001 - the edge: every scenario is played, and all that is wrong is told
        return f"{scenario.name}: {type(error).__name__}: {error}"


def table(kills: Sequence[Kill], places: Sequence[Place]) -> list[str]:
    """Show how often each point went off and how long its service needed at most."""
    found: defaultdict[Place, list[Kill]] = defaultdict(list)
    for kill in kills:
        found[kill.place].append(kill)
    lines = [f"{'point':<32} {'service':<10} {'kills':>5} {'longest recovery':>17}"]
    for place in places:
        longest = max((kill.recovery_s for kill in found[place]), default=0.0)
        lines.append(f"{place.point:<32} {place.service:<10} {len(found[place]):>5} {longest:>15.1f} s")
    return lines


def main() -> int:
    """Play a campaign as the command line says."""
    parser = argparse.ArgumentParser(description="Kill every service at every crash point.")
    parser.add_argument("--kills", type=int, default=1, help="how often at each point, at least")
    parser.add_argument("--only", default="", help="play only scenarios whose name contains this")
    parser.add_argument("--keep", type=Path, help="a folder that does not exist yet: keep everything there")
    arguments = parser.parse_args()
    scenarios = [scenario for scenario in SCENARIOS if arguments.only in scenario.name]
    with tempfile.TemporaryDirectory(prefix="runyard-crash-") as folder:
        place = arguments.keep or Path(folder)
        outcome = asyncio.run(campaign(place, arguments.kills, scenarios))
    places = sorted({place for scenario in scenarios for place in scenario.places})
    wrong = [*outcome.wrong, *(f"{place} is covered by no scenario" for place in set(all_places()) - covered())]
    sys.stdout.write("\n".join(table(outcome.kills, places)) + "\n")
    sys.stdout.write(
        f"{len(outcome.kills)} kills at {len(places)} places over {outcome.runs} runs in {outcome.took_s:.0f} s\n"
    )
    sys.stdout.write("".join(f"WRONG: {each}\n" for each in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""How soon the system works again after a part of it was killed, as a client sees it. `python -m benchmarks.recovery`.

What "works again" means is said per part in `MEASURES`: the clock starts with kill -9, a supervisor starts the dead
part again at once, and heartbeats and lease are the services' defaults (5 s, 60 s). Starts a whole system with two
runners on a temporary folder and stops everything. Figures depend on the machine. p99 is by nearest rank: with fewer
than 100 kills it is the longest time seen.
"""

import argparse
import asyncio
import math
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from tests.chaos.harness import RUNNERS, Chaos, ChaosOptions, chaos_system
from tests.chaos.submitting import Book, Order, Submitter

POLL_S = 0.02
GIVE_UP_S = 180.0
HEARTBEAT_S, LEASE_S = 5.0, 60.0
CORES_OF_THE_LARGE_ONE, CORES_OF_THE_SMALL_ONE = 4, 1
NOT_QUEUED = {"starting", "running", "succeeded"}
STARTED = {"running", "succeeded"}


@dataclass(frozen=True, slots=True)
class Scene:
    """A running system and a client of it."""

    chaos: Chaos
    client: Submitter
    numbers: "count[int]"

    async def prepared(self, script: str = "no_artifact", cpu_cores: int = 1) -> Order:
        """Make a model that can be trained at once."""
        number = next(self.numbers)
        order = Order(number, f"recovery-{number}", script, {}, cpu_cores=cpu_cores)
        await self.client.prepare(order)
        return order

    async def until(self, path: str, fits: Callable[[Any], bool]) -> None:
        """Ask until the answer fits, whatever comes in between."""
        async with asyncio.timeout(GIVE_UP_S):
            while True:
                try:
                    answer = await self.client.get(path)
                    if answer.is_success and fits(answer.json()):
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(POLL_S)

    async def run_until(self, order: Order, statuses: set[str]) -> str:
        """Submit a run, patiently, and wait until it has one of these statuses; returns its path."""
        told = await self.client.submit(order)
        path = f"/api/v1/models/{told.model_id}/runs/{told.run_id}"
        await self.until(path, lambda run: run["status"] in statuses)
        return path


async def api(scene: Scene) -> float:
    """Until a submission is accepted again."""
    order = await scene.prepared()
    began = time.monotonic()
    scene.chaos.services["api"].kill()
    await scene.client.submit(order)
    return time.monotonic() - began


async def scheduler(scene: Scene) -> float:
    """Until a run that is submitted now is given to a runner (RunQueued)."""
    order = await scene.prepared()
    began = time.monotonic()
    scene.chaos.services["scheduler"].kill()
    await scene.run_until(order, NOT_QUEUED)
    return time.monotonic() - began


async def runner(scene: Scene) -> float:
    """Until a run that is submitted now has started on that runner, the only one that is large enough (RunStarted)."""
    order = await scene.prepared(cpu_cores=CORES_OF_THE_LARGE_ONE)
    began = time.monotonic()
    scene.chaos.services["runner"].kill()
    await scene.run_until(order, STARTED)
    return time.monotonic() - began


async def auditor(scene: Scene) -> float:
    """Until an event of a run that is submitted now is in the ledger."""
    order = await scene.prepared()
    began = time.monotonic()
    scene.chaos.services["auditor"].kill()
    told = await scene.client.submit(order)
    path = f"/api/v1/models/{told.model_id}/runs/{told.run_id}/events"
    await scene.until(path, lambda page: bool(page["items"]))
    return time.monotonic() - began


async def postgres(scene: Scene) -> float:
    """Until a run that is submitted now has started."""
    order = await scene.prepared()
    began = time.monotonic()
    scene.chaos.postgres.kill()
    await scene.run_until(order, STARTED)
    return time.monotonic() - began


async def kafka(scene: Scene) -> float:
    """Until a run that is submitted now has started."""
    order = await scene.prepared()
    began = time.monotonic()
    scene.chaos.kafka.kill()
    await scene.run_until(order, STARTED)
    return time.monotonic() - began


async def runner_lost(scene: Scene) -> float:
    """A runner that does not come back: until its run has started on another one, as attempt 2 (lease 60 s)."""
    chaos = scene.chaos
    path = await scene.run_until(await scene.prepared("cancelled"), {"running"})
    run_id = path.rpartition("/")[2]
    [holder] = [name for name in RUNNERS if run_id in chaos.services[name].log_path.read_text()]
    with chaos.holding(holder):
        began = time.monotonic()
        chaos.services[holder].kill()
        await scene.until(path, lambda run: run["attempt"] == 2 and run["status"] in STARTED)
        return time.monotonic() - began


Measure = Callable[[Scene], Awaitable[float]]
MEASURES: dict[str, tuple[Measure, int]] = {
    "api": (api, 20),
    "scheduler": (scheduler, 10),
    "runner": (runner, 10),
    "auditor": (auditor, 20),
    "postgres": (postgres, 10),
    "kafka": (kafka, 8),
    "runner lost": (runner_lost, 2),
}


def p99(taken: list[float]) -> float:
    """Return the 99th percentile by nearest rank: a time that was really seen.

    >>> p99([3.0, 1.0, 2.0]), p99([float(n) for n in range(1, 201)])
    (3.0, 198.0)
    """
    return sorted(taken)[math.ceil(len(taken) * 0.99) - 1]


async def measure(kills: dict[str, int], say: Callable[[str], None]) -> Table:
    """Measure some of the parts on one system; a pause of random length between lets heartbeats fall anywhere."""
    table = Table("killed", "works again when", "n", "p50 s", "p99 s", title="Time to resume after kill -9")
    small = {"runner-2": {"RUNYARD_RUNNER_CPU_CORES": str(CORES_OF_THE_SMALL_ONE)}}
    options = ChaosOptions(
        heartbeat_s=HEARTBEAT_S, lease_s=LEASE_S, cpu_cores=CORES_OF_THE_LARGE_ONE, environment_of=small
    )
    with tempfile.TemporaryDirectory(prefix="runyard-recovery-") as folder:
        async with chaos_system(Path(folder) / "data", options) as chaos:
            token = chaos.token()
            client = Submitter(chaos.api_url, lambda: token, Book(Path(folder) / "told.jsonl"))
            scene = Scene(chaos, client, count())
            await scene.run_until(await scene.prepared(), STARTED)
            for name, times in kills.items():
                measured, _ = MEASURES[name]
                taken = []
                for _ in range(times):
                    await asyncio.sleep(random.uniform(0.5, HEARTBEAT_S))  # noqa: S311 - no secret
                    taken.append(await measured(scene))
                    say(f"{name}: {taken[-1]:.2f} s")
                    await chaos.ready()
                figures = (f"{statistics.median(taken):.1f}", f"{p99(taken):.1f}")
                table.add_row(name, (measured.__doc__ or "").rstrip("."), str(times), *figures)
            await client.close()
    return table


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"which, by default all: {', '.join(MEASURES)}")
    parser.add_argument("--kills", type=int, help="how often each part is killed, by default 2 to 20 times")
    options = parser.parse_args()
    kills = {name: options.kills or MEASURES[name][1] for name in options.parts or MEASURES}
    console = Console(width=140, highlight=False)
    console.print(asyncio.run(measure(kills, console.print)))


if __name__ == "__main__":
    main()

"""A soak: a system that is broken all the time while clients submit, then checked. `make chaos MINUTES=… SEED=…`.

Everything that is drawn comes from one seed, which is printed with the plan. Exit code 1 with the violations, and where
the evidence lies, if a promise was broken.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from tests.chaos import private_engine
from tests.chaos.evidence import Evidence, StoredEvent
from tests.chaos.faults import ONCE_EACH, Breaker, Fault, plan
from tests.chaos.gathering import (
    Witnesses,
    at_rest,
    duplicates,
    gather,
    gather_after,
    let_a_day_pass,
    lost_attempts,
    open_runs,
)
from tests.chaos.harness import Chaos, ChaosOptions, chaos_system
from tests.chaos.invariants import ENDS, Violation, check
from tests.chaos.observing import Observer
from tests.chaos.submitting import Book, Order, Submitter, orders

RUNS_PER_MINUTE = 34.0
LARGEST_BURST = 12
MAX_ATTEMPTS, LONGEST_LIMIT_S, SETTLE_S = 3, 60, 60
GIVE_UP_AFTER_S = 90.0
"""How much longer than the faults a client goes on asking."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SoakOptions:
    """How long, how much, and from which seed."""

    minutes: float
    seed: int
    folder: Path
    runs_per_minute: float = RUNS_PER_MINUTE


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a soak."""

    evidence: Evidence
    violations: list[Violation]
    breaker: Breaker
    faults: Sequence[Fault]
    drained_s: float


async def soak(options: SoakOptions, say: Say = lambda line: None) -> Outcome:
    """Run a soak in a folder and check it; what stands in the folder stays."""
    random, duration_s = Random(options.seed), options.minutes * 60
    canary = f"canary{random.getrandbits(160):040x}"
    with_engine = private_engine.possible()
    system = ChaosOptions({"RUNYARD_SWEEP_EVERY_S": "5"}, private_engine=with_engine)
    if not with_engine:
        say("no engine of its own (that takes root and dockerd): the engine is not broken")
    faults = plan(random, duration_s, system.lease_s, engine=with_engine)
    todo = in_bursts(random, orders(random, round(options.runs_per_minute * options.minutes), canary), duration_s)
    say(f"seed {options.seed}: {len(todo)} runs and {len(faults)} faults in {duration_s:.0f} s")
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "plan.txt").write_text("".join(f"{fault}\n" for fault in faults))
    async with chaos_system(options.folder / "data", system) as chaos:
        observer, breaker = Observer(chaos.docker_host), Breaker(chaos, say)
        observer.start()
        try:
            book = Book(options.folder / "told.jsonl")
            await _break_while_submitting(chaos, breaker, faults, _Work(todo, book, duration_s))
            stopped, began = time.time(), time.monotonic()
            say("the faults have stopped; waiting until nothing moves")
            let_a_day_pass(chaos)
            await at_rest(chaos, book, MAX_ATTEMPTS * (LONGEST_LIMIT_S + system.lease_s) + SETTLE_S)
            drained_s = time.monotonic() - began
            say(f"drained after {drained_s:.1f} s; {len(await open_runs(chaos, book))} runs are open")
        finally:
            observer.stop()
        witnesses = Witnesses(book, observer, breaker.outages, stopped, (canary,))
        evidence = await gather(chaos, witnesses)
    evidence = gather_after(evidence, chaos)
    _keep(options.folder, evidence)
    return Outcome(evidence, await check(evidence), breaker, faults, drained_s)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is submitted: each order at its second."""

    orders: Sequence[tuple[float, Order]]
    book: Book
    duration_s: float


def in_bursts(random: Random, todo: Sequence[Order], duration_s: float) -> list[tuple[float, Order]]:
    """Spread orders over a time, in bursts of up to a dozen, so that faults fall into open requests."""
    left, bursts = list(todo), []
    while left:
        size = random.randint(1, LARGEST_BURST)
        at = random.uniform(0, duration_s)
        bursts += [(at + random.uniform(0, 0.5), order) for order in left[:size]]
        left = left[size:]
    return sorted(bursts, key=lambda each: each[0])


async def _break_while_submitting(chaos: Chaos, breaker: Breaker, faults: Sequence[Fault], work: _Work) -> None:
    token = chaos.token()
    submitter = Submitter(chaos.api_url, lambda: token, work.book)
    submitter.give_up_at(time.monotonic() + work.duration_s + GIVE_UP_AFTER_S)
    try:
        for some in batched([order for _, order in work.orders], LARGEST_BURST):
            await asyncio.gather(*(submitter.prepare(order) for order in some))
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(breaker.carry_out(faults))
            for at_s, order in work.orders:
                await asyncio.sleep(max(0.0, began + at_s - time.monotonic()))
                group.create_task(_submit(submitter, order))
    finally:
        await submitter.close()


def batched(orders: Sequence[Order], size: int) -> Iterator[Sequence[Order]]:
    """Cut a sequence into pieces."""
    for start in range(0, len(orders), size):
        yield orders[start : start + size]


async def _submit(submitter: Submitter, order: Order) -> None:
    with contextlib.suppress(TimeoutError):  # it stays unknown, and so it stands in the book
        await submitter.submit(order)


def _keep(folder: Path, evidence: Evidence) -> None:
    """Write down what the observer and the breaker saw, beside the clients' ledger."""
    for name, lines in (("lifetimes", evidence.lifetimes), ("outages", evidence.outages)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))


def summary(outcome: Outcome) -> Table:
    """Say in a table what happened."""
    evidence = outcome.evidence
    runs = len({told.run_id for told in evidence.accepted})
    table = Table(title=f"{runs} runs, {len(outcome.faults)} faults", show_header=False)
    ends = [event for event in evidence.stored if event.type in ENDS and event.stale is None]
    rows: list[tuple[str, object]] = [
        ("outcomes", _counted(_outcome(event) for event in ends)),
        ("clients were told", _counted(told.outcome for told in evidence.told)),
        ("attempts lost", lost_attempts(evidence)),
        ("stale facts", sum(event.stale is not None for event in evidence.stored)),
        ("duplicates absorbed", duplicates(evidence)),
        ("events in the ledger", len(evidence.stored)),
        ("drained after the faults", f"{outcome.drained_s:.1f} s"),
    ]
    for what, seconds in sorted(outcome.breaker.recoveries.items()):
        rows.append((what, f"{len(seconds):3d} times, longest recovery {max(seconds):5.1f} s"))
    for name, value in rows:
        table.add_row(name, str(value))
    return table


def _outcome(end: StoredEvent) -> str:
    reason = end.data.get("reason")
    return f"{ENDS[end.type]} ({reason})" if reason else ENDS[end.type]


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{word} {count}" for word, count in Counter(words).most_common())


def shortfalls(outcome: Outcome, ordered: int) -> list[str]:
    """Say which kinds of fault did not happen, and whether fewer runs were accepted than ordered."""
    wanted = [what for what in ONCE_EACH if private_engine.possible() or not what.endswith("engine")]
    accepted = len({told.run_id for told in outcome.evidence.accepted})
    missing = [f"{what} never happened" for what in wanted if what not in outcome.breaker.recoveries]
    return missing + ([f"{accepted} of {ordered} runs were accepted"] if accepted < ordered else [])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--runs-per-minute", type=float, default=RUNS_PER_MINUTE)
    parser.add_argument("--folder", type=Path, help="where the evidence goes; by default below .runyard")
    asked = parser.parse_args()
    console = Console(highlight=False, width=120)
    folder = (asked.folder or Path(".runyard") / f"chaos-{asked.seed}").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()

    def say(line: str) -> None:
        console.print(f"[{time.monotonic() - began:6.1f} s] {line}", markup=False, soft_wrap=True)

    outcome = asyncio.run(soak(SoakOptions(asked.minutes, asked.seed, folder, asked.runs_per_minute), say))
    console.print(summary(outcome))
    short = shortfalls(outcome, round(asked.runs_per_minute * asked.minutes))
    for shortfall in short:
        say(f"NOT DONE {shortfall}")
    if not outcome.violations and not short:
        say(f"no violation (seed {asked.seed})")
        shutil.rmtree(folder)
        return 0
    for violation in outcome.violations:
        say(f"VIOLATION {violation}")
    say(f"{len(outcome.violations)} violations with seed {asked.seed}; the evidence is in {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())

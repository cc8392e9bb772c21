"""Losing the whole broker, again and again, and every consumer group going back to offset 0, with runs in every state.

`make broker-loss`: Kafka is killed and its data deleted, so that topics, offsets and the cluster itself are gone; what
is published again from PostgreSQL has to be enough. Every group is reset once while runs are open, after the first
loss, and once more at rest, when nothing may change. Exit code 1 with the violations if a promise was broken.
"""

import argparse
import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata
from rich.console import Console

from schemas.topics import DISPATCH, OUTPUT, RUNS, Topic
from services.backbone.settings import ServiceSettings
from services.cli.republish import Retold, republish_open_runs
from services.runner.dispatch import partition_of
from tests.chaos.evidence import Evidence, Outage
from tests.chaos.gathering import Witnesses, at_rest, duplicates, gather, gather_after, let_a_day_pass, open_runs
from tests.chaos.harness import SERVICES, Chaos, ChaosOptions, chaos_system
from tests.chaos.invariants import Violation, check
from tests.chaos.observing import Observer
from tests.chaos.soak import Say
from tests.chaos.submitting import Book, Order, Submitter, orders

POLL_S = 0.05
RESTART_TIMEOUT_S = 60.0
DRAIN_S = 400.0
SUBMITTERS = 8
OPEN_AT_RESET = 4
"""Every group is reset while there are at least so many times fewer runs open than at each loss."""


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group, whose it is, and what it reads; without a static member by partitions assigned by hand."""

    service: str
    name: str
    topic: Topic
    member: str | None = None
    only: int | None = None

    @property
    def partitions(self) -> list[TopicPartition]:
        """What it keeps offsets of."""
        numbers = range(self.topic.partitions) if self.only is None else [self.only]
        return [TopicPartition(self.topic.name, number) for number in numbers]


GROUPS = (
    Group("api", "api", RUNS, "up-api.runs"),
    Group("scheduler", "scheduler", RUNS, "up-scheduler.runs"),
    Group("auditor", "auditor", RUNS, "up-auditor.runs"),
    Group("auditor", "auditor", OUTPUT, "up-auditor.output"),
)


@dataclass(frozen=True, slots=True)
class LossOptions:
    """How many runs are submitted at first, how often the broker is lost, and how many runs are open each time."""

    runs: int
    losses: int
    open_at_least: int
    seed: int
    folder: Path


@dataclass(slots=True)
class Outcome:
    """What came of it. `open_at_losses` are the accepted runs that had not ended when each broker was lost.

    `open_at_reset` are those that had not when every group was back at offset 0, and no service there again yet.
    """

    open_at_losses: list[int]
    retold: list[Retold]
    recoveries_s: list[float]
    violations: list[Violation]
    open_at_reset: int = 0
    duplicates: int = 0
    changed_by_reset: int = 0


async def lose_the_broker(options: LossOptions, say: Say = lambda line: None) -> Outcome:
    """Submit, lose the broker several times, go back to offset 0 among it and once more at rest, and check."""
    canary = f"canary{Random(options.seed).getrandbits(160):040x}"
    todo = orders(Random(options.seed), options.runs, canary)
    outcome, book = Outcome([], [], [], []), Book(options.folder / "told.jsonl")
    system = ChaosOptions(environment={"RUNYARD_BROKER_CHECK_S": "1", "RUNYARD_SWEEP_EVERY_S": "5"})
    options.folder.mkdir(parents=True, exist_ok=True)
    async with chaos_system(options.folder / "data", system) as chaos:
        observer, outages = Observer(chaos.docker_host), list[Outage]()
        observer.start()
        try:
            submitting = asyncio.create_task(_submit_all(chaos, todo, book))
            await _until_accepted(book, options.runs)
            for number in range(options.losses):
                live = len(await open_runs(chaos, book))
                say(f"loss {number + 1}: {live} runs are open")
                outcome.open_at_losses.append(live)
                outages.append(await _lose(chaos, outcome, say))
                if number == 0:
                    outages += await _reset_at_once(chaos, book, outcome)
                    say(f"read again from offset 0: all groups at once, with {outcome.open_at_reset} runs open")
                await _until_some_ended(chaos, book, live - max(1, (options.runs - options.open_at_least) // 4))
            await submitting
            stopped = time.time()
            let_a_day_pass(chaos)
            rest = await at_rest(chaos, book, DRAIN_S)
            say(f"at rest: {rest}; every group goes back to offset 0")
            outcome.changed_by_reset = await _reset_at_rest(chaos, book, say)
        finally:
            observer.stop()
        evidence = await gather(chaos, Witnesses(book, observer, outages, stopped, (canary,)))
    evidence = gather_after(evidence, chaos)
    outcome.duplicates = duplicates(evidence)
    outcome.violations = [*await check(evidence), *_changed(outcome)]
    return outcome


async def _submit_all(chaos: Chaos, todo: Sequence[Order], book: Book) -> None:
    token, queue = chaos.token(), list(todo)
    submitter = Submitter(chaos.api_url, lambda: token, book)

    async def one_after_the_other() -> None:
        while queue:
            await submitter.submit(queue.pop(0))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(SUBMITTERS):
                group.create_task(one_after_the_other())
    finally:
        await submitter.close()


async def _until_accepted(book: Book, runs: int) -> None:
    async with asyncio.timeout(DRAIN_S):
        while len(book.accepted()) < runs:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(POLL_S)


async def _until_some_ended(chaos: Chaos, book: Book, left: int) -> None:
    async with asyncio.timeout(DRAIN_S):
        while len(await open_runs(chaos, book)) > left:  # noqa: ASYNC110 - a table has no event
            await asyncio.sleep(POLL_S * 10)


async def _lose(chaos: Chaos, outcome: Outcome, say: Say) -> Outage:
    """Kill Kafka, delete all that it had, and do what `runyard up` does when it starts it again."""
    began, at = time.time(), time.monotonic()
    restarts = chaos.restarts["kafka"]
    with chaos.holding("kafka"):
        chaos.kafka.kill()
        shutil.rmtree(chaos.data_dir.kafka / "data")
    async with asyncio.timeout(RESTART_TIMEOUT_S):
        while chaos.restarts["kafka"] == restarts:  # noqa: ASYNC110 - a child has no event to wait for
            await asyncio.sleep(POLL_S)
    back = time.time()
    kafka = ServiceSettings(kafka_bootstrap_servers=chaos.kafka.bootstrap_servers)
    retold = await republish_open_runs(chaos.postgres.admin_url, kafka)
    await chaos.ready()
    outcome.retold.append(retold)
    outcome.recoveries_s.append(time.monotonic() - at)
    took_s = time.monotonic() - at
    say(f"told {retold.cluster_id} {retold.events} events of {retold.runs} runs; ready after {took_s:.1f} s")
    return Outage("kafka", "killed", began, time.time(), back)


async def _reset_at_once(chaos: Chaos, book: Book, outcome: Outcome) -> list[Outage]:
    """Kill every service while runs are open, reset every group, let all come back and read to where they were."""
    groups, began = [*GROUPS, *_dispatch_groups(chaos)], time.time()
    with contextlib.ExitStack() as held:
        for name in SERVICES:
            held.enter_context(chaos.holding(name))
            chaos.services[name].kill()
        for group in groups:
            await _commit_offset_0(chaos, group)
        outcome.open_at_reset = len(await open_runs(chaos, book))
    await chaos.ready()
    outages = [Outage(name, "killed", began, time.time()) for name in SERVICES]
    await _until_read_again(chaos, groups)
    return outages


async def _reset_at_rest(chaos: Chaos, book: Book, say: Say) -> int:
    """Reset every group, service by service, when nothing moves; returns how many rows are different afterwards."""
    before = await gather(chaos, Witnesses(book, Observer(chaos.docker_host)))
    groups = [*GROUPS, *_dispatch_groups(chaos)]
    for group in groups:
        await _reset(chaos, group)
        say(f"group {group.name}, {group.topic.name}: at offset 0")
    await chaos.ready()
    await _until_read_again(chaos, groups)
    after = await gather(chaos, Witnesses(book, Observer(chaos.docker_host)))
    return _differences(before, after)


def _dispatch_groups(chaos: Chaos) -> list[Group]:
    return [
        Group(name, f"runner-{runner_id}", DISPATCH, only=partition_of(runner_id))
        for name, runner_id in chaos.runner_ids().items()
    ]


async def _reset(chaos: Chaos, group: Group) -> None:
    """Kill the service, take its place in the group, commit the beginning, and let the service come back."""
    restarts = chaos.restarts[group.service]
    with chaos.holding(group.service):
        chaos.services[group.service].kill()
        await _commit_offset_0(chaos, group)
    async with asyncio.timeout(RESTART_TIMEOUT_S):
        while chaos.restarts[group.service] == restarts:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


async def _commit_offset_0(chaos: Chaos, group: Group) -> None:
    """Take a member's place, or none where partitions are assigned by hand, and commit the beginning."""
    consumer = AIOKafkaConsumer(
        *([group.topic.name] if group.member else []),
        bootstrap_servers=chaos.kafka.bootstrap_servers,
        group_id=group.name,
        group_instance_id=group.member,
        enable_auto_commit=False,
        session_timeout_ms=45_000,
    )
    await consumer.start()
    try:
        if group.member is None:
            consumer.assign(group.partitions)
        elif not consumer.assignment():  # what the killed one was dealt when the broker had no topics yet
            consumer._coordinator.request_rejoin()
        async with asyncio.timeout(RESTART_TIMEOUT_S):
            while not consumer.assignment():  # noqa: ASYNC110 - aiokafka has no event for it
                await asyncio.sleep(POLL_S)
        await consumer.commit({each: OffsetAndMetadata(0, "") for each in group.partitions})
        kept = {await consumer.committed(each) for each in group.partitions}
        if kept != {0}:
            raise AssertionError(f"group {group.name} is at {kept}")
    finally:
        await consumer.stop()


async def _until_read_again(chaos: Chaos, groups: Sequence[Group]) -> None:
    """Wait until each group has read and committed all that stands on its partitions now; more may come meanwhile."""
    async with asyncio.timeout(RESTART_TIMEOUT_S):
        for group in groups:
            await _until_at_end(chaos, group)


async def _until_at_end(chaos: Chaos, group: Group) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=chaos.kafka.bootstrap_servers, group_id=group.name, enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign(group.partitions)
        for partition, end in (await consumer.end_offsets(group.partitions)).items():
            while (await consumer.committed(partition) or 0) < end:  # noqa: ASYNC110 - an offset has no event
                await asyncio.sleep(POLL_S * 4)
    finally:
        await consumer.stop()


def _differences(before: Evidence, after: Evidence) -> int:
    same_facts = set(before.stored_ids) ^ set(after.stored_ids)
    rows = sum(before.tables[name] != after.tables[name] for name in before.tables)
    return len(same_facts) + rows + (before.audit != after.audit) + (before.versions != after.versions)


def _changed(outcome: Outcome) -> list[Violation]:
    if not outcome.changed_by_reset:
        return []
    return [Violation("reset", f"{outcome.changed_by_reset} things changed when every group went back to offset 0")]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.broker_loss", description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--losses", type=int, default=3)
    parser.add_argument("--open-at-least", type=int, default=200, help="how many runs shall be open at each loss")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    console, began = Console(highlight=False, width=120), time.monotonic()
    folder = (Path(".runyard") / f"broker-loss-{asked.seed}").absolute()

    def say(line: str) -> None:
        console.print(f"[{time.monotonic() - began:6.1f} s] {line}", markup=False, soft_wrap=True)

    options = LossOptions(asked.runs, asked.losses, asked.open_at_least, asked.seed, folder)
    outcome = asyncio.run(lose_the_broker(options, say))
    say(f"open at each loss: {outcome.open_at_losses}; recovered after {[round(s, 1) for s in outcome.recoveries_s]} s")
    say(f"duplicates absorbed: {outcome.duplicates}")
    say(f"going back to offset 0: {outcome.open_at_reset} runs open; {outcome.changed_by_reset} things changed at rest")
    for violation in outcome.violations:
        say(f"VIOLATION {violation}")
    too_few = min(outcome.open_at_losses) < asked.open_at_least
    if outcome.violations or too_few or outcome.open_at_reset < asked.open_at_least // OPEN_AT_RESET:
        say(f"{len(outcome.violations)} violations with seed {asked.seed}; the evidence is in {folder}")
        return 1
    say(f"no violation (seed {asked.seed})")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

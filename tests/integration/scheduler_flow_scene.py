"""A real scheduler on a test's own database and the real broker, with a test in the place of api and runners."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import SecretStr

from schemas.cloudevents import CloudEvent, encode
from schemas.events import AnyEvent, RunEnd, RunFact, RunnerHeartbeat, RunQueued, RunRevoked
from schemas.ids import event_id
from schemas.parts import Capacity, RunAttempt, RunnerLoad
from schemas.topics import DISPATCH, LOAD, RUNS, address_of
from services.backbone.consumer import Consumer, Received, Subscription
from services.backbone.health import Health
from services.backbone.kafka import client_options
from services.backbone.publisher import Outgoing, Publisher
from services.backbone.settings import ServiceSettings
from services.scheduler.main import schedule
from services.scheduler.settings import SchedulerSettings
from tests.integration.conftest import Database
from tests.life_of_a_run import requested, told

PATIENCE_S = 30.0
HEARTBEAT_S = 0.2
ROOMY = Capacity(cpu_cores=64, memory_gb=256)

Found = TypeVar("Found")


@dataclass
class Runner:
    """A runner as far as a scheduler can tell. One that does not listen goes on with what it has."""

    runner_id: str
    dispatch_partition: int
    capacity: Capacity = ROOMY
    listens: bool = True
    running: set[RunAttempt] = field(default_factory=set)

    def on_dispatch(self, event: RunQueued | RunRevoked) -> None:
        """Do what it is told."""
        if self.listens and event.runner_id == self.runner_id:
            change = self.running.add if isinstance(event, RunQueued) else self.running.discard
            change(RunAttempt(run_id=event.run_id, attempt=event.attempt))

    def heartbeat(self, beat: int) -> CloudEvent:
        """Say what it has."""
        data = RunnerHeartbeat(
            runner_id=self.runner_id,
            beat=beat,
            capacity=self.capacity,
            runtimes=("python3.11",),
            dispatch_partition=self.dispatch_partition,
            running=tuple(self.running),
        )
        identity = event_id(self.runner_id, 0, data.type, beat)
        return CloudEvent(identity, "/runyard/test", self.runner_id, datetime.now(UTC), data)


@dataclass
class Scene:
    """A scheduler's surroundings, and all that is said there from the scene's beginning on."""

    database: Database
    kafka: ServiceSettings
    publisher: Publisher
    admin: asyncpg.Connection
    runners: list[Runner] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    @asynccontextmanager
    async def scheduler(self, group: str, *, lease_s: float = 60.0, max_attempts: int = 3) -> AsyncIterator[None]:
        """Run a scheduler as that consumer group; if it fails, the block is cancelled."""
        settings = SchedulerSettings(
            postgres_url=SecretStr(self.database.scheduler_url),
            postgres_pool_size=4,
            kafka_bootstrap_servers=self.kafka.kafka_bootstrap_servers,
            consumer_group=group,
            heartbeat_s=HEARTBEAT_S,
            tick_s=HEARTBEAT_S / 2,
            lease_s=lease_s,
            max_attempts=max_attempts,
        )
        async with asyncio.TaskGroup() as tasks:
            scheduling = tasks.create_task(schedule(settings, Health()))
            yield
            scheduling.cancel()

    @asynccontextmanager
    async def runner(self, capacity: Capacity = ROOMY) -> AsyncIterator[Runner]:
        """Let a runner be there: it is heard until the end of the block, and silent afterwards."""
        runner = Runner(f"rnr-{secrets.token_hex(6)}", secrets.randbelow(DISPATCH.partitions), capacity)
        self.runners.append(runner)
        async with self.beating(runner):
            yield runner

    @asynccontextmanager
    async def beating(self, runner: Runner) -> AsyncIterator[None]:
        """Let a runner be heard during the block."""
        async with asyncio.TaskGroup() as tasks:
            heart = tasks.create_task(self._beat(runner))
            yield
            heart.cancel()

    async def request(self, **changes: Any) -> str:
        """Have a run accepted; returns its id."""
        run_id = f"run-custom-20260313-{secrets.token_hex(6)}"
        await self.say(requested(run_id, **changes))
        return run_id

    async def say(self, data: RunFact, sequence: int = 0) -> None:
        """Publish a fact, as the api or a runner would. A runner that tells an end does not run that any more."""
        if isinstance(data, RunEnd):
            for runner in self.runners:
                runner.running.discard(RunAttempt(run_id=data.run_id, attempt=data.attempt))
        await self._publish(told(data, sequence=sequence))

    async def marker(self, run_id: str) -> str:
        """Have another run accepted behind all that was said of a run until now, on the very same partition.

        When the scheduler has decided on it, it has read and decided on everything before it.
        """
        marker = f"run-custom-20260313-{secrets.token_hex(6)}"
        [partition] = {each.partition for each in self.received if each.topic == RUNS.name and _run(each) == run_id}
        await self._publish(told(requested(marker), seconds=3600), partition)
        return marker

    def said(self, run_id: str) -> list[AnyEvent]:
        """What was said of a run on its topic, in order."""
        return [_data(each) for each in self.received if each.topic == RUNS.name and _run(each) == run_id]

    def kinds(self, run_id: str) -> list[str]:
        """What was said of a run on its topic, in words."""
        return [data.type.removeprefix("runyard.run.").removesuffix(".v1") for data in self.said(run_id)]

    def dispatched(self, run_id: str, kind: type[RunQueued | RunRevoked] = RunQueued) -> list[Received]:
        """What was said of a run to runners, in order."""
        to_runners = [each for each in self.received if each.topic == DISPATCH.name]
        return [each for each in to_runners if _run(each) == run_id and isinstance(_data(each), kind)]

    def load_of(self, runner_id: str) -> RunnerLoad | None:
        """What the scheduler said last of a runner's load."""
        loads = [_data(each) for each in self.received if each.topic == LOAD.name]
        of_runner = [each for load in loads for each in getattr(load, "runners", ()) if each.runner_id == runner_id]
        return of_runner[-1] if of_runner else None

    async def until(self, condition: Callable[[], Found]) -> Found:
        """Wait until something is true of what was said."""
        try:
            async with asyncio.timeout(PATIENCE_S), self._news:
                await self._news.wait_for(condition)
                return condition()
        except TimeoutError as late:
            heard = [f"{each.topic}: {_data(each)}" for each in self.received]
            raise AssertionError(f"not within {PATIENCE_S} s; heard:\n" + "\n".join(heard[-30:])) from late

    async def until_queued(self, run_id: str, attempt: int = 1) -> RunQueued:
        """Wait until a runner is told to run an attempt."""

        def found() -> RunQueued | None:
            queued = [_data(each) for each in self.dispatched(run_id)]
            return next((q for q in queued if isinstance(q, RunQueued) and q.attempt == attempt), None)

        queued = await self.until(found)
        if queued is None:
            raise AssertionError("`until` returns what is true")
        return queued

    async def until_said(self, run_id: str, kind: str) -> AnyEvent:
        """Wait until a fact of that kind stands on the run's topic."""
        await self.until(lambda: kind in self.kinds(run_id))
        return self.said(run_id)[self.kinds(run_id).index(kind)]

    async def until_stored(self, question: str, *arguments: object) -> None:
        """Wait until a question about the scheduler's tables is answered with true."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.admin.fetchval(question, *arguments):  # noqa: ASYNC110 - a table has no event
                await asyncio.sleep(0.05)

    async def collect(self, batch: Sequence[Received]) -> None:
        """Take in what was said; the handler of the scene's own consumer."""
        async with self._news:
            for each in batch:
                if isinstance(each.event, CloudEvent):
                    self.received.append(each)
                    self._tell_runners(each)
            self._news.notify_all()

    def _tell_runners(self, received: Received) -> None:
        data = _data(received)
        if received.topic == DISPATCH.name and isinstance(data, RunQueued | RunRevoked):
            for runner in self.runners:
                runner.on_dispatch(data)

    async def _beat(self, runner: Runner) -> None:
        beat = 0
        while True:
            beat += 1
            await self._publish(runner.heartbeat(beat))
            await asyncio.sleep(HEARTBEAT_S)

    async def _publish(self, event: CloudEvent, partition: int | None = None) -> None:
        topic, key = address_of(event.data)
        await self.publisher.publish([Outgoing(topic.name, key, *encode(event), partition)])


def _data(received: Received) -> AnyEvent:
    if not isinstance(received.event, CloudEvent):
        raise TypeError("only events of known types are collected")
    return received.event.data


def _run(received: Received) -> str | None:
    return getattr(_data(received), "run_id", None)


async def begin_here(kafka: ServiceSettings, group: str) -> None:
    """Let a group read the runs from now on: what other tests left there is not this one's."""
    consumer = AIOKafkaConsumer(**client_options(kafka), group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(RUNS.name, number) for number in range(RUNS.partitions)]
        consumer.assign(partitions)
        await consumer.commit(await consumer.end_offsets(partitions))
    finally:
        await consumer.stop()


@asynccontextmanager
async def a_scene(database: Database, kafka: ServiceSettings, group: str) -> AsyncIterator[Scene]:
    """Set a scene; a scheduler of that group begins to read here."""
    await begin_here(kafka, group)
    publisher = Publisher(client_options(kafka))
    admin = await asyncpg.connect(database.admin_url, server_settings={"search_path": "scheduling"})
    scene = Scene(database, kafka, publisher, admin)
    topics = (RUNS.name, DISPATCH.name, LOAD.name)
    consumer = Consumer(kafka, Subscription("scene", topics, scene.collect, from_end=True), publisher, Health())
    listening = asyncio.create_task(consumer.run())
    try:
        await consumer.wait_until_caught_up()
        yield scene
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await publisher.close()
        await admin.close()

"""All consumers of the system at work on a broker and databases of their own, for tests that throw poison at them.

Api, scheduler and auditor run in this process on their real handlers, the runner as a process of its own; a reader of
the dead letters notes who refused what. Nothing stops for too much poison here: that has tests of its own.
"""

import asyncio
import base64
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import asyncpg
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.structs import RecordMetadata
from pydantic import SecretStr

from schemas.cloudevents import CloudEvent, UnknownEvent, encode
from schemas.events import MessageRefused, SchedulerLoad
from schemas.ids import event_id
from schemas.topics import DEAD_LETTERS, LOAD, RUNS, TOPICS
from services.api.handlers import Handlers
from services.api.load import LoadView
from services.auditor.main import audit
from services.auditor.settings import AuditorSettings
from services.backbone.consumer import Consumer, Received, Subscription
from services.backbone.health import Health
from services.backbone.kafka import MAX_RECORD_BYTES, client_options, ensure_topics
from services.backbone.publisher import Publisher
from services.backbone.settings import ServiceSettings
from services.cli.embedded_kafka import EmbeddedKafka
from services.runner.journal import Journal
from services.scheduler.main import schedule
from services.scheduler.settings import SchedulerSettings
from tests.integration.conftest import Database
from tests.integration.test_api_scene import Api, opened_api
from tests.life_of_a_run import SPEC, requested, told

NEVER_STOPS = 101
GOES_ON_WITHIN_S = 5.0
SETS_UP_WITHIN_S = 60.0
MARKS = count()

Headers = list[tuple[str | bytes, bytes | None]]


@dataclass(frozen=True, slots=True)
class Record:
    """A record as a stranger might produce it; a header's name in bytes need not be UTF-8."""

    key: bytes | None
    headers: Headers
    value: bytes | None


@dataclass
class Refusals:
    """Who refused what, by the place of the message."""

    by_place: dict[tuple[str, int, int], dict[str, MessageRefused]] = field(default_factory=dict)

    async def collect(self, batch: Sequence[Received]) -> None:
        """Take in letters."""
        for received in batch:
            event = received.event
            if isinstance(event, CloudEvent) and isinstance(event.data, MessageRefused):
                letter = event.data
                place = (letter.topic, letter.partition, letter.offset)
                self.by_place.setdefault(place, {})[letter.consumer] = letter

    def of(self, place: tuple[str, int, int]) -> dict[str, MessageRefused]:
        """The letters about one message, by consumer."""
        return self.by_place.get(place, {})


@dataclass
class Scene:
    """The consumers, and what a test needs to talk to them and to see what they did."""

    settings: ServiceSettings
    producer: AIOKafkaProducer
    admin: asyncpg.Connection
    api: Api
    run_id: str
    runner_id: str
    runner: asyncio.subprocess.Process
    refusals: Refusals = field(default_factory=Refusals)
    load_view: LoadView = field(default_factory=LoadView)
    loads: list[SchedulerLoad] = field(default_factory=list)
    said: list[CloudEvent | UnknownEvent] = field(default_factory=list)
    parts: list[asyncio.Task[None]] = field(default_factory=list)

    async def send(self, topic: str, partition: int, record: Record) -> tuple[str, int, int]:
        """Produce a record; returns its place."""
        if any(isinstance(name, bytes) for name, _ in record.headers):
            sent = await send_undecodable(self.producer, topic, partition, record)
        else:
            sent = await self.producer.send_and_wait(
                topic, record.value, key=record.key, partition=partition, headers=record.headers
            )
        return topic, partition, sent.offset

    async def until(self, condition: Callable[[], Awaitable[object]], within_s: float = GOES_ON_WITHIN_S) -> None:
        """Wait until something is true, as long as all parts live."""
        async with asyncio.timeout(within_s):
            while not await condition():
                for part in self.parts:
                    if part.done():
                        part.result()
                assert self.runner.returncode is None, "the runner ended"
                await asyncio.sleep(0.02)

    async def until_letters_are_read(self) -> None:
        """Wait until every letter that is there by now was read: one of our own is sent behind them."""
        data = MessageRefused(reason="a mark", topic="none", partition=0, offset=next(MARKS), consumer="test.mark")
        mark = CloudEvent(event_id("mark", 0, data.type, data.offset), "/test", "mark", datetime.now(UTC), data)
        await self.send(DEAD_LETTERS.name, 0, record_of(mark, "mark"))

        async def read() -> bool:
            return bool(self.refusals.of((data.topic, data.partition, data.offset)))

        await self.until(read)

    def runners(self) -> set[str]:
        """The runners that the leader told the api of last."""
        newest = self.load_view.newest
        return {runner.runner_id for runner in newest.runners} if newest else set()

    async def counted(self, question: str, *arguments: object) -> int:
        """Ask the database for a number."""
        found: int = await self.admin.fetchval(question, *arguments)
        return found


class _Name(str):
    """A header's name that is not UTF-8."""

    raw: bytes

    @classmethod
    def of(cls, name: str | bytes) -> "_Name":
        made = cls("name")
        made.raw = name.encode() if isinstance(name, str) else name
        return made

    def encode(self, *_: object) -> bytes:
        return self.raw


async def send_undecodable(producer: AIOKafkaProducer, topic: str, partition: int, record: Record) -> RecordMetadata:
    """Produce what no ordinary client lets through: aiokafka's builder in Python asks a name to encode itself."""
    batch: BatchBuilder = producer.create_batch()
    batch._builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, 0, 1 << 20)
    headers = [(_Name.of(name), raw) for name, raw in record.headers]
    batch.append(key=record.key, value=record.value, timestamp=None, headers=headers)
    batch.close()
    return await (await producer.send_batch(batch, topic, partition=partition))


@asynccontextmanager
async def a_scene(database: Database, folder: Path) -> AsyncIterator[Scene]:
    """Start everything, with one run accepted that nobody can place: it waits for a GPU."""
    kafka = EmbeddedKafka(folder / "kafka")
    await kafka.start()
    try:
        settings = ServiceSettings(kafka_bootstrap_servers=kafka.bootstrap_servers, poison_limit=NEVER_STOPS)
        await ensure_topics(settings, TOPICS)
        async with AsyncExitStack() as stack:
            yield await _set_up(stack, settings, database, folder)
    finally:
        await kafka.stop()


async def _set_up(stack: AsyncExitStack, settings: ServiceSettings, database: Database, folder: Path) -> Scene:
    publisher = Publisher(client_options(settings))
    stack.push_async_callback(publisher.close)
    producer = AIOKafkaProducer(**client_options(settings), max_request_size=2 * MAX_RECORD_BYTES)
    await producer.start()
    stack.push_async_callback(producer.stop)
    admin = await asyncpg.connect(database.admin_url)
    stack.push_async_callback(admin.close)
    api = await stack.enter_async_context(opened_api(database, folder / "objects"))
    run_id = await api.started(await api.model())
    journal = Journal(folder / "work" / "journal.db")
    runner_id = journal.runner_id
    journal.close()
    runner = await stack.enter_async_context(_runner(settings, folder))
    scene = Scene(settings, producer, admin, api, run_id, runner_id, runner)
    scene.parts = [asyncio.create_task(part) for part in _parts(scene, publisher, database)]
    stack.push_async_callback(_stop, scene.parts)
    await _settle(scene)
    return scene


def _parts(scene: Scene, publisher: Publisher, database: Database) -> list[Awaitable[None]]:
    """The consumers of this process; what `runyard.load` says is noted on its way to the api."""
    shared = {
        "kafka_bootstrap_servers": scene.settings.kafka_bootstrap_servers,
        "poison_limit": NEVER_STOPS,
        "postgres_pool_size": 4,
    }
    auditor = AuditorSettings(postgres_url=SecretStr(database.auditor_url), **shared)
    scheduler = SchedulerSettings(
        postgres_url=SecretStr(database.scheduler_url), heartbeat_s=0.5, tick_s=0.2, load_interval_s=0.5, **shared
    )
    handlers = Handlers(scene.api.context.pool, scene.api.context.variables, scene.api.context.objects)

    async def on_load(batch: Sequence[Received]) -> None:
        await scene.load_view.on_load(batch)
        events = [received.event for received in batch if isinstance(received.event, CloudEvent)]
        scene.loads.extend(event.data for event in events if isinstance(event.data, SchedulerLoad))

    async def on_anything(batch: Sequence[Received]) -> None:
        scene.said.extend(received.event for received in batch)

    readers = (
        Subscription("api.runs", (RUNS.name,), handlers.on_run_facts, "api"),
        Subscription("api.load", (LOAD.name,), on_load),
        Subscription("test.said", (RUNS.name,), on_anything),
        Subscription("test.letters", (DEAD_LETTERS.name,), scene.refusals.collect),
    )
    consuming = [Consumer(scene.settings, reader, publisher, Health()).run() for reader in readers]
    return [*consuming, audit(auditor, Health(), "auditor"), schedule(scheduler, Health())]


@asynccontextmanager
async def _runner(settings: ServiceSettings, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {
        "RUNYARD_WORK_DIR": str(folder / "work"),
        "RUNYARD_OBJECTS_URL": f"file://{folder}/objects",
        "RUNYARD_SEALING_KEY": "k1:" + base64.b64encode(secrets.token_bytes(32)).decode(),
        "RUNYARD_KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "RUNYARD_HEARTBEAT_S": "1",
        "RUNYARD_POISON_LIMIT": str(NEVER_STOPS),
    }
    with (folder / "runner.log").open("ab") as said:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.runner.main", env={**os.environ, **environment}, stderr=said
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _settle(scene: Scene) -> None:
    """Wait until the leader hears runners: from here on everybody reads what comes."""
    demanding = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"gpu": True})})
    await scene.send(RUNS.name, 0, record_of(told(requested(scene.run_id, spec=demanding)), scene.run_id))

    async def placed_by_nobody() -> bool:
        said = [event for event in scene.said if isinstance(event, CloudEvent) and event.subject == scene.run_id]
        return scene.runner_id in scene.runners() and any("waiting" in event.data.type for event in said)

    await scene.until(placed_by_nobody, SETS_UP_WITHIN_S)


def record_of(event: CloudEvent, key: str) -> Record:
    """An event as our services write it."""
    headers, value = encode(event)
    return Record(key.encode(), list(headers), value)


async def _stop(parts: Sequence[asyncio.Task[None]]) -> None:
    for part in parts:
        part.cancel()
    await asyncio.gather(*parts, return_exceptions=True)

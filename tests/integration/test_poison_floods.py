"""Protects the limit of poison, which outlives the process that counted, and good messages in the middle of poison."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import confluent_kafka
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from schemas.cloudevents import CloudEvent, encode
from schemas.events import RunWaiting, TrainingRequested
from schemas.reason import Reason
from schemas.topics import RUNS, TOPICS, Topic
from services.backbone.consumer import Consumer, Received, Subscription
from services.backbone.health import Health
from services.backbone.kafka import client_options, ensure_topics
from services.backbone.postgres import open_pool
from services.backbone.publisher import Publisher
from services.backbone.settings import ServiceSettings
from services.cli.embedded_kafka import EmbeddedKafka
from services.scheduler.handlers import Folds
from tests.integration.conftest import Database
from tests.integration.poison_scene import Record, send_undecodable
from tests.life_of_a_run import SPEC, told, whole_life

DEADLINE_S = 30
GOES_ON_WITHIN_S = 5


@pytest_asyncio.fixture(scope="module")
async def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceSettings]:
    """A broker of this module's own: what stands on its topics would stop the consumers of other tests."""
    server = EmbeddedKafka(tmp_path_factory.mktemp("flooded"))
    await server.start()
    settings = ServiceSettings(kafka_bootstrap_servers=server.bootstrap_servers)
    await ensure_topics(settings, TOPICS)
    yield settings
    await server.stop()


@pytest.fixture
async def producer(own_kafka: ServiceSettings) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(**client_options(own_kafka))
    await producer.start()
    yield producer
    await producer.stop()


@pytest.fixture
async def publisher(own_kafka: ServiceSettings) -> AsyncIterator[Publisher]:
    publisher = Publisher(client_options(own_kafka))
    yield publisher
    await publisher.close()


@pytest.fixture
async def topic(own_kafka: ServiceSettings, group: str) -> str:
    """A topic of two partitions of this test's own."""
    await ensure_topics(own_kafka, [Topic(group, partitions=2, retention=None)])
    return group


async def until(condition: Callable[[], Awaitable[object]], within_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - a table has no event
            await asyncio.sleep(0.02)


class Auditor:
    """The auditor as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    async def ended(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()

    def last_words(self) -> dict[str, Any]:
        words: dict[str, Any] = json.loads(self._log.read_text().splitlines()[-1])
        return words


@asynccontextmanager
async def auditor(kafka: ServiceSettings, database: Database, log: Path, **more: str) -> AsyncIterator[Auditor]:
    settings = {
        "RUNYARD_KAFKA_BOOTSTRAP_SERVERS": kafka.kafka_bootstrap_servers,
        "RUNYARD_POSTGRES_URL": database.auditor_url,
    }
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.auditor.main", env={**os.environ, **settings, **more}, stderr=said
        )
    try:
        yield Auditor(process, log)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_the_limit_ends_the_process_and_every_start_until_somebody_lets_it_pass(
    own_kafka: ServiceSettings, database: Database, producer: AIOKafkaProducer, tmp_path: Path
) -> None:
    ledger = await asyncpg.connect(database.admin_url)
    log = tmp_path / "auditor.log"

    async def poison(times: int) -> None:
        for _ in range(times):
            await producer.send_and_wait(RUNS.name, b"{", partition=0)

    async def good(run_id: str) -> None:
        event = told(whole_life(run_id)[0])
        headers, value = encode(event)
        await producer.send_and_wait(RUNS.name, value, key=run_id.encode(), partition=0, headers=headers)

    async def stored(run_id: str) -> None:
        question = "SELECT count(*) FROM ledger.run_events WHERE run_id = $1"
        await until(lambda: ledger.fetchval(question, run_id))

    async with auditor(own_kafka, database, log) as first:
        for run_id, before in (("run-1", 5), ("run-2", 4)):
            await poison(before)
            await good(run_id)
            await stored(run_id)
        await poison(1)
        assert await first.ended() == 1
        said = first.last_words()
    assert said["event"] == "service_stopped_itself"
    assert said["reason"].startswith(
        "10 of the last 12 messages of auditor.runs were poison; the last, runyard.runs/0/11:"
    )
    assert "runyard dead-letters list" in said["reason"]
    assert "RUNYARD_POISON_LIMIT" in said["reason"]

    await good("run-3")
    for _ in range(2):
        async with auditor(own_kafka, database, log) as again:
            assert await again.ended() == 1
            assert again.last_words()["reason"] == said["reason"]

    async with auditor(own_kafka, database, log, RUNYARD_POISON_LIMIT="101") as let_pass:
        await stored("run-3")
        let_pass.process.terminate()
        assert await let_pass.ended() == 0
    async with auditor(own_kafka, database, log):
        await good("run-4")
        await stored("run-4")
    await ledger.close()


class Reading:
    """A consumer of one topic that remembers the messages it handled."""

    def __init__(self, handle: Callable[[Sequence[Received]], Awaitable[None]] | None = None) -> None:
        self.seen: list[str] = []
        self._handle = handle

    async def on_batch(self, batch: Sequence[Received]) -> None:
        if self._handle is not None:
            await self._handle(batch)
        data = [received.event.data for received in batch if isinstance(received.event, CloudEvent)]
        self.seen += [each.message if isinstance(each, RunWaiting) else getattr(each, "run_id", "") for each in data]


@asynccontextmanager
async def reading(
    settings: ServiceSettings, topic: str, publisher: Publisher, reading: Reading
) -> AsyncIterator[asyncio.Task[None]]:
    subscription = Subscription(f"reads-{topic}", (topic,), reading.on_batch, topic)
    task = asyncio.create_task(Consumer(settings, subscription, publisher, Health()).run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def waiting(message: str) -> CloudEvent:
    data = RunWaiting(run_id="run-a", attempt=1, reason=Reason.NO_RUNNER, message=message)
    return CloudEvent(uuid4(), "/test", "run-a", datetime.now(UTC), data)


async def test_ten_of_a_thousand_stop_nobody_though_they_come_in_one_batch(
    own_kafka: ServiceSettings, topic: str, producer: AIOKafkaProducer, publisher: Publisher
) -> None:
    headers, value = encode(waiting("good"))
    batch = [b"{" if number % 50 == 0 else value for number in range(1000)]
    sent = [await producer.send(topic, each, partition=0, headers=headers) for each in batch]
    await asyncio.gather(*sent)
    found = Reading()

    async def all_seen() -> bool:
        assert not task.done(), task.exception()
        return len(found.seen) == 980

    async with reading(own_kafka, topic, publisher, found) as task:
        await until(all_seen)


async def test_nothing_good_is_lost_around_records_that_the_client_cannot_read(
    own_kafka: ServiceSettings, topic: str, producer: AIOKafkaProducer, publisher: Publisher
) -> None:
    for number in range(40):
        headers, value = encode(waiting(str(number)))
        await producer.send_and_wait(topic, value, partition=number % 2, headers=headers)
        if number == 10:
            await send_undecodable(producer, topic, 1, Record(None, [(b"\xff", b"x"), *headers], value))
        if number == 20:
            compressed = confluent_kafka.Producer(
                {"bootstrap.servers": own_kafka.kafka_bootstrap_servers, "compression.type": "lz4", "linger.ms": 50}
            )
            for _ in range(3):
                compressed.produce(topic, value * 100, partition=0, headers=headers)
            assert compressed.flush(DEADLINE_S) == 0
    found = Reading()
    settings = own_kafka.model_copy(update={"poison_limit": 5})

    async def all_seen() -> bool:
        assert not task.done(), task.exception()
        return len(found.seen) >= 40

    async with reading(settings, topic, publisher, found) as task:
        await until(all_seen)
    for parity in (0, 1):
        assert [each for each in found.seen if int(each) % 2 == parity] == [str(n) for n in range(parity, 40, 2)]


def requested(number: int) -> TrainingRequested:
    huge = SPEC.compute.model_copy(update={"cpu_cores": 2**40})
    spec = SPEC.model_copy(update={"compute": huge}) if number % 12 == 0 else SPEC
    return TrainingRequested(
        run_id=f"run-{number}", tenant_id="acme", actor="ada", request_id="req-1", model_id="mdl-1", spec=spec
    )


async def test_a_batch_full_of_what_the_database_refuses_is_through_within_seconds(
    own_kafka: ServiceSettings, database: Database, topic: str, producer: AIOKafkaProducer, publisher: Publisher
) -> None:
    pool = await open_pool(database.scheduler_url, "scheduling", 2)
    events = [told(requested(number)) for number in range(500)]
    records = [encode(event) for event in events]
    sent = [await producer.send(topic, value, partition=0, headers=headers) for headers, value in records]
    await asyncio.gather(*sent)
    found = Reading(Folds(pool).on_run_facts)

    async def all_folded() -> bool:
        assert not task.done(), task.exception()
        return len(found.seen) == 500 - 42

    async with reading(own_kafka, topic, publisher, found) as task:
        await until(lambda: _true(found.seen))
        began = time.monotonic()
        await until(all_folded)
        took_s = time.monotonic() - began
    assert await pool.fetchval("SELECT count(*) FROM runs") == 500 - 42
    await pool.close()
    assert took_s < GOES_ON_WITHIN_S


async def _true(seen: list[str]) -> bool:
    return bool(seen)

"""Protects against processes that live and do nothing, and against killing those that only wait for others.

With a real broker and database, and limits of seconds instead of minutes.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest
from pydantic import SecretStr
from starlette.applications import Starlette

from schemas.cloudevents import encode
from schemas.topics import Topic
from services.backbone.consumer import Consumer, Received, Subscription
from services.backbone.errors import PublishFailed, Stuck, TransientError
from services.backbone.health import Health, health_routes
from services.backbone.kafka import client_options, ensure_topics
from services.backbone.outbox import enqueue, to_its_topic
from services.backbone.postgres import open_pool
from services.backbone.publisher import Outgoing, Publisher, Record
from services.backbone.relay import Relay
from services.backbone.settings import ServiceSettings
from services.scheduler import store
from services.scheduler.leader import Leader
from services.scheduler.settings import SchedulerSettings
from tests.integration.conftest import Database
from tests.life_of_a_run import requested, told

LIMIT_S = 3.0
LONGER_THAN_THE_LIMIT_S = 9.0
DEADLINE_S = 40


@pytest.fixture
async def topic(kafka_settings: ServiceSettings, group: str) -> str:
    await ensure_topics(kafka_settings, [Topic(group, partitions=2, retention=None)])
    return group


@pytest.fixture
async def publisher(kafka_settings: ServiceSettings) -> AsyncIterator[Publisher]:
    publisher = Publisher(client_options(kafka_settings))
    yield publisher
    await publisher.close()


@asynccontextmanager
async def running(*parts: Any) -> AsyncIterator[asyncio.Task[None]]:
    """Parts at work as a service has them."""

    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)

    task = asyncio.create_task(together())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], object], task: asyncio.Task[None], within_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            if task.done():
                task.result()
            await asyncio.sleep(0.05)


async def stuck(task: asyncio.Task[None]) -> Stuck:
    """Wait until parts end because one of them is stuck."""
    await asyncio.wait([task], timeout=DEADLINE_S)
    assert task.done(), "nothing was found to be stuck"
    leaves = list(_leaves(task.exception()))
    assert len(leaves) == 1, leaves
    assert isinstance(leaves[0], Stuck)
    return leaves[0]


def _leaves(error: BaseException | None) -> Sequence[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error] if error is not None else []


async def publish(publisher: Publisher, topic: str, key: str = "run-a") -> None:
    event = told(requested(key))
    headers, value = encode(event)
    await publisher.publish([Outgoing(topic, key, headers, value)])


class Handler:
    """Counts what it handled; while `fails` it fails for now, and while `hangs` it never comes back."""

    def __init__(self) -> None:
        self.handled = 0
        self.fails = False
        self.hangs = False

    async def on_batch(self, batch: Sequence[Received]) -> None:
        if self.fails:
            raise TransientError("the database is away")
        if self.hangs:
            await asyncio.Event().wait()
        self.handled += len(batch)


def consumer_of(kafka: ServiceSettings, topic: str, handler: Handler, publisher: Publisher, health: Health) -> Consumer:
    return Consumer(kafka, Subscription("watched", (topic,), handler.on_batch, topic), publisher, health)


async def test_a_consumer_that_reads_nothing_though_there_is_something_is_ended(
    kafka_settings: ServiceSettings, topic: str, publisher: Publisher
) -> None:
    health, handler = Health(LIMIT_S), Handler()
    consumer = consumer_of(kafka_settings, topic, handler, publisher, health)
    async with running(consumer.run()) as task:
        await publish(publisher, topic)
        await until(lambda: handler.handled == 1, task)
        fetching = consumer._consumer
        fetching.pause(*fetching.assignment())
        await asyncio.sleep(LONGER_THAN_THE_LIMIT_S)
        assert not task.done(), "there was nothing to read"
        await publish(publisher, topic)
        error = await stuck(task)
    assert "watched has not got on for" in str(error)
    assert "1 records wait" in str(error)
    assert health.stuck == str(error)


async def test_a_handler_that_never_comes_back_is_ended(
    kafka_settings: ServiceSettings, topic: str, publisher: Publisher
) -> None:
    handler = Handler()
    handler.hangs = True
    async with running(consumer_of(kafka_settings, topic, handler, publisher, Health(LIMIT_S)).run()) as task:
        await publish(publisher, topic)
        await stuck(task)


async def test_a_consumer_that_retries_for_longer_than_the_limit_is_let_alone_and_says_why_it_is_not_ready(
    kafka_settings: ServiceSettings, topic: str, publisher: Publisher
) -> None:
    health, handler = Health(LIMIT_S), Handler()
    handler.fails = True
    async with running(consumer_of(kafka_settings, topic, handler, publisher, health).run()) as task:
        await publish(publisher, topic)
        await until(lambda: health.parts["watched"].detail == "TransientError('the database is away')", task)
        await asyncio.sleep(LONGER_THAN_THE_LIMIT_S)
        assert not task.done()
        assert not health.ready
        handler.fails = False
        await until(lambda: handler.handled == 1 and health.ready, task)


async def test_metrics_tell_lag_and_polls(kafka_settings: ServiceSettings, topic: str, publisher: Publisher) -> None:
    handler = Handler()
    handler.fails = True

    def metrics() -> dict[str, float]:
        lines = [
            line.rsplit(" ", 1) for line in generate_latest().decode().splitlines() if line.startswith("runyard_c")
        ]
        return {name: float(number) for name, number in lines}

    lag = f'runyard_consumer_lag{{consumer="watched",partition="%d",topic="{topic}"}}'
    async with running(consumer_of(kafka_settings, topic, handler, publisher, Health()).run()) as task:
        for _ in range(3):
            await publish(publisher, topic, "run-a")
        await until(lambda: sum(metrics().get(lag % number, 0) for number in (0, 1)) == 3, task)
        assert metrics()['runyard_consumer_seconds_since_poll{consumer="watched"}'] < 10
        handler.fails = False
        await until(lambda: sum(metrics().get(lag % number, 9) for number in (0, 1)) == 0, task)
    assert lag % 0 not in metrics()


class Silent(Publisher):
    """A producer that a publish never comes back from."""

    async def publish(self, records: Sequence[Record]) -> None:
        await asyncio.Event().wait()


class Unable(Publisher):
    """A producer to whom Kafka does not answer."""

    async def publish(self, records: Sequence[Record]) -> None:
        raise PublishFailed("no answer")


async def enqueued(database: Database) -> None:
    pool = await open_pool(database.scheduler_url, "scheduling", 1)
    async with pool.acquire() as connection, connection.transaction():
        await enqueue(connection, [to_its_topic(told(requested("run-a")))])
    await pool.close()


async def test_a_relay_that_sends_nothing_is_ended_and_one_that_cannot_is_let_alone(
    database: Database, kafka_settings: ServiceSettings
) -> None:
    await enqueued(database)
    options = client_options(kafka_settings)
    health = Health(LIMIT_S)
    async with running(Relay(database.scheduler_url, "scheduling", Unable(options), "t", health).run()) as task:
        await asyncio.sleep(LONGER_THAN_THE_LIMIT_S)
        assert not task.done()
        assert not health.ready
        assert 'runyard_outbox_oldest_unsent_seconds{outbox="scheduling"} 0.0' not in generate_latest().decode()
    async with running(Relay(database.scheduler_url, "scheduling", Silent(options), "t", health).run()) as task:
        assert "a row of the outbox has waited" in str(await stuck(task))


async def test_a_leader_that_plays_no_round_is_ended(database: Database, kafka_settings: ServiceSettings) -> None:
    settings = SchedulerSettings(
        postgres_url=SecretStr(database.scheduler_url),
        kafka_bootstrap_servers=kafka_settings.kafka_bootstrap_servers,
        tick_s=0.1,
    )
    pool = await open_pool(database.scheduler_url, store.SCHEMA, 2)
    publisher, health = Publisher(client_options(settings)), Health(LIMIT_S)
    async with running(Leader(settings, pool, publisher, health).run()) as task:
        await until(lambda: health.works("leader"), task)
        async with pool.acquire(), pool.acquire():
            assert "it leads and plays no round" in str(await stuck(task))
    await publisher.close()
    await pool.close()


STUCK_SERVICE = """
import asyncio, sys, time
from services.backbone.consumer import Consumer, Subscription
from services.backbone.health import Health
from services.backbone.kafka import client_options
from services.backbone.publisher import Publisher
from services.backbone.service import run_parts, run_service
from services.backbone.settings import ServiceSettings
from services.backbone.telemetry import configure_logs
from services.backbone.watchdog import watch_loop

async def hang(batch):
    await asyncio.Event().wait()

async def block():
    await asyncio.sleep(1)
    time.sleep(60)

async def main(topic):
    configure_logs("test", "info")
    settings, health = ServiceSettings(), Health(2.0)
    publisher = Publisher(client_options(settings))
    consumer = Consumer(settings, Subscription("watched", (topic,), hang, topic), publisher, health)
    await run_parts(watch_loop(health), consumer.run() if topic else block())

run_service(main(sys.argv[1]))
"""


async def end_of(kafka: ServiceSettings, topic: str) -> tuple[int | None, str]:
    """Run a service that gets stuck; returns its exit code and its log."""
    environment = {**os.environ, "RUNYARD_KAFKA_BOOTSTRAP_SERVERS": kafka.kafka_bootstrap_servers}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STUCK_SERVICE, topic, env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            _, log = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    return process.returncode, log.decode()


async def test_a_stuck_process_ends_with_1_and_says_what_and_for_how_long(
    kafka_settings: ServiceSettings, topic: str, publisher: Publisher
) -> None:
    await publish(publisher, topic)
    code, log = await end_of(kafka_settings, topic)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    [told] = [line for line in lines if line["event"] == "stuck"]
    assert code == 1
    assert (told["part"], told["doing"], told["for_s"] >= 2) == ("watched", "1 records wait", True)
    assert lines[-1]["event"] == "service_stopped_itself"
    assert lines[-1]["reason"].startswith("watched has not got on for")


async def test_a_process_whose_loop_does_not_turn_ends_with_1_and_shows_where_it_stands(
    kafka_settings: ServiceSettings,
) -> None:
    code, log = await end_of(kafka_settings, "")
    [told] = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert code == 1
    assert (told["event"], told["part"], told["for_s"] >= 2) == ("stuck", "event loop", True)
    assert "in block" in log


async def test_probes_tell_a_stuck_process_from_one_that_is_not_ready() -> None:
    health = Health()
    transport = httpx.ASGITransport(Starlette(routes=health_routes(health)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:

        async def codes() -> list[int]:
            return [(await http.get(path)).status_code for path in ("/healthz", "/readyz")]

        health.ok("relay")
        assert await codes() == [200, 200]
        health.failing("relay", "Kafka does not answer")
        assert await codes() == [200, 503]
        health.ok("relay")
        health.stuck = "the relay has not got on for 120 s"
        assert await codes() == [503, 503]
        assert (await http.get("/healthz")).json()["detail"] == health.stuck

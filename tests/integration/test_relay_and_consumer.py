"""Protects delivery: nothing lost, order kept per run, poison aside, transient failures waited out.

Real PostgreSQL and Apache Kafka; each test reads topics of its own, so that other tests' records do not mix in.
"""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from schemas.cloudevents import CloudEvent, UnknownEvent, encode
from schemas.events import MessageRefused, RunWaiting
from schemas.reason import Reason
from schemas.topics import DEAD_LETTERS, Topic
from services.backbone.consumer import Consumer, Received, Subscription
from services.backbone.errors import PoisonError, TooMuchPoison, TransientError
from services.backbone.health import Health
from services.backbone.kafka import MAX_RECORD_BYTES, admin_client, client_options, ensure_topics
from services.backbone.outbox import Message, enqueue
from services.backbone.postgres import open_pool
from services.backbone.publisher import Publisher
from services.backbone.relay import Relay
from services.backbone.settings import ServiceSettings
from services.runner.events import Outgoing
from tests.integration.conftest import Database

DEADLINE_S = 30


def waiting(run_id: str, number: int) -> CloudEvent:
    data = RunWaiting(run_id=run_id, attempt=1, reason=Reason.NO_RUNNER, message=str(number))
    return CloudEvent(uuid4(), "/test", run_id, datetime.now(UTC), data)


@pytest.fixture
async def topic(kafka_settings: ServiceSettings) -> str:
    name = f"test.{secrets.token_hex(6)}"
    await ensure_topics(kafka_settings, [Topic(name, partitions=3, retention=None)])
    return name


@pytest.fixture
async def publisher(kafka_settings: ServiceSettings) -> AsyncIterator[Publisher]:
    publisher = Publisher(client_options(kafka_settings))
    yield publisher
    await publisher.close()


@asynccontextmanager
async def consuming(
    settings: ServiceSettings, subscription: Subscription, publisher: Publisher
) -> AsyncIterator[asyncio.Task[None]]:
    consumer = Consumer(settings, subscription, publisher, Health())
    task = asyncio.create_task(consumer.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], bool], task: asyncio.Task[None] | None = None) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            if task is not None and task.done():
                await task
            await asyncio.sleep(0.02)


class Collector:
    """Remembers what it handled."""

    def __init__(self, before: Callable[[Sequence[Received]], Awaitable[None]] | None = None) -> None:
        self.seen: list[Received] = []
        self._before = before

    async def handle(self, batch: Sequence[Received]) -> None:
        if self._before is not None:
            await self._before(batch)
        self.seen.extend(batch)

    def messages(self, run_id: str) -> list[str]:
        events = [received.event for received in self.seen]
        return [e.data.message for e in events if isinstance(e, CloudEvent) and e.data.run_id == run_id]  # type: ignore[union-attr]


async def test_a_consumer_reads_a_topic_that_was_lost_while_the_last_one_of_its_name_read_it(
    kafka_settings: ServiceSettings, publisher: Publisher, group: str, topic: str
) -> None:
    """As when a broker came back empty: a static member is dealt what its group was dealt last."""
    settings = kafka_settings.model_copy(update={"instance_id": "static"})
    collector = Collector()
    subscription = Subscription("lost", (topic,), collector.handle, group)
    async with (
        admin_client(client_options(settings)) as admin,
        consuming(settings, subscription, publisher) as task,
    ):
        await publisher.publish([Outgoing(topic, "run", *encode(waiting("run", 1)))])
        await until(lambda: collector.messages("run") == ["1"], task)
        dealt = await dealt_out(group, admin)
        await admin.delete_topics([topic])
        async with asyncio.timeout(DEADLINE_S):
            while await dealt_out(group, admin) == dealt:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    await ensure_topics(settings, [Topic(topic, partitions=3, retention=None)])
    async with consuming(settings, subscription, publisher) as task:
        await publisher.publish([Outgoing(topic, "run", *encode(waiting("run", 2)))])
        await until(lambda: "2" in collector.messages("run"), task)


async def dealt_out(group: str, admin: AIOKafkaAdminClient) -> object:
    """Tell what the members of a group were dealt."""
    [answer] = await admin.describe_consumer_groups([group])
    [(_, _, _, _, _, members)] = answer.groups
    return [member[-1] for member in members]


async def test_the_outbox_reaches_kafka_in_commit_order_per_run(
    database: Database, kafka_settings: ServiceSettings, publisher: Publisher, topic: str, group: str
) -> None:
    pool = await open_pool(database.scheduler_url, "scheduling", 4)
    relay = asyncio.create_task(Relay(database.scheduler_url, "scheduling", publisher, topic, Health()).run())
    collector = Collector()
    runs = [f"run-{number}" for number in range(5)]
    async with consuming(kafka_settings, Subscription("order", (topic,), collector.handle, group), publisher) as task:
        for number in range(40):
            async with pool.acquire() as connection, connection.transaction():
                await enqueue(connection, [Message(topic, run, waiting(run, number)) for run in runs])
        await until(lambda: len(collector.seen) >= 200, task)
    relay.cancel()
    for run in runs:
        assert collector.messages(run) == [str(number) for number in range(40)]
    assert await pool.fetchval("SELECT count(*) FROM outbox WHERE sent_at IS NULL") == 0
    await pool.close()


async def test_a_rolled_back_decision_is_never_told(
    database: Database, kafka_settings: ServiceSettings, publisher: Publisher, topic: str, group: str
) -> None:
    pool = await open_pool(database.scheduler_url, "scheduling", 2)
    collector = Collector()
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await enqueue(connection, [Message(topic, "run-a", waiting("run-a", 1))])
        await transaction.rollback()
    async with pool.acquire() as connection, connection.transaction():
        await enqueue(connection, [Message(topic, "run-a", waiting("run-a", 2))])
    relay = asyncio.create_task(Relay(database.scheduler_url, "scheduling", publisher, topic, Health()).run())
    async with consuming(kafka_settings, Subscription("told", (topic,), collector.handle, group), publisher) as task:
        await until(lambda: bool(collector.seen), task)
    relay.cancel()
    assert collector.messages("run-a") == ["2"]
    await pool.close()


async def _produce_raw(
    settings: ServiceSettings, topic: str, records: list[tuple[list[tuple[str, bytes | None]], bytes | None]]
) -> None:
    producer = AIOKafkaProducer(**client_options(settings))
    await producer.start()
    for headers, value in records:
        await producer.send_and_wait(topic, value, key=b"run-a", headers=headers)
    await producer.stop()


async def test_poison_is_set_aside_with_its_place_and_the_rest_goes_on(
    kafka_settings: ServiceSettings, publisher: Publisher, topic: str, group: str
) -> None:
    headers, value = encode(waiting("run-a", 1))
    await _produce_raw(
        kafka_settings,
        topic,
        [
            ([*headers], b"{broken"),
            ([("ce_id", None)], value),
            ([("ce_id", b"\xff\xfe")], value),
            ([*headers], None),
            ([*headers], value),
        ],
    )
    collector, letters = Collector(), Collector()
    aside = Subscription("letters", (DEAD_LETTERS.name,), letters.handle)
    async with consuming(kafka_settings, Subscription("poison", (topic,), collector.handle, group), publisher) as task:
        await until(lambda: bool(collector.seen), task)
    assert collector.messages("run-a") == ["1"]

    def of_this_topic() -> list[tuple[int, str]]:
        events = [received.event.data for received in letters.seen if isinstance(received.event, CloudEvent)]
        return sorted((e.offset, e.reason) for e in events if e.topic == topic)  # type: ignore[union-attr]

    async with consuming(kafka_settings, aside, publisher) as task:
        await until(lambda: len(of_this_topic()) == 4, task)
    assert [offset for offset, _ in of_this_topic()] == [0, 1, 2, 3]
    assert "ce_id is null" in of_this_topic()[1][1]


async def test_poison_as_large_as_a_record_may_be_stops_nobody(
    kafka_settings: ServiceSettings, publisher: Publisher, topic: str, group: str
) -> None:
    headers, value = encode(waiting("run-a", 1))
    junk = b"{" * (MAX_RECORD_BYTES - 1024)
    producer = AIOKafkaProducer(**client_options(kafka_settings), max_request_size=MAX_RECORD_BYTES)
    await producer.start()
    await producer.send_and_wait(topic, junk, key=b"run-a", headers=headers)
    await producer.send_and_wait(topic, value, key=b"run-a", headers=headers)
    await producer.stop()
    collector, letters = Collector(), Collector()
    async with consuming(kafka_settings, Subscription("large", (topic,), collector.handle, group), publisher) as task:
        await until(lambda: bool(collector.seen), task)
    aside = Subscription("letters", (DEAD_LETTERS.name,), letters.handle)

    def of_this_topic() -> list[MessageRefused]:
        events = [received.event.data for received in letters.seen if isinstance(received.event, CloudEvent)]
        return [event for event in events if isinstance(event, MessageRefused) and event.topic == topic]

    async with consuming(kafka_settings, aside, publisher) as task:
        await until(lambda: len(of_this_topic()) == 1, task)
    [letter] = of_this_topic()
    assert letter.value_size_bytes == len(junk)
    assert letter.value_sha256 == hashlib.sha256(junk).hexdigest()


async def test_a_message_that_the_handler_cannot_take_is_set_aside_alone(
    kafka_settings: ServiceSettings, publisher: Publisher, topic: str, group: str
) -> None:
    async def refuse_three(batch: Sequence[Received]) -> None:
        if any(isinstance(r.event, CloudEvent) and r.event.data.message == "3" for r in batch):  # type: ignore[union-attr]
            raise PoisonError("three")

    collector = Collector(refuse_three)
    await _produce_raw(kafka_settings, topic, [encode(waiting("run-a", number)) for number in range(6)])  # type: ignore[misc]
    async with consuming(kafka_settings, Subscription("three", (topic,), collector.handle, group), publisher) as task:
        await until(lambda: len(collector.seen) == 5, task)
    assert collector.messages("run-a") == ["0", "1", "2", "4", "5"]


async def test_a_flood_of_poison_stops_the_consumer_and_says_so(
    kafka_settings: ServiceSettings, publisher: Publisher, topic: str, group: str
) -> None:
    await _produce_raw(kafka_settings, topic, [([], b"{}") for _ in range(10)])
    collector = Collector()
    async with consuming(kafka_settings, Subscription("flood", (topic,), collector.handle, group), publisher) as task:
        await until(task.done)
    raised = task.exception()
    assert raised is not None
    assert isinstance(raised, ExceptionGroup)
    assert raised.subgroup(TooMuchPoison) is not None


async def test_a_transient_failure_is_waited_out_in_order(
    kafka_settings: ServiceSettings, publisher: Publisher, topic: str, group: str
) -> None:
    failures = 3

    async def fail_at_first(_: Sequence[Received]) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise TransientError("not yet")

    collector = Collector(fail_at_first)
    await _produce_raw(kafka_settings, topic, [encode(waiting("run-a", number)) for number in range(4)])  # type: ignore[misc]
    async with consuming(kafka_settings, Subscription("later", (topic,), collector.handle, group), publisher) as task:
        await until(lambda: len(collector.seen) == 4, task)
    assert failures == 0
    assert collector.messages("run-a") == ["0", "1", "2", "3"]


async def test_a_bug_ends_the_consumer_and_commits_nothing(
    kafka_settings: ServiceSettings, publisher: Publisher, topic: str, group: str
) -> None:
    async def bug(_: Sequence[Received]) -> None:
        raise KeyError("a bug")

    await _produce_raw(kafka_settings, topic, [encode(waiting("run-a", 1))])  # type: ignore[list-item]
    async with consuming(kafka_settings, Subscription("bug", (topic,), bug, group), publisher) as task:
        await until(task.done)
    assert isinstance(task.exception(), ExceptionGroup)
    collector = Collector()
    async with consuming(kafka_settings, Subscription("again", (topic,), collector.handle, group), publisher) as task:
        await until(lambda: bool(collector.seen), task)
    assert collector.messages("run-a") == ["1"]


async def test_what_was_handled_is_not_handled_again_by_the_next_of_the_group(
    kafka_settings: ServiceSettings, publisher: Publisher, topic: str, group: str
) -> None:
    first, second = Collector(), Collector()
    await _produce_raw(kafka_settings, topic, [encode(waiting("run-a", 1))])  # type: ignore[list-item]
    async with consuming(kafka_settings, Subscription("one", (topic,), first.handle, group), publisher) as task:
        await until(lambda: bool(first.seen), task)
    await _produce_raw(kafka_settings, topic, [encode(waiting("run-a", 2))])  # type: ignore[list-item]
    async with consuming(kafka_settings, Subscription("two", (topic,), second.handle, group), publisher) as task:
        await until(lambda: bool(second.seen), task)
    assert second.messages("run-a") == ["2"]


async def test_an_unknown_type_is_handed_over_as_such(
    kafka_settings: ServiceSettings, publisher: Publisher, topic: str, group: str
) -> None:
    headers, _ = encode(waiting("run-a", 1))
    newer = [(name, b"runyard.run.waiting.v9" if name == "ce_type" else text) for name, text in headers]
    await _produce_raw(kafka_settings, topic, [([*newer], b'{"anything": 1}')])
    collector = Collector()
    async with consuming(kafka_settings, Subscription("new", (topic,), collector.handle, group), publisher) as task:
        await until(lambda: bool(collector.seen), task)
    assert isinstance(collector.seen[0].event, UnknownEvent)


async def test_a_reader_without_a_group_reads_from_the_beginning_and_knows_when_it_has_caught_up(
    kafka_settings: ServiceSettings, publisher: Publisher, topic: str
) -> None:
    await _produce_raw(kafka_settings, topic, [encode(waiting("run-a", number)) for number in range(20)])  # type: ignore[misc]
    collector = Collector()
    consumer = Consumer(kafka_settings, Subscription("all", (topic,), collector.handle), publisher, Health())
    task = asyncio.create_task(consumer.run())
    async with asyncio.timeout(DEADLINE_S):
        await consumer.wait_until_caught_up()
    assert len(collector.seen) == 20
    task.cancel()
    await asyncio.wait([task])

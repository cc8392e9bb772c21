"""The one way to consume: at least once, in order, with poison set aside and offsets committed after the handler.

FastStream's defaults lose messages (acknowledge first, start at the latest offset, swallow errors), so every subscriber
of Runyard goes through here: raw batches, one in flight, decoded one by one; a transient failure pauses the partitions
and keeps polling so that the group stays together; a bug ends the process. It never decides what an event means.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka import TopicPartition as Partition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage, TopicPartition
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512
from prometheus_client import Counter

from schemas.cloudevents import CloudEvent, MalformedEvent, UnknownEvent, decode
from services.backbone.crash_points import crash_point
from services.backbone.dead_letters import DeadLetters
from services.backbone.errors import TransientError, is_poison, is_transient
from services.backbone.health import Health
from services.backbone.kafka import client_options
from services.backbone.publisher import Publisher
from services.backbone.retry import delays, until_it_works
from services.backbone.settings import ServiceSettings

BATCH_RECORDS = 500
BATCH_WAIT_MS = 200
SESSION_TIMEOUT_MS = 45_000
STOP_TIMEOUT_S = 10.0
CAUGHT_UP_POLL_S = 0.02
COMMIT_TIMEOUT_S = 5.0
REJOIN_AFTER_S = 3.0

CONSUMED = Counter("runyard_messages_consumed", "Messages handled", ["consumer", "topic"])

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Received:
    """An event, where it stood, and its data byte for byte as it came."""

    topic: str
    partition: int
    offset: int
    event: CloudEvent | UnknownEvent
    value: bytes = b""


Handle = Callable[[Sequence[Received]], Awaitable[None]]
"""Handles a batch, in order, all or nothing; it may be called again with the same events."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a consumer reads.

    With `group` its offsets are kept by Kafka; without, it reads from the beginning each time, or with `from_end` only
    what comes from now on. With `partitions` it reads just these, by manual assignment, and no rebalance ever touches
    it.
    """

    name: str
    topics: tuple[str, ...]
    handle: Handle
    group: str | None = None
    partitions: tuple[int, ...] = ()
    from_end: bool = False


class Consumer:
    """One subscription, from start to stop."""

    def __init__(
        self, settings: ServiceSettings, subscription: Subscription, publisher: Publisher, health: Health
    ) -> None:
        self._settings = settings
        self._subscription = subscription
        self._dead_letters = DeadLetters(publisher, subscription.name)
        self._health = health
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._caught_up = asyncio.Event()
        self._busy = False
        self._broker = KafkaBroker(
            settings.kafka_bootstrap_servers.split(","),
            security=faststream_security(settings),
            allow_auto_create_topics=False,
            graceful_timeout=STOP_TIMEOUT_S,
            logger=None,
        )
        self._subscriber = self._subscribe()

    async def run(self) -> None:
        """Consume until cancelled.

        Raises:
            TooMuchPoison: more dead letters than stray messages explain.
            Exception: whatever bug the handler raised.
        """
        self._health.expect(self._subscription.name)
        try:
            await until_it_works("kafka", self._start)
            self._health.ok(self._subscription.name)
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(until_it_works("kafka offsets", self._watch_until_caught_up))
                await self._failure
                watching.cancel()
        finally:
            await self._stop()

    async def wait_until_caught_up(self) -> None:
        """Return once everything that stood on the topics when the consumer started has been handled."""
        await self._caught_up.wait()

    def _subscribe(self) -> Any:
        wanted, manual = self._subscription, bool(self._subscription.partitions)
        subscriber = self._broker.subscriber(
            *(() if manual else wanted.topics),
            partitions=[TopicPartition(topic, number) for topic in wanted.topics for number in wanted.partitions],
            batch=True,
            group_id=wanted.group,
            group_instance_id=self._group_instance_id(),
            auto_offset_reset="latest" if wanted.from_end else "earliest",
            ack_policy=AckPolicy.MANUAL,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            fetch_max_wait_ms=BATCH_WAIT_MS,
            batch_timeout_ms=BATCH_WAIT_MS,
            max_records=BATCH_RECORDS,
            parser=self._parse,
            decoder=_undecoded,
            title=wanted.name,
        )
        subscriber(self._on_batch)
        return subscriber

    def _group_instance_id(self) -> str | None:
        """Name a static member (KIP-345): killed and started again it goes on at once, not after a session timeout."""
        if self._settings.instance_id is None or self._subscription.group is None or self._subscription.partitions:
            return None
        return f"{self._settings.instance_id}-{self._subscription.name}"

    async def _parse(self, records: tuple[ConsumerRecord, ...]) -> KafkaMessage:
        """Wrap raw records without looking into them: FastStream's parser fails on null and non-UTF-8 headers."""
        return KafkaMessage(raw_message=records, body=records, headers={}, consumer=self._consumer)

    @property
    def _consumer(self) -> AIOKafkaConsumer:
        return self._subscriber.consumer

    async def _start(self) -> None:
        try:
            await self._broker.start()
        except KafkaError as error:
            await self._stop()
            raise TransientError(repr(error)) from error

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._broker.stop()
        except (TimeoutError, KafkaError) as error:
            log.warning("consumer_stop_failed", consumer=self._subscription.name, error=repr(error))

    async def _on_batch(self, records: Any) -> None:
        """Handle a batch to its end. FastStream swallows exceptions: what must end the process leaves by a future."""
        if self._failure.done():
            return
        self._busy = True
        try:
            await self._handle_batch(records)
            await self._commit(records)
        except Exception as error:  # noqa: BLE001 - the loop's edge: `run` raises it where the process can see it
            self._failure.set_exception(error)
        finally:
            self._busy = False

    async def _handle_batch(self, records: Sequence[ConsumerRecord]) -> None:
        batch = []
        for record in records:
            received = await self._decode(record)
            if received is not None:
                batch.append((record, received))
        try:
            await self._persistently(partial(self._subscription.handle, [received for _, received in batch]))
            self._count(records[0].topic, len(batch))
        except Exception as error:
            if not is_poison(error):
                raise
            await self._handle_one_by_one(batch)

    async def _decode(self, record: ConsumerRecord) -> Received | None:
        try:
            event = decode(record.headers, record.value)
        except MalformedEvent as error:
            reason = str(error)
            await self._persistently(partial(self._dead_letters.refuse, record, reason))
            return None
        return Received(record.topic, record.partition, record.offset, event, record.value)

    async def _handle_one_by_one(self, batch: Sequence[tuple[ConsumerRecord, Received]]) -> None:
        """Find the poison in a batch: each message alone, what cannot be handled aside."""
        for record, received in batch:
            try:
                await self._persistently(partial(self._subscription.handle, [received]))
                self._count(record.topic, 1)
            except Exception as error:
                if not is_poison(error):
                    raise
                reason = f"{type(error).__name__}: {error}"
                await self._persistently(partial(self._dead_letters.refuse, record, reason))

    def _count(self, topic: str, messages: int) -> None:
        self._dead_letters.handled(messages)
        CONSUMED.labels(self._subscription.name, topic).inc(messages)

    async def _persistently(self, action: Callable[[], Awaitable[None]]) -> None:
        """Retry an action in place while its failure is transient, with the partitions paused and polling kept up."""
        for delay in delays():
            try:
                await action()
            except Exception as error:
                if not is_transient(error):
                    raise
                self._health.failing(self._subscription.name, repr(error))
                log.warning("handler_retries", consumer=self._subscription.name, error=repr(error))
                await self._idle(delay)
            else:
                self._health.ok(self._subscription.name)
                return

    async def _idle(self, delay_s: float) -> None:
        """Wait, polling nothing, so that the group does not take the consumer for stuck (max.poll.interval)."""
        consumer = self._consumer
        assigned = consumer.assignment()
        consumer.pause(*assigned)
        try:
            await consumer.getmany(timeout_ms=0)
            await asyncio.sleep(delay_s)
        finally:
            consumer.resume(*(assigned & consumer.assignment()))

    async def _commit(self, records: Sequence[ConsumerRecord]) -> None:
        """Commit just behind what was handled, never the position, which may be ahead of it."""
        if self._subscription.group is None:
            return
        ends: dict[Partition, int] = {}
        for record in records:
            ends[Partition(record.topic, record.partition)] = record.offset + 1
        crash_point("before_offset_commit")
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):  # aiokafka tries for ever, also where the topic is gone
                await self._consumer.commit(ends)
            crash_point("after_offset_commit")
        except (CommitFailedError, IllegalStateError) as error:  # partitions moved on: the new owner handles them again
            log.info("commit_superseded", consumer=self._subscription.name, error=repr(error))
        except (KafkaError, TimeoutError) as error:  # uncommitted is only handled again
            log.warning("commit_failed", consumer=self._subscription.name, error=repr(error))

    async def _watch_until_caught_up(self) -> None:
        try:
            consumer = self._consumer
            assigned = await self._assignment()
            for partition, end in (await consumer.end_offsets(list(assigned))).items():
                while await consumer.position(partition) < end or self._busy:  # noqa: ASYNC110
                    await asyncio.sleep(CAUGHT_UP_POLL_S)
        except KafkaError as error:
            raise TransientError(repr(error)) from error
        self._caught_up.set()

    async def _assignment(self) -> set[Partition]:
        """Wait until there are partitions to read.

        A static member is given what its predecessor had without a new distribution, and that is nothing if that one
        came before the topics were there (a broker that lost its data): so a new one is asked for, once.
        """
        coordinator = self._consumer._coordinator  # what its leader does by itself when topics appear
        rejoin_at = asyncio.get_running_loop().time() + REJOIN_AFTER_S
        while not (assigned := self._consumer.assignment()):
            if asyncio.get_running_loop().time() > rejoin_at and self._subscription.group is not None:
                rejoin_at = float("inf")
                coordinator.request_rejoin()
                log.info("asks_for_partitions", consumer=self._subscription.name)
            await asyncio.sleep(CAUGHT_UP_POLL_S)
        return set(assigned)


async def _undecoded(message: KafkaMessage) -> Any:
    return message.body


def faststream_security(settings: ServiceSettings) -> BaseSecurity | None:
    """Turn the connection settings into FastStream's form."""
    protocol = settings.kafka_security_protocol
    context = client_options(settings).get("ssl_context")
    encrypted = protocol.endswith("SSL")
    if not protocol.startswith("SASL"):
        return BaseSecurity(ssl_context=context, use_ssl=True) if encrypted else None
    kinds = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}
    password = settings.kafka_sasl_password.get_secret_value() if settings.kafka_sasl_password else ""
    return kinds[settings.kafka_sasl_mechanism](
        username=settings.kafka_sasl_username or "", password=password, ssl_context=context, use_ssl=encrypted
    )

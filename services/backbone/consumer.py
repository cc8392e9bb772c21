"""The one way to consume: at least once, in order, with poison set aside and offsets committed after the handler.

FastStream's defaults lose messages (acknowledge first, start at the latest offset, swallow errors), so every subscriber
of Runyard goes through here: raw batches, one in flight, decoded one by one; a transient failure pauses the partitions
and keeps polling so that the group stays together; a bug ends the process. It never decides what an event means.
"""

import asyncio
import time
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import structlog
from aiokafka import ConsumerRecord
from aiokafka import TopicPartition as Partition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage, TopicPartition
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512
from prometheus_client import Counter

from schemas.cloudevents import CloudEvent, MalformedEvent, UnknownEvent, decode
from schemas.topics import belongs_on
from services.backbone.consumer_watch import ConsumerWatch
from services.backbone.crash_points import crash_point
from services.backbone.dead_letters import DeadLetters
from services.backbone.errors import TransientError, is_poison, is_transient
from services.backbone.health import Health
from services.backbone.kafka import client_options, committed_notes, heeding_cancellation
from services.backbone.polling import CarefulConsumer, UnreadableRecord
from services.backbone.publisher import Publisher
from services.backbone.retry import delays, until_it_works
from services.backbone.settings import ServiceSettings

BATCH_RECORDS = 500
BATCH_WAIT_MS = 200
SESSION_TIMEOUT_MS = 45_000
FINISH_TIMEOUT_S = 7.0
STOP_TIMEOUT_S = 10.0
"""Above the time for a batch to be finished: what is left is for leaving the group."""
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
        self._dead_letters = DeadLetters(publisher, subscription.name, settings.poison_limit)
        self._health = health
        self._watch = ConsumerWatch(settings, subscription.name, health)
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._caught_up = asyncio.Event()
        self._broker = KafkaBroker(
            settings.kafka_bootstrap_servers.split(","),
            security=faststream_security(settings),
            allow_auto_create_topics=False,
            graceful_timeout=FINISH_TIMEOUT_S,
            logger=None,
        )
        self._subscriber = self._subscribe()

    async def run(self) -> None:
        """Consume until cancelled.

        Raises:
            TooMuchPoison: more dead letters than stray messages explain.
            Stuck: there is something to read, Kafka answers, and still nothing is read or handled.
            Exception: whatever bug the handler raised.
        """
        self._health.expect(self._subscription.name)
        try:
            await until_it_works("kafka", self._start)
            self._watch.started()
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(until_it_works("kafka offsets", self._watch_until_caught_up))
                group.create_task(self._watch.run(self._consumer))
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
    def _consumer(self) -> CarefulConsumer:
        consumer: CarefulConsumer = self._subscriber.consumer
        return consumer

    async def _start(self) -> None:
        try:
            await self._recall_poison()
            await self._broker.connect()
            config = self._broker.config.broker_config
            config.builder = partial(CarefulConsumer, **config.builder.keywords)  # type: ignore[attr-defined]
            await self._broker.start()
        except KafkaError as error:
            await self._stop()
            raise TransientError(repr(error)) from error

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await heeding_cancellation(self._broker.stop())
        except (TimeoutError, KafkaError) as error:
            log.warning("consumer_stop_failed", consumer=self._subscription.name, error=repr(error))

    async def _recall_poison(self) -> None:
        """Go on counting poison where the last process of the group stopped: its limit outlives a restart."""
        if self._subscription.group is not None:
            notes = await committed_notes(self._settings, self._subscription.group, self._subscription.topics)
            self._dead_letters.recall(max(notes, default="").rpartition(" ")[2])

    async def _on_batch(self, records: Any) -> None:
        """Handle a batch to its end. FastStream swallows exceptions: what must end the process leaves by a future."""
        if self._failure.done():
            return
        consumer = self._consumer
        self._watch.took(records)
        try:
            await self._handle_batch(records)
            await self._commit(records)
        except Exception as error:  # noqa: BLE001 - the loop's edge: `run` raises it where the process can see it
            self._failure.set_exception(error)
        finally:
            self._watch.took(())
            consumer.in_hand = False

    async def _handle_batch(self, records: Sequence[ConsumerRecord]) -> None:
        """Handle a batch in order: what can be read in as few calls as can be, what cannot aside where it stood."""
        read = [(record, _read(record)) for record in records]
        for readable, stretch in groupby(read, key=lambda pair: isinstance(pair[1], Received)):
            if readable:
                await self._handle([(record, received) for record, received in stretch])  # type: ignore[misc]
            else:
                for record, reason in stretch:
                    await self._refuse(record, str(reason))

    async def _handle(self, batch: Sequence[tuple[ConsumerRecord, Received]]) -> None:
        """Handle messages in order; where poison is among them, halve until it stands alone, and set it aside."""
        try:
            await self._persistently(partial(self._subscription.handle, [received for _, received in batch]))
        except Exception as error:
            if not is_poison(error):
                raise
            reason = f"{type(error).__name__}: {error}"
        else:
            self._count(batch)
            return
        if len(batch) == 1:
            await self._refuse(batch[0][0], reason)
            return
        middle = len(batch) // 2
        await self._handle(batch[:middle])
        await self._handle(batch[middle:])

    async def _refuse(self, record: ConsumerRecord, reason: str) -> None:
        await self._persistently(partial(self._dead_letters.refuse, record, reason))

    def _count(self, batch: Sequence[tuple[ConsumerRecord, Received]]) -> None:
        self._dead_letters.handled(len(batch))
        for topic, messages in Tally(record.topic for record, _ in batch).items():
            CONSUMED.labels(self._subscription.name, topic).inc(messages)

    async def _persistently(self, action: Callable[[], Awaitable[None]]) -> None:
        """Retry an action in place while its failure is transient, with the partitions paused and polling kept up."""
        for delay in delays():
            try:
                await action()
            except Exception as error:
                if not is_transient(error):
                    raise
                self._watch.retries(repr(error))
                log.warning("handler_retries", consumer=self._subscription.name, error=repr(error))
                await self._idle(delay)
            else:
                self._watch.works()
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
        """Commit just behind what was handled, never the position, which may be ahead of it.

        With each offset goes a note: when, and which of the last messages were poison (see `_recall_poison`).
        """
        if self._subscription.group is None:
            return
        note = f"{time.time():.3f} {self._dead_letters.remembered}"
        ends: dict[Partition, tuple[int, str]] = {}
        for record in records:
            ends[Partition(record.topic, record.partition)] = record.offset + 1, note
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
                while await consumer.position(partition) < end or consumer.in_hand:  # noqa: ASYNC110
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


def _read(record: ConsumerRecord) -> Received | str:
    """Read the event in a record; a text says why there is none that may stand on this topic."""
    if isinstance(record, UnreadableRecord):
        return record.why
    try:
        event = decode(record.headers, record.value)
    except MalformedEvent as error:
        return str(error)
    if isinstance(event, CloudEvent) and not belongs_on(event.data, record.topic):
        return f"{event.data.type} does not belong on {record.topic}"
    return Received(record.topic, record.partition, record.offset, event, record.value)


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

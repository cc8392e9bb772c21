"""Watching one consumer from outside itself: how far it is behind, whether Kafka answers, whether it gets on.

Asks for the ends of its partitions over a connection of its own, because a client of Kafka that is stuck answers
nothing. Owns the consumer's place in the service's health. Never reads a record and never decides what to do about lag.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from prometheus_client import Gauge

from services.backbone.health import Health
from services.backbone.kafka import client_options, heeding_cancellation
from services.backbone.polling import CarefulConsumer
from services.backbone.settings import ServiceSettings
from services.backbone.watchdog import LOOK_EVERY_S, Seen, Watchdog

ANSWER_TIMEOUT_S = 3.0

LAG = Gauge("runyard_consumer_lag", "Records not handled yet", ["consumer", "topic", "partition"])
SINCE_POLL = Gauge("runyard_consumer_seconds_since_poll", "Seconds since the last successful poll", ["consumer"])


class ConsumerWatch:
    """What is known of one consumer: it reports what it does, and `run` looks at it now and then."""

    def __init__(self, settings: ServiceSettings, name: str, health: Health) -> None:
        self._settings = settings
        self._name = name
        self._health = health
        self._done = 0
        self._failure: str | None = None
        self._silence: str | None = None
        self._in_hand: Counter[TopicPartition] = Counter()
        self._shown: set[TopicPartition] = set()

    def took(self, records: Sequence[ConsumerRecord]) -> None:
        """The consumer has a batch in hand, or with none has nothing in hand any more."""
        self._done += 1
        self._in_hand = Counter(TopicPartition(record.topic, record.partition) for record in records)

    def works(self) -> None:
        """The consumer got something done."""
        self._done += 1
        if self._failure is not None:
            self._failure = None
            self._report()

    def retries(self, detail: str) -> None:
        """Something failed for now, and the consumer tries it again."""
        self._failure = detail
        self._report()

    def started(self) -> None:
        """The consumer has joined and reads."""
        self._failure = self._silence = None
        self._report()

    async def run(self, consumer: CarefulConsumer) -> None:
        """Look at a consumer until cancelled.

        Raises:
            Stuck: there is something to read, Kafka answers, and still it does nothing.
        """
        watchdog, ends = Watchdog(self._name, self._health), Ends(self._settings)
        SINCE_POLL.labels(self._name).set_function(lambda: time.monotonic() - consumer.polled_at)
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                waiting = await self._look(consumer, ends)
                excused = self._failure is not None or self._silence is not None
                watchdog.look(Seen(self._done, waiting > 0 or consumer.joining, excused), f"{waiting} records wait")
        finally:
            self._hide()
            await ends.close()

    async def _look(self, consumer: CarefulConsumer, ends: "Ends") -> int:
        """Tell how many records wait, and note whether Kafka said so."""
        positions = consumer.positions()
        try:
            behind = {tp: end - positions[tp] for tp, end in (await ends.of(positions)).items()}
            self._silence = None
        except (KafkaError, TimeoutError, OSError) as error:
            behind, self._silence = {}, f"Kafka does not answer: {error!r}"
        self._report()
        waiting = Counter({tp: max(0, lag) for tp, lag in behind.items()}) + self._in_hand
        if self._silence is None:  # what was told last stands while Kafka tells nothing
            self._show({tp: waiting[tp] for tp in positions})
        return waiting.total()

    def _report(self) -> None:
        if detail := self._silence or self._failure:
            self._health.failing(self._name, detail)
        else:
            self._health.ok(self._name)

    def _show(self, lags: Mapping[TopicPartition, int]) -> None:
        for partition in self._shown - set(lags):
            LAG.remove(self._name, partition.topic, partition.partition)
        for partition, lag in lags.items():
            LAG.labels(self._name, partition.topic, partition.partition).set(lag)
        self._shown = set(lags)

    def _hide(self) -> None:
        self._show({})
        with contextlib.suppress(KeyError):
            SINCE_POLL.remove(self._name)


class Ends:
    """Where partitions end, asked over a connection that is made anew after each failure."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._client: AIOKafkaConsumer | None = None

    async def of(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Tell the end of each partition; asking for none still finds out whether Kafka is there.

        Raises:
            KafkaError: it is not.
            TimeoutError: it does not answer in time.
        """
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                client = await self._connected()
                wanted = list(partitions)
                if not wanted:
                    await client.topics()
                found: dict[TopicPartition, int] = await client.end_offsets(wanted)
                return found
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let the connection go."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await heeding_cancellation(client.stop())

    async def _connected(self) -> AIOKafkaConsumer:
        if self._client is None:
            self._client = AIOKafkaConsumer(**client_options(self._settings), enable_auto_commit=False)
            await self._client.start()
        return self._client

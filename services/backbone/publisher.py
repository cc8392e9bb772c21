"""Publishing to Kafka: acknowledged by all in-sync replicas, idempotent, bounded in time.

An idempotent producer of aiokafka never times a batch out, so the time limit is ours, and a producer that let one pass
is thrown away. After `PublishFailed` the outcome is unknown: the caller sends the same bytes again.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from services.backbone.crash_points import crash_point
from services.backbone.errors import PublishFailed
from services.backbone.kafka import MAX_RECORD_BYTES, heeding_cancellation

SEND_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0

log = structlog.get_logger()


class Record(Protocol):
    """What can be sent."""

    @property
    def topic(self) -> str:
        """Name of the topic."""

    @property
    def key(self) -> str:
        """Key, which decides the partition unless one is given."""

    @property
    def partition(self) -> int | None:
        """A partition, or None for the key's."""

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """Kafka headers."""

    @property
    def value(self) -> bytes:
        """The record's value."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event that goes to Kafka without an outbox; `partition` None lets the key decide."""

    topic: str
    key: str
    headers: list[tuple[str, bytes]]
    value: bytes
    partition: int | None = None


class Publisher:
    """One idempotent producer, made when it is first needed and again after a failure."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def publish(self, records: Sequence[Record]) -> None:
        """Send records, in order per partition, and wait until Kafka has all of them.

        Raises:
            PublishFailed: not all were acknowledged in time; some may be there.
        """
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                producer = await self._ready()
                pending = [
                    await producer.send(
                        record.topic,
                        record.value,
                        key=record.key.encode(),
                        partition=record.partition,
                        headers=record.headers,
                    )
                    for record in records
                ]
                crash_point("before_acknowledgement")
                await asyncio.gather(*pending)
        except MessageSizeTooLargeError:
            raise  # a bug of ours: the same bytes will never fit
        except (KafkaError, TimeoutError, OSError) as error:
            await self._throw_away()
            raise PublishFailed(repr(error)) from error

    async def close(self) -> None:
        """Stop the producer, waiting for what is under way no longer than the limit."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await heeding_cancellation(producer.stop())
            except (TimeoutError, KafkaError) as error:
                log.warning("producer_not_emptied", error=repr(error))
                # What was not sent by now must not be sent behind our back.
                await heeding_cancellation(producer.client.close())

    async def _ready(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **self._options, acks="all", enable_idempotence=True, max_request_size=MAX_RECORD_BYTES
                )
                try:
                    await producer.start()
                except BaseException:
                    await heeding_cancellation(producer.stop())
                    raise
                self._producer = producer
            return self._producer

    async def _throw_away(self) -> None:
        log.warning("producer_thrown_away")
        await self.close()

"""Setting poison aside: the refused bytes, why, and where they stood, on `runyard.dead-letters`.

Owns the limit that tells a stray message from a broken producer: when 10 of the last 100 messages were poison the
consumer stops (after arroyo's DlqLimit). Never drops anything silently.
"""

import base64
import hashlib
from collections import deque
from datetime import UTC, datetime

import structlog
from aiokafka import ConsumerRecord
from prometheus_client import Counter

from schemas.cloudevents import CloudEvent, encode
from schemas.events import MessageRefused
from schemas.ids import event_id
from schemas.topics import DEAD_LETTERS
from services.backbone.crash_points import crash_point
from services.backbone.errors import TooMuchPoison
from services.backbone.publisher import Outgoing, Publisher

POISON_LIMIT = 10
POISON_WINDOW = 100
MOST_VALUE_BYTES = 512 << 10
"""Of a larger value the letter keeps the beginning, so that every letter fits where its message did."""
MOST_HEADERS = 100

REFUSED = Counter("runyard_messages_refused", "Messages set aside as dead letters", ["consumer", "topic"])

log = structlog.get_logger()


class DeadLetters:
    """Where one consumer sets its poison aside, and how much of it lately."""

    def __init__(self, publisher: Publisher, consumer: str) -> None:
        self._publisher = publisher
        self._consumer = consumer
        self._recent: deque[bool] = deque(maxlen=POISON_WINDOW)

    def handled(self, messages: int) -> None:
        """Count messages that went well."""
        self._recent.extend([False] * min(messages, POISON_WINDOW))

    async def refuse(self, record: ConsumerRecord, reason: str) -> None:
        """Publish a dead letter, and only return once it is acknowledged.

        Raises:
            TooMuchPoison: this was one too many; it was set aside all the same.
            PublishFailed: the letter may not be there; refuse again.
        """
        crash_point("before_dead_letter_publish")
        await self._publisher.publish([_letter(record, reason, self._consumer)])
        crash_point("after_dead_letter_publish")
        REFUSED.labels(self._consumer, record.topic).inc()
        place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        log.error("message_refused", reason=reason, consumer=self._consumer, **place)
        self._recent.append(True)
        if sum(self._recent) >= POISON_LIMIT:
            raise TooMuchPoison(
                f"{sum(self._recent)} of the last {len(self._recent)} messages of {self._consumer} were poison;"
                f" the last: {reason}. Look at {DEAD_LETTERS.name}, mend the producer, then start again."
            )


def _letter(record: ConsumerRecord, reason: str, consumer: str) -> Outgoing:
    value: bytes | None = record.value
    data = MessageRefused(
        reason=reason,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        consumer=consumer,
        key_base64=_base64(record.key),
        value_base64=_base64(None if value is None else value[:MOST_VALUE_BYTES]),
        value_size_bytes=None if value is None else len(value),
        value_sha256=None if value is None else hashlib.sha256(value).hexdigest(),
        headers_base64=tuple((name, _base64(raw)) for name, raw in record.headers[:MOST_HEADERS]),
    )
    place = f"{record.topic}/{record.partition}/{record.offset}/{record.timestamp}"
    identity = event_id(place, 0, f"{data.type}/{consumer}")
    event = CloudEvent(identity, f"/runyard/{consumer}", place, datetime.now(UTC), data)
    headers, letter = encode(event)
    key = (record.key or b"").decode(errors="replace") or record.topic
    return Outgoing(DEAD_LETTERS.name, key, headers, letter)


def _base64(raw: bytes | None) -> str | None:
    return None if raw is None else base64.b64encode(raw).decode()

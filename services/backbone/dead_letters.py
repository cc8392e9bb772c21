"""Setting poison aside: the refused bytes, why, and where they stood, on `runyard.dead-letters`.

Owns the limit that tells a stray message from a broken producer: when 10 of the last 100 messages were poison the
consumer stops (after arroyo's DlqLimit). Never drops anything silently, and no letter is ever too large to be sent.
"""

import base64
import hashlib
from collections import deque
from collections.abc import Iterable
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
from services.backbone.polling import UnreadableRecord
from services.backbone.publisher import Outgoing, Publisher

POISON_LIMIT = 10
POISON_WINDOW = 100
MOST_VALUE_BYTES = 512 << 10
"""Of a larger value the letter keeps the beginning, so that every letter fits where its message did."""
MOST_HEADERS = 100
MOST_HEADER_BYTES = 64 << 10
"""Of all headers together; those that come after are left out."""
MOST_KEY_BYTES = 4 << 10
MOST_REASON_CHARACTERS = 1_000

REFUSED = Counter("runyard_messages_refused", "Messages set aside as dead letters", ["consumer", "topic"])

log = structlog.get_logger()


class DeadLetters:
    """Where one consumer sets its poison aside, and how much of it lately.

    Args:
        publisher: sends the letters.
        consumer: whose they are.
        limit: how many of the last 100 messages may not all be poison.
    """

    def __init__(self, publisher: Publisher, consumer: str, limit: int = POISON_LIMIT) -> None:
        self._publisher = publisher
        self._consumer = consumer
        self._limit = limit
        self._recent: deque[bool] = deque(maxlen=POISON_WINDOW)

    @property
    def remembered(self) -> str:
        """The last messages in order, `1` for poison: what the next process has to know to keep the limit."""
        return "".join("1" if poison else "0" for poison in self._recent)

    def recall(self, remembered: str) -> None:
        """Go on counting where an earlier process stopped."""
        self._recent = deque((mark == "1" for mark in remembered), maxlen=POISON_WINDOW)

    def handled(self, messages: int) -> None:
        """Count messages that went well."""
        self._recent.extend([False] * min(messages, POISON_WINDOW))

    async def refuse(self, record: ConsumerRecord, reason: str) -> None:
        """Publish a dead letter, and only return once it is acknowledged.

        Raises:
            TooMuchPoison: this was one too many; it was set aside all the same.
            PublishFailed: the letter may not be there; refuse again.
        """
        reason = reason[:MOST_REASON_CHARACTERS]
        crash_point("before_dead_letter_publish")
        await self._publisher.publish([_letter(record, reason, self._consumer)])
        crash_point("after_dead_letter_publish")
        REFUSED.labels(self._consumer, record.topic).inc()
        place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        log.error("message_refused", reason=reason, consumer=self._consumer, **place)
        self._recent.append(True)
        if sum(self._recent) >= self._limit:
            raise TooMuchPoison(
                f"{sum(self._recent)} of the last {len(self._recent)} messages of {self._consumer} were poison;"
                f" the last, {record.topic}/{record.partition}/{record.offset}: {reason}. Look with"
                " `runyard dead-letters list`, mend the producer, then start once with a higher"
                " RUNYARD_POISON_LIMIT to get past what was set aside"
            )


def _letter(record: ConsumerRecord, reason: str, consumer: str) -> Outgoing:
    value: bytes | None = record.value
    headers = tuple(_headers_that_fit(record.headers))
    kept_key = (record.key or b"")[:MOST_KEY_BYTES]
    data = MessageRefused(
        reason=reason,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        consumer=consumer,
        key_base64=None if record.key is None else _base64(kept_key),
        value_base64=_base64(None if value is None else value[:MOST_VALUE_BYTES]),
        value_size_bytes=None if value is None else len(value),
        value_sha256=None if value is None else hashlib.sha256(value).hexdigest(),
        headers_base64=tuple((name, _base64(raw)) for name, raw in headers),
        whole=_fits(record, headers, kept_key) and not isinstance(record, UnreadableRecord),
    )
    place = f"{record.topic}/{record.partition}/{record.offset}/{record.timestamp}"
    identity = event_id(place, 0, f"{data.type}/{consumer}")
    event = CloudEvent(identity, f"/runyard/{consumer}", place, datetime.now(UTC), data)
    attributes, letter = encode(event)
    return Outgoing(DEAD_LETTERS.name, kept_key.decode(errors="replace") or record.topic, attributes, letter)


def _fits(record: ConsumerRecord, headers: tuple[tuple[str, bytes | None], ...], key: bytes) -> bool:
    return headers == record.headers and key == (record.key or b"") and len(record.value or b"") <= MOST_VALUE_BYTES


def _headers_that_fit(headers: Iterable[tuple[str, bytes | None]]) -> Iterable[tuple[str, bytes | None]]:
    room = MOST_HEADER_BYTES
    for number, (name, raw) in enumerate(headers):
        room -= len(name.encode()) + len(raw or b"")
        if number == MOST_HEADERS or room < 0:
            return
        yield name, raw


def _base64(raw: bytes | None) -> str | None:
    return None if raw is None else base64.b64encode(raw).decode()

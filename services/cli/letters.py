"""The dead letters as they stand on their topic: reading them, finding the original record, publishing it again.

Owns what makes a retry safe: the very bytes that were refused, whole, or none. A retry is noted on the same topic, so
that everybody sees it. Never prints, and never decides which letter is worth a retry.
"""

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from schemas.cloudevents import CloudEvent, MalformedEvent, encode
from schemas.cloudevents import decode as decode_event
from schemas.events import DeadLetterRetried, MessageRefused
from schemas.ids import event_id
from schemas.topics import DEAD_LETTERS, address_of
from services.backbone.dead_letters import MOST_HEADERS
from services.backbone.kafka import MAX_RECORD_BYTES, client_options, heeding_cancellation
from services.backbone.polling import CarefulConsumer, UnreadableRecord
from services.backbone.settings import ServiceSettings
from services.cli.errors import ApiUnreachable, CliError, UsageRefused

POLL_MS = 500
CONNECT_TIMEOUT_S = 15.0
READ_TIMEOUT_S = 300.0
"""For all of the topic, which keeps 30 days."""

Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Retry:
    """When a message was published again, and where it stands now."""

    at: datetime
    new_offset: int


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter, where it stands itself, and whether its message was retried."""

    letter_id: str
    at: str
    time: datetime
    subject: str
    data: MessageRefused
    retry: Retry | None = None

    @property
    def place(self) -> Place:
        """Where the refused message stood."""
        return self.data.topic, self.data.partition, self.data.offset

    @property
    def whole(self) -> bool:
        """Whether the letter holds the whole message; those of before could leave headers out without saying so."""
        kept = len(base64.b64decode(self.data.value_base64 or ""))
        return self.data.whole and kept == (self.data.value_size_bytes or 0) and len(self._headers) < MOST_HEADERS

    @property
    def _headers(self) -> tuple[tuple[str, str | None], ...]:
        return self.data.headers_base64


@dataclass(frozen=True, slots=True)
class Original:
    """The bytes of a refused message."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


@dataclass
class Letters:
    """The topic of dead letters of one Kafka."""

    settings: ServiceSettings
    skipped: int = field(default=0, init=False)

    async def read(self, since: datetime | None = None) -> list[Letter]:
        """Read the letters written since a time, oldest first; one that was written again counts once.

        What stands there and is no letter is counted in `skipped`.
        """
        letters: dict[str, Letter] = {}
        retries: dict[Place, Retry] = {}
        async with self._reader() as reader:
            async for record in _records(reader, since):
                event = _event(record)
                if event is None:
                    self.skipped += 1
                elif isinstance(event.data, MessageRefused):
                    at = f"{record.partition}/{record.offset}"
                    letters.setdefault(str(event.id), Letter(str(event.id), at, event.time, event.subject, event.data))
                elif isinstance(event.data, DeadLetterRetried):
                    data = event.data
                    retries[data.topic, data.partition, data.offset] = Retry(event.time, data.new_offset)
        return [
            Letter(one.letter_id, one.at, one.time, one.subject, one.data, retries.get(one.place))
            for one in letters.values()
        ]

    async def original(self, letter: Letter) -> Original:
        """Find the bytes of a refused message: in the letter, or where they stood if it holds only a part.

        Raises:
            CliError: they are gone, or what stands there is another message.
        """
        data = letter.data
        if letter.whole:
            headers = [(name, _bytes(raw)) for name, raw in data.headers_base64]
            return Original(_bytes(data.key_base64), _bytes(data.value_base64), headers)
        async with self._reader() as reader:
            record = await _record_at(reader, *letter.place)
        refusal = f"letter {letter.letter_id} holds only a part of its message, and"
        if record is None:
            raise CliError(f"{refusal} {'/'.join(map(str, letter.place))} is gone")
        if isinstance(record, UnreadableRecord):
            raise CliError(f"{refusal} {record.why}")
        digest = None if record.value is None else hashlib.sha256(record.value).hexdigest()
        if digest != data.value_sha256 or letter.subject.rpartition("/")[2] != str(record.timestamp):
            raise CliError(f"{refusal} another message stands at {'/'.join(map(str, letter.place))} now")
        return Original(record.key, record.value, list(record.headers))

    async def retry(self, letter: Letter) -> int:
        """Publish a refused message again, to the partition that it came from, and note that down; returns its offset.

        Raises:
            CliError: its bytes are not to be had.
        """
        original = await self.original(letter)
        async with self._answers_within(CONNECT_TIMEOUT_S):
            producer = AIOKafkaProducer(
                **client_options(self.settings), acks="all", max_request_size=2 * MAX_RECORD_BYTES
            )
            await producer.start()
            try:
                sent = await producer.send_and_wait(
                    letter.data.topic,
                    original.value,
                    key=original.key,
                    partition=letter.data.partition,
                    headers=original.headers,
                )
                note = retried(letter, sent.offset, datetime.now(UTC))
                topic, key = address_of(note.data)
                headers, value = encode(note)
                await producer.send_and_wait(topic.name, value, key=key.encode(), headers=headers)
            finally:
                await heeding_cancellation(producer.stop())
        new_offset: int = sent.offset
        return new_offset

    @contextlib.asynccontextmanager
    async def _reader(self) -> AsyncIterator[CarefulConsumer]:
        async with self._answers_within(READ_TIMEOUT_S):
            reader = CarefulConsumer(**client_options(self.settings), enable_auto_commit=False)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await reader.start()
                yield reader
            finally:
                await heeding_cancellation(reader.stop())

    @contextlib.asynccontextmanager
    async def _answers_within(self, timeout_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except (KafkaError, TimeoutError, OSError) as error:
            servers = self.settings.kafka_bootstrap_servers
            what = type(error).__name__
            raise ApiUnreachable(f"Kafka at {servers} does not answer ({what}): is the system up?") from error


def retried(letter: Letter, new_offset: int, now: datetime) -> CloudEvent:
    """Make the note that a refused message was published again."""
    topic, partition, offset = letter.place
    data = DeadLetterRetried(topic=topic, partition=partition, offset=offset, new_offset=new_offset)
    identity = event_id(letter.subject, 0, data.type, new_offset)
    return CloudEvent(identity, "/runyard/cli", letter.subject, now, data)


def find(letters: list[Letter], name: str) -> Letter:
    """Find a letter by its id, the beginning of its id, or its `partition/offset` among the dead letters.

    Raises:
        UsageRefused: there is none, or more than one.
    """
    found = [letter for letter in letters if letter.at == name or letter.letter_id.startswith(name.lower())]
    if len(found) != 1 or not name:
        many = f"{len(found)} letters begin like that" if found else "`runyard dead-letters list` shows them"
        raise UsageRefused(f"there is no one dead letter {name!r}: {many}")
    return found[0]


async def _records(reader: CarefulConsumer, since: datetime | None) -> AsyncIterator[ConsumerRecord]:
    """Read the dead letters from a time, or from the first that is kept, to where they end now."""
    if DEAD_LETTERS.name not in await reader.topics():
        return
    partitions = [TopicPartition(DEAD_LETTERS.name, number) for number in range(DEAD_LETTERS.partitions)]
    reader.assign(partitions)
    ends = await reader.end_offsets(partitions)
    starts = await reader.beginning_offsets(partitions)
    if since is not None:
        found = await reader.offsets_for_times(dict.fromkeys(partitions, int(since.timestamp() * 1000)))
        starts = {partition: place.offset if place else ends[partition] for partition, place in found.items()}
    for partition, start in starts.items():
        reader.seek(partition, start)
    left = {partition for partition in partitions if starts[partition] < ends[partition]}
    while left:
        for partition, records in (await reader.getmany(timeout_ms=POLL_MS)).items():
            for record in records:
                if record.offset < ends[partition]:
                    yield record
        left -= {partition for partition in left if reader.positions()[partition] >= ends[partition]}


async def _record_at(reader: CarefulConsumer, topic: str, partition: int, offset: int) -> ConsumerRecord | None:
    """Read the record at a place; None if it is not there any more."""
    if topic not in await reader.topics():
        return None
    place = TopicPartition(topic, partition)
    [(_, start)], [(_, end)] = (
        (await reader.beginning_offsets([place])).items(),
        (await reader.end_offsets([place])).items(),
    )
    if not start <= offset < end:
        return None
    reader.assign([place])
    reader.seek(place, offset)
    while reader.positions()[place] < end:
        for record in (await reader.getmany(timeout_ms=POLL_MS, max_records=1)).get(place, ()):
            return record if record.offset == offset else None
    return None


def _event(record: ConsumerRecord) -> CloudEvent | None:
    if isinstance(record, UnreadableRecord):
        return None
    try:
        event = decode_event(record.headers, record.value)
    except MalformedEvent:
        return None
    return event if isinstance(event, CloudEvent) else None


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)

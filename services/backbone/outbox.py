"""The outbox: decided events, written in the transaction of the state that they tell of.

Owns the rows until Kafka has them. A writer locks the run's row before it enqueues, so the order per run holds.
`relay` sends them; nobody else publishes what a database decided.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from schemas.cloudevents import CloudEvent, encode
from schemas.topics import address_of
from services.backbone.postgres import Connection


@dataclass(frozen=True, slots=True)
class Message:
    """An event and where it goes; `partition` None lets the key decide."""

    topic: str
    key: str
    event: CloudEvent
    partition: int | None = None


def to_its_topic(event: CloudEvent) -> Message:
    """Address an event to the topic and key that the contract gives it."""
    topic, key = address_of(event.data)
    return Message(topic.name, key, event)


async def enqueue(connection: Connection, messages: Sequence[Message]) -> None:
    """Add messages to the outbox, in order, and wake the relay when the transaction commits.

    Must be called inside a transaction. Postgres folds equal notifications of one transaction into one.
    """
    rows = []
    for message in messages:
        headers, value = encode(message.event)
        texts = json.dumps([[name, text.decode()] for name, text in headers])
        event = message.event
        rows.append((event.id, event.subject, message.topic, message.key, message.partition, texts, value.decode()))
    await connection.executemany(
        "INSERT INTO outbox (event_id, subject, topic, key, partition, headers, value)"
        " VALUES ($1, $2, $3, $4, $5, $6::jsonb, $7)",
        rows,
    )
    await connection.execute("SELECT pg_notify('outbox_' || current_schema(), '')")


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A row as the relay sends it."""

    id: int
    topic: str
    key: str
    partition: int | None
    headers: list[tuple[str, bytes]]
    value: bytes


async def unsent(connection: Connection, limit: int) -> list[OutboxRow]:
    """Read the oldest rows that Kafka has not acknowledged."""
    rows = await connection.fetch(
        "SELECT id, topic, key, partition, headers, value FROM outbox WHERE sent_at IS NULL ORDER BY id LIMIT $1", limit
    )
    return [_row(row) for row in rows]


@dataclass(frozen=True, slots=True)
class Kept:
    """What was decided for a topic, and is kept: the row, whom it is about, and the event's id."""

    id: int
    subject: str
    event_id: UUID


async def kept(connection: Connection, topic: str, after: int, limit: int) -> list[Kept]:
    """List what was decided for a topic, onwards from a row, sent or not: Kafka may have had what is not marked."""
    rows = await connection.fetch(
        "SELECT id, subject, event_id FROM outbox WHERE topic = $1 AND id > $2 ORDER BY id LIMIT $3",
        topic,
        after,
        limit,
    )
    return [Kept(row["id"], row["subject"], row["event_id"]) for row in rows]


async def kept_about(connection: Connection, topic: str, subjects: Sequence[str]) -> list[OutboxRow]:
    """Read what was decided about some subjects for a topic, in that order, sent or not: see `kept`."""
    rows = await connection.fetch(
        "SELECT id, topic, key, partition, headers, value FROM outbox"
        " WHERE topic = $1 AND subject = ANY($2::text[]) ORDER BY id",
        topic,
        list(subjects),
    )
    return [_row(row) for row in rows]


async def oldest_unsent_s(connection: Connection) -> float | None:
    """Tell how many seconds ago the oldest row was written that Kafka has not acknowledged; None if there is none."""
    age: float | None = await connection.fetchval(
        "SELECT extract(epoch FROM clock_timestamp() - created_at)::float8 FROM outbox WHERE sent_at IS NULL"
        " ORDER BY id LIMIT 1"
    )
    return age


async def mark_sent(connection: Connection, ids: Sequence[int]) -> None:
    """Remember that Kafka has these rows."""
    await connection.execute("UPDATE outbox SET sent_at = now() WHERE id = ANY($1::bigint[])", ids)


async def sweep(connection: Connection, subjects: Sequence[str]) -> None:
    """Forget the sent rows of subjects that need no republishing any more."""
    await connection.execute(
        "DELETE FROM outbox WHERE sent_at IS NOT NULL AND subject = ANY($1::text[])", list(subjects)
    )


def _row(row: asyncpg.Record) -> OutboxRow:
    headers = [(name, text.encode()) for name, text in json.loads(row["headers"])]
    return OutboxRow(row["id"], row["topic"], row["key"], row["partition"], headers, row["value"].encode())

"""All SQL of the ledger: appending events and audit entries, keeping projections, reading both back.

Every function works on the caller's connection and inside the caller's transaction. Nothing here updates or deletes an
event or an audit entry; the database would refuse it.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from schemas.parts import LogLine, MetricPoint
from schemas.run import Run
from services.auditor.audit import AuditEntry, ChainedEntry, Head
from services.auditor.canonical import storable_json, storable_text
from services.auditor.history import Arrival, History, Position, StoredEvent, run_json
from services.backbone.postgres import Connection

BIGINT_BITS = 63


async def epoch_of(connection: Connection, cluster_id: str) -> int:
    """Tell the broker epoch of a Kafka cluster; a cluster that was never seen begins a new one."""
    await connection.execute(
        "INSERT INTO broker_epochs (cluster_id) SELECT $1 WHERE NOT EXISTS"
        " (SELECT FROM broker_epochs WHERE cluster_id = $1) ON CONFLICT DO NOTHING",
        cluster_id,
    )
    epoch: int = await connection.fetchval("SELECT epoch FROM broker_epochs WHERE cluster_id = $1", cluster_id)
    return epoch


async def lock_histories(connection: Connection, run_ids: Collection[str]) -> dict[str, History]:
    """Lock these runs until the end of the transaction, in one order for everybody, and read what is stored of them."""
    ordered = sorted(run_ids)
    await connection.execute(
        "INSERT INTO runs (run_id, last_hash) SELECT id, $2 FROM unnest($1::text[]) AS id ORDER BY id"
        " ON CONFLICT DO NOTHING",
        ordered,
        History().last_hash,
    )
    rows = await connection.fetch(
        "SELECT run_id, run, last_version, last_hash FROM runs WHERE run_id = ANY($1::text[])"
        " ORDER BY run_id FOR UPDATE",
        ordered,
    )
    return {row["run_id"]: _history(row) for row in rows}


async def known_ids(connection: Connection, event_ids: Sequence[UUID]) -> set[UUID]:
    """Tell which of these events are stored already."""
    rows = await connection.fetch("SELECT event_id FROM run_events WHERE event_id = ANY($1::uuid[])", event_ids)
    return {row["event_id"] for row in rows}


async def insert_events(connection: Connection, events: Sequence[StoredEvent]) -> None:
    """Append events."""
    await connection.executemany(
        "INSERT INTO run_events (run_id, version, event_id, type, source, subject, occurred_at, value, data,"
        " traceparent, stale, broker_epoch, topic, partition, kafka_offset, stored_at, hash)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        [_event_row(event) for event in events],
    )


async def save_histories(connection: Connection, histories: Mapping[str, History]) -> None:
    """Write what the runs' events have come to; a run that is missing is added."""
    await connection.executemany(
        "INSERT INTO runs (run_id, run, last_version, last_hash) VALUES ($1, $2, $3, $4) ON CONFLICT (run_id)"
        " DO UPDATE SET run = excluded.run, last_version = excluded.last_version, last_hash = excluded.last_hash",
        [
            (run_id, run_json(history.run), history.last_version, history.last_hash)
            for run_id, history in sorted(histories.items())
        ],
    )


async def lock_head(connection: Connection) -> Head:
    """Lock the end of the audit chain until the end of the transaction."""
    [row] = await connection.fetch("SELECT index, hash FROM audit_head FOR UPDATE")
    return Head(row["index"], row["hash"])


async def insert_entries(connection: Connection, chained: Sequence[ChainedEntry]) -> None:
    """Append entries to the audit chain, whose head is locked, and move the head."""
    await connection.executemany(
        "INSERT INTO audit_entries (index, action, tenant_id, actor, model_id, run_id, request_id, event_id,"
        " event_hash, occurred_at, details, previous_hash, hash)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        [_entry_row(link) for link in chained],
    )
    await connection.execute("UPDATE audit_head SET index = $1, hash = $2", chained[-1].index, chained[-1].hash)


@dataclass(frozen=True, slots=True)
class StoredLine:
    """A log line as it is kept; `dropped_before` counts lines that a limit kept back just before it."""

    run_id: str
    attempt: int
    line: LogLine
    dropped_before: int


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """A metric's value as it is kept."""

    run_id: str
    attempt: int
    point: MetricPoint


async def insert_lines(connection: Connection, lines: Sequence[StoredLine]) -> None:
    """Add log lines; those that are stored already stay as they are."""
    rows = [(s.run_id, s.attempt, *_line_row(s.line), s.dropped_before) for s in lines]
    await connection.execute(
        "INSERT INTO log_lines (run_id, attempt, sequence, stream, text, at, truncated, dropped_before)"
        " SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::text[], $5::text[], $6::timestamptz[],"
        " $7::boolean[], $8::bigint[]) ON CONFLICT DO NOTHING",
        *_columns(sorted(rows), 8),
    )


async def insert_points(connection: Connection, points: Sequence[StoredPoint]) -> None:
    """Add metric points; those that are stored already stay as they are.

    A step is the script's own number: one that no bigint holds is left out rather than refused.
    """
    in_order = sorted(points, key=lambda s: (s.run_id, s.attempt, s.point.sequence, s.point.place))
    rows = [(s.run_id, s.attempt, *_point_row(s.point)) for s in in_order]
    await connection.execute(
        "INSERT INTO metric_points (run_id, attempt, sequence, name, value, step, at, place)"
        " SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::text[], $5::float8[], $6::bigint[],"
        " $7::timestamptz[], $8::integer[]) ON CONFLICT DO NOTHING",
        *_columns(rows, 8),
    )


async def insert_unread(connection: Connection, arrivals: Sequence[Arrival]) -> None:
    """Keep output events that this code cannot read, as they are."""
    await connection.executemany(
        "INSERT INTO unread_output (event_id, run_id, type, source, occurred_at, value)"
        " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        [(a.event_id, a.run_id, a.type, a.source, a.occurred_at, a.value) for a in arrivals],
    )


async def lock_out_writers(connection: Connection) -> None:
    """Keep auditors from storing events until the end of the transaction; readers go on."""
    await connection.execute("LOCK TABLE runs IN EXCLUSIVE MODE")


async def next_run_ids(connection: Connection, after: str, limit: int) -> list[str]:
    """List the ids, in order, of runs that have events, a projection or audit entries."""
    rows = await connection.fetch(
        "(SELECT DISTINCT run_id FROM run_events WHERE run_id > $1 ORDER BY run_id LIMIT $2)"
        " UNION (SELECT run_id FROM runs WHERE run_id > $1 ORDER BY run_id LIMIT $2)"
        " UNION (SELECT DISTINCT run_id FROM audit_entries WHERE run_id > $1 ORDER BY run_id LIMIT $2)"
        " ORDER BY run_id LIMIT $2",
        after,
        limit,
    )
    return [row["run_id"] for row in rows]


async def open_run_ids(connection: Connection) -> list[str]:
    """Name the runs that have not ended."""
    rows = await connection.fetch(
        "SELECT run_id FROM runs WHERE status IS NULL OR status NOT IN ('succeeded', 'failed', 'cancelled')"
    )
    return [row["run_id"] for row in rows]


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event as it was read back, with the queryable copy of its data."""

    event: StoredEvent
    data: str


async def events_of(connection: Connection, run_ids: Sequence[str]) -> dict[str, list[EventRow]]:
    """Read the events of runs, in order of their versions."""
    rows = await connection.fetch(
        "SELECT run_id, version, event_id, type, source, subject, occurred_at, value, data, traceparent, stale,"
        " broker_epoch, topic, partition, kafka_offset, stored_at, hash"
        " FROM run_events WHERE run_id = ANY($1::text[]) ORDER BY run_id, version",
        run_ids,
    )
    found: dict[str, list[EventRow]] = {run_id: [] for run_id in run_ids}
    for row in rows:
        found[row["run_id"]].append(EventRow(_event(row), row["data"]))
    return found


@dataclass(frozen=True, slots=True)
class Projection:
    """What is stored of a run, unread: its JSON, and the number and hash of its last event."""

    run: str | None
    last_version: int
    last_hash: str


async def projections_of(connection: Connection, run_ids: Sequence[str]) -> dict[str, Projection]:
    """Read the projections of runs as they stand."""
    rows = await connection.fetch(
        "SELECT run_id, run, last_version, last_hash FROM runs WHERE run_id = ANY($1::text[])", run_ids
    )
    return {row["run_id"]: Projection(row["run"], row["last_version"], row["last_hash"]) for row in rows}


async def entries_of(connection: Connection, run_ids: Sequence[str]) -> dict[str, list[ChainedEntry]]:
    """Read the audit entries of runs, in order."""
    rows = await connection.fetch(
        "SELECT index, action, tenant_id, actor, model_id, run_id, request_id, event_id, event_hash, occurred_at,"
        " details, previous_hash, hash FROM audit_entries WHERE run_id = ANY($1::text[]) ORDER BY index",
        run_ids,
    )
    found: dict[str, list[ChainedEntry]] = {run_id: [] for run_id in run_ids}
    for row in rows:
        found[row["run_id"]].append(_chained(row))
    return found


async def next_links(connection: Connection, after: int, limit: int) -> list[ChainedEntry]:
    """Read the audit chain onwards from an index."""
    rows = await connection.fetch(
        "SELECT index, action, tenant_id, actor, model_id, run_id, request_id, event_id, event_hash, occurred_at,"
        " details, previous_hash, hash FROM audit_entries WHERE index > $1 ORDER BY index LIMIT $2",
        after,
        limit,
    )
    return [_chained(row) for row in rows]


async def read_head(connection: Connection) -> Head:
    """Read where the audit chain ends."""
    [row] = await connection.fetch("SELECT index, hash FROM audit_head")
    return Head(row["index"], row["hash"])


async def delete_projections(connection: Connection, run_ids: Sequence[str]) -> None:
    """Forget projections of runs that have no events."""
    await connection.execute("DELETE FROM runs WHERE run_id = ANY($1::text[])", run_ids)


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[list[object]]:
    return [[row[column] for row in rows] for column in range(width)]


def _line_row(line: LogLine) -> tuple[object, ...]:
    return line.sequence, line.stream, storable_text(line.text), line.at, line.truncated


def _point_row(point: MetricPoint) -> tuple[object, ...]:
    step = point.step if point.step is not None and point.step.bit_length() <= BIGINT_BITS else None
    return point.sequence, storable_text(point.name), point.value, step, point.at, point.place


def _history(row: asyncpg.Record) -> History:
    run = None if row["run"] is None else Run.model_validate_json(row["run"], extra="ignore")
    return History(run, row["last_version"], row["last_hash"])


def _event_row(event: StoredEvent) -> tuple[object, ...]:
    arrival, position = event.arrival, event.arrival.position
    return (
        arrival.run_id,
        event.version,
        arrival.event_id,
        arrival.type,
        arrival.source,
        arrival.subject,
        arrival.occurred_at,
        arrival.value,
        storable_json(arrival.value),
        arrival.traceparent,
        event.stale,
        position.broker_epoch,
        position.topic,
        position.partition,
        position.offset,
        event.stored_at,
        event.hash,
    )


def _event(row: asyncpg.Record) -> StoredEvent:
    position = Position(row["broker_epoch"], row["topic"], row["partition"], row["kafka_offset"])
    copied = ("run_id", "event_id", "type", "source", "subject", "occurred_at", "value", "traceparent")
    arrival = Arrival(**{name: row[name] for name in copied}, position=position)
    return StoredEvent(arrival, row["version"], row["stale"], row["stored_at"], row["hash"])


def _entry_row(link: ChainedEntry) -> tuple[object, ...]:
    entry = link.entry
    return (
        link.index,
        entry.action,
        entry.tenant_id,
        entry.actor,
        entry.model_id,
        entry.run_id,
        entry.request_id,
        entry.event_id,
        entry.event_hash,
        entry.occurred_at,
        json.dumps(entry.details),
        link.previous_hash,
        link.hash,
    )


def _chained(row: asyncpg.Record) -> ChainedEntry:
    copied = ("action", "tenant_id", "actor", "model_id", "run_id", "request_id", "event_id", "event_hash")
    entry = AuditEntry(
        **{name: row[name] for name in copied}, occurred_at=row["occurred_at"], details=json.loads(row["details"])
    )
    return ChainedEntry(entry, row["index"], row["previous_hash"], row["hash"])

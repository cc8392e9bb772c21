"""What the ledger tells: output, events and audit entries, read from its published views and from nothing else of it.

The one exception to 'a service reads its own tables' (DESIGN.md). While the ledger lags, it tells less: never an error.
Callers check first that a run belongs to the tenant.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asyncpg import Record

from services.api.cursors import Position
from services.api.resources import AuditEntry, OutputLine, Point, RunHistoryEvent
from services.api.store import Executor

SELECT_STORED = "SELECT attempt, status, stored_output_sequence FROM ledger.runs_v1 WHERE run_id = $1"


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """How much of a run's output is stored."""

    attempt: int
    sequence: int


async def stored_output(executor: Executor, run_id: str) -> StoredOutput:
    """Tell how much of a run's output the ledger has; nothing when it does not know the run yet."""
    row = await executor.fetchrow(SELECT_STORED, run_id)
    return StoredOutput(0, 0) if row is None else StoredOutput(row["attempt"], row["stored_output_sequence"] or 0)


SELECT_LINES = """
SELECT attempt, sequence, stream, text, at, truncated, dropped_before FROM ledger.log_lines_v1
WHERE run_id = $1 AND (attempt, sequence) > ($2::integer, $3::bigint) AND ($4::text IS NULL OR stream = $4)
ORDER BY attempt, sequence LIMIT $5
"""
SELECT_LAST_LINES = """
SELECT attempt, sequence, stream, text, at, truncated, dropped_before FROM ledger.log_lines_v1
WHERE run_id = $1 AND ($2::text IS NULL OR stream = $2)
ORDER BY attempt DESC, sequence DESC LIMIT $3
"""


async def select_lines(
    executor: Executor, run_id: str, after: Position, stream: str | None, limit: int
) -> list[OutputLine]:
    """Read lines behind a position, in order."""
    attempt, sequence, _ = after
    rows = await executor.fetch(SELECT_LINES, run_id, attempt, sequence, stream, limit)
    return [OutputLine(**row) for row in rows]


async def select_last_lines(executor: Executor, run_id: str, stream: str | None, limit: int) -> list[OutputLine]:
    """Read the last lines, in order."""
    return [OutputLine(**row) for row in reversed(await executor.fetch(SELECT_LAST_LINES, run_id, stream, limit))]


SELECT_POINTS = """
SELECT name, attempt, sequence, place, step, value, at FROM ledger.metric_points_v1
WHERE run_id = $1 AND (attempt, sequence, place) > ($2::integer, $3::bigint, $4::integer)
  AND ($5::text IS NULL OR name = $5)
ORDER BY attempt, sequence, place LIMIT $6
"""


@dataclass(frozen=True, slots=True)
class NamedPoint:
    """A point, the metric that it belongs to, and where it stands in the output."""

    name: str
    position: Position
    point: Point


async def select_points(
    executor: Executor, run_id: str, after: Position, name: str | None, limit: int
) -> list[NamedPoint]:
    """Read points behind a position, in the order in which they were written."""
    return [_named(row) for row in await executor.fetch(SELECT_POINTS, run_id, *after, name, limit)]


def _named(row: Record) -> NamedPoint:
    values = dict(row)
    position = (row["attempt"], row["sequence"], values.pop("place"))
    return NamedPoint(values.pop("name"), position, Point(**values))


SELECT_EVENTS = """
SELECT version, event_id, type, source, occurred_at, stored_at, stale, data, topic, partition, kafka_offset
FROM ledger.run_events_v1 WHERE run_id = $1 AND version > $2::integer ORDER BY version LIMIT $3
"""


async def select_events(executor: Executor, run_id: str, after: int, limit: int) -> list[RunHistoryEvent]:
    """Read a run's events behind a version."""
    return [_event(row) for row in await executor.fetch(SELECT_EVENTS, run_id, after, limit)]


def _event(row: Record) -> RunHistoryEvent:
    values = dict(row)
    offset, data, identity = values.pop("kafka_offset"), values.pop("data"), values.pop("event_id")
    return RunHistoryEvent(**values, event_id=str(identity), data=_object(data), offset=offset)


def _object(data: str) -> dict[str, Any]:
    """Read stored JSON; what a stranger published may be no object, and is shown all the same."""
    read = json.loads(data)
    return read if isinstance(read, dict) else {"value": read}


SELECT_AUDIT = """
SELECT index, action, actor, tenant_id, model_id, run_id, request_id, occurred_at, details, hash, previous_hash
FROM ledger.audit_log_v1
WHERE tenant_id = $1
  AND ($2::bigint IS NULL OR index < $2)
  AND ($3::text IS NULL OR action = $3)
  AND ($4::text IS NULL OR model_id = $4)
  AND ($5::text IS NULL OR run_id = $5)
  AND ($6::text IS NULL OR actor = $6)
  AND ($7::timestamptz IS NULL OR occurred_at >= $7)
  AND ($8::timestamptz IS NULL OR occurred_at < $8)
ORDER BY index DESC LIMIT $9
"""


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries are wanted; null is any. From `since` on, and before `until`."""

    action: str | None = None
    model_id: str | None = None
    run_id: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def select_audit(
    executor: Executor, tenant_id: str, wanted: AuditFilter, before: int | None, limit: int
) -> list[AuditEntry]:
    """Read a tenant's audit entries below an index, newest first."""
    words = (wanted.action, wanted.model_id, wanted.run_id, wanted.actor, wanted.since, wanted.until)
    rows = await executor.fetch(SELECT_AUDIT, tenant_id, before, *words, limit)
    return [AuditEntry(**{**row, "details": _object(row["details"])}) for row in rows]

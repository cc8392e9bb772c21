"""The runner's memory on disk (SQLite in the work folder): its id, its attempts, their causes of death, its outbox.

What stands here survives kill -9 and power loss: each method is one durable transaction. An attempt is `accepted`
before the offset is committed, its cause is written before the signal is sent, its end before it is published.
Owns all SQL of the runner; used by one thread; never decides anything and never talks to Kafka or the engine.
"""

import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from schemas.events import RunQueued
from schemas.parts import RunAttempt
from services.backbone.crash_points import crash_point
from services.runner.events import Outgoing
from services.runner.outcome import Cause

SCHEMA = """
CREATE TABLE IF NOT EXISTS runner (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    runner_id TEXT NOT NULL,
    beat INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS cluster (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    cluster_id TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS attempts (
    run_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('accepted', 'running', 'ended')),
    queued TEXT,
    traceparent TEXT,
    seat INTEGER NOT NULL DEFAULT 0,
    seat_released INTEGER NOT NULL DEFAULT 0,
    cause TEXT,
    container_id TEXT,
    started_at TEXT,
    output_from INTEGER NOT NULL DEFAULT 0,
    output_to INTEGER NOT NULL DEFAULT 0,
    ended_at TEXT,
    PRIMARY KEY (run_id, attempt)
) STRICT;
CREATE INDEX IF NOT EXISTS attempts_by_state ON attempts (state, ended_at);
CREATE TABLE IF NOT EXISTS outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    is_end INTEGER NOT NULL,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    headers TEXT NOT NULL,
    value BLOB NOT NULL,
    published INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS outbox_unpublished ON outbox (position) WHERE NOT published;
"""


class State(StrEnum):
    """How far an attempt has come on this runner."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Entry:
    """An attempt as it was journaled. `queued` is None for one that was revoked before it was ever seen.

    `seat` is nobody else's on this runner until nothing of the attempt is left on the host.
    Output up to `output_from` is published; the batch after it, up to `output_to`, was at least about to be.
    """

    ref: RunAttempt
    state: State
    queued: RunQueued | None
    traceparent: str | None
    seat: int
    cause: Cause | None
    container_id: str | None
    started_at: datetime | None
    output_from: int
    output_to: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that still has to be published."""

    position: int
    event: Outgoing


class Journal:
    """One open journal; a second process that opens the same one is refused by its lock."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sql = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        self._sql.row_factory = sqlite3.Row
        self._sql.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._sql.execute("PRAGMA journal_mode = WAL")
        self._sql.execute("PRAGMA synchronous = FULL")
        self._sql.executescript(SCHEMA)
        self._add_missing_columns()
        born = f"rnr-{secrets.token_hex(4)}"
        self._sql.execute("INSERT OR IGNORE INTO runner (only, runner_id, beat) VALUES (1, ?, 0)", (born,))
        self.runner_id: str = self._sql.execute("SELECT runner_id FROM runner").fetchone()[0]

    def close(self) -> None:
        """Close the file and release its lock."""
        self._sql.close()

    def cluster_id(self) -> str | None:
        """Tell which Kafka cluster events go to; None before the first."""
        row = self._sql.execute("SELECT cluster_id FROM cluster").fetchone()
        return row["cluster_id"] if row else None

    def adopt_cluster(self, cluster_id: str) -> bool:
        """Remember which Kafka cluster events go to; False if it is another one than before.

        That one has heard nothing yet: all events wait to be published again, and so does the output of what has not
        ended, from its beginning.
        """
        with self._transaction() as sql:
            same = self.cluster_id() in (None, cluster_id)
            sql.execute("INSERT OR REPLACE INTO cluster (only, cluster_id) VALUES (1, ?)", (cluster_id,))
            if not same:
                sql.execute("UPDATE outbox SET published = 0")
                sql.execute("UPDATE attempts SET output_from = 0, output_to = 0 WHERE state <> 'ended'")
            return same

    def next_beat(self) -> int:
        """Count a heartbeat; numbers are never used twice, over restarts too."""
        (beat,) = self._sql.execute("UPDATE runner SET beat = beat + 1 RETURNING beat").fetchone()
        return int(beat)

    def accept(self, queued: RunQueued, traceparent: str | None) -> bool:
        """Write an attempt down, with a seat that nobody holds; False when it is known already."""
        with self._transaction() as sql:
            taken = {seat for (seat,) in sql.execute("SELECT seat FROM attempts WHERE NOT seat_released")}
            seat = next(number for number in range(len(taken) + 1) if number not in taken)
            done = sql.execute(
                "INSERT INTO attempts (run_id, attempt, state, queued, traceparent, seat)"
                " VALUES (?, ?, 'accepted', ?, ?, ?) ON CONFLICT DO NOTHING",
                (queued.run_id, queued.attempt, queued.model_dump_json(), traceparent, seat),
            )
            return done.rowcount == 1

    def refuse(self, ref: RunAttempt, cause: Cause, now: datetime, event: Outgoing | None) -> bool:
        """Write down that an attempt that was never seen will never start; False when it is known already."""
        with self._transaction() as sql:
            done = sql.execute(
                "INSERT INTO attempts (run_id, attempt, state, cause, ended_at, seat_released)"
                " VALUES (?, ?, 'ended', ?, ?, 1) ON CONFLICT DO NOTHING",
                (ref.run_id, ref.attempt, cause, now.isoformat()),
            )
            if done.rowcount == 1 and event is not None:
                self._enqueue(ref, event, is_end=True)
            return done.rowcount == 1

    def entry(self, ref: RunAttempt) -> Entry | None:
        """Read an attempt."""
        row = self._sql.execute(
            "SELECT * FROM attempts WHERE run_id = ? AND attempt = ?", (ref.run_id, ref.attempt)
        ).fetchone()
        return _entry(row) if row else None

    def unfinished(self) -> list[Entry]:
        """List what has not ended, oldest first."""
        rows = self._sql.execute("SELECT * FROM attempts WHERE state <> 'ended' ORDER BY rowid")
        return [_entry(row) for row in rows]

    def lately_ended(self, since: datetime, limit: int) -> list[RunAttempt]:
        """List what has ended since, newest first."""
        rows = self._sql.execute(
            "SELECT run_id, attempt FROM attempts WHERE state = 'ended' AND ended_at >= ?"
            " ORDER BY ended_at DESC LIMIT ?",
            (since.isoformat(), limit),
        )
        return [RunAttempt(run_id=run_id, attempt=attempt) for run_id, attempt in rows]

    def set_cause(self, ref: RunAttempt, cause: Cause) -> Cause:
        """Write down why an attempt has to end, unless a cause stands there already; return the one that counts."""
        (counts,) = self._sql.execute(
            "UPDATE attempts SET cause = coalesce(cause, ?) WHERE run_id = ? AND attempt = ? RETURNING cause",
            (cause, ref.run_id, ref.attempt),
        ).fetchone()
        return Cause(counts)

    def record_start(self, ref: RunAttempt, container_id: str, started_at: datetime, event: Outgoing) -> None:
        """Write down that the container runs, with the event that says so; only the first time counts."""
        with self._transaction() as sql:
            done = sql.execute(
                "UPDATE attempts SET state = 'running', container_id = ?, started_at = ?"
                " WHERE run_id = ? AND attempt = ? AND state = 'accepted'",
                (container_id, started_at.isoformat(), ref.run_id, ref.attempt),
            )
            if done.rowcount == 1:
                self._enqueue(ref, event, is_end=False)

    def begin_output(self, ref: RunAttempt, output_from: int, output_to: int) -> None:
        """Write down which output is about to be published, so that after a crash the very same batch is repeated."""
        self._sql.execute(
            "UPDATE attempts SET output_from = ?, output_to = ? WHERE run_id = ? AND attempt = ?",
            (output_from, output_to, ref.run_id, ref.attempt),
        )

    def record_end(self, ref: RunAttempt, ended_at: datetime, event: Outgoing | None) -> None:
        """Write down that an attempt is over, with the event that says so; only the first end counts."""
        with self._transaction() as sql:
            done = sql.execute(
                "UPDATE attempts SET state = 'ended', ended_at = ?"
                " WHERE run_id = ? AND attempt = ? AND state <> 'ended'",
                (ended_at.isoformat(), ref.run_id, ref.attempt),
            )
            if done.rowcount == 1 and event is not None:
                self._enqueue(ref, event, is_end=True)

    def holding_seats(self) -> list[RunAttempt]:
        """List what has ended and still has its seat, since something of it may be left on the host."""
        rows = self._sql.execute("SELECT run_id, attempt FROM attempts WHERE state = 'ended' AND NOT seat_released")
        return [RunAttempt(run_id=run_id, attempt=attempt) for run_id, attempt in rows]

    def release_seat(self, ref: RunAttempt) -> None:
        """Let others have an ended attempt's seat: nothing of it is left, neither container nor folder."""
        self._sql.execute(
            "UPDATE attempts SET seat_released = 1 WHERE run_id = ? AND attempt = ? AND state = 'ended'",
            (ref.run_id, ref.attempt),
        )

    def unpublished(self, limit: int = 100) -> list[Waiting]:
        """Read the outbox, in order."""
        rows = self._sql.execute(
            "SELECT position, topic, key, headers, value FROM outbox WHERE NOT published ORDER BY position LIMIT ?",
            (limit,),
        )
        return [
            Waiting(position, _outgoing(topic, key, headers, value)) for position, topic, key, headers, value in rows
        ]

    def mark_published(self, positions: Iterable[int]) -> None:
        """Take events out of the outbox; their bytes stay, to be republished."""
        with self._transaction() as sql:
            sql.executemany("UPDATE outbox SET published = 1 WHERE position = ?", [(number,) for number in positions])

    def republish_end(self, ref: RunAttempt) -> bool:
        """Put an attempt's end into the outbox again; False when it has none."""
        done = self._sql.execute(
            "UPDATE outbox SET published = 0 WHERE run_id = ? AND attempt = ? AND is_end", (ref.run_id, ref.attempt)
        )
        crash_point("after_end_put_back")
        return done.rowcount > 0

    def forget(self, before: datetime) -> None:
        """Delete what ended before a time and is published."""
        with self._transaction() as sql:
            sql.execute(
                "DELETE FROM outbox WHERE published AND EXISTS (SELECT 1 FROM attempts a WHERE a.run_id = outbox.run_id"
                " AND a.attempt = outbox.attempt AND a.state = 'ended' AND a.ended_at < ?)",
                (before.isoformat(),),
            )
            sql.execute(
                "DELETE FROM attempts WHERE state = 'ended' AND ended_at < ? AND NOT EXISTS (SELECT 1 FROM outbox o"
                " WHERE o.run_id = attempts.run_id AND o.attempt = attempts.attempt)",
                (before.isoformat(),),
            )

    def _add_missing_columns(self) -> None:
        """Bring a journal of an older runner up to date."""
        columns = {row["name"] for row in self._sql.execute("PRAGMA table_info(attempts)")}
        for older in columns & {"slot", "slot_released"}:
            self._sql.execute(f"ALTER TABLE attempts RENAME COLUMN {older} TO {older.replace('slot', 'seat')}")
        if not columns & {"seat_released", "slot_released"}:
            self._sql.execute("ALTER TABLE attempts ADD COLUMN seat_released INTEGER NOT NULL DEFAULT 0")

    def _enqueue(self, ref: RunAttempt, event: Outgoing, *, is_end: bool) -> None:
        headers = json.dumps([(name, value.decode()) for name, value in event.headers])
        self._sql.execute(
            "INSERT INTO outbox (run_id, attempt, is_end, topic, key, headers, value) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (ref.run_id, ref.attempt, is_end, event.topic, event.key, headers, event.value),
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield self._sql
        except BaseException:
            self._sql.execute("ROLLBACK")
            raise
        self._sql.execute("COMMIT")


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(
        ref=RunAttempt(run_id=row["run_id"], attempt=row["attempt"]),
        state=State(row["state"]),
        queued=RunQueued.model_validate_json(row["queued"], extra="ignore") if row["queued"] else None,
        traceparent=row["traceparent"],
        seat=row["seat"],
        cause=Cause(row["cause"]) if row["cause"] else None,
        container_id=row["container_id"],
        started_at=datetime.fromisoformat(row["started_at"]) if row["started_at"] else None,
        output_from=row["output_from"],
        output_to=row["output_to"],
    )


def _outgoing(topic: str, key: str, headers: str, value: bytes) -> Outgoing:
    return Outgoing(topic, key, [(name, text.encode()) for name, text in json.loads(headers)], value)

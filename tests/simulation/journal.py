"""The runner's journal as a model: the methods of `services/runner/journal.py` that matter to the protocol, on a dict.

Each method is one durable step. An integration test compares it with the real one on SQLite.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from schemas.cloudevents import CloudEvent, decode
from schemas.events import RunQueued
from schemas.parts import RunAttempt
from services.runner.events import Outgoing
from services.runner.journal import State
from services.runner.outcome import Cause


@dataclass(slots=True, eq=False)
class Entry:
    """An attempt as it was journaled. `queued` is None for one that was revoked before it was ever seen."""

    ref: RunAttempt
    state: State
    queued: RunQueued | None = None
    traceparent: str | None = None
    cause: Cause | None = None
    container_id: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(slots=True, eq=False)
class JournalRow:
    """An event of the runner's outbox."""

    position: int
    ref: RunAttempt
    is_end: bool
    event: CloudEvent
    topic: str
    key: str
    partition: int | None = None
    published: bool = False


def read(outgoing: Outgoing) -> CloudEvent:
    """Read an event from the bytes that travel."""
    event = decode(outgoing.headers, outgoing.value)
    assert isinstance(event, CloudEvent)
    return event


@dataclass(slots=True)
class Journal:
    """One runner's memory on disk."""

    runner_id: str
    entries: dict[tuple[str, int], Entry] = field(default_factory=dict)
    outbox: list[JournalRow] = field(default_factory=list)
    beat: int = 0
    cluster: int = 1

    def next_beat(self) -> int:
        """Count a heartbeat."""
        self.beat += 1
        return self.beat

    def accept(self, queued: RunQueued, traceparent: str | None) -> bool:
        """Write an attempt down; False when it is known already."""
        key = (queued.run_id, queued.attempt)
        if key in self.entries:
            return False
        ref = RunAttempt(run_id=queued.run_id, attempt=queued.attempt)
        self.entries[key] = Entry(ref, State.ACCEPTED, queued, traceparent)
        return True

    def refuse(self, ref: RunAttempt, cause: Cause, now: datetime, event: Outgoing | None) -> bool:
        """Write down that an attempt that was never seen will never start; False when it is known already."""
        key = (ref.run_id, ref.attempt)
        if key in self.entries:
            return False
        self.entries[key] = Entry(ref, State.ENDED, cause=cause, ended_at=now)
        if event is not None:
            self._enqueue(ref, event, is_end=True)
        return True

    def entry(self, ref: RunAttempt) -> Entry | None:
        """Read an attempt."""
        return self.entries.get((ref.run_id, ref.attempt))

    def unfinished(self) -> list[Entry]:
        """List what has not ended, oldest first."""
        return [entry for entry in self.entries.values() if entry.state is not State.ENDED]

    def lately_ended(self, since: datetime) -> list[RunAttempt]:
        """List what has ended since, newest first."""
        ended = [(e.ended_at, e.ref) for e in self.entries.values() if e.ended_at is not None and e.ended_at >= since]
        return [ref for _, ref in sorted(ended, key=lambda pair: pair[0], reverse=True)]

    def set_cause(self, ref: RunAttempt, cause: Cause) -> Cause:
        """Write down why an attempt has to end, unless a cause stands there already; return the one that counts."""
        entry = self.entries[ref.run_id, ref.attempt]
        entry.cause = entry.cause or cause
        return entry.cause

    def record_start(self, ref: RunAttempt, container_id: str, started_at: datetime, event: Outgoing) -> None:
        """Write down that the container runs, with the event that says so; only the first time counts."""
        entry = self.entries[ref.run_id, ref.attempt]
        if entry.state is State.ACCEPTED:
            entry.state, entry.container_id, entry.started_at = State.RUNNING, container_id, started_at
            self._enqueue(ref, event, is_end=False)

    def record_end(self, ref: RunAttempt, ended_at: datetime, event: Outgoing | None) -> None:
        """Write down that an attempt is over, with the event that says so; only the first end counts."""
        entry = self.entries[ref.run_id, ref.attempt]
        if entry.state is State.ENDED:
            return
        entry.state, entry.ended_at = State.ENDED, ended_at
        if event is not None:
            self._enqueue(ref, event, is_end=True)

    def unpublished(self) -> Sequence[JournalRow]:
        """Read the outbox, in order."""
        return [row for row in self.outbox if not row.published]

    def mark_published(self, rows: Iterable[JournalRow]) -> None:
        """Take events out of the outbox; they stay, to be republished."""
        for row in rows:
            row.published = True

    def republish_end(self, ref: RunAttempt) -> bool:
        """Put an attempt's end into the outbox again; False when it has none."""
        ends = [row for row in self.outbox if row.ref == ref and row.is_end]
        for row in ends:
            row.published = False
        return bool(ends)

    def republish_all(self) -> None:
        """Put everything into the outbox again: the cluster that had it is gone."""
        for row in self.outbox:
            row.published = False

    def _enqueue(self, ref: RunAttempt, event: Outgoing, *, is_end: bool) -> None:
        self.outbox.append(JournalRow(len(self.outbox) + 1, ref, is_end, read(event), event.topic, event.key))

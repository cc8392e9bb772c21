"""Where the stored ledger and what its own rules give differ. Pure; decides nothing about mending it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pydantic import ValidationError

from schemas.run import Run
from services.auditor.audit import AuditEntry, ChainedEntry, Head, entry_hash, entry_of
from services.auditor.canonical import storable_json
from services.auditor.history import UNKNOWN_TYPE, History, StoredEvent, event_hash, fold, run_json

LONGEST_SHOWN = 120


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where a table does not say what it should."""

    table: str
    key: str
    column: str
    expected: object
    found: object

    def __str__(self) -> str:
        return f"{self.table} {self.key}: {self.column}: expected {_shown(self.expected)}, found {_shown(self.found)}"


def refold(events: Sequence[StoredEvent]) -> History:
    """Fold a run's stored events anew, with the rules of this code."""
    history = History()
    for event in events:
        history = History(fold(history.run, event.arrival).run, event.version, event.hash)
    return history


def in_events(rows: Sequence[tuple[StoredEvent, str]]) -> Iterator[Difference]:
    """Compare a run's events, each with its queryable data, with their numbers, their chain and their folding."""
    history = History()
    for event, data in rows:
        key = f"{event.arrival.run_id}/{event.version}"
        evolution = fold(history.run, event.arrival)
        stale = UNKNOWN_TYPE if event.stale == UNKNOWN_TYPE else evolution.stale
        wanted = storable_json(event.arrival.value)
        checks = [
            ("version", history.last_version + 1, event.version),
            ("data", _comparable(wanted), _comparable(data)),
            ("stale", stale, event.stale),
            ("hash", event_hash(history.last_hash, event), event.hash),
        ]
        yield from _unequal("run_events", key, checks)
        history = History(evolution.run, event.version, event.hash)


def in_projection(
    run_id: str, expected: History, run: str | None, last_version: int, last_hash: str
) -> list[Difference]:
    """Compare a run's projection with what its events fold to."""
    checks: list[tuple[str, object, object]] = [
        *_run_columns(expected.run, run),
        ("last_version", expected.last_version, last_version),
        ("last_hash", expected.last_hash, last_hash),
    ]
    return list(_unequal("runs", run_id, checks))


def in_entries(run_id: str, events: Sequence[StoredEvent], stored: Sequence[ChainedEntry]) -> Iterator[Difference]:
    """Compare a run's audit entries with those that follow from its events."""
    found = {link.entry.event_id: link for link in stored}
    for entry in expected_entries(events):
        link = found.pop(entry.event_id, None)
        if link is None:
            yield Difference("audit_entries", f"of {run_id}", "action", entry.action, None)
            continue
        names = [field.name for field in fields(AuditEntry)]
        checks = [(name, getattr(entry, name), getattr(link.entry, name)) for name in names]
        yield from _unequal("audit_entries", str(link.index), checks)
    for link in found.values():
        yield Difference("audit_entries", str(link.index), "action", None, link.entry.action)


def expected_entries(events: Sequence[StoredEvent]) -> list[AuditEntry]:
    """Collect the audit entries that follow from a run's events.

    An event that was stored unread got none, even if this code can read it.
    """
    run, entries = None, []
    for event in events:
        evolution = fold(run, event.arrival)
        run = evolution.run
        entry = None if event.stale == UNKNOWN_TYPE else entry_of(event, evolution)
        entries.extend([entry] if entry is not None else [])
    return entries


def in_chain(head: Head, links: Sequence[ChainedEntry]) -> Iterator[Difference]:
    """Compare a stretch of the audit chain with its own hashes, from the link before it."""
    for link in links:
        checks = [
            ("index", head.index + 1, link.index),
            ("previous_hash", head.hash, link.previous_hash),
            ("hash", entry_hash(head, link.entry), link.hash),
        ]
        yield from _unequal("audit_entries", str(link.index), checks)
        head = Head(link.index, link.hash)


def in_head(expected: Head, found: Head) -> list[Difference]:
    """Compare the remembered end of the audit chain with its last entry: a cut tail shows here."""
    checks = [("index", expected.index, found.index), ("hash", expected.hash, found.hash)]
    return list(_unequal("audit_head", "true", checks))


def _run_columns(expected: Run | None, found: str | None) -> list[tuple[str, object, object]]:
    """Compare field by field what both read as; numbers may be written in more than one way."""
    wanted = run_json(expected)
    if wanted is None or found is None:
        return [("run", wanted, found)]
    try:
        stored = Run.model_validate_json(found)
    except ValidationError:
        return [("run", wanted, found)]
    ours, theirs = Run.model_validate_json(wanted).model_dump(mode="json"), stored.model_dump(mode="json")
    return [(f"run.{name}", ours[name], theirs[name]) for name in ours]


def _unequal(table: str, key: str, checks: Sequence[tuple[str, object, object]]) -> Iterator[Difference]:
    return (Difference(table, key, column, wanted, found) for column, wanted, found in checks if wanted != found)


def _comparable(text: str) -> Any:
    """Read JSON with every number as a float, because jsonb writes large ones in its own way."""
    return json.loads(text, parse_int=float)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"

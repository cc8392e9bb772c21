"""Storing as a decision: a batch of events in, and out come their numbers, the folded runs and the audit entries.

Pure; `history` and `audit` hold what it decides with. Never reads a clock or a database.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from services.auditor.audit import AuditEntry, entry_of
from services.auditor.history import Arrival, History, StoredEvent, event_hash, fold


@dataclass(frozen=True, slots=True)
class Appended:
    """What a batch does to the ledger."""

    events: tuple[StoredEvent, ...]
    histories: dict[str, History]
    entries: tuple[AuditEntry, ...]


def append(
    histories: Mapping[str, History], arrivals: Iterable[Arrival], known_ids: Collection[UUID], now: datetime
) -> Appended:
    """Number a batch, in order, and fold it; repeated event ids are absorbed without a number.

    Args:
        histories: what is stored of the runs concerned; a run that is missing begins here.
        arrivals: in partition order.
        known_ids: event ids that are stored already.
        now: when the batch is stored.

    Returns:
        New events, the histories that they changed, and the audit entries that follow from them, in order.
    """
    seen, changed = set(known_ids), dict[str, History]()
    events, entries = list[StoredEvent](), list[AuditEntry]()
    for arrival in arrivals:
        if arrival.event_id in seen:
            continue
        seen.add(arrival.event_id)
        run_id = arrival.run_id
        before = changed.get(run_id) or histories.get(run_id) or History()
        evolution = fold(before.run, arrival)
        event = StoredEvent(arrival, before.last_version + 1, evolution.stale, now, "")
        event = replace(event, hash=event_hash(before.last_hash, event))
        changed[run_id] = History(evolution.run, event.version, event.hash)
        events.append(event)
        entries.extend(entry for entry in [entry_of(event, evolution)] if entry is not None)
    return Appended(tuple(events), changed, tuple(entries))

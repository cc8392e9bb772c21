"""What the audit log says of events, and the chain of hashes that holds it together. Pure.

Exactly one start per accepted run, one end, one entry per version. Names of variables, never their values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from schemas.events import (
    CancellationRequested,
    ModelVersionCreated,
    RunCancelled,
    RunFailed,
    RunSucceeded,
    TrainingRequested,
)
from schemas.run import Evolution, Run
from services.auditor.canonical import GENESIS, exact, link, storable, storable_text
from services.auditor.history import StoredEvent, fact_of

STARTED = "model.custom_training_started"
CANCELLATION_REQUESTED = "model.custom_training_cancellation_requested"
ENDED = "model.custom_training_ended"
VERSION_CREATED = "model.version_created"

Who = TrainingRequested | CancellationRequested | ModelVersionCreated | Run


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What the audit log says of one event. `event_hash` covers that event and all before it of the run."""

    action: str
    tenant_id: str
    actor: str
    model_id: str
    run_id: str
    request_id: str | None
    event_id: UUID
    event_hash: str
    occurred_at: datetime
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """The last link of the audit chain."""

    index: int = 0
    hash: str = GENESIS


@dataclass(frozen=True, slots=True)
class ChainedEntry:
    """An audit entry with its link in the chain."""

    entry: AuditEntry
    index: int
    previous_hash: str
    hash: str


def entry_of(event: StoredEvent, evolution: Evolution) -> AuditEntry | None:
    """Tell what the audit log says of an event; None for those that it does not mention.

    A start, an end and a version count once, when they take effect; that somebody asked for a cancellation is said
    even if it came too late.
    """
    fact, run = fact_of(event.arrival), evolution.run
    match fact:
        case CancellationRequested():
            details = {"stale": event.stale} if event.stale else {}
            return _entry(CANCELLATION_REQUESTED, event, fact, details)
        case TrainingRequested() if event.stale is None:
            return _entry(STARTED, event, fact, _what_was_asked(fact))
        case ModelVersionCreated() if event.stale is None:
            artifact = fact.artifact.model_dump(mode="json")
            return _entry(VERSION_CREATED, event, fact, {"version": fact.version, "artifact": artifact})
        case RunSucceeded() | RunFailed() | RunCancelled() if event.stale is None and run is not None:
            return _entry(ENDED, event, run, _how_it_ended(run))
        case _:
            return None


def _entry(action: str, event: StoredEvent, who: Who, details: dict[str, Any]) -> AuditEntry:
    """Fill in an entry. Where no person acted, the actor is the service that the event came from."""
    if isinstance(who, TrainingRequested | CancellationRequested):
        actor, request_id = storable_text(who.actor), storable_text(who.request_id)
    else:
        actor, request_id = storable_text(event.arrival.source), None
    return AuditEntry(
        action=action,
        tenant_id=storable_text(who.tenant_id),
        actor=actor,
        model_id=storable_text(who.model_id),
        run_id=event.arrival.run_id,
        request_id=request_id,
        event_id=event.arrival.event_id,
        event_hash=event.hash,
        occurred_at=event.arrival.occurred_at,
        details=storable(details),
    )


def _what_was_asked(fact: TrainingRequested) -> dict[str, Any]:
    """Collect what a start's entry says: variables by name, never by value."""
    spec = fact.spec
    return {
        "entry_point": spec.entry_point,
        "runtime": spec.runtime,
        "compute": spec.compute.model_dump(mode="json"),
        "timeout_seconds": spec.timeout_s,
        "run_label": spec.run_label,
        "variable_names": list(spec.variable_names),
        "dataset_id": spec.dataset.dataset_id,
        "assets": {asset.filename: asset.sha256 for asset in spec.assets},
    }


def _how_it_ended(run: Run) -> dict[str, Any]:
    return {"status": run.status.value, "reason": run.reason, "attempt": run.attempt, "exit_code": run.exit_code}


def chain(head: Head, entries: Sequence[AuditEntry]) -> list[ChainedEntry]:
    """Append entries to the audit chain.

    Raises:
        ValueError: if an entry holds what canonical JSON (RFC 8785) cannot say.
    """
    chained = []
    for entry in entries:
        link = entry_hash(head, entry)
        chained.append(ChainedEntry(entry, head.index + 1, head.hash, link))
        head = Head(head.index + 1, link)
    return chained


def entry_hash(head: Head, entry: AuditEntry) -> str:
    """Compute the hash of the entry that follows a head: SHA-256 over its hash and the entry's canonical JSON."""
    return link(
        head.hash,
        {
            "index": head.index + 1,
            "action": entry.action,
            "tenant_id": entry.tenant_id,
            "actor": entry.actor,
            "model_id": entry.model_id,
            "run_id": entry.run_id,
            "request_id": entry.request_id,
            "event_id": str(entry.event_id),
            "event_hash": entry.event_hash,
            "occurred_at": exact(entry.occurred_at),
            "details": entry.details,
        },
    )

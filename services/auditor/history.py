"""The history of one run: its events with their numbers and their chain of hashes, and what they fold to.

Pure. Storing, rebuilding and verifying all go through here, so the three cannot disagree. Folding never raises, and an
event that has no effect is marked stale, never dropped.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from schemas.cloudevents import MODEL_OF, MalformedEvent, data_of
from schemas.events import RunFact
from schemas.run import Evolution, Run, evolve
from services.auditor.canonical import GENESIS, exact, link, storable_json

UNKNOWN_TYPE = "unknown_type"
"""Why an event has no effect that this code cannot read; it may have one when a newer code rebuilds."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where an event stood on Kafka; `broker_epoch` tells which cluster's counting the offset belongs to."""

    broker_epoch: int
    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event as it came, with its data byte for byte."""

    run_id: str
    event_id: UUID
    type: str
    source: str
    subject: str
    occurred_at: datetime
    value: bytes
    traceparent: str | None
    position: Position


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its number in the run's history, why it had no effect (if so), and its link in the run's chain."""

    arrival: Arrival
    version: int
    stale: str | None
    stored_at: datetime
    hash: str


@dataclass(frozen=True, slots=True)
class History:
    """What one run's events have come to: the folded run, and the number and hash of the last event."""

    run: Run | None = None
    last_version: int = 0
    last_hash: str = GENESIS


def fold(run: Run | None, arrival: Arrival) -> Evolution:
    """Fold one event into a run; a type that this code does not know has no effect."""
    fact = fact_of(arrival)
    return Evolution(run, UNKNOWN_TYPE) if fact is None else evolve(run, fact, arrival.occurred_at)


def fact_of(arrival: Arrival) -> RunFact | None:
    """Read what an event says of a run; None when this code cannot."""
    if arrival.type not in MODEL_OF:
        return None
    try:
        data = data_of(arrival.type, arrival.value)
    except MalformedEvent:
        return None
    return data if isinstance(data, RunFact) else None


def event_hash(previous: str, event: StoredEvent) -> str:
    """Chain an event of a run to the one before it: SHA-256 over the previous hash and the row's canonical JSON.

    Raises:
        ValueError: if the event holds what canonical JSON (RFC 8785) cannot say.
    """
    arrival, position = event.arrival, event.arrival.position
    return link(
        previous,
        {
            "run_id": arrival.run_id,
            "version": event.version,
            "event_id": str(arrival.event_id),
            "type": arrival.type,
            "source": arrival.source,
            "subject": arrival.subject,
            "occurred_at": exact(arrival.occurred_at),
            "value_sha256": hashlib.sha256(arrival.value).hexdigest(),
            "traceparent": arrival.traceparent,
            "stale": event.stale,
            "broker_epoch": position.broker_epoch,
            "topic": position.topic,
            "partition": position.partition,
            "kafka_offset": position.offset,
            "stored_at": exact(event.stored_at),
        },
    )


def run_json(run: Run | None) -> str | None:
    """Write a folded run as it is stored."""
    return None if run is None else storable_json(run.model_dump_json())

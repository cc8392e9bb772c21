"""The one order in which a run is told to a broker that has never heard of it. Pure.

Api, scheduler and auditor had each folded some first part of what stood on the run's lost partition; whatever any of
them has folded must come before whatever it would make stale. The ledger has its part event by event. Of the rest the
outboxes have what was decided, and a folded state tells which end came first. Never changes an event.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.cloudevents import CloudEvent, UnknownEvent, decode, encode, headers_of
from schemas.events import (
    AttemptEvent,
    AttemptLost,
    CancellationRequested,
    Event,
    ModelVersionCreated,
    RunEnd,
    RunQueued,
    RunRequeued,
    RunStarted,
    RunWaiting,
    TrainingRequested,
)
from schemas.ids import event_id
from schemas.run import Run, end_of
from schemas.topics import RUNS
from services.auditor.history import Arrival
from services.backbone.outbox import OutboxRow
from services.backbone.publisher import Outgoing

LAST = 1 << 31
WITHIN_ATTEMPT: tuple[type[Event], ...] = (
    TrainingRequested,
    CancellationRequested,
    RunRequeued,
    RunWaiting,
    RunQueued,
    RunStarted,
    AttemptLost,
    RunEnd,
    ModelVersionCreated,
)
"""What `runyard.runs` is told about one attempt, as it follows upon each other; TrainingRequested has none, nor has
CancellationRequested, which never makes another fact stale, and a version comes last of all."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one run.

    Attributes:
        stored: the ledger's events, in order.
        kept: what the outboxes of api and scheduler have told `runyard.runs`, each in its order.
        folded: the run as api and scheduler have folded it.
    """

    run_id: str
    stored: Sequence[Arrival]
    kept: Sequence[OutboxRow]
    folded: Sequence[Run]


def retell(known: Known) -> list[Outgoing]:
    """Tell a run from its beginning: the ledger's part as it is stored, then what the ledger had not seen yet."""
    told = [_as_stored(arrival) for arrival in known.stored]
    stored_ids = {arrival.event_id for arrival in known.stored}
    rest = {event.id: event for row in known.kept if (event := _read(row)) is not None and event.id not in stored_ids}
    end = _folded_end(known, [*rest.values()])
    first = [end] if end is not None and end.id not in stored_ids else []  # sorting is stable: the end that counted
    in_order = sorted([*first, *rest.values()], key=_place)
    return told + [Outgoing(RUNS.name, known.run_id, *encode(event)) for event in in_order]


def _as_stored(arrival: Arrival) -> Outgoing:
    event = UnknownEvent(
        arrival.event_id,
        arrival.source,
        arrival.type,
        arrival.subject,
        arrival.occurred_at,
        arrival.value,
        arrival.traceparent,
    )
    return Outgoing(RUNS.name, arrival.run_id, headers_of(event, arrival.type), arrival.value)


def _read(row: OutboxRow) -> CloudEvent | None:
    event = decode(row.headers, row.value)
    return event if isinstance(event, CloudEvent) else None


def _folded_end(known: Known, rest: Sequence[CloudEvent]) -> CloudEvent | None:
    """Find the end that api or scheduler has folded, if it was the runner's: those of the scheduler are kept."""
    run = next((run for run in known.folded if run.status.is_end), None)
    if run is None or (end := end_of(run)) is None:
        return None
    if any(_is_same_end(event, end) for event in rest):
        return None
    source = f"/runyard/runner/{run.runner_id}"
    return CloudEvent(event_id(run.run_id, run.attempt, end.type), source, run.run_id, end.ended_at, end)  # type: ignore[arg-type]


def _is_same_end(event: CloudEvent, end: RunEnd) -> bool:
    return isinstance(event.data, RunEnd) and event.data.model_copy(update={"message": end.message}) == end


def _place(event: CloudEvent) -> tuple[int, int]:
    """Order what is told: by attempt, and within it as it must have happened."""
    data = event.data
    attempt = LAST if isinstance(data, ModelVersionCreated) else data.attempt if isinstance(data, AttemptEvent) else 0
    return attempt, next(rank for rank, kind in enumerate(WITHIN_ATTEMPT) if isinstance(data, kind))

"""A batch in, one transaction out: the shell around `ledger`.

Locks are taken in one order by every auditor: runs by their id, then the end of the audit chain, once. Whatever is
handed over again changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg
import structlog

from schemas.cloudevents import CloudEvent, UnknownEvent
from schemas.events import LogsAppended, MetricsReported, RunFact
from services.auditor import store
from services.auditor.audit import chain
from services.auditor.history import Arrival, Position
from services.auditor.ledger import Appended, append
from services.backbone.consumer import Received
from services.backbone.crash_points import crash_point
from services.backbone.errors import PoisonError
from services.backbone.postgres import Connection

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the auditor does with its topics. `broker_epoch` is that of the cluster which it reads from."""

    pool: asyncpg.Pool
    broker_epoch: int

    async def on_runs(self, batch: Sequence[Received]) -> None:
        """Append events, fold them into their runs, and write the audit entries that follow."""
        arrivals = [_arrival(received, self.broker_epoch) for received in batch]
        async with self.pool.acquire() as connection, connection.transaction():
            histories = await store.lock_histories(connection, {arrival.run_id for arrival in arrivals})
            known = await store.known_ids(connection, [arrival.event_id for arrival in arrivals])
            try:
                appended = append(histories, arrivals, known, datetime.now(UTC))
                await _persist(connection, appended)
            except ValueError as error:
                raise PoisonError(f"the ledger cannot say it in canonical JSON: {error}") from error
            crash_point("before_events_commit")
        crash_point("after_events_commit")
        stale = sum(event.stale is not None for event in appended.events)
        log.info("events_stored", events=len(appended.events), of=len(batch), stale=stale, audit=len(appended.entries))

    async def on_output(self, batch: Sequence[Received]) -> None:
        """Store log lines and metric points."""
        lines: list[store.StoredLine] = []
        points: list[store.StoredPoint] = []
        unread: list[Arrival] = []
        for received in batch:
            match received.event:
                case CloudEvent(data=LogsAppended() as logs):
                    lines.extend(_lines(logs))
                case CloudEvent(data=MetricsReported() as metrics):
                    points.extend(store.StoredPoint(metrics.run_id, metrics.attempt, p) for p in metrics.points)
                case UnknownEvent():
                    unread.append(_arrival(received, self.broker_epoch))
                case CloudEvent(data=other):
                    raise PoisonError(f"{other.type} does not belong on {received.topic}")
        async with self.pool.acquire() as connection, connection.transaction():
            await store.insert_lines(connection, lines)
            await store.insert_points(connection, points)
            await store.insert_unread(connection, unread)
            crash_point("before_output_commit")
        crash_point("after_output_commit")
        log.info("output_stored", lines=len(lines), points=len(points), unread=len(unread))


def _arrival(received: Received, broker_epoch: int) -> Arrival:
    """Take an event as it came; what is no fact of a run is filed under its subject."""
    event = received.event
    data = event.data if isinstance(event, CloudEvent) else None
    return Arrival(
        run_id=data.run_id if isinstance(data, RunFact) else event.subject,
        event_id=event.id,
        type=event.data.type if isinstance(event, CloudEvent) else event.type,
        source=event.source,
        subject=event.subject,
        occurred_at=event.time,
        value=received.value,
        traceparent=event.traceparent,
        position=Position(broker_epoch, received.topic, received.partition, received.offset),
    )


async def _persist(connection: Connection, appended: Appended) -> None:
    if not appended.events:
        return
    await store.insert_events(connection, appended.events)
    await store.save_histories(connection, appended.histories)
    crash_point("before_audit_entries")
    if appended.entries:
        await store.insert_entries(connection, chain(await store.lock_head(connection), appended.entries))


def _lines(logs: LogsAppended) -> list[store.StoredLine]:
    """Take lines apart; what was dropped is told by the first line after it."""
    dropped = (logs.dropped_lines, *(0 for _ in logs.lines[1:]))
    return [
        store.StoredLine(logs.run_id, logs.attempt, line, before)
        for line, before in zip(logs.lines, dropped, strict=False)
    ]

"""One auditor process: a batch in, one transaction out, with the ledger's own decisions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from schemas.events import RunFact
from schemas.topics import RUNS
from services.auditor.audit import ChainedEntry, Head, chain
from services.auditor.history import Arrival, History, Position, StoredEvent
from services.auditor.ledger import append
from tests.simulation.bus import Bus, Record
from tests.simulation.database import ConstraintBroken, Postgres
from tests.simulation.world import STEP, Process, Steps, World


@dataclass(slots=True)
class Tables:
    """The schema `ledger`."""

    histories: dict[str, History] = field(default_factory=dict)
    events: dict[str, list[StoredEvent]] = field(default_factory=dict)
    known: dict[UUID, bool] = field(default_factory=dict)
    head: dict[str, Head] = field(default_factory=lambda: {"head": Head()})
    entries: dict[int, ChainedEntry] = field(default_factory=dict)
    cluster: dict[str, int] = field(default_factory=lambda: {"id": 1})


@dataclass(slots=True)
class Auditor:
    """One auditor process at the tables."""

    world: World
    postgres: Postgres
    bus: Bus
    tables: Tables
    process: Process

    def on_runs(self, batch: Sequence[Record]) -> Steps[None]:
        """Append events, fold them into their runs, and write the audit entries that follow."""
        tables, moment = self.tables, self.world.moment
        arrivals = [self._arrival(record) for record in batch if isinstance(record.event.data, RunFact)]
        transaction = self.postgres.begin(self.process)
        yield from transaction.lock(*(("ledger", run_id) for run_id in sorted({a.run_id for a in arrivals})))
        known = [each.event_id for each in arrivals if each.event_id in tables.known]
        appended = append(tables.histories, arrivals, known, moment)
        yield STEP
        if not appended.events:
            transaction.rollback()
            return
        for event in appended.events:
            if event.arrival.event_id in tables.known:
                raise ConstraintBroken(f"event {event.arrival.event_id} is stored twice")
            transaction.put(tables.known, event.arrival.event_id, True)
        for run_id, history in appended.histories.items():
            transaction.put(tables.histories, run_id, history)
            new = [event for event in appended.events if event.arrival.run_id == run_id]
            transaction.put(tables.events, run_id, [*tables.events.get(run_id, ()), *new])
        if appended.entries:
            yield from transaction.lock(("audit_head",))
            links = chain(tables.head["head"], appended.entries)
            for link in links:
                transaction.put(tables.entries, link.index, link)
            transaction.put(tables.head, "head", Head(links[-1].index, links[-1].hash))
        yield from transaction.commit()

    def _arrival(self, record: Record) -> Arrival:
        event = record.event
        return Arrival(
            run_id=event.subject,
            event_id=event.id,
            type=event.data.type,
            source=event.source,
            subject=event.subject,
            occurred_at=event.time,
            value=record.value,
            traceparent=event.traceparent,
            position=Position(self.bus.cluster, RUNS.name, 0, record.offset),
        )

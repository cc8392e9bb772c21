"""The real stores and the simulation's tables side by side: whatever is done, is done to both, and then compared.

The model's events stand on the one log that both consume, so that times are the same; the real outboxes must hold the
same events in the same order.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import asyncpg

from schemas.cloudevents import CloudEvent, UnknownEvent, decode, value_of
from schemas.events import RunFact
from schemas.reason import RunStatus
from schemas.run import Run
from schemas.topics import RUNS
from services.api.events import training_requested
from services.api.handlers import fold
from services.api.store import transaction
from services.api.store_runs import claim_model, insert_run
from services.auditor.handlers import Handlers as Auditing
from services.backbone.consumer import Received
from services.backbone.outbox import enqueue, mark_sent, to_its_topic, unsent
from services.scheduler.handlers import Folds
from services.scheduler.roster import Roster
from services.scheduler.rounds import Term as RealTerm
from services.scheduler.rounds import play_round
from tests.simulation.bus import Record
from tests.simulation.database import Outbox
from tests.simulation.leading import HEARTBEAT_S, LEASE_S, MAX_ATTEMPTS, Term
from tests.simulation.registry import TRACE, Refused, Submission
from tests.simulation.scheduling import AssignmentRow, Tables
from tests.simulation.system import Rules, System
from tests.simulation.watching import Presence
from tests.simulation.world import Steps, World


def done(steps: Steps[object]) -> None:
    """Let a task of the model run to its end, with nobody between its steps."""
    for _ in steps:
        pass


@dataclass(slots=True)
class Twins:
    """One system twice. The model's world stands still but for what is done here."""

    api: asyncpg.Pool
    scheduler: asyncpg.Pool
    auditor: asyncpg.Pool
    broker_epoch: int
    seed: int
    model: System = field(init=False)
    log: list[CloudEvent] = field(default_factory=list)
    read: dict[str, int] = field(default_factory=lambda: {"api": 0, "scheduler": 0, "auditor": 0})
    rosters: tuple[Roster, Roster] = field(init=False)

    def __post_init__(self) -> None:
        world = World(self.seed)
        world.stormy = False
        self.model = System(world, Rules())
        self.model.tables.scheduling.leadership["epoch"] = 1
        self.model.watch.presences = defaultdict(Presence)
        self.model.watch.silence_s = -1.0  # whom the leader calls lost is not judged here
        self.rosters = (Roster(1, LEASE_S, HEARTBEAT_S), Roster(1, LEASE_S, HEARTBEAT_S))

    @property
    def random(self) -> Random:
        """The one source of chance."""
        return self.model.world.random

    async def begin(self) -> None:
        """Make the models, and begin to lead in the first epoch."""
        for model_id in self.model.models:
            await self.api.execute(
                "INSERT INTO models (model_id, tenant_id, name, model_type, created_at)"
                " VALUES ($1, 'acme', 'm', 'custom', now())",
                model_id,
            )
        await self.scheduler.execute("UPDATE leadership SET epoch = 1")

    async def submit(self, wanted: Submission) -> None:
        """Claim the model, with the run and its event; or be refused by both."""
        tables = self.model.tables.registry
        before = set(tables.runs)
        try:
            done(self.model.apis[0].submit(wanted))
        except Refused:
            active = tables.active[wanted.model_id]
            assert active is not None
            another = tables.runs[active].model_copy(update={"run_id": "run-custom-20260313-000000"})
            async with transaction(self.api) as connection:
                assert not await claim_model(connection, another)
            return
        [run_id] = set(tables.runs) - before
        run = tables.runs[run_id]
        async with transaction(self.api) as connection:
            assert await claim_model(connection, run)
            await insert_run(connection, run)
            await enqueue(connection, [to_its_topic(training_requested(run, "req-1", TRACE))])

    async def relay(self, schema: str) -> None:
        """Compare what is unsent, let Kafka have it, and mark it."""
        outbox, pool = self._outbox(schema)
        rows = outbox.oldest(20)
        async with pool.acquire() as connection:
            real = await unsent(connection, 20)
            await mark_sent(connection, [row.id for row in real])
        events = [decode(row.headers, row.value) for row in real]
        assert [_told(event) for event in events] == [_told(row.event) for row in rows]
        assert [(r.topic, r.key, r.partition) for r in real] == [(r.topic, r.key, r.partition) for r in rows]
        outbox.mark_sent([row.id for row in rows], self.model.world.now)
        self.log += [row.event for row in rows if row.topic == RUNS.name]

    async def consume(self, group: str, count: int) -> None:
        """Let a group handle some records more, in one batch."""
        at = self.read[group]
        events = self.log[at : at + count]
        self.read[group] = at + len(events)
        records = [Record(event, at + number, 0.0) for number, event in enumerate(events)]
        batch = [Received(RUNS.name, 0, at + n, event, value_of(event.data)) for n, event in enumerate(events)]
        if not batch:
            return
        if group == "api":
            done(self.model.apis[0].on_runs(records))
            for event in events:
                assert isinstance(event.data, RunFact)
                async with transaction(self.api) as connection:
                    await fold(connection, event, event.data)
        elif group == "scheduler":
            done(self.model.schedulers[0].on_runs(records))
            await Folds(self.scheduler).on_run_facts(batch)
        else:
            done(self.model.auditors[0].on_runs(records))
            await Auditing(self.auditor, self.broker_epoch).on_runs(batch)

    async def round(self, at: float) -> None:
        """Play one round of the leader."""
        real, model = self.rosters
        done(self.model.schedulers[0].play_round(Term(1, model), at))
        async with self.scheduler.acquire() as connection:
            await play_round(connection, RealTerm(1, real, MAX_ATTEMPTS, HEARTBEAT_S), at)

    async def compare(self) -> None:
        """Compare all that is stored."""
        await self._compare_registry()
        await self._compare_scheduling()
        await self._compare_ledger()

    def _outbox(self, schema: str) -> tuple[Outbox, asyncpg.Pool]:
        if schema == "registry":
            return self.model.tables.registry.outbox, self.api
        return self.model.tables.scheduling.outbox, self.scheduler

    async def _compare_registry(self) -> None:
        tables = self.model.tables.registry
        models = await self.api.fetch("SELECT model_id, active_run_id, latest_version FROM models ORDER BY model_id")
        assert [tuple(row) for row in models] == [(m, tables.active[m], tables.latest[m]) for m in self.model.models]
        assert await _runs(self.api) == tables.runs
        versions = await self.api.fetch("SELECT run_id, version, sha256 FROM versions ORDER BY run_id")
        ours = [(v.run_id, v.version, v.sha256) for v in tables.versions.values()]
        assert [tuple(row) for row in versions] == sorted(ours)

    async def _compare_scheduling(self) -> None:
        tables = self.model.tables.scheduling
        assert await _runs(self.scheduler) == {run_id: row.folded.run for run_id, row in tables.runs.items()}
        rows = await self.scheduler.fetch(
            "SELECT run_id, pending, told_count, told_reason, duration_s, ended_at IS NOT NULL FROM runs"
            " ORDER BY run_id"
        )
        assert [tuple(row) for row in rows] == [
            (
                run_id,
                row.folded.pending,
                row.folded.told_count,
                row.told.reason if row.told else None,
                row.duration_s,
                row.ended_at is not None,
            )
            for run_id, row in sorted(tables.runs.items())
        ]
        held = await self.scheduler.fetch(
            "SELECT run_id, attempt, runner_id, dispatch_partition, revoked, over_at IS NOT NULL"
            " FROM assignments ORDER BY run_id, attempt"
        )
        ours = [(a.run_id, a.attempt, a.runner_id, a.dispatch_partition, a.revoked, a.over) for a in _sorted(tables)]
        assert [tuple(row) for row in held] == ours

    async def _compare_ledger(self) -> None:
        tables = self.model.tables.ledger
        rows = await self.auditor.fetch("SELECT run_id, run, last_version FROM runs ORDER BY run_id")
        found = [(r["run_id"], r["run"] and Run.model_validate_json(r["run"]), r["last_version"]) for r in rows]
        assert found == [(run_id, h.run, h.last_version) for run_id, h in sorted(tables.histories.items())]
        events = await self.auditor.fetch(
            "SELECT run_id, version, event_id, stale FROM run_events ORDER BY run_id, version"
        )
        ours = [(e.arrival.run_id, e.version, e.arrival.event_id, e.stale) for es in tables.events.values() for e in es]
        assert [tuple(row) for row in events] == sorted(ours, key=lambda row: row[:2])
        entries = await self.auditor.fetch("SELECT index, action, run_id, event_id FROM audit_entries ORDER BY index")
        links = [(n, link.entry.action, link.entry.run_id, link.entry.event_id) for n, link in tables.entries.items()]
        assert [tuple(row) for row in entries] == sorted(links)

    def open(self) -> list[Run]:
        """The runs that have not ended, as the scheduler knows them."""
        return [row.folded.run for row in self.model.tables.scheduling.runs.values() if row.ended_at is None]

    def assigned(self) -> list[Run]:
        """The runs that are with a runner, as the scheduler knows them."""
        runs = [row.folded.run for row in self.model.tables.scheduling.runs.values()]
        return [run for run in runs if run.status in (RunStatus.STARTING, RunStatus.RUNNING)]


def _sorted(tables: Tables) -> Sequence[AssignmentRow]:
    return [row for _, row in sorted(tables.assignments.items())]


async def _runs(pool: asyncpg.Pool) -> dict[str, Run]:
    rows = await pool.fetch("SELECT run_id, state FROM runs")
    return {row["run_id"]: Run.model_validate_json(row["state"]) for row in rows}


def _told(event: CloudEvent | UnknownEvent) -> tuple[object, ...]:
    """What must be the same of two events but for their times."""
    assert isinstance(event, CloudEvent)
    told = [getattr(event.data, name, None) for name in ("attempt", "runner_id", "reason", "version")]
    return (event.id, event.source, event.data.type, event.subject, event.traceparent, *told)

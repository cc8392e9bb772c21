"""One scheduler process: it folds; while it holds the lock it leads: hears runners, decides, says that it is there.

The rounds are `services/scheduler/rounds.py::play_round` with the model's tables in place of the store. A leader that
has lost its lock goes on until it notices; its epoch is over by then.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

from schemas.cloudevents import CloudEvent
from schemas.events import RunFact, RunnerHeartbeat, SchedulerBeacon
from schemas.parts import Compute
from schemas.topics import BEACON_KEY, RUNNERS
from services.scheduler.effects import Decision, effect_of
from services.scheduler.events import beacon
from services.scheduler.load import occupation
from services.scheduler.placement import Assign, Wait, is_news, place
from services.scheduler.reconciliation import PATIENCE_BEATS
from services.scheduler.recovery import Cancel, recover
from services.scheduler.roster import Roster
from services.scheduler.rounds import compare
from services.scheduler.store import View
from tests.simulation.bus import Bus, Listener, PublishFailed, Record
from tests.simulation.database import Postgres, Unavailable
from tests.simulation.scheduling import Tables, Writing, read_view
from tests.simulation.watching import Watch
from tests.simulation.world import PARKED, STEP, Nap, Process, Steps, Task, World

HEARTBEAT_S, LEASE_S, TICK_S, CHECK_S = 5.0, 30.0, 4.0, 2.0
MAX_ATTEMPTS = 3
LOCK = "scheduler.leader"


class Superseded(Exception):
    """Another instance leads."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What goes to Kafka without an outbox."""

    topic: str
    key: str
    event: CloudEvent
    partition: int | None = None


@dataclass(slots=True, eq=False)
class Term:
    """What one leader knows while it leads, and what it does side by side."""

    epoch: int
    roster: Roster
    tasks: list[Task] = field(default_factory=list)
    over: bool = False


@dataclass(slots=True)
class Scheduler:
    """One instance: what it does with facts, and its candidacy."""

    world: World
    postgres: Postgres
    bus: Bus
    tables: Tables
    process: Process
    watch: Watch
    sees_pending: bool = True

    def on_runs(self, batch: Sequence[Record]) -> Steps[None]:
        """Fold a batch, all or nothing, and wake whoever leads."""
        events = [record.event for record in batch if isinstance(record.event.data, RunFact)]
        transaction = self.postgres.begin(self.process)
        yield from transaction.lock(*(("scheduling", run_id) for run_id in sorted({e.subject for e in events})))
        writing = Writing(self.tables, transaction, self.world.now, self.world.moment)
        writing.fold_batch(events)
        writing.flush()
        yield from transaction.commit()
        for task in self.tables.leaders:
            self.world.wake(task)

    def stand(self) -> Steps[None]:
        """Lead whenever nobody else does; a lost session or a later leader ends a term, not the process."""
        while True:
            session = self.postgres.try_lock(LOCK, self.process)
            if session is None:
                yield TICK_S
                continue
            try:
                yield from self._lead(session)
            except (Superseded, Unavailable):
                self.world.say(self.process.name, "steps down")
            if self.postgres.holds(LOCK, session):
                self.postgres.advisory.pop(LOCK)
            yield TICK_S

    def _lead(self, session: int) -> Steps[None]:
        epoch = yield from self._begin_epoch()
        self.world.say(self.process.name, "leads in epoch", epoch)
        term = Term(epoch, Roster(epoch, LEASE_S, HEARTBEAT_S))
        hearing = self.process.spawn("hearing", self._hear(term))
        self.bus.listeners[RUNNERS.name].append(Listener(hearing))
        beating = self.process.spawn("beacon", self._say_that_it_is_there(term))
        deciding = self.process.spawn("rounds", self._decide(term))
        self.tables.leaders.append(deciding)
        while not term.over and self.postgres.holds(LOCK, session):
            yield self.world.random.uniform(CHECK_S, CHECK_S * self.watch.blindness)
        self._end(term, [hearing, beating, deciding])

    def _end(self, term: Term, tasks: Sequence[Task]) -> None:
        term.over = True
        for task in tasks:
            task.cancel()
        listeners = self.bus.listeners[RUNNERS.name]
        listeners[:] = [listener for listener in listeners if listener.task.alive]
        self.tables.leaders[:] = [task for task in self.tables.leaders if task.alive]

    def _begin_epoch(self) -> Steps[int]:
        transaction = self.postgres.begin(self.process)
        yield from transaction.lock(("epoch",))
        epoch = self.tables.leadership["epoch"] + 1
        transaction.put(self.tables.leadership, "epoch", epoch)
        yield from transaction.commit()
        return epoch

    def _hear(self, term: Term) -> Steps[None]:
        """Hear runners, and the leader's own beacon, from now on."""
        cluster, at = self.bus.cluster, len(self.bus.logs[RUNNERS.name][0])
        while True:
            if not self.bus.reachable(self.process):
                yield 1.0
                continue
            if cluster != self.bus.cluster:
                cluster, at = self.bus.cluster, 0
            log = self.bus.logs[RUNNERS.name][0]
            for record in log[at:]:
                match record.event.data:
                    case SchedulerBeacon() as beat:
                        term.roster.on_beacon(beat, self.world.now)
                    case RunnerHeartbeat() as heartbeat:
                        if term.roster.on_heartbeat(heartbeat, self.world.now):
                            self._wake_leaders()
            at = len(log)
            yield PARKED

    def _say_that_it_is_there(self, term: Term) -> Steps[None]:
        beat = 0
        while True:
            beat += 1
            event = beacon(term.epoch, beat, self.world.moment)
            with suppress(PublishFailed):
                yield from self.bus.publish(self.process, [Announcement(RUNNERS.name, BEACON_KEY, event)])
            yield HEARTBEAT_S

    def _decide(self, term: Term) -> Steps[None]:
        while True:
            try:
                yield from self.play_round(term, self.world.now)
            except Superseded:
                term.over = True
                yield PARKED
            except Unavailable:
                yield 1.0
            yield Nap(TICK_S)

    def play_round(self, term: Term, at: float) -> Steps[None]:
        """Decide on everything that can be decided now, and write what still holds."""
        self.postgres.check()
        roster, now = term.roster, self.world.moment
        view = read_view(self.tables, now, roster.loads({}, at), sees_pending=self.sees_pending)
        partitions = roster.partitions()
        lost = roster.lost((each.runner_id for each in view.assignments), at)
        self.watch.on_lost(sorted(lost))
        roster.forget(sorted(lost))
        decisions = self._decisions(roster, view, lost, at)
        if decisions:
            yield STEP
            yield from self.persist(term.epoch, decisions, partitions, now)

    def persist(
        self, epoch: int, decisions: Sequence[Decision], partitions: Mapping[str, int], now: datetime
    ) -> Steps[None]:
        """Write those decisions that still hold, in one transaction.

        Raises:
            Superseded: another instance leads, and nothing was written.
        """
        transaction = self.postgres.begin(self.process)
        try:
            yield from transaction.lock(("epoch",))
            if self.tables.leadership["epoch"] != epoch:
                raise Superseded
            run_ids = sorted({each.run_id for each in decisions})
            yield from transaction.lock(*(("scheduling", run_id) for run_id in run_ids))
            writing = Writing(self.tables, transaction, self.world.now, self.world.moment)
            runs = writing.locked(run_ids)
            if not self.sees_pending:
                runs = {run_id: replace(folded, pending=None) for run_id, folded in runs.items()}
            pairs = [(each, effect_of(each, runs.get(each.run_id), partitions, now)) for each in decisions]
            writing.write_effects([effect for _, effect in pairs if effect], (PATIENCE_BEATS - 1) * HEARTBEAT_S)
            writing.flush()
            yield from transaction.commit()
        finally:
            transaction.rollback()
        for decision, effect in pairs:
            if effect:
                self.world.say(self.process.name, "decides", type(decision).__name__, decision.run_id[-6:])

    def _decisions(self, roster: Roster, view: View, lost: Collection[str], at: float) -> list[Decision]:
        computes: dict[str, list[Compute]] = {}
        for each in view.assignments:
            computes.setdefault(each.runner_id, []).append(each.compute)
        occupied = [occupation(each, view.typical_run_s, view.now) for each in view.assignments]
        placed = place(view.queue, roster.loads(computes, at), occupied, view.now)
        told = {run.run_id: run.told for run in view.queue}
        waits = [each for each in placed if isinstance(each, Wait) and is_news(each, told[each.run_id])]
        return [
            *recover(view.assignments, lost, MAX_ATTEMPTS),
            *(Cancel(run_id, attempt) for run_id, attempt in view.cancelled),
            *(each for each in placed if isinstance(each, Assign)),
            *(waits if roster.is_settled(at) else ()),
            *compare(roster, view.assignments),
        ]

    def _wake_leaders(self) -> None:
        for task in self.tables.leaders:
            self.world.wake(task)

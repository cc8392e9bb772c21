"""How events move: relays from an outbox to the bus, consumers from the bus to a handler.

The orders in which this happens are the protocol: read, publish, mark; fetch, handle, commit the offset. Both are
arguments, so that a test can plant a wrong one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.simulation.bus import PARTITIONS, Bus, Group, Listener, PublishFailed, Record
from tests.simulation.database import Outbox, OutboxRow, Postgres, Unavailable
from tests.simulation.world import PARKED, STEP, Nap, Process, Steps, Task

BATCH_ROWS = 20
BATCH_RECORDS = 8
BACKOFF_S = 1.0
POLL_S = 2.0

Choose = Callable[[Outbox], Sequence[OutboxRow]]
Handle = Callable[[Sequence[Record]], Steps[None]]


def unsent(outbox: Outbox) -> Sequence[OutboxRow]:
    """Choose what is relayed next: whatever is not marked as sent, oldest first."""
    return outbox.oldest(BATCH_ROWS)


@dataclass(slots=True)
class Relay:
    """The relay of one outbox in one process; it works only while its session holds the lock."""

    name: str
    outbox: Outbox
    first_topic: str
    postgres: Postgres
    bus: Bus
    process: Process
    schema: str
    choose: Choose = unsent

    def run(self) -> Steps[None]:
        """Relay for ever; a failure starts over with a new session, which shares the lock on the schema's cluster."""
        while True:
            session = self.postgres.try_lock(self.name, self.process)
            if session is not None and not self.postgres.share(self.schema, self.process):
                self.postgres.advisory.pop(self.name)
                session = None
            if session is None:
                yield Nap(POLL_S)
                continue
            try:
                yield from self._relay(session)
            except (PublishFailed, Unavailable):
                if self.postgres.holds(self.name, session):
                    self.postgres.advisory.pop(self.name)
                yield BACKOFF_S

    def _relay(self, session: int) -> Steps[None]:
        while True:
            if not self.postgres.holds(self.name, session):
                raise Unavailable
            rows = list(self.choose(self.outbox))
            if not rows:
                yield PARKED
                continue
            yield from self._send(session, [row for row in rows if row.topic == self.first_topic])
            yield from self._send(session, [row for row in rows if row.topic != self.first_topic])

    def _send(self, session: int, rows: Sequence[OutboxRow]) -> Steps[None]:
        if not rows:
            return
        yield from self.bus.publish(self.process, rows)
        yield STEP
        if not self.postgres.holds(self.name, session):
            raise Unavailable
        transaction = self.postgres.begin(self.process)
        transaction.marks.append((self.outbox, [row.id for row in rows]))
        yield from transaction.commit()


@dataclass(slots=True, eq=False)
class Consumer:
    """One subscription in one process.

    With `group` its partitions are the group's choice, unless `partition` names one. `commit_first` is a planted bug.
    """

    name: str
    topic: str
    bus: Bus
    process: Process
    handle: Handle
    group: str
    partition: int | None = None
    commit_first: bool = False
    positions: dict[int, int] = field(default_factory=dict)
    caught_up: bool = False
    cluster: int = 0
    generation: int = -1
    ends: dict[int, int] = field(default_factory=dict)
    on_caught_up: Task | None = None

    def listen(self) -> Task:
        """Start consuming in the process; it ends with it."""
        task = self.process.spawn(self.name, self.run())
        listeners = self.bus.listeners[self.topic]
        listener = Listener(task, self.positions)
        listeners.append(listener)
        self.process.on_crash.append(lambda: listeners.remove(listener))
        if self.partition is None:
            self.bus.join(self.group, self.topic, self)
            self.process.on_crash.append(lambda: self.bus.leave(self.group, self.topic, self))
        return task

    def run(self) -> Steps[None]:
        """Consume for ever."""
        while True:
            if not self.bus.reachable(self.process):
                yield POLL_S
                continue
            self._refresh()
            waiting = [number for number, at in self.positions.items() if at < len(self._log(number))]
            if not waiting:
                yield PARKED
                continue
            random = self.bus.world.random
            number = random.choice(waiting)
            start = self.positions[number]
            batch = self._log(number)[start : start + random.randint(1, BATCH_RECORDS)]
            yield STEP
            if self.commit_first:
                self._commit(number, batch)
                yield STEP
            yield from self._persistently(batch)
            yield STEP
            self.positions[number] = batch[-1].offset + 1
            if not self.commit_first:
                self._commit(number, batch)
            self._notice_end()

    def _log(self, number: int) -> list[Record]:
        return self.bus.logs[self.topic][number]

    def _refresh(self) -> None:
        """Take over what the group decided; positions start at the committed offsets."""
        if self.partition is not None:
            if self.cluster != self.bus.cluster:
                self.cluster = self.bus.cluster
                self._begin([self.partition])
            return
        state = self._group()
        if self.cluster != self.bus.cluster:
            self.cluster, self.generation = self.bus.cluster, -1
            if self not in state.members:
                self.bus.join(self.group, self.topic, self)
        if self.generation != state.generation:
            self.generation = state.generation
            self._begin([number for number in range(PARTITIONS[self.topic]) if state.owners[number] is self])

    def _group(self) -> Group:
        return self.bus.group(self.group, self.topic)

    def _begin(self, numbers: Sequence[int]) -> None:
        offsets = self.bus.offsets
        self.positions.clear()
        self.positions.update((number, offsets.get((self.group, self.topic, number), 0)) for number in numbers)
        self.ends = {number: len(self._log(number)) for number in numbers}
        self._notice_end()

    def _notice_end(self) -> None:
        if not self.caught_up and all(at >= self.ends[number] for number, at in self.positions.items()):
            self.caught_up = True
            if self.on_caught_up is not None:
                self.bus.world.wake(self.on_caught_up)

    def _persistently(self, batch: Sequence[Record]) -> Steps[None]:
        while True:
            try:
                yield from self.handle(batch)
            except Unavailable:
                yield BACKOFF_S
            else:
                return

    def _commit(self, number: int, batch: Sequence[Record]) -> None:
        """Commit behind the batch; refused if the partition went to somebody else meanwhile."""
        world = self.bus.world
        stale = self.cluster != self.bus.cluster or not self.bus.reachable(self.process)
        if self.partition is None and not stale:
            stale = self._group().generation != self.generation
        if not stale and not world.chance(world.faults.offset_commit_lost):
            self.bus.offsets[self.group, self.topic, number] = batch[-1].offset + 1

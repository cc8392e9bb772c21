"""PostgreSQL as the protocol needs it: transactions with row locks, commits whose outcome nobody knows, outboxes.

Reads see what is committed; a transaction's writes are applied at its commit, all or nothing. Ids of outbox rows are
handed out before the commit, as sequences do. It knows nothing of what is kept in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from schemas.cloudevents import CloudEvent
from services.backbone.outbox import Message
from tests.simulation.world import STEP, Process, Steps, Task, World

LOCK_POLL_S = 0.2
Key = tuple[object, ...]
Table = dict[Any, Any]


class Unavailable(Exception):
    """The database did not answer; nothing was written."""


class CommitUnknown(Unavailable):
    """The database did not answer the COMMIT: what was written may be durable, or not."""


class ConstraintBroken(AssertionError):
    """The database refuses what the code takes for possible: a bug."""


@dataclass(slots=True, eq=False)
class OutboxRow:
    """A decided event and where it goes."""

    id: int
    topic: str
    key: str
    partition: int | None
    event: CloudEvent
    sent_at: float | None = None


class Outbox:
    """One service's outbox: all its rows, and which of them Kafka has not acknowledged."""

    def __init__(self) -> None:
        self.rows: dict[int, OutboxRow] = {}
        self.unsent: dict[int, OutboxRow] = {}
        self.last_id = self.last_sent_id = 0
        self.relays: list[Task] = []
        self._by_event: dict[tuple[UUID, str], OutboxRow] = {}

    def oldest(self, limit: int) -> list[OutboxRow]:
        """Read the oldest unsent rows."""
        return [self.unsent[number] for number in sorted(self.unsent)[:limit]]

    def find(self, event_id: UUID, topic: str) -> OutboxRow | None:
        """Find the row of an event on a topic."""
        return self._by_event.get((event_id, topic))

    def add(self, row: OutboxRow) -> None:
        """Let a committed row be there."""
        self.rows[row.id] = self.unsent[row.id] = row
        self._by_event[row.event.id, row.topic] = row

    def mark_sent(self, ids: Sequence[int], now: float) -> None:
        """Remember that Kafka has these rows."""
        for number in ids:
            self.rows[number].sent_at = now
            self.unsent.pop(number, None)
            self.last_sent_id = max(self.last_sent_id, number)

    def send_again(self, row: OutboxRow, partition: int | None) -> None:
        """Let the relay send a row once more."""
        row.sent_at = None
        row.partition = row.partition if partition is None else partition
        self.unsent[row.id] = row


@dataclass(slots=True, eq=False)
class Transaction:
    """One transaction of one process. Writes wait in it until the commit."""

    postgres: "Postgres"
    process: Process | None
    broken: bool = False
    held: list[Key] = field(default_factory=list)
    writes: list[tuple[Table, Any, Any]] = field(default_factory=list)
    added: list[tuple[Outbox, OutboxRow]] = field(default_factory=list)
    again: list[tuple[Outbox, OutboxRow, int | None]] = field(default_factory=list)
    marks: list[tuple[Outbox, Sequence[int]]] = field(default_factory=list)

    def lock(self, *keys: Key) -> Steps[None]:
        """Lock rows in the order given, waiting for other transactions."""
        locks = self.postgres.locks
        for key in keys:
            while locks.get(key, self) is not self and not self.broken:
                yield LOCK_POLL_S
            if self.broken:
                raise Unavailable
            if key not in locks:
                locks[key] = self
                self.held.append(key)

    def put(self, table: Table, key: Any, value: Any) -> None:
        """Insert or update a row."""
        self.writes.append((table, key, value))

    def enqueue(self, outbox: Outbox, messages: Sequence[Message]) -> None:
        """Add messages to an outbox; their ids are handed out now."""
        for message in messages:
            outbox.last_id += 1
            row = OutboxRow(outbox.last_id, message.topic, message.key, message.partition, message.event)
            self.added.append((outbox, row))

    def commit(self) -> Steps[None]:
        """Commit.

        Raises:
            Unavailable: it was rolled back.
            CommitUnknown: it is durable or rolled back, and the caller cannot know.
        """
        yield STEP
        world, faults = self.postgres.world, self.postgres.world.faults
        if self.broken or self.postgres.is_down or world.chance(faults.commit_fails):
            self.rollback()
            raise CommitUnknown
        self._apply()
        self.rollback()
        if world.chance(faults.commit_unknown):
            yield STEP
            raise CommitUnknown

    def rollback(self) -> None:
        """Give the locks back; what was not committed is gone."""
        for key in self.held:
            del self.postgres.locks[key]
        self.held.clear()
        if self in self.postgres.open:
            self.postgres.open.remove(self)

    def _apply(self) -> None:
        for table, key, value in self.writes:
            table[key] = value
        woken = []
        for outbox, row in self.added:
            outbox.add(row)
            woken += outbox.relays
        for outbox, row, partition in self.again:
            outbox.send_again(row, partition)
            woken += outbox.relays
        for outbox, ids in self.marks:
            outbox.mark_sent(ids, self.postgres.world.now)
        for task in dict.fromkeys(woken):
            self.postgres.world.wake(task)


class Postgres:
    """The server: who holds which lock, and whether it answers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.locks: dict[Key, Transaction] = {}
        self.open: list[Transaction] = []
        self.advisory: dict[str, tuple[Process, int, int]] = {}
        self.sharers: dict[str, list[Process]] = {schema: [] for schema in ("registry", "scheduling", "ledger")}
        self.takers: dict[str, Process] = {}
        self.down_until = 0.0
        self._sessions = 0

    @property
    def is_down(self) -> bool:
        """Whether nobody gets an answer."""
        return self.down_until > self.world.now

    def begin(self, process: Process | None) -> Transaction:
        """Begin a transaction.

        Raises:
            Unavailable: the server does not answer.
        """
        if self.is_down:
            raise Unavailable
        transaction = Transaction(self, process)
        self.open.append(transaction)
        return transaction

    def check(self) -> None:
        """Make sure that a single statement gets an answer.

        Raises:
            Unavailable: the server does not answer.
        """
        if self.is_down:
            raise Unavailable

    def forget(self, process: Process) -> None:
        """Roll back what a dead process had begun, and give back its locks."""
        for transaction in [each for each in self.open if each.process is process]:
            transaction.rollback()
        self.advisory = {name: held for name, held in self.advisory.items() if held[0] is not process}
        self.takers = {schema: taker for schema, taker in self.takers.items() if taker is not process}
        for sharers in self.sharers.values():
            if process in sharers:
                sharers.remove(process)

    def stop(self, until: float) -> None:
        """Stop hard: nothing uncommitted survives, no session does."""
        self.down_until = max(self.down_until, until)
        for transaction in list(self.open):
            transaction.broken = True
            transaction.rollback()
        self.advisory.clear()
        self.takers.clear()
        for sharers in self.sharers.values():
            sharers.clear()

    def share(self, schema: str, process: Process) -> bool:
        """Share the lock on a schema's broker, unless somebody has it, or wants it, for himself."""
        if schema in self.takers:
            return False
        if process not in self.sharers[schema]:
            self.sharers[schema].append(process)
        return True

    def take(self, schema: str, process: Process) -> bool:
        """Keep others from sharing the lock from now on; returns whether nobody shares it any more."""
        self.takers[schema] = process
        return not self.sharers[schema]

    def try_lock(self, name: str, process: Process) -> int | None:
        """Try to take an advisory lock with a session of its own; returns the session, None while another has it."""
        if self.is_down or name in self.advisory:
            return None
        self._sessions += 1
        self.advisory[name] = (process, process.life, self._sessions)
        return self._sessions

    def holds(self, name: str, session: int) -> bool:
        """Whether a session is still connected, and so has its lock."""
        return not self.is_down and name in self.advisory and self.advisory[name][2] == session

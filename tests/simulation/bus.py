"""Apache Kafka as the protocol needs it: partitioned logs, committed offsets, groups, and publishes that go wrong.

The order within a partition is what was appended; nothing is promised between partitions. A publish that failed may
have landed in part, as a whole, or lands later, after what was sent in its place. It knows nothing of runs.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from schemas.cloudevents import CloudEvent, value_of
from schemas.topics import DISPATCH, RUNNERS, RUNS
from tests.simulation.world import STEP, Process, Steps, Task, World

PARTITIONS = {RUNS.name: 3, DISPATCH.name: 2, RUNNERS.name: 1}
"""Fewer than in production, so that runs share partitions and runners, too."""

PUBLISH_TIMEOUT_S = 3.0
LATE_S = 20.0


class PublishFailed(Exception):
    """Not everything was acknowledged; some of it may be there, or come later."""


class Sendable(Protocol):
    """What can be published."""

    @property
    def topic(self) -> str:
        """Name of the topic."""

    @property
    def key(self) -> str:
        """Key, which decides the partition unless one is given."""

    @property
    def partition(self) -> int | None:
        """A partition, or None for the key's."""

    @property
    def event(self) -> CloudEvent:
        """What is said."""


@dataclass(slots=True, eq=False)
class Record:
    """An event where it stands in a partition's log."""

    event: CloudEvent
    offset: int
    at: float
    _value: bytes | None = None

    @property
    def value(self) -> bytes:
        """The data as bytes."""
        if self._value is None:
            self._value = value_of(self.event.data)
        return self._value


class Member(Protocol):
    """A consumer in a group, and how far it has come in its partitions."""

    positions: dict[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A task that is woken when something was appended, in those partitions that it has a position in if it has any."""

    task: Task
    positions: dict[int, int] | None = None


@dataclass(slots=True)
class Group:
    """The members of a consumer group on one topic, and who owns which partition in the current generation."""

    members: list[Member] = field(default_factory=list)
    owners: list[Member] = field(default_factory=list)
    generation: int = 0


class Bus:
    """One cluster after the other: `cluster` counts them, for its data may be lost."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cluster = 1
        self.logs: dict[str, list[list[Record]]] = {}
        self.offsets: dict[tuple[str, str, int], int] = {}
        self.groups: dict[tuple[str, str], Group] = {}
        self.on_append: Callable[[CloudEvent], None] = lambda _: None
        self.listeners: dict[str, list[Listener]] = {topic: [] for topic in PARTITIONS}
        self.down_until = 0.0
        self.up_s = 0.0
        self._up_since = 0.0
        self._empty()

    @property
    def is_down(self) -> bool:
        """Whether no process can reach the broker."""
        return self.down_until > self.world.now

    def uptime(self) -> float:
        """Seconds for which the broker has answered, so far."""
        return self.up_s + max(0.0, self.world.now - self._up_since)

    def reachable(self, process: Process) -> bool:
        """Whether a process can reach the broker."""
        return not self.is_down and process.cut_off_until <= self.world.now

    def stop(self, until: float) -> None:
        """Let nobody reach the broker for a while."""
        self.up_s = self.uptime()
        self._up_since = self.down_until = max(self.down_until, until)

    def lose_everything(self) -> None:
        """Lose topics and offsets; an empty cluster with another id answers."""
        self.cluster += 1
        self.offsets.clear()
        self.groups.clear()
        self._empty()

    def publish(self, process: Process, records: Sequence[Sendable]) -> Steps[None]:
        """Send records, in order per partition, until they are acknowledged.

        Raises:
            PublishFailed: the outcome is unknown.
        """
        yield STEP
        world, faults = self.world, self.world.faults
        if not self.reachable(process):
            yield world.random.random() * PUBLISH_TIMEOUT_S
            raise PublishFailed
        if world.chance(faults.publish_fails):
            rest = self._land_in_part(records)
            if rest and world.chance(faults.lands_late):
                world.spawn("late records", self._land_late(rest, self.cluster))
            yield world.random.random() * PUBLISH_TIMEOUT_S
            raise PublishFailed
        for record in records:
            self.append(record)
        yield STEP
        if world.chance(faults.ack_lost):
            raise PublishFailed

    def append(self, sent: Sendable) -> None:
        """Let a record stand at the end of its partition."""
        partition = partition_of(sent)
        log = self.logs[sent.topic][partition]
        log.append(Record(sent.event, len(log), self.world.now))
        self.world.say("kafka", f"{sent.topic[8:]}/{partition}", describe(sent.event))
        self.on_append(sent.event)
        for listener in self.listeners[sent.topic]:
            if listener.positions is None or partition in listener.positions:
                self.world.wake(listener.task)

    def join(self, group: str, topic: str, member: Member) -> None:
        """Let a consumer become a member of a group."""
        self.group(group, topic).members.append(member)
        self.rebalance(group, topic)

    def leave(self, group: str, topic: str, member: Member) -> None:
        """Let a consumer's partitions go to the others."""
        members = self.group(group, topic).members
        if member in members:
            members.remove(member)
            self.rebalance(group, topic)

    def group(self, group: str, topic: str) -> Group:
        """The state of a group on a topic."""
        return self.groups.setdefault((group, topic), Group())

    def rebalance(self, group: str, topic: str) -> None:
        """Hand the partitions out anew; everybody begins at the committed offsets."""
        state = self.group(group, topic)
        state.generation += 1
        choose, members = self.world.random.choice, state.members
        state.owners = [choose(members) for _ in range(PARTITIONS[topic])] if members else []
        for listener in self.listeners[topic]:
            self.world.wake(listener.task)

    def reset_offsets(self) -> None:
        """Set every group to the beginning of its topics."""
        self.offsets.clear()
        for group, topic in list(self.groups):
            self.rebalance(group, topic)

    def _empty(self) -> None:
        self.logs = {topic: [[] for _ in range(number)] for topic, number in PARTITIONS.items()}

    def _land_in_part(self, records: Sequence[Sendable]) -> list[Sendable]:
        """Let a part of each partition's records land; returns what did not."""
        full: set[tuple[str, int]] = set()
        rest = []
        for record in records:
            place = (record.topic, partition_of(record))
            if place in full or self.world.random.random() < 0.5:
                full.add(place)
                rest.append(record)
            else:
                self.append(record)
        return rest

    def _land_late(self, records: Sequence[Sendable], cluster: int) -> Steps[None]:
        yield self.world.random.random() * LATE_S
        if cluster == self.cluster:
            self.world.say("kafka", "records of a failed publish land late")
            for record in records:
                self.append(record)


def partition_of(sent: Sendable) -> int:
    """Tell the partition of a record: the one that it names, or its key's."""
    count = PARTITIONS[sent.topic]
    return zlib.crc32(sent.key.encode()) % count if sent.partition is None else sent.partition


def describe(event: CloudEvent) -> str:
    """Say what an event is, for the trace."""
    data = event.data
    words = [type(data).__name__, event.subject[-6:]]
    words += [
        f"{name}={value}" for name in ("attempt", "runner_id", "reason", "beat") if (value := getattr(data, name, None))
    ]
    return " ".join(words)

"""Which runners are there, as one leader has heard them since it leads. In memory; the clock is an argument.

All times are seconds of the leader's own monotonic clock. Silence counts only while the leader's own beacon kept coming
back through the same topic, so that a broker that is down, or a leader that was stopped, loses nobody.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from schemas.estimate import subtract
from schemas.events import RunnerHeartbeat, SchedulerBeacon
from schemas.ids import is_name
from schemas.parts import Capacity, Compute, RunAttempt, RunnerLoad
from schemas.topics import DISPATCH

GAP_BEATS = 3
"""Beacons (or a runner's heartbeats) that stay away for so many intervals are a gap, not jitter."""

SETTLING_BEATS = 2
"""A new leader listens for so long before it says that no runner is there."""

MOST = 2**31 - 1
"""What a row can hold of a number."""

NOTHING = Capacity(cpu_cores=0, memory_gb=0)


@dataclass(slots=True)
class Seen:
    """A runner's last heartbeat, when it came, and the differences that it showed (see `reconciliation`)."""

    heartbeat: RunnerHeartbeat
    heard_at: float
    compared: bool = False
    missing: dict[RunAttempt, int] = field(default_factory=dict)
    unwanted: dict[RunAttempt, int] = field(default_factory=dict)


class Roster:
    """The runners that one leader, in one epoch, has heard."""

    def __init__(self, epoch: int, lease_s: float, interval_s: float) -> None:
        self._epoch = epoch
        self._lease_s = lease_s
        self._interval_s = interval_s
        self._first_beacon_at: float | None = None
        self._hearing_since = 0.0
        self._last_beacon_at = 0.0
        self._seen: dict[str, Seen] = {}

    def on_beacon(self, beacon: SchedulerBeacon, at: float) -> None:
        """Note that the topic carries what the leader says; another epoch's beacon proves nothing."""
        if beacon.epoch != self._epoch:
            return
        if self._first_beacon_at is None or not self._hears(at):
            self._hearing_since = at
        if self._first_beacon_at is None:
            self._first_beacon_at = at
        self._last_beacon_at = at

    def on_heartbeat(self, heartbeat: RunnerHeartbeat, at: float) -> bool:
        """Note that a runner is there; returns whether that changes what can be placed.

        What stood on the topic before the leader's first beacon tells of the past, and is ignored.
        """
        if self._first_beacon_at is None:
            return False
        seen = self._seen.get(heartbeat.runner_id)
        if seen is None:
            self._seen[heartbeat.runner_id] = Seen(heartbeat, at)
            return True
        before, was_silent = seen.heartbeat, self._is_silent(seen, at)
        seen.heartbeat, seen.heard_at, seen.compared = heartbeat, at, False
        same = before.capacity == heartbeat.capacity and before.runtimes == heartbeat.runtimes
        return was_silent or not same

    def lost(self, runner_ids: Iterable[str], now: float) -> frozenset[str]:
        """Tell which runners have been silent for a whole lease in which they would have been heard."""
        if self._first_beacon_at is None or not self._hears(now):
            return frozenset()
        return frozenset(each for each in {*runner_ids, *self._seen} if now - self._heard_at(each) > self._lease_s)

    def forget(self, runner_ids: Iterable[str]) -> None:
        """Take lost runners off the roster; a heartbeat brings them back."""
        for runner_id in runner_ids:
            self._seen.pop(runner_id, None)

    def is_settled(self, now: float) -> bool:
        """Whether the leader has listened long enough to say that a runner is not there."""
        first = self._first_beacon_at
        return first is not None and now - first >= SETTLING_BEATS * self._interval_s

    def loads(self, assigned: Mapping[str, Iterable[Compute]], now: float) -> tuple[RunnerLoad, ...]:
        """Describe the runners with what is free: capacity minus assignments; nothing while a runner is silent."""
        return tuple(
            self._load(seen, assigned.get(runner_id, ()), now) for runner_id, seen in sorted(self._seen.items())
        )

    def partitions(self) -> dict[str, int]:
        """Tell the dispatch partitions that the runners announce."""
        return {runner_id: seen.heartbeat.dispatch_partition for runner_id, seen in self._seen.items()}

    def uncompared(self) -> list[Seen]:
        """The runners whose last heartbeat has not been compared with their assignments yet."""
        return [seen for seen in self._seen.values() if not seen.compared]

    def _hears(self, now: float) -> bool:
        return now - self._last_beacon_at <= GAP_BEATS * self._interval_s

    def _heard_at(self, runner_id: str) -> float:
        seen = self._seen.get(runner_id)
        return max(seen.heard_at, self._hearing_since) if seen else self._hearing_since

    def _is_silent(self, seen: Seen, now: float) -> bool:
        return now - seen.heard_at > GAP_BEATS * self._interval_s

    def _load(self, seen: Seen, assigned: Iterable[Compute], now: float) -> RunnerLoad:
        heartbeat = seen.heartbeat
        free = heartbeat.capacity
        for compute in assigned:
            free = subtract(free, compute)
        if self._is_silent(seen, now):
            free = NOTHING
        return RunnerLoad(
            runner_id=heartbeat.runner_id, capacity=heartbeat.capacity, free=free, runtimes=heartbeat.runtimes
        )


def why_impossible(heartbeat: RunnerHeartbeat) -> str | None:
    """Say why nothing can be decided on a heartbeat: its names or numbers fit no row, or nobody could reach it."""
    listed = heartbeat.accepted + heartbeat.running + heartbeat.ended
    names = [heartbeat.runner_id, *(each.run_id for each in listed)]
    if wrong := [name for name in names if not is_name(name)]:
        return f"{wrong[0][:100]!r} cannot be the id of a run or a runner"
    capacity = heartbeat.capacity
    if max(capacity.cpu_cores, capacity.memory_gb, capacity.gpus, *(each.attempt for each in listed), 0) > MOST:
        return f"its capacity or an attempt is above {MOST}"
    if heartbeat.dispatch_partition >= DISPATCH.partitions:
        return f"{DISPATCH.name} has no partition {heartbeat.dispatch_partition}"
    return None

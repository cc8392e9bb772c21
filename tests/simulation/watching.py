"""The independent observer: what clients were told, containers' lifetimes, runners' silences. It believes no service.

What can be judged at once is judged at once; the rest is for `invariants`.
"""

from dataclasses import dataclass, field

from schemas.cloudevents import CloudEvent
from schemas.events import RunQueued, RunRevoked


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(slots=True, eq=False)
class Lifetime:
    """A container's, by the host's own stamps."""

    run_id: str
    attempt: int
    runner_id: str
    started: float
    ended: float | None = None
    sha256: str | None = None


@dataclass(slots=True)
class Presence:
    """When a runner was last heard by the broker, in seconds of the broker's uptime, and its longest silences."""

    heard_at: float = 0.0
    silences: list[tuple[float, float]] = field(default_factory=list)
    connected_since: float = 0.0


@dataclass(slots=True)
class Watch:
    """All that was observed.

    Attributes:
        silence_s: of the broker's uptime, how long a runner must at least have been unheard to be called lost.
        recently_s: how long ago such a silence may have ended: the leader decides by what it has read.
    """

    silence_s: float
    clock: "Clock"
    recently_s: float
    blindness: float = 1.0
    accepted: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    lifetimes: dict[str, list[Lifetime]] = field(default_factory=dict)
    presences: dict[str, Presence] = field(default_factory=dict)
    revoked: dict[tuple[str, int], float] = field(default_factory=dict)
    assigned: dict[tuple[str, int], float] = field(default_factory=dict)

    def on_accepted(self, run_id: str, model_id: str, key: str | None) -> None:
        """A client was answered 202."""
        if key is not None and self.keys.setdefault(key, run_id) != run_id:
            raise Violation(f"key {key} was answered with {self.keys[key]} and with {run_id}")
        self.accepted[run_id] = model_id

    def on_appended(self, event: CloudEvent) -> None:
        """The broker has an event."""
        if isinstance(event.data, RunRevoked):
            self.revoked.setdefault((event.data.run_id, event.data.attempt), self.clock.now())
        if isinstance(event.data, RunQueued):
            self.assigned.setdefault((event.data.run_id, event.data.attempt), self.clock.uptime())

    def on_heard(self, runner_id: str) -> None:
        """The broker has a heartbeat of a runner."""
        presence, now = self.presences[runner_id], self.clock.uptime()
        if now - presence.heard_at >= self.silence_s:
            presence.silences.append((presence.heard_at, now))
        presence.heard_at = now

    def on_lost(self, runner_ids: list[str]) -> None:
        """The leader calls runners lost: it may do so only if they were silent while the broker was there."""
        for runner_id in runner_ids:
            if not self._was_silent(runner_id, self.clock.uptime() - self.recently_s):
                raise Violation(f"{runner_id} was called lost and had not been silent")

    def on_container_started(self, runner_id: str, run_id: str, attempt: int) -> Lifetime:
        """A container starts: another one of its run may run only where nobody could be reached."""
        lifetime = Lifetime(run_id, attempt, runner_id, self.clock.now())
        if self.revoked.get((run_id, attempt), lifetime.started) < self.presences[runner_id].connected_since:
            raise Violation(f"{run_id} attempt {attempt} starts, revoked before its runner could read dispatch")
        before = self.lifetimes.setdefault(run_id, [])
        for other in before:
            if other.attempt == attempt and other.ended is None:
                raise Violation(f"{run_id} attempt {attempt} runs twice")
            first = min(lifetime, other, key=lambda each: each.attempt)
            if other.ended is None and not self._was_silent(first.runner_id, self.assigned[run_id, first.attempt]):
                raise Violation(f"{run_id}: attempts {other.attempt} and {attempt} overlap")
        before.append(lifetime)
        return lifetime

    def on_connected(self, runner_id: str) -> None:
        """A runner starts, or reaches the broker again."""
        self.presences[runner_id].connected_since = self.clock.now()

    def _was_silent(self, runner_id: str, since: float) -> bool:
        presence, now = self.presences[runner_id], self.clock.uptime()
        return now - presence.heard_at >= self.silence_s or any(end >= since for _, end in presence.silences)


class Clock:
    """What the observer's times are measured by."""

    def now(self) -> float:
        """Virtual seconds."""
        raise NotImplementedError

    def uptime(self) -> float:
        """Virtual seconds in which the broker could be reached."""
        raise NotImplementedError

"""The life of one attempt on a runner, from accepted to cleaned up; it may end anywhere and begin again.

Mirrors `services/runner/{attempt,setting_up,watch}.py`. How it ended is `services/runner/outcome.py::conclude`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from schemas.parts import RunAttempt
from schemas.reason import Reason, RunStatus
from services.runner.artifact import Collected, Collection, NoArtifact
from services.runner.events import Aftermath, Outgoing, Pen, attempt_lost, run_ended, run_started
from services.runner.journal import State
from services.runner.outcome import Cause, Conclusion, Ended, Evidence, Exit, Lost, conclude
from tests.simulation.engine import Container, Engine
from tests.simulation.journal import Entry, Journal
from tests.simulation.world import PARKED, STEP, Steps, Task, World

FETCH_FAILS = 0.03
SETTING_UP_S = (0.1, 0.1, 0.5, 1.0, 50.0)
"""Up to longer than a lease: requirements are installed meanwhile."""


@dataclass(slots=True)
class Surroundings:
    """What attempts work with; `may_start` while nothing unread can forbid a start."""

    world: World
    journal: Journal
    engine: Engine
    may_start: bool = False
    asks_the_gate_again: bool = True
    changed: Callable[[], None] = field(default=lambda: None)


class FetchFailed(Exception):
    """What the attempt needs cannot be had."""


class Attempt:
    """One attempt in one life of the runner's process."""

    def __init__(self, entry: Entry, around: Surroundings) -> None:
        self.ref: RunAttempt = entry.ref
        self.task: Task | None = None
        self.name = f"run-{entry.ref.run_id}-{entry.ref.attempt}"
        self._entry = entry
        self._was_running = entry.state is State.RUNNING
        self._around = around
        self._stopping = entry.cause is not None
        self._pen = Pen(around.journal.runner_id, entry.ref, entry.traceparent)

    def stop(self, world: World) -> None:
        """Let the attempt end as its journaled cause says."""
        self._stopping = True
        if self.task is not None:
            world.wake(self.task)

    def run(self) -> Steps[None]:
        """See the attempt through to its end."""
        container: Container | None = None
        conclusion: Conclusion
        try:
            container = yield from self._container()
            if container is None:
                conclusion = self._conclude(None, NoArtifact())
            else:
                yield from self._watch(container)
                conclusion = yield from self._conclude_with_artifact(container)
        except FetchFailed:
            conclusion = Lost(Reason.FETCH_FAILED, "an object could not be had")
        yield STEP
        self._end(conclusion)
        yield STEP
        self._around.engine.remove(self.name)

    def _container(self) -> Steps[Container | None]:
        yield STEP
        engine = self._around.engine
        container = engine.containers.get(self.name)
        if container is None and self._was_running:
            return None
        if container is None or container.status == "created":
            container = yield from self._start()
        if container is not None and not self._was_running:
            yield STEP
            now = self._around.world.moment
            event = run_started(self._pen, container.container_id, now)
            self._around.journal.record_start(self.ref, container.container_id, now, event)
            self._around.changed()
        return container

    def _start(self) -> Steps[Container | None]:
        """Create the container if need be and start it; None when the attempt was stopped before."""
        engine, world = self._around.engine, self._around.world
        yield from self._gate()
        if self._is_stopped():
            return None
        if self.name not in engine.containers:
            yield world.random.choice(SETTING_UP_S)
            if world.chance(FETCH_FAILS):
                raise FetchFailed
            if self._is_stopped():
                return None
            assert self._entry.queued is not None
            engine.create(self.name, self._entry.queued)
            yield STEP
        if self._around.asks_the_gate_again:
            yield from self._gate()
        if self._is_stopped():
            return None
        container = engine.containers.get(self.name)
        if container is not None:
            engine.start(container)
        return container

    def _gate(self) -> Steps[None]:
        while not (self._around.may_start or self._stopping):
            yield PARKED

    def _is_stopped(self) -> bool:
        return self._stopping

    def _watch(self, container: Container) -> Steps[None]:
        """Wait until the container is over; stop it when told to, and for no other cause."""
        told = False
        if self.task is not None:
            container.watchers.append(self.task)
        while container.status != "exited":
            if self._stopping and not told:
                told = True
                yield STEP
                self._around.engine.terminate(container)
                continue
            yield PARKED
        if container.end is not None and container.end.timed_out:
            self._around.journal.set_cause(self.ref, Cause.TIMEOUT)
            yield STEP

    def _conclude_with_artifact(self, container: Container) -> Steps[Conclusion]:
        first = self._conclude(container, NoArtifact())
        if not isinstance(first, Ended) or first.status is not RunStatus.SUCCEEDED or container.sha256 is None:
            return first
        yield self._around.world.random.random()
        if self._around.world.chance(FETCH_FAILS):
            return Lost(Reason.UPLOAD_FAILED, "the object store did not answer")
        return self._conclude(container, Collected(Path("artifact"), container.sha256, 2048, "file"))

    def _conclude(self, container: Container | None, artifact: Collection) -> Conclusion:
        exit_ = Exit()
        if container is not None:
            exit_ = Exit(container.end.exit_code if container.end else 137, container.oom_killed)
        end = container.end if container is not None else None
        return conclude(Evidence(self._entry.cause, end, exit_), artifact)

    def _end(self, conclusion: Conclusion) -> None:
        now = self._around.world.moment
        event: Outgoing | None = None
        if isinstance(conclusion, Ended):
            event = run_ended(self._pen, conclusion, Aftermath(now, self._entry.started_at))
        elif isinstance(conclusion, Lost):
            event = attempt_lost(self._pen, conclusion, now)
        self._around.journal.record_end(self.ref, now, event)
        self._around.changed()

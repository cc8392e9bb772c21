"""The container engines of all hosts: what runs there goes on whatever becomes of the runner.

A script's fate is drawn when its container starts; the shim keeps the deadline by itself and writes the end record.
"""

import hashlib
from dataclasses import dataclass, field

from schemas.events import RunQueued
from services.runner.frames import End
from tests.simulation.watching import Lifetime, Watch
from tests.simulation.world import Nap, Steps, Task, World

GRACE_S = 2.0
FATES = ("artifact",) * 6 + ("nothing", "error", "oom", "endless")


@dataclass(slots=True, eq=False)
class Container:
    """A container by its name. `status` is the engine's word."""

    name: str
    runner_id: str
    queued: RunQueued
    status: str = "created"
    container_id: str = ""
    end: End | None = None
    oom_killed: bool = False
    terminated: bool = False
    sha256: str | None = None
    started_at: float = 0.0
    ended_at: float | None = None
    task: Task | None = None
    watchers: list[Task] = field(default_factory=list)
    lifetime: Lifetime | None = None


class Engine:
    """One host's engine."""

    def __init__(self, world: World, runner_id: str, watch: Watch) -> None:
        self.world = world
        self.runner_id = runner_id
        self.containers: dict[str, Container] = {}
        self._watch = watch

    def create(self, name: str, queued: RunQueued) -> None:
        """Make a container."""
        self.containers[name] = Container(name, self.runner_id, queued)

    def start(self, container: Container) -> None:
        """Start it, unless it was started before."""
        if container.status != "created":
            return
        container.status, container.started_at = "running", self.world.now
        container.container_id = f"c-{self.world.random.getrandbits(32):08x}"
        queued = container.queued
        container.lifetime = self._watch.on_container_started(self.runner_id, queued.run_id, queued.attempt)
        self.world.say(self.runner_id, "container starts", queued.run_id[-6:], queued.attempt)
        container.task = self.world.spawn("script", self._script(container))

    def terminate(self, container: Container) -> None:
        """Send SIGTERM to the shim."""
        if container.status == "running":
            container.terminated = True
            assert container.task is not None
            self.world.wake(container.task)

    def lose(self, container: Container) -> None:
        """Let a container end without a word, as when the engine or the host dies."""
        if container.status == "running":
            self._over(container, None)
            if self.world.chance(0.5):
                self.remove(container.name)

    def remove(self, name: str) -> None:
        """Remove a container, running or not."""
        container = self.containers.pop(name, None)
        if container is not None and container.status == "running":
            self._over(container, None)

    def _script(self, container: Container) -> Steps[None]:
        random = self.world.random
        fate, duration = random.choice(FATES), random.choice((0.2, 3.0, 15.0, 30.0)) * (0.5 + random.random())
        limit = float(container.queued.spec.timeout_s)
        in_time = fate != "endless" and duration <= limit
        yield Nap(duration if in_time else limit)
        if container.status != "running":
            return
        if container.terminated or not in_time:
            timed_out = not container.terminated
            yield random.random() * GRACE_S
            if container.status == "running":
                self._over(container, self._end(None, timed_out=timed_out, terminated=not timed_out))
        elif fate == "oom":
            container.oom_killed = True
            self._over(container, None)
        else:
            if fate == "artifact":
                text = f"{container.name}/{container.container_id}"
                container.sha256 = hashlib.sha256(text.encode()).hexdigest()
                assert container.lifetime is not None
                container.lifetime.sha256 = container.sha256
            self._over(container, self._end(1 if fate == "error" else 0))

    def _end(self, exit_code: int | None, *, timed_out: bool = False, terminated: bool = False) -> End:
        return End(
            seq=1,
            exit_code=exit_code,
            signal=None if exit_code is not None else 15,
            timed_out=timed_out,
            terminated=terminated,
            cpu_seconds=1.0,
            wall_seconds=1.0,
            started_at=self.world.moment,
            ended_at=self.world.moment,
        )

    def _over(self, container: Container, end: End | None) -> None:
        container.status, container.end, container.ended_at = "exited", end, self.world.now
        assert container.lifetime is not None
        container.lifetime.ended = self.world.now
        self.world.say(self.runner_id, "container ends", container.name[-8:])
        for task in container.watchers:
            self.world.wake(task)

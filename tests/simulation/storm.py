"""What strikes the system from outside: processes killed and stopped, networks cut, servers down, locks and data lost.

Nothing here knows what the services do; each fault is something that an operator has seen happen.
"""

from collections.abc import Callable
from dataclasses import dataclass

from schemas.topics import RUNS
from tests.simulation.leading import LEASE_S, LOCK
from tests.simulation.system import System
from tests.simulation.world import Process, Steps


@dataclass(slots=True)
class Storm:
    """The faults of one simulation, until it is over."""

    system: System

    def run(self) -> Steps[None]:
        """Strike again and again; then let everything come back."""
        world, faults = self.system.world, self.system.world.faults
        strikes: dict[str, Callable[[], None]] = {
            "kill": self._kill,
            "stop": self._stop,
            "cut_off": self._cut_off,
            "lose_runner": self._lose_runner,
            "lose_container": self._lose_container,
            "broker_down": self._broker_down,
            "database_down": self._database_down,
            "lose_leader_lock": lambda: self._lose_lock(LOCK),
            "lose_relay_lock": self._lose_relay_lock,
            "rebalance": self._rebalance,
            "reset_offsets": self._reset_offsets,
        }
        while world.now < faults.storm_s:
            yield faults.every_s * 2 * world.random.random()
            if faults.kinds:
                kind = world.random.choice(faults.kinds)
                world.say("storm", kind)
                strikes[kind]()
        world.say("storm", "is over")
        world.stormy = False

    def _seconds(self) -> float:
        return self.system.world.random.choice((0.5, 3.0, 10.0, LEASE_S * 1.5))

    def _any(self) -> Process:
        return self.system.world.random.choice(self.system.world.processes)

    def _kill(self) -> None:
        self._away(self._any(), self.system.world.faults.downtime_s(self.system.world.random))

    def _stop(self) -> None:
        process = self._any()
        process.stopped_until = max(process.stopped_until, self.system.world.now + self._seconds())

    def _cut_off(self) -> None:
        process = self._any()
        process.cut_off_until = max(process.cut_off_until, self.system.world.now + self._seconds())

    def _lose_runner(self) -> None:
        """A host is gone for longer than the lease, with its containers or without them."""
        world = self.system.world
        number = world.random.randrange(len(self.system.runners))
        if world.random.random() < 0.5:
            engine = self.system.hosts[number].engine
            for container in list(engine.containers.values()):
                engine.lose(container)
        self._away(self.system.runners[number], LEASE_S * (1.2 + world.random.random()))

    def _lose_container(self) -> None:
        running = [
            (host.engine, container)
            for host in self.system.hosts
            for container in host.engine.containers.values()
            if container.status == "running"
        ]
        if running:
            engine, container = self.system.world.random.choice(running)
            engine.lose(container)

    def _broker_down(self) -> None:
        self.system.bus.stop(self.system.world.now + self._seconds())

    def _database_down(self) -> None:
        self.system.postgres.stop(self.system.world.now + self.system.world.random.random() * 10)

    def _lose_lock(self, name: str) -> None:
        """The server drops a session; whoever had it has not noticed yet."""
        self.system.postgres.advisory.pop(name, None)

    def _lose_relay_lock(self) -> None:
        self._lose_lock(self.system.world.random.choice(("api.relay", "scheduler.relay")))

    def _rebalance(self) -> None:
        self.system.bus.rebalance(self.system.world.random.choice(("api", "scheduler", "auditor")), RUNS.name)

    def _reset_offsets(self) -> None:
        self.system.bus.reset_offsets()

    def _away(self, process: Process, seconds: float) -> None:
        process.crash()
        self.system.world.spawn("restart", _start_again(process, seconds))


def _start_again(process: Process, seconds: float) -> Steps[None]:
    yield seconds
    process.start()

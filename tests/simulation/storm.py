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
    losing: bool = False

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
        if faults.loses_broker:
            world.spawn("loss", self._lose_broker(faults.storm_s * world.random.random()))
        while world.now < faults.storm_s or self.losing:
            yield faults.every_s * 2 * world.random.random()
            if faults.kinds:
                kind = world.random.choice(faults.kinds)
                world.say("storm", kind)
                strikes[kind]()
        world.say("storm", "is over")
        world.stormy = False

    def _lose_broker(self, after_s: float) -> Steps[None]:
        """The whole broker loses its data; after a while somebody does what the documents say."""
        self.losing = True
        yield after_s
        world, random, bus = self.system.world, self.system.world.random, self.system.bus
        enough = bus.facts + random.randint(1, 8)  # while much is under way, and not in a quiet moment
        while bus.facts < enough and world.now < world.faults.storm_s * 2:
            yield 0.004
        if random.random() < 0.4:
            self._lose_host()
        world.say("storm", "loses the broker's data")
        self.system.bus.lose_everything()
        self.system.watch.revoked.clear()
        yield random.choice((0.1, 3.0, 20.0))
        self.system.operator().start()
        self.losing = False

    def _lose_host(self) -> None:
        """The larger host is gone for ever, with its disk."""
        process, host = self.system.runners[-1], self.system.hosts[-1]
        self.system.world.say("storm", "loses", process.name, "for ever")
        process.crash()
        process.gone = host.gone = True
        for container in list(host.engine.containers.values()):
            host.engine.lose(container)

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
        self._lose_lock(self.system.world.random.choice(("registry.relay", "scheduling.relay")))

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

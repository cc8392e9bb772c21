"""The whole system in one world: who is there, how it is wired, what strikes it, and when it is at rest."""

from collections.abc import Callable
from dataclasses import dataclass

from schemas.cloudevents import CloudEvent
from schemas.events import TrainingRequested
from schemas.parts import Capacity
from schemas.topics import RUNS
from tests.simulation import auditing, registry, scheduling
from tests.simulation.attempting import Surroundings
from tests.simulation.auditing import Auditor
from tests.simulation.bus import Bus
from tests.simulation.clients import Client
from tests.simulation.database import Outbox, Postgres
from tests.simulation.engine import Engine
from tests.simulation.journal import Journal
from tests.simulation.leading import LEASE_S, Scheduler
from tests.simulation.moving import Choose, Consumer, Handle, Relay, unsent
from tests.simulation.registry import Claim, Registry, claim_model
from tests.simulation.running import Offer, Runner
from tests.simulation.watching import Clock, Presence, Violation, Watch
from tests.simulation.world import Process, World

RUNNERS, MODELS, CLIENTS, SUBMISSIONS = 2, 6, 4, 3
SILENCE_S = LEASE_S - 18.0
"""A runner that was called lost was not heard for so long: the lease, less a gap that the leader takes for jitter."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of the protocol that a test may break on purpose."""

    claim: Claim = claim_model
    choose: Choose = unsent
    commit_first: bool = False
    sees_pending: bool = True
    reads_to_the_end: bool = True


@dataclass(frozen=True, slots=True)
class Host:
    """What survives a runner's process."""

    journal: Journal
    engine: Engine


class WorldClock(Clock):
    """The observer's clock is the world's."""

    def __init__(self, world: World, bus: Bus) -> None:
        self._world, self._bus = world, bus

    def now(self) -> float:
        """Virtual seconds."""
        return self._world.now

    def uptime(self) -> float:
        """Virtual seconds in which the broker could be reached."""
        return self._bus.uptime()


class System:
    """All services, their tables, the bus, the hosts and the clients."""

    def __init__(self, world: World, rules: Rules) -> None:
        self.world, self.rules = world, rules
        self.postgres, self.bus = Postgres(world), Bus(world)
        self.watch = Watch(SILENCE_S, WorldClock(world, self.bus), blindness=world.random.choice((1.0, 10.0)))
        self.bus.on_append = self._on_appended
        self.registry, self.scheduling, self.ledger = registry.Tables(), scheduling.Tables(), auditing.Tables()
        self.models = [f"mdl-{number}" for number in range(MODELS)]
        self.registry.active.update(dict.fromkeys(self.models))
        self.registry.latest.update(dict.fromkeys(self.models, 0))
        self.apis = [self._api(number) for number in range(world.faults.instances)]
        self.schedulers = [self._scheduler(number) for number in range(world.faults.instances)]
        self.auditors = [self._auditor(number) for number in range(world.faults.instances)]
        self.hosts: list[Host] = []
        self.runners = [self._runner(number) for number in range(RUNNERS)]
        self.clients = [
            Client(world, self.apis, self.models, self.watch, f"client-{number}", SUBMISSIONS)
            for number in range(CLIENTS)
        ]

    def start(self) -> None:
        """Start every process and every client."""
        for process in self.world.processes:
            process.start()
        for client in self.clients:
            self.world.spawn(client.name, client.run())

    def _on_appended(self, event: CloudEvent) -> None:
        """Observe what the broker has; whenever a run begins to be told of, its model has no other open run."""
        self.watch.on_appended(event)
        if isinstance(event.data, TrainingRequested):
            model_id = event.data.model_id
            runs = (run for run in self.registry.runs.values() if run.model_id == model_id)
            open_runs = [run.run_id for run in runs if not run.status.is_end]
            if len(open_runs) > 1:
                raise Violation(f"{model_id} is claimed by {open_runs}")

    def _process(self, name: str, boot: Callable[[Process], None]) -> Process:
        process = Process(self.world, name, lambda: boot(process))
        self.world.processes.append(process)
        return process

    def _api(self, number: int) -> Registry:
        def boot(process: Process) -> None:
            self._serve(process, "api", api.on_runs, self.registry.outbox, self.registry.cluster)

        process = self._process(f"api-{number}", boot)
        api = Registry(self.world, self.postgres, self.registry, process, self.rules.claim)
        return api

    def _scheduler(self, number: int) -> Scheduler:
        def boot(process: Process) -> None:
            self._serve(process, "scheduler", scheduler.on_runs, self.scheduling.outbox, self.scheduling.cluster)
            process.spawn("leader", scheduler.stand())

        process = self._process(f"scheduler-{number}", boot)
        scheduler = Scheduler(self.world, self.postgres, self.bus, self.scheduling, process, self.watch)
        scheduler.sees_pending = self.rules.sees_pending
        return scheduler

    def _auditor(self, number: int) -> Auditor:
        def boot(process: Process) -> None:
            self._serve(process, "auditor", auditor.on_runs, None, self.ledger.cluster)

        process = self._process(f"auditor-{number}", boot)
        auditor = Auditor(self.world, self.postgres, self.bus, self.ledger, process)
        return auditor

    def _serve(
        self, process: Process, group: str, handle: Handle, outbox: Outbox | None, cluster: dict[str, int]
    ) -> None:
        """Let a process consume `runyard.runs`, and relay its outbox if it has one."""

        def allowed() -> bool:
            return cluster["id"] == self.bus.cluster

        process.on_crash.append(lambda: self.postgres.forget(process))
        Consumer(
            f"{group}.runs",
            RUNS.name,
            self.bus,
            process,
            handle,
            group,
            allowed,
            commit_first=self.rules.commit_first,
        ).listen()
        if outbox is not None:
            relay = Relay(
                f"{group}.relay", outbox, RUNS.name, self.postgres, self.bus, process, allowed, self.rules.choose
            )
            task = process.spawn("relay", relay.run())
            outbox.relays.append(task)
            process.on_crash.append(lambda: outbox.relays.remove(task))

    def _runner(self, number: int) -> Process:
        runner_id = f"rnr-{number}"
        journal, engine = Journal(runner_id), Engine(self.world, runner_id, self.watch)
        offer = Offer(Capacity(cpu_cores=3 + number, memory_gb=8), self.world.random.randrange(2))

        def boot(process: Process) -> None:
            around = Surroundings(self.world, journal, engine)
            runner = Runner(self.world, self.bus, process, offer, around, self.watch)
            runner.reads_to_the_end = self.rules.reads_to_the_end
            runner.boot()

        self.watch.presences[runner_id] = Presence()
        self.hosts.append(Host(journal, engine))
        return self._process(runner_id, boot)

    def is_at_rest(self) -> bool:
        """Whether everything that was asked for is over, and nothing is under way."""
        return (
            not self.world.stormy
            and all(client.done for client in self.clients)
            and not self.registry.outbox.unsent
            and not self.scheduling.outbox.unsent
            and not any(self.registry.active.values())
            and all(row.ended_at is not None for row in self.scheduling.runs.values())
            and all(history.run is not None and history.run.status.is_end for history in self.ledger.histories.values())
            and all(not host.journal.unpublished() and not host.engine.containers for host in self.hosts)
            and self._is_all_consumed()
        )

    def what_is_open(self) -> str:
        """Say what keeps the system from its rest."""
        open_runs = {
            run_id: str(history.run.status if history.run else "unknown")
            for run_id, history in self.ledger.histories.items()
            if history.run is None or not history.run.status.is_end
        }
        unsent = (len(self.registry.outbox.unsent), len(self.scheduling.outbox.unsent))
        containers = [name for host in self.hosts for name in host.engine.containers]
        untold = [row.event.subject for host in self.hosts for row in host.journal.unpublished()]
        clients = [client.name for client in self.clients if not client.done]
        return f"{open_runs=} {unsent=} {self.registry.active=} {containers=} {untold=} {clients=}"

    def _is_all_consumed(self) -> bool:
        """Whether every partition was handled to its end; an offset whose commit was lost is only handled again."""
        for group in ("api", "scheduler", "auditor"):
            owners = self.bus.group(group, RUNS.name).owners
            for number, log in enumerate(self.bus.logs[RUNS.name]):
                owner = owners[number] if owners else None
                if log and (owner is None or owner.positions.get(number, 0) < len(log)):
                    return False
        return True

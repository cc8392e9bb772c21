"""The whole system in one world: who is there, how it is wired, what strikes it, and when it is at rest."""

from collections.abc import Callable
from dataclasses import dataclass

from schemas.cloudevents import CloudEvent
from schemas.events import TrainingRequested
from schemas.parts import Capacity
from schemas.topics import RUNS
from tests.simulation.attempting import Surroundings
from tests.simulation.auditing import Auditor
from tests.simulation.bus import Bus
from tests.simulation.clients import Client
from tests.simulation.database import Outbox, Postgres
from tests.simulation.engine import Engine
from tests.simulation.joining import Membership
from tests.simulation.journal import Journal
from tests.simulation.leading import LEASE_S, Scheduler
from tests.simulation.moving import Choose, Consumer, Handle, Relay, unsent
from tests.simulation.registry import Claim, Registry, claim_model
from tests.simulation.republishing import Keep, Operator, whatever_was_decided
from tests.simulation.running import Offer, Runner
from tests.simulation.tables import Tables
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
    asks_the_gate_again: bool = True
    keep: Keep = whatever_was_decided


@dataclass(slots=True)
class Host:
    """What survives a runner's process."""

    journal: Journal
    engine: Engine
    gone: bool = False


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
        self.watch = Watch(SILENCE_S, WorldClock(world, self.bus), LEASE_S, blindness=world.random.choice((1.0, 10.0)))
        self.bus.on_append = self._on_appended
        self.tables = Tables()
        self.models = [f"mdl-{number}" for number in range(MODELS)]
        self.tables.registry.active.update(dict.fromkeys(self.models))
        self.tables.registry.latest.update(dict.fromkeys(self.models, 0))
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
            runs = (run for run in self.tables.registry.runs.values() if run.model_id == model_id)
            open_runs = [run.run_id for run in runs if not run.status.is_end]
            if len(open_runs) > 1:
                raise Violation(f"{model_id} is claimed by {open_runs}")

    def _process(self, name: str, boot: Callable[[Process], None]) -> Process:
        process = Process(self.world, name, lambda: boot(process))
        self.world.processes.append(process)
        return process

    def _api(self, number: int) -> Registry:
        def boot(process: Process) -> None:
            self._serve(process, "registry", begin)

        def begin() -> None:
            self._consume(process, "api", api.on_runs)
            self._relay(process, "registry", self.tables.registry.outbox)

        process = self._process(f"api-{number}", boot)
        api = Registry(self.world, self.postgres, self.tables.registry, process, self.rules.claim)
        return api

    def _scheduler(self, number: int) -> Scheduler:
        def boot(process: Process) -> None:
            self._serve(process, "scheduling", begin)

        def begin() -> None:
            self._consume(process, "scheduler", scheduler.on_runs)
            self._relay(process, "scheduling", self.tables.scheduling.outbox)
            process.spawn("leader", scheduler.stand())

        process = self._process(f"scheduler-{number}", boot)
        scheduler = Scheduler(self.world, self.postgres, self.bus, self.tables.scheduling, process, self.watch)
        scheduler.sees_pending = self.rules.sees_pending
        return scheduler

    def _auditor(self, number: int) -> Auditor:
        def boot(process: Process) -> None:
            self._serve(process, "ledger", lambda: self._consume(process, "auditor", auditor.on_runs))

        process = self._process(f"auditor-{number}", boot)
        auditor = Auditor(self.world, self.postgres, self.bus, self.tables.ledger, process)
        return auditor

    def operator(self) -> Process:
        """Somebody who tells a new cluster what it must know; he may be killed and begins again."""

        def boot(process: Process) -> None:
            process.on_crash.append(lambda: self.postgres.forget(process))
            process.spawn("republish", Operator(self.postgres, self.bus, self.tables, process, self.rules.keep).run())

        return self._process("operator", boot)

    def _serve(self, process: Process, schema: str, begin: Callable[[], None]) -> None:
        """Let a process work with the cluster that its schema names, as soon as that one answers."""
        process.on_crash.append(lambda: self.postgres.forget(process))
        membership = Membership(self.postgres, self.bus, process, schema, self.tables.named[schema])
        process.spawn("cluster", membership.work(begin))

    def _consume(self, process: Process, group: str, handle: Handle) -> None:
        """Let a process consume `runyard.runs`."""
        name, commit_first = f"{group}.runs", self.rules.commit_first
        Consumer(name, RUNS.name, self.bus, process, handle, group, commit_first=commit_first).listen()

    def _relay(self, process: Process, schema: str, outbox: Outbox) -> None:
        """Let a process relay an outbox."""
        name, choose = f"{schema}.relay", self.rules.choose
        relay = Relay(name, outbox, RUNS.name, self.postgres, self.bus, process, schema, choose)
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
            runner.around.asks_the_gate_again = self.rules.asks_the_gate_again
            runner.boot()

        self.watch.presences[runner_id] = Presence()
        self.hosts.append(Host(journal, engine))
        return self._process(runner_id, boot)

    def is_at_rest(self) -> bool:
        """Whether everything that was asked for is over, and nothing is under way."""
        return (
            not self.world.stormy
            and all(named["id"] == self.bus.cluster for named in self.tables.named.values())
            and all(client.done for client in self.clients)
            and not self.tables.registry.outbox.unsent
            and not self.tables.scheduling.outbox.unsent
            and not any(self.tables.registry.active.values())
            and all(row.ended_at is not None for row in self.tables.scheduling.runs.values())
            and all(
                history.run is not None and history.run.status.is_end
                for history in self.tables.ledger.histories.values()
            )
            and all(host.gone or not (host.journal.unpublished() or host.engine.containers) for host in self.hosts)
            and self._is_all_consumed()
        )

    def what_is_open(self) -> str:
        """Say what keeps the system from its rest."""
        open_runs = {
            run_id: str(history.run.status if history.run else "unknown")
            for run_id, history in self.tables.ledger.histories.items()
            if history.run is None or not history.run.status.is_end
        }
        unsent = (len(self.tables.registry.outbox.unsent), len(self.tables.scheduling.outbox.unsent))
        containers = [name for host in self.hosts for name in host.engine.containers]
        untold = [row.event.subject for host in self.hosts for row in host.journal.unpublished()]
        clients = [client.name for client in self.clients if not client.done]
        return f"{open_runs=} {unsent=} {self.tables.registry.active=} {containers=} {untold=} {clients=}"

    def _is_all_consumed(self) -> bool:
        """Whether every partition was handled to its end; an offset whose commit was lost is only handled again."""
        for group in ("api", "scheduler", "auditor"):
            owners = self.bus.group(group, RUNS.name).owners
            for number, log in enumerate(self.bus.logs[RUNS.name]):
                owner = owners[number] if owners else None
                if log and (owner is None or owner.positions.get(number, 0) < len(log)):
                    return False
        return True

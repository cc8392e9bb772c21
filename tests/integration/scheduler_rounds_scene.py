"""A scheduler on a real database, driven by hand: facts are folded and rounds are played when a test says so.

Time is the test's: the leader's monotonic clock is an argument of each round and of each heartbeat.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from schemas.cloudevents import CloudEvent, decode
from schemas.events import RunFact, RunnerHeartbeat, SchedulerBeacon, SchedulerLoad
from schemas.parts import Capacity, Compute, RunAttempt
from schemas.topics import RUNS
from services.backbone.consumer import Received
from services.backbone.outbox import mark_sent
from services.scheduler import store
from services.scheduler.handlers import Folds
from services.scheduler.roster import Roster
from services.scheduler.rounds import Term, play_round
from tests.life_of_a_run import SPEC, requested, told

LEASE_S, HEARTBEAT_S = 60.0, 5.0


@dataclass(frozen=True, slots=True)
class Said:
    """A row of the outbox."""

    topic: str
    key: str
    partition: int | None
    event: CloudEvent
    sent: bool

    @property
    def kind(self) -> str:
        return type(self.event.data).__name__


@dataclass(slots=True)
class Scene:
    """One scheduler, its leader's clock, and the runners that it hears."""

    pool: asyncpg.Pool
    term: Term
    clock: float = 1_000.0
    beats: int = 0
    heartbeats: dict[str, RunnerHeartbeat] = field(default_factory=dict)

    async def fold(self, *facts: RunFact) -> None:
        """Let facts come from the topic."""
        await self.fold_events([told(fact) for fact in facts])

    async def fold_events(self, events: Sequence[CloudEvent]) -> None:
        """Let events come from the topic, with the ids that they have."""
        await Folds(self.pool).on_run_facts([Received(RUNS.name, 0, i, event) for i, event in enumerate(events)])

    async def round(self) -> SchedulerLoad:
        """Play one round."""
        async with self.pool.acquire() as connection:
            return await play_round(connection, self.term, self.clock)

    async def relay(self) -> None:
        """Let Kafka take what stands in the outbox, and let the scheduler's own facts come back."""
        rows = [said for said in await self.said() if not said.sent]
        async with self.pool.acquire() as connection:
            ids = await connection.fetch("SELECT id FROM outbox WHERE sent_at IS NULL")
            await mark_sent(connection, [row["id"] for row in ids])
        await self.fold_events([said.event for said in rows if said.topic == RUNS.name])

    async def settle(self) -> None:
        """Play a round and let what it says come back."""
        await self.round()
        await self.relay()

    async def said(self, *kinds: str) -> list[Said]:
        """Read the outbox, oldest first; with kinds only those."""
        all_said = []
        for row in await self.pool.fetch("SELECT * FROM outbox ORDER BY id"):
            event = decode([(k, v.encode()) for k, v in json.loads(row["headers"])], row["value"].encode())
            assert isinstance(event, CloudEvent)
            all_said.append(Said(row["topic"], row["key"], row["partition"], event, row["sent_at"] is not None))
        return [said for said in all_said if not kinds or said.kind in kinds]

    async def status(self, run_id: str) -> tuple[str, int]:
        """Tell a run's folded status and attempt."""
        row = await self.pool.fetchrow("SELECT status, attempt FROM runs WHERE run_id = $1", run_id)
        assert row is not None
        return row["status"], row["attempt"]

    def hear(self, runner_id: str, **changes: Any) -> None:
        """A heartbeat comes in; what is not told stays as it was."""
        before = self.heartbeats.get(runner_id) or RunnerHeartbeat(
            runner_id=runner_id,
            beat=1,
            capacity=Capacity(cpu_cores=4, memory_gb=16),
            runtimes=("python3.11",),
            dispatch_partition=3,
        )
        now = before.model_copy(update={"beat": before.beat + 1, **changes})
        self.heartbeats[runner_id] = now
        self.term.roster.on_heartbeat(now, self.clock)

    def pass_time(self, seconds: float, *hearing: str, beacon: bool = True) -> None:
        """Let time pass, with beacons coming back, and heartbeats of those runners that are heard."""
        for _ in range(int(seconds / HEARTBEAT_S)):
            self.clock += HEARTBEAT_S
            if beacon:
                self.beacon()
            for runner_id in hearing:
                self.hear(runner_id)

    def beacon(self) -> None:
        """The leader hears itself."""
        self.beats += 1
        self.term.roster.on_beacon(SchedulerBeacon(epoch=self.term.epoch, beat=self.beats), self.clock)


async def new_term(pool: asyncpg.Pool, max_attempts: int = 3) -> Term:
    """Begin to lead."""
    async with pool.acquire() as connection:
        epoch = await store.begin_epoch(connection)
    return Term(epoch, Roster(epoch, LEASE_S, HEARTBEAT_S), max_attempts, HEARTBEAT_S)


async def new_scene(pool: asyncpg.Pool) -> Scene:
    """A leader that has listened long enough to know who is there."""
    scene = Scene(pool, await new_term(pool))
    scene.beacon()
    scene.pass_time(2 * HEARTBEAT_S)
    return scene


def asking(run_id: str, cpu_cores: int = 2, memory_gb: int = 8, gpu: bool = False) -> RunFact:
    """A request for some compute."""
    compute = Compute(cpu_cores=cpu_cores, memory_gb=memory_gb, gpu=gpu)
    return requested(run_id, spec=SPEC.model_copy(update={"compute": compute}))


def attempt(run_id: str, number: int = 1) -> RunAttempt:
    """One attempt of a run."""
    return RunAttempt(run_id=run_id, attempt=number)

"""Protects the simulation from being about another system: its stores do what the real ones do, step by step."""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from pathlib import Path
from random import Random

import asyncpg
import pytest
import pytest_asyncio

from schemas.events import RunFact, RunnerHeartbeat, SchedulerBeacon
from schemas.parts import Capacity, Compute, RunAttempt
from schemas.reason import Reason, RunStatus
from schemas.run import Run
from services.auditor import store as ledger
from services.backbone.postgres import open_pool
from services.runner.events import Outgoing, Pen, attempt_lost
from services.runner.journal import Entry, Journal, Waiting
from services.runner.outcome import Cause, Lost
from tests import life_of_a_run as life
from tests.integration.conftest import Database
from tests.integration.simulation_twins import Twins
from tests.simulation import journal as model
from tests.simulation.leading import HEARTBEAT_S
from tests.simulation.registry import Submission, request_for

SEEDS, OPERATIONS = range(24), 60
KINDS = ("submit", "relay", "consume", "consume", "flow", "flow", "round", "round", "say", "say", "again")
RUNNERS = {"rnr-0": (4, 1), "rnr-1": (2, 0)}


@pytest_asyncio.fixture
async def pools(database: Database) -> AsyncIterator[list[asyncpg.Pool]]:
    urls = ((database.api_url, "registry"), (database.scheduler_url, "scheduling"), (database.auditor_url, "ledger"))
    opened = [await open_pool(url, schema, 2) for url, schema in urls]
    yield opened
    for pool in opened:
        await pool.close()


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_models_tables_hold_what_the_real_ones_hold(seed: int, pools: list[asyncpg.Pool]) -> None:
    api, scheduler, auditor = pools
    async with auditor.acquire() as connection:
        epoch = await ledger.epoch_of(connection, "cluster-1")
    twins = Twins(api, scheduler, auditor, epoch, seed)
    await twins.begin()
    clock = 100.0
    for number in range(OPERATIONS):
        clock += twins.random.choice((0.0, HEARTBEAT_S, HEARTBEAT_S, 4 * HEARTBEAT_S))
        _hear(twins, clock, number + 1)
        await _operate(twins, clock)
        await twins.compare()


async def _operate(twins: Twins, clock: float) -> None:
    random = twins.random
    kind = random.choice(KINDS)
    if kind == "submit":
        compute = Compute(cpu_cores=random.choice((1, 2, 3, 8)), memory_gb=1)
        await twins.submit(Submission(random.choice(twins.model.models), request_for(compute, 3600), None))
    elif kind == "relay":
        await twins.relay(random.choice(("registry", "scheduling")))
    elif kind == "consume":
        await twins.consume(random.choice(("api", "scheduler", "auditor")), random.randint(1, 6))
    elif kind == "round":
        await twins.round(clock)
    elif kind == "flow":
        await twins.relay("registry")
        await twins.relay("scheduling")
        await twins.consume("scheduler", 20)
    elif kind == "say" and (runs := twins.open()):
        run = random.choice(runs)
        twins.log += [life.told(fact) for fact in _said_of(run, random)]
    elif kind == "again":
        group = random.choice(("api", "scheduler", "auditor"))
        twins.read[group] = random.randint(0, twins.read[group])


def _said_of(run: Run, random: Random) -> list[RunFact]:
    """What a runner may say; seldom of a replaced attempt, or of one that this database never assigned."""
    attempt = max(1, run.attempt - random.choice((0, 0, 0, 1)))
    if run.status is RunStatus.QUEUED:
        return [life.queued(attempt, run.run_id)] if random.random() < 0.1 else []
    make = random.choice((life.started, life.succeeded, life.failed, life.cancelled, life.lost))
    asked = life.cancellation(run.run_id).model_copy(update={"model_id": run.model_id})
    return [make(attempt, run.run_id), *([asked] if random.random() < 0.3 else [])]


def _hear(twins: Twins, clock: float, beat: int) -> None:
    """Let both leaders hear the same: a beacon, and runners that are there and list what they have, or not."""
    heard = [each for each in RUNNERS if twins.random.random() < 0.7]
    lists = twins.random.random() < 0.5
    for roster in twins.rosters:
        roster.on_beacon(SchedulerBeacon(epoch=1, beat=beat), clock)
        for runner_id in heard:
            cores, partition = RUNNERS[runner_id]
            running = [
                RunAttempt(run_id=r.run_id, attempt=r.attempt) for r in twins.assigned() if r.runner_id == runner_id
            ]
            heartbeat = RunnerHeartbeat(
                runner_id=runner_id,
                beat=beat,
                capacity=Capacity(cpu_cores=cores, memory_gb=8),
                runtimes=("python3.11",),
                dispatch_partition=partition,
                running=tuple(running) if lists else (),
            )
            roster.on_heartbeat(heartbeat, clock)


@pytest.mark.parametrize("seed", range(12))
def test_the_models_journal_holds_what_the_real_one_holds(seed: int, tmp_path: Path) -> None:
    random, real = Random(seed), Journal(tmp_path / "journal.db")
    twin = model.Journal(real.runner_id)
    real.adopt_cluster("1")
    for number in range(60):
        ref = RunAttempt(run_id=f"run-{random.randrange(3)}", attempt=random.randint(1, 2))
        _journal(random, real, twin, ref, life.at(number))
        assert _unpublished(real.unpublished()) == [str(row.event.id) for row in twin.unpublished()]
        assert [_entry(each) for each in real.unfinished()] == [_entry(each) for each in twin.unfinished()]
        assert real.lately_ended(life.at(5), 200) == twin.lately_ended(life.at(5))
    real.close()


def _journal(random: Random, real: Journal, twin: model.Journal, ref: RunAttempt, now: datetime) -> None:
    """Do the same to both; most of it only to what they know."""
    event, queued = _event(ref, now), life.queued(ref.attempt, ref.run_id)
    cause, cluster = random.choice(list(Cause)), random.choice((1, 1, 1, 2))
    told = event if cause is Cause.USER_REQUEST else None
    anything: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "accept": (lambda: real.accept(queued, None), lambda: twin.accept(queued, None)),
        "refuse": (lambda: real.refuse(ref, cause, now, told), lambda: twin.refuse(ref, cause, now, told)),
        "republish": (lambda: real.republish_end(ref), lambda: twin.republish_end(ref)),
        "cluster": (lambda: real.adopt_cluster(str(cluster)), lambda: twin.adopt_cluster(cluster)),
        "publish": (lambda: _publish(real), lambda: twin.mark_published(twin.unpublished()[:2])),
    }
    to_the_known: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "cause": (lambda: real.set_cause(ref, cause), lambda: twin.set_cause(ref, cause)),
        "start": (lambda: real.record_start(ref, "c", now, event), lambda: twin.record_start(ref, "c", now, event)),
        "end": (lambda: real.record_end(ref, now, event), lambda: twin.record_end(ref, now, event)),
    }
    possible = anything | (to_the_known if twin.entry(ref) is not None else {})
    to_the_real, to_the_twin = possible[random.choice(list(possible))]
    assert to_the_real() == to_the_twin()


def _publish(journal: Journal) -> None:
    journal.mark_published([each.position for each in journal.unpublished()[:2]])


def _event(ref: RunAttempt, now: datetime) -> Outgoing:
    return attempt_lost(Pen("rnr-1", ref), Lost(Reason.CONTAINER_LOST, "gone"), now)


def _entry(entry: Entry | model.Entry) -> tuple[object, ...]:
    return (entry.ref, entry.state, entry.queued, entry.cause, entry.container_id, entry.started_at)


def _unpublished(waiting: Sequence[Waiting]) -> list[str]:
    return [dict(each.event.headers)["ce_id"].decode() for each in waiting]

"""Protects the scheduler as a whole: each request gets its runner, whatever is repeated, lost, late or cancelled."""

from collections.abc import AsyncIterator

import pytest

from schemas.events import RunCancelled, RunFailed, RunRequeued, RunRevoked, RunWaiting
from schemas.parts import Capacity
from schemas.reason import Reason
from services.backbone.relay import LOCK_CLASS
from services.backbone.settings import ServiceSettings
from services.scheduler.store import SCHEMA
from tests.integration.conftest import Database
from tests.integration.scheduler_flow_scene import HEARTBEAT_S, Scene, a_scene
from tests.life_of_a_run import cancellation, cancelled, lost, requested, started, succeeded

LEASE_S = 10 * HEARTBEAT_S
ROOM_FOR_ONE = Capacity(cpu_cores=4, memory_gb=16)


@pytest.fixture
async def scene(database: Database, kafka_settings: ServiceSettings, group: str) -> AsyncIterator[Scene]:
    async with a_scene(database, kafka_settings, group) as scene:
        yield scene


async def test_a_request_is_queued_for_the_world_and_dispatched_where_its_runner_listens(
    scene: Scene, group: str
) -> None:
    async with scene.scheduler(group), scene.runner() as runner:
        run_id = await scene.request()
        queued = await scene.until_queued(run_id)
        await scene.until_said(run_id, "queued")
        [dispatched] = scene.dispatched(run_id)
        [public] = [
            each for each in scene.received if each.topic == "runyard.runs" and each.event.id == dispatched.event.id
        ]
        assert (public.value, public.event) == (dispatched.value, dispatched.event)
        assert dispatched.partition == runner.dispatch_partition
        assert (queued.runner_id, queued.attempt, queued.tenant_id) == (runner.runner_id, 1, "acme")
        assert queued.spec == requested().spec
        left = Capacity(cpu_cores=60, memory_gb=240)
        await scene.until(lambda: (load := scene.load_of(runner.runner_id)) and load.free == left)


async def test_what_is_delivered_twice_changes_nothing(scene: Scene, group: str) -> None:
    async with scene.scheduler(group), scene.runner() as runner, scene.beating(runner):
        run_id = await scene.request()
        await scene.until_queued(run_id)
        await scene.say(requested(run_id))
        await scene.say(requested(run_id), sequence=1)
        await scene.say(started(run_id=run_id))
        await scene.say(started(run_id=run_id))
        await scene.until_queued(await scene.marker(run_id))
        assert scene.kinds(run_id).count("queued") == 1
        assert len({each.event.id for each in scene.dispatched(run_id)}) == 1
        assert await scene.admin.fetchval("SELECT count(*) FROM assignments WHERE run_id = $1", run_id) == 1


async def test_a_superseded_leader_steps_down_and_the_next_one_places_the_run_once(scene: Scene, group: str) -> None:
    async with scene.scheduler(group), scene.runner():
        await scene.until_queued(await scene.request())
        before = await scene.admin.fetchval("UPDATE leadership SET epoch = epoch + 1 RETURNING epoch")
        run_id = await scene.request()
        await scene.until_queued(run_id)
        await scene.until_queued(await scene.marker(run_id))
        assert scene.kinds(run_id).count("queued") == 1
        assert await scene.admin.fetchval("SELECT epoch FROM leadership") == before + 1


async def test_a_silent_runner_loses_its_run_to_another_and_is_told_so_until_it_lets_go(
    scene: Scene, group: str
) -> None:
    async with scene.scheduler(group, lease_s=LEASE_S):
        async with scene.runner() as first:
            run_id = await scene.request()
            await scene.until_queued(run_id)
            first.listens = False
        async with scene.runner() as second:
            queued = await scene.until_queued(run_id, attempt=2)
            assert queued.runner_id == second.runner_id
            requeued = await scene.until_said(run_id, "requeued")
            assert isinstance(requeued, RunRequeued)
            assert (requeued.attempt, requeued.reason) == (2, Reason.RUNNER_LOST)
            await scene.until(lambda: scene.dispatched(run_id, RunRevoked))
            async with scene.beating(first):
                await scene.until(lambda: len(scene.dispatched(run_id, RunRevoked)) >= 2)
            assert scene.kinds(run_id)[:4] == ["training_requested", "queued", "requeued", "queued"]
            revocations = scene.dispatched(run_id, RunRevoked)
            assert {(each.partition, each.event.id) for each in revocations} == {
                (first.dispatch_partition, revocations[0].event.id)
            }
            revoked = revocations[0].event.data  # type: ignore[union-attr]
            assert revoked == RunRevoked(run_id=run_id, attempt=1, runner_id=first.runner_id, reason=Reason.RUNNER_LOST)


async def test_a_success_that_stands_before_the_requeuing_ends_the_run(scene: Scene, group: str) -> None:
    async with scene.scheduler(group), scene.runner():
        run_id = await scene.request()
        await scene.until_queued(run_id)
        await scene.say(started(run_id=run_id))
        await scene.until_stored("SELECT status = 'running' FROM runs WHERE run_id = $1", run_id)
    await scene.admin.execute("SELECT pg_advisory_lock($1, hashtext($2))", LOCK_CLASS, SCHEMA)
    async with scene.scheduler(group, lease_s=LEASE_S), scene.runner():
        decided = "SELECT EXISTS (SELECT FROM outbox WHERE subject = $1 AND headers::text LIKE '%run.requeued%')"
        await scene.until_stored(decided, run_id)
        await scene.say(succeeded(run_id=run_id))
        await scene.admin.execute("SELECT pg_advisory_unlock($1, hashtext($2))", LOCK_CLASS, SCHEMA)
        await scene.until_said(run_id, "requeued")
        await scene.until_queued(await scene.marker(run_id))
        assert scene.kinds(run_id) == ["training_requested", "queued", "started", "succeeded", "requeued"]
        assert [each.event.data.attempt for each in scene.dispatched(run_id)] == [1]  # type: ignore[union-attr]
        assert len(scene.dispatched(run_id, RunRevoked)) == 1
        [row] = await scene.admin.fetch("SELECT status, attempt, pending FROM runs WHERE run_id = $1", run_id)
        assert tuple(row) == ("succeeded", 1, None)


async def test_a_run_that_is_lost_too_often_fails(scene: Scene, group: str) -> None:
    async with scene.scheduler(group, max_attempts=2), scene.runner() as runner:
        run_id = await scene.request()
        for attempt in (1, 2):
            await scene.until_queued(run_id, attempt)
            await scene.say(lost(attempt, run_id))
        failed = await scene.until_said(run_id, "failed")
        assert isinstance(failed, RunFailed)
        assert (failed.attempt, failed.reason) == (2, Reason.ATTEMPTS_EXHAUSTED)
        assert failed.message == "lost 2 of 2 attempts; the last: the container is gone"
        await scene.until(lambda: (load := scene.load_of(runner.runner_id)) and load.free == runner.capacity)
        kinds = ["training_requested", "queued", "attempt_lost", "requeued", "queued", "attempt_lost", "failed"]
        assert scene.kinds(run_id) == kinds


async def test_a_run_that_waits_is_told_why_and_cancelled_at_once(scene: Scene, group: str) -> None:
    async with scene.scheduler(group):
        run_id = await scene.request()
        waiting = await scene.until_said(run_id, "waiting")
        assert isinstance(waiting, RunWaiting)
        assert waiting.reason == Reason.NO_RUNNER
        await scene.say(cancellation(run_id))
        ended = await scene.until_said(run_id, "cancelled")
        assert isinstance(ended, RunCancelled)
        assert (ended.attempt, ended.reason, ended.runner_id) == (1, Reason.USER_REQUEST, None)
        async with scene.runner():
            await scene.until_queued(await scene.marker(run_id))
        assert scene.dispatched(run_id) == []


async def test_a_running_run_is_cancelled_by_its_runner_and_gives_its_compute_back(scene: Scene, group: str) -> None:
    async with scene.scheduler(group), scene.runner(ROOM_FOR_ONE) as runner:
        run_id = await scene.request()
        await scene.until_queued(run_id)
        await scene.say(started(run_id=run_id))
        following = await scene.request()
        waiting = await scene.until_said(following, "waiting")
        assert isinstance(waiting, RunWaiting)
        assert waiting.reason == Reason.WAITING_FOR_CAPACITY
        await scene.say(cancellation(run_id))
        [revoked, *_] = await scene.until(lambda: scene.dispatched(run_id, RunRevoked))
        assert revoked.partition == runner.dispatch_partition
        assert revoked.event.data == RunRevoked(  # type: ignore[union-attr]
            run_id=run_id, attempt=1, runner_id=runner.runner_id, reason=Reason.USER_REQUEST
        )
        assert "cancelled" not in scene.kinds(run_id)
        await scene.say(cancelled(run_id=run_id))
        await scene.until_queued(following)


async def test_what_a_runner_does_not_know_of_is_dispatched_again_as_the_same_event(scene: Scene, group: str) -> None:
    async with scene.scheduler(group), scene.runner() as runner:
        runner.listens = False
        run_id = await scene.request()
        await scene.until(lambda: len(scene.dispatched(run_id)) >= 2)
        first, second = scene.dispatched(run_id)[:2]
        assert (first.event, first.value, first.partition) == (second.event, second.value, second.partition)
        assert scene.kinds(run_id) == ["training_requested", "queued"]


async def test_reading_everything_again_from_the_beginning_changes_nothing(scene: Scene, group: str) -> None:
    async with scene.scheduler(group), scene.runner():
        ended, running = await scene.request(), await scene.request()
        for run_id in (ended, running):
            await scene.until_queued(run_id)
            await scene.say(started(run_id=run_id))
        await scene.say(succeeded(run_id=ended))
        for run_id in (ended, running):
            await scene.until_queued(await scene.marker(run_id))
    before = await everything_of(scene, ended, running)
    async with scene.scheduler(f"{group}-again"):
        for run_id in (ended, running):
            await scene.until_said(await scene.marker(run_id), "waiting")
        assert await everything_of(scene, ended, running) == before


async def everything_of(scene: Scene, *run_ids: str) -> list[object]:
    told = [(scene.kinds(run_id), [each.event.id for each in scene.dispatched(run_id)]) for run_id in run_ids]
    runs = await scene.admin.fetch("SELECT * FROM runs WHERE run_id = ANY($1) ORDER BY run_id", run_ids)
    assignments = await scene.admin.fetch("SELECT * FROM assignments WHERE run_id = ANY($1) ORDER BY run_id", run_ids)
    outbox = await scene.admin.fetch("SELECT * FROM outbox WHERE subject = ANY($1) ORDER BY id", run_ids)
    return [told, runs, assignments, outbox]

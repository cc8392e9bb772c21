"""Protects the scheduler's decisions on a real database: guarded, idempotent, and undone by nobody."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from schemas.events import RunCancelled, RunFailed, RunQueued, RunRequeued, RunRevoked, RunWaiting
from schemas.reason import Reason
from schemas.topics import DISPATCH, RUNS
from services.backbone.outbox import sweep
from services.backbone.postgres import open_pool
from services.scheduler import store
from services.scheduler.errors import Superseded
from services.scheduler.rounds import play_round
from tests.integration.conftest import Database
from tests.integration.scheduler_rounds_scene import Scene, asking, attempt, new_scene, new_term
from tests.life_of_a_run import cancellation, lost, started, succeeded

RUN = "run-custom-20260313-000001"


@pytest.fixture
async def scene(database: Database) -> AsyncIterator[Scene]:
    pool = await open_pool(database.scheduler_url, "scheduling", 4)
    yield await new_scene(pool)
    await pool.close()


async def running(scene: Scene, runner_id: str = "rnr-a", number: int = 1) -> None:
    """Let a run be assigned and start."""
    scene.hear(runner_id)
    await scene.fold(asking(RUN))
    await scene.settle()
    await scene.fold(started(number, RUN))
    assert await scene.status(RUN) == ("running", number)


async def test_a_request_is_queued_on_runs_first_and_then_to_its_runner_with_the_same_id(scene: Scene) -> None:
    scene.hear("rnr-a", dispatch_partition=7)
    await scene.fold(asking(RUN))
    await scene.round()
    fact, dispatch = await scene.said()
    assert (fact.topic, fact.key, fact.partition) == (RUNS.name, RUN, None)
    assert (dispatch.topic, dispatch.key, dispatch.partition) == (DISPATCH.name, "rnr-a", 7)
    assert fact.event == dispatch.event
    assert isinstance(fact.event.data, RunQueued)
    assert fact.event.data.runner_id == "rnr-a"


async def test_a_decision_counts_only_once_it_has_come_back(scene: Scene) -> None:
    scene.hear("rnr-a")
    await scene.fold(asking(RUN))
    await scene.round()
    assert await scene.status(RUN) == ("queued", 1)
    await scene.relay()
    assert await scene.status(RUN) == ("starting", 1)


async def test_rounds_and_duplicates_of_every_event_change_nothing(scene: Scene) -> None:
    await running(scene)
    events = [said.event for said in await scene.said("RunQueued")]
    await scene.fold(asking(RUN))
    await scene.fold_events(events)
    await scene.fold(started(1, RUN))
    await scene.settle()
    await scene.fold(succeeded(1, RUN), succeeded(1, RUN), asking(RUN))
    await scene.fold_events(events)
    await scene.settle()
    assert [said.kind for said in await scene.said()] == ["RunQueued", "RunQueued"]
    assert await scene.status(RUN) == ("succeeded", 1)


async def test_a_leader_that_was_superseded_changes_nothing(scene: Scene) -> None:
    scene.hear("rnr-a")
    await scene.fold(asking(RUN))
    await new_term(scene.pool)
    with pytest.raises(Superseded):
        await scene.round()
    assert await scene.said() == []
    assert await scene.pool.fetchval("SELECT count(*) FROM assignments") == 0


async def test_two_leaders_at_once_assign_a_run_once(scene: Scene) -> None:
    scene.hear("rnr-a")
    await scene.fold(asking(RUN))
    async with scene.pool.acquire() as one, scene.pool.acquire() as other:
        rounds = [play_round(each, scene.term, scene.clock) for each in (one, other)]
        await asyncio.gather(*rounds)
    assert [said.kind for said in await scene.said()] == ["RunQueued", "RunQueued"]


async def test_compute_is_held_from_the_decision_until_the_end_is_folded(scene: Scene) -> None:
    second = "run-custom-20260313-000002"
    scene.hear("rnr-a")
    await scene.fold(asking(RUN, 4, 16))
    await scene.round()
    await scene.fold(asking(second, 1, 1))
    await scene.round()
    assert [said.event.subject for said in await scene.said("RunQueued")] == [RUN, RUN]
    await scene.relay()
    await scene.fold(started(1, RUN), succeeded(1, RUN))
    await scene.round()
    assert [said.event.subject for said in await scene.said("RunQueued")] == [RUN, RUN, second, second]


async def test_a_waiting_run_is_told_why_once_until_that_changes(scene: Scene) -> None:
    scene.hear("rnr-a")
    await scene.fold(asking(RUN, 8, 32))
    await scene.settle()
    await scene.settle()
    scene.pass_time(70)
    await scene.settle()
    await scene.settle()
    waits = [said.event.data for said in await scene.said()]
    assert [wait.reason for wait in waits if isinstance(wait, RunWaiting)] == [
        Reason.NO_RUNNER_LARGE_ENOUGH,
        Reason.NO_RUNNER,
    ]
    assert len({said.event.id for said in await scene.said()}) == 2


async def test_a_new_leader_says_nothing_about_runners_before_it_has_listened(scene: Scene) -> None:
    await scene.fold(asking(RUN))
    new = Scene(scene.pool, await new_term(scene.pool))
    new.beacon()
    await new.round()
    assert await new.said() == []
    new.pass_time(10)
    await new.round()
    assert [said.kind for said in await new.said()] == ["RunWaiting"]


async def test_a_run_that_nobody_can_take_holds_nobody_up(scene: Scene) -> None:
    second = "run-custom-20260313-000002"
    scene.hear("rnr-a")
    await scene.fold(asking(RUN, 2, 8, gpu=True))
    await scene.fold(asking(second))
    await scene.round()
    assert {(said.kind, said.event.subject) for said in await scene.said()} == {
        ("RunWaiting", RUN),
        ("RunQueued", second),
    }


async def test_a_lost_runners_run_goes_to_another_runner_as_the_next_attempt(scene: Scene) -> None:
    await running(scene)
    scene.hear("rnr-b", dispatch_partition=5)
    scene.pass_time(65, "rnr-b")
    await scene.round()
    requeued, revoked = (await scene.said())[2:]
    assert isinstance(requeued.event.data, RunRequeued)
    assert (requeued.event.data.attempt, requeued.event.data.reason) == (2, Reason.RUNNER_LOST)
    assert isinstance(revoked.event.data, RunRevoked)
    assert (revoked.key, revoked.partition, revoked.event.data.attempt) == ("rnr-a", 3, 1)
    await scene.round()
    assert len(await scene.said("RunQueued")) == 2, "attempt 2 waits until RunRequeued has come back"
    await scene.relay()
    await scene.settle()
    again = (await scene.said("RunQueued"))[-1]
    assert isinstance(again.event.data, RunQueued)
    assert (again.event.data.runner_id, again.event.data.attempt, again.partition) == ("rnr-b", 2, 5)
    assert await scene.status(RUN) == ("starting", 2)


async def test_an_end_that_stands_before_the_requeue_ends_the_run_and_no_attempt_follows(scene: Scene) -> None:
    await running(scene)
    scene.hear("rnr-b")
    scene.pass_time(65, "rnr-b")
    await scene.round()
    assert len(await scene.said("RunRequeued")) == 1
    await scene.fold(succeeded(1, RUN))
    await scene.relay()
    await scene.settle()
    assert await scene.status(RUN) == ("succeeded", 1)
    assert len(await scene.said("RunQueued")) == 2
    assert await scene.pool.fetchval("SELECT count(*) FROM assignments WHERE over_at IS NULL") == 0


async def test_nobody_is_lost_while_the_broker_is_down(scene: Scene) -> None:
    await running(scene)
    scene.pass_time(600, beacon=False)
    await scene.round()
    scene.beacon()
    await scene.round()
    scene.pass_time(55)
    await scene.round()
    assert await scene.said("RunRequeued") == []
    scene.pass_time(10)
    await scene.round()
    assert len(await scene.said("RunRequeued")) == 1


async def test_an_attempt_that_its_runner_gave_up_is_followed_at_once_by_another_elsewhere(scene: Scene) -> None:
    await running(scene)
    scene.hear("rnr-b", capacity=scene.heartbeats["rnr-a"].capacity)
    await scene.fold(lost(1, RUN))
    await scene.settle()
    assert await scene.status(RUN) == ("queued", 2)
    await scene.settle()
    assert (await scene.said("RunQueued"))[-1].key == "rnr-b"
    assert await scene.said("RunRevoked") == []


async def test_the_last_attempt_lost_fails_the_run(scene: Scene) -> None:
    scene.hear("rnr-a")
    await scene.fold(asking(RUN))
    for number in (1, 2, 3):
        await scene.settle()
        await scene.fold(lost(number, RUN))
        await scene.settle()
    (failed,) = await scene.said("RunFailed")
    assert isinstance(failed.event.data, RunFailed)
    assert failed.event.data.reason == Reason.ATTEMPTS_EXHAUSTED
    assert failed.event.data.message == "lost 3 of 3 attempts; the last: the container is gone"
    await scene.settle()
    assert await scene.status(RUN) == ("failed", 3)


async def test_a_waiting_run_is_cancelled_by_the_scheduler_itself(scene: Scene) -> None:
    await scene.fold(asking(RUN), cancellation(RUN))
    scene.hear("rnr-a")
    await scene.settle()
    (cancelled,) = await scene.said()
    assert isinstance(cancelled.event.data, RunCancelled)
    assert cancelled.event.data.reason == Reason.USER_REQUEST
    assert await scene.status(RUN) == ("cancelled", 1)


async def test_a_running_run_is_revoked_and_ends_by_its_runner(scene: Scene) -> None:
    await running(scene)
    await scene.fold(cancellation(RUN))
    await scene.settle()
    await scene.settle()
    (revoked,) = await scene.said("RunRevoked")
    assert isinstance(revoked.event.data, RunRevoked)
    assert (revoked.key, revoked.event.data.reason) == ("rnr-a", Reason.USER_REQUEST)
    assert await scene.status(RUN) == ("running", 1)


async def test_a_cancelled_run_whose_runner_is_lost_is_cancelled_and_not_tried_again(scene: Scene) -> None:
    await running(scene)
    await scene.fold(cancellation(RUN))
    await scene.settle()
    scene.pass_time(65)
    await scene.settle()
    assert await scene.status(RUN) == ("cancelled", 1)
    assert len(await scene.said("RunRevoked")) == 1


async def test_a_cancellation_that_crosses_the_assignment_is_revoked_once_it_is_folded(scene: Scene) -> None:
    scene.hear("rnr-a")
    await scene.fold(asking(RUN))
    await scene.round()
    await scene.fold(cancellation(RUN))
    await scene.settle()
    assert await scene.said("RunCancelled", "RunRevoked") == []
    await scene.settle()
    assert [said.key for said in await scene.said("RunRevoked")] == ["rnr-a"]


async def test_an_assignment_that_its_runner_does_not_know_is_sent_again_as_it_was(scene: Scene) -> None:
    scene.hear("rnr-a")
    await scene.fold(asking(RUN))
    await scene.settle()
    before = await scene.said()
    await scene.pool.execute("UPDATE outbox SET sent_at = now() - interval '11 seconds'")
    for _ in range(3):
        scene.pass_time(5, "rnr-a")
        await scene.round()
    after = await scene.said()
    assert [said.event for said in after] == [said.event for said in before]
    assert [(said.topic, said.sent) for said in after] == [(RUNS.name, True), (DISPATCH.name, False)]


async def test_an_attempt_that_was_replaced_and_still_runs_is_revoked_again(scene: Scene) -> None:
    await running(scene)
    scene.pass_time(65)
    await scene.settle()
    await scene.pool.execute("UPDATE outbox SET sent_at = now() - interval '11 seconds'")
    scene.hear("rnr-a", running=(attempt(RUN),), capacity=scene.heartbeats["rnr-a"].capacity)
    for _ in range(3):
        await scene.round()
        scene.pass_time(5, "rnr-a")
    (revoked,) = await scene.said("RunRevoked")
    assert not revoked.sent, "the same row goes out once more"


async def test_an_attempt_of_a_run_that_nobody_knows_is_left_alone(scene: Scene) -> None:
    scene.hear("rnr-a", running=(attempt("run-custom-20260101-ffffff"),))
    for _ in range(4):
        scene.pass_time(5, "rnr-a")
        await scene.round()
    assert await scene.said() == []


async def test_a_database_rebuilt_from_the_topic_knows_who_runs_what(scene: Scene, database: Database) -> None:
    await running(scene)
    facts = [said.event for said in await scene.said() if said.topic == RUNS.name]
    await scene.pool.execute("DELETE FROM outbox")
    await scene.pool.execute("DELETE FROM assignments")
    await scene.pool.execute("DELETE FROM runs")
    await scene.fold(asking(RUN))
    await scene.fold_events(facts)
    scene.pass_time(65)
    await scene.settle()
    assert await scene.status(RUN) == ("queued", 2)


async def test_the_load_tells_what_is_free_what_is_held_and_who_waits(scene: Scene) -> None:
    scene.hear("rnr-a")
    await scene.fold(asking(RUN, 3, 8), asking("run-custom-20260313-000002", 2, 8))
    load = await scene.round()
    assert [(runner.capacity.cpu_cores, runner.free.cpu_cores) for runner in load.runners] == [(4, 1)]
    assert [each.compute.cpu_cores for each in load.occupied] == [3]
    assert [each.compute.cpu_cores for each in load.queue] == [2]


async def test_what_is_long_over_is_not_republished_any_more_but_never_forgotten(scene: Scene) -> None:
    await running(scene)
    await scene.fold(succeeded(1, RUN))
    await scene.pool.execute("UPDATE runs SET ended_at = now() - interval '8 days'")
    async with scene.pool.acquire() as connection, connection.transaction():
        assert await store.runs_to_sweep(connection) == [RUN]
        await sweep(connection, [RUN])
        await store.mark_swept(connection, [RUN])
        assert await store.runs_to_sweep(connection) == []
    assert await scene.said() == []
    await scene.fold(asking(RUN))
    await scene.settle()
    assert await scene.said() == []
    assert await scene.status(RUN) == ("succeeded", 1)

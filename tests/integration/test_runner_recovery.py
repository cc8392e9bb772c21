"""A runner that is killed, repeated to, or restarted: nothing starts twice, nothing is lost, nothing is left."""

import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from schemas.events import LogsAppended, MetricsReported, RunCancelled, RunQueued, RunStarted, RunSucceeded
from schemas.parts import MetricDefinition
from schemas.reason import Reason
from services.backbone.settings import ServiceSettings
from tests.integration.runner_scene import Scene, a_scene, attempt_events

COUNTS = """
import os, time
for number in range(40):
    print("line", number)
    time.sleep(0.1)
open(os.environ["MODEL_OUTPUT_PATH"], "w").write("model")
"""
EXPECTED = [f"line {number}" for number in range(40)]


@pytest_asyncio.fixture
async def scene(kafka_settings: ServiceSettings, tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_scene(kafka_settings, tmp_path) as scene:
        yield scene


def distinct_lines(scene: Scene, queued: RunQueued) -> list[tuple[int, str]]:
    """Lines as a subscriber has them who absorbs repeated event ids."""
    first = {event.id: event.data for event in attempt_events(scene, queued, LogsAppended)}
    return [(line.sequence, line.text) for data in first.values() for line in data.lines]  # type: ignore[union-attr]


async def test_a_runner_that_was_killed_in_mid_run_finds_the_container_again_and_goes_on(scene: Scene) -> None:
    queued = await scene.queue(COUNTS)
    async with scene.runner() as process:
        await scene.dispatch(queued)
        await scene.until_line(queued, "line 3")
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    async with scene.runner():
        end = await scene.until_ended(queued)
        await scene.until_line(queued, "line 39")
        await scene.until_nothing_is_left()
    assert isinstance(end, RunSucceeded)
    assert end.artifact is not None
    told = distinct_lines(scene, queued)
    assert [text for _, text in told] == EXPECTED
    assert [sequence for sequence, _ in told] == sorted({sequence for sequence, _ in told})
    assert len({event.id for event in attempt_events(scene, queued, RunStarted)}) == 1
    assert len(scene.ends(queued)) == 1


@pytest.mark.parametrize("point", ["after_output_promised", "after_output_publish", None])
async def test_metrics_found_in_the_log_are_neither_lost_nor_doubled_by_a_runner_that_was_killed(
    scene: Scene, tmp_path: Path, point: str | None
) -> None:
    queued = with_definitions(await scene.queue(COUNTS), number=r"line (\d+)", tens=r"(\d)\d$")
    armed = tmp_path / "armed"
    armed.mkdir()
    async with scene.runner(RUNYARD_CRASH_POINTS=str(armed)) as process:
        await scene.dispatch(queued)
        await scene.until_line(queued, "line 12")
        if point is None:
            os.kill(process.pid, signal.SIGKILL)
        else:
            (armed / point).touch()
        await process.wait()
    async with scene.runner():
        assert isinstance(await scene.until_ended(queued), RunSucceeded)
        await scene.until_line(queued, "line 39")
        await scene.until_nothing_is_left()
    sequence_of = {text: sequence for sequence, text in distinct_lines(scene, queued)}
    first = {event.id: event.data for event in attempt_events(scene, queued, MetricsReported)}
    told = [point for data in first.values() for point in data.points]  # type: ignore[union-attr]
    assert [(p.sequence, p.place, p.name, p.value, p.step) for p in told] == [
        (sequence_of[f"line {number}"], place, name, value, None)
        for number in range(40)
        for place, name, value in ((1, "number", number), (2, "tens", number // 10))
        if place == 1 or number >= 10
    ]


def with_definitions(queued: RunQueued, **regexes: str) -> RunQueued:
    definitions = tuple(MetricDefinition(name=name, regex=regex) for name, regex in regexes.items())
    return queued.model_copy(update={"spec": queued.spec.model_copy(update={"metric_definitions": definitions})})


async def test_a_run_that_ends_while_no_runner_is_there_is_told_by_the_next(scene: Scene) -> None:
    queued = await scene.queue("import time\nprint('up', flush=True)\ntime.sleep(1)\nprint('late')")
    async with scene.runner() as process:
        await scene.dispatch(queued)
        await scene.until_line(queued, "up")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert len(scene.containers()) == 1
    async with scene.runner():
        assert isinstance(await scene.until_ended(queued), RunSucceeded)
        await scene.until_line(queued, "late")
        await scene.until_nothing_is_left()


async def test_a_run_that_comes_twice_starts_once_and_its_end_is_repeated_byte_for_byte(scene: Scene) -> None:
    queued = await scene.queue("import time\nprint('up')\ntime.sleep(1)")
    async with scene.runner():
        await scene.dispatch(queued)
        await scene.until_line(queued, "up")
        await scene.dispatch(queued)
        await scene.until_ended(queued)
        await scene.dispatch(queued)
        await scene.until(lambda: len(attempt_events(scene, queued, RunSucceeded)) == 2)
        first, second = attempt_events(scene, queued, RunSucceeded)
        assert first == second
        assert scene.lines(queued) == ["up"]
        assert len(attempt_events(scene, queued, RunStarted)) == 1
        await scene.until_nothing_is_left()


async def test_a_cancellation_that_waits_on_the_partition_is_seen_before_anything_starts(scene: Scene) -> None:
    queued = await scene.queue("print('never')")
    await scene.dispatch(queued)
    await scene.dispatch(scene.revocation(queued))
    async with scene.runner():
        end = await scene.until_ended(queued)
        await scene.until_nothing_is_left()
    assert isinstance(end, RunCancelled)
    assert end.reason is Reason.USER_REQUEST
    assert attempt_events(scene, queued, RunStarted) == []


async def test_what_belongs_to_no_run_of_the_journal_is_swept_at_start(scene: Scene) -> None:
    queued = await scene.queue("import time\nprint('up', flush=True)\ntime.sleep(300)")
    async with scene.runner() as process:
        await scene.dispatch(queued)
        await scene.until_line(queued, "up")
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    sql = sqlite3.connect(scene.folder / "work" / "journal.db")
    sql.execute("DELETE FROM attempts")
    sql.commit()
    sql.close()
    async with scene.runner():
        await scene.until_nothing_is_left()

"""A runner with the real broker and the real engine: how runs end, and what is told about them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from schemas.events import LogsAppended, MetricsReported, RunCancelled, RunFailed, RunStarted, RunSucceeded
from schemas.parts import MetricDefinition
from schemas.reason import Reason
from services.backbone.settings import ServiceSettings
from tests.integration.runner_scene import Scene, a_scene, attempt_events, ref

TRAINS = """
import json, os, sys
print("dataset", open(os.environ["DATASET_PATH"]).read().splitlines()[0], os.path.basename(os.environ["DATASET_PATH"]))
print("secret has", len(os.environ["TOKEN"]), "characters")
with open(os.environ["METRICS_PATH"], "a") as metrics:
    for step in range(3):
        metrics.write(json.dumps({"name": "loss", "value": 1 / (step + 1), "step": step}) + "\\n")
print("a warning", file=sys.stderr)
with open(os.environ["MODEL_OUTPUT_PATH"], "wb") as model:
    model.write(b"the model")
"""

WAITS = "import time\nprint('up')\ntime.sleep(300)\n"
CANARY = "canary-8d2f71"


@pytest_asyncio.fixture(scope="module")
async def scene(kafka_settings: ServiceSettings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder: Path = tmp_path_factory.mktemp("runner")
    async with a_scene(kafka_settings, folder) as scene, scene.runner():
        await scene.until(lambda: scene.heartbeats())
        yield scene


async def test_a_run_succeeds_and_everything_about_it_is_told(scene: Scene) -> None:
    queued = await scene.queue(TRAINS, variables={"TOKEN": CANARY})
    await scene.dispatch(queued)
    end = await scene.until_ended(queued)
    assert isinstance(end, RunSucceeded), end
    assert end.artifact is not None
    assert end.artifact.sha256 == hashlib.sha256(b"the model").hexdigest()
    assert scene.stored(end.artifact.sha256) == b"the model"
    assert (end.exit_code, end.reason, end.artifact.kind) == (0, None, "file")
    assert sorted(scene.lines(queued)) == ["a warning", "dataset a,b wine.csv", "secret has 13 characters"]
    told = [p for e in attempt_events(scene, queued, MetricsReported) for p in e.data.points]  # type: ignore[union-attr]
    assert [(point.name, point.value, point.step) for point in told] == [
        ("loss", 1, 0),
        ("loss", 1 / 2, 1),
        ("loss", 1 / 3, 2),
    ]
    lines = [line for e in attempt_events(scene, queued, LogsAppended) for line in e.data.lines]  # type: ignore[union-attr]
    assert end.output_sequence == max(part.sequence for part in [*told, *lines])
    assert end.usage is not None
    assert end.usage.wall_s > 0
    (started,) = attempt_events(scene, queued, RunStarted)
    assert isinstance(started.data, RunStarted)
    assert started.data.started_at <= end.ended_at
    await scene.until(lambda: ref(queued) in scene.heartbeats()[-1].ended)
    await scene.until_nothing_is_left()
    assert CANARY not in (scene.folder / "runner.log").read_text()
    assert CANARY.encode() not in (scene.folder / "work" / "journal.db").read_bytes()


async def test_a_script_that_writes_nothing_succeeds_without_an_artifact(scene: Scene) -> None:
    queued = await scene.queue("print('done')")
    await scene.dispatch(queued)
    end = await scene.until_ended(queued)
    assert isinstance(end, RunSucceeded)
    assert (end.reason, end.artifact) == (Reason.NO_ARTIFACT, None)


async def test_a_script_that_fails_is_told_with_its_exit_code_and_last_words(scene: Scene) -> None:
    queued = await scene.queue("raise ValueError('no such column')")
    await scene.dispatch(queued)
    end = await scene.until_ended(queued)
    assert isinstance(end, RunFailed)
    assert (end.reason, end.exit_code) == (Reason.SCRIPT_ERROR, 1)
    assert end.message == "exit code 1: ValueError: no such column"


async def test_lines_are_told_as_fast_as_they_are_written(scene: Scene) -> None:
    queued = await scene.queue("for number in range(5000): print('line', number)")
    await scene.dispatch(queued)
    began = asyncio.get_running_loop().time()
    await scene.until_ended(queued)
    assert asyncio.get_running_loop().time() - began < 30  # the engine's chunks are lines; 16 in each pause took 62
    assert scene.lines(queued) == [f"line {number}" for number in range(5000)]


async def test_the_slowest_patterns_hold_up_nobody_but_their_own_run(scene: Scene) -> None:
    """Each takes a tenth of a second for such a line: longer together than a silent stream is waited for."""
    slow = await scene.queue("print('ab' * 8000)\nprint('last loss=0.5')")
    regexes = (*(rf"(?:[ab]?){{{number}}}(?:[ab]*)(c)" for number in range(960, 999)), r"loss=(\S+)")
    definitions = tuple(MetricDefinition(name=f"m{place}", regex=regex) for place, regex in enumerate(regexes, 1))
    await scene.dispatch(
        slow.model_copy(update={"spec": slow.spec.model_copy(update={"metric_definitions": definitions})})
    )
    await scene.until(lambda: attempt_events(scene, slow, RunStarted))
    beats = len(scene.heartbeats())
    neighbour = await scene.queue("print('done')")
    await scene.dispatch(neighbour)
    await scene.until_ended(neighbour)
    assert scene.ends(slow) == []
    assert isinstance(await scene.until_ended(slow), RunSucceeded)
    assert len(scene.heartbeats()) >= beats + 1
    told = [p for e in attempt_events(scene, slow, MetricsReported) for p in e.data.points]  # type: ignore[union-attr]
    assert [(point.place, point.name, point.value) for point in told] == [(40, "m40", 0.5)]


async def test_an_artifact_that_is_a_link_is_refused(scene: Scene) -> None:
    queued = await scene.queue("import os\nos.symlink('/etc/passwd', os.environ['MODEL_OUTPUT_PATH'])")
    await scene.dispatch(queued)
    end = await scene.until_ended(queued)
    assert isinstance(end, RunFailed)
    assert (end.reason, end.exit_code) == (Reason.ARTIFACT_REFUSED, 0)


async def test_a_script_that_takes_more_memory_than_it_asked_for_is_out_of_memory(scene: Scene) -> None:
    queued = await scene.queue("held = [bytes(64 << 20)[:] + b'x' for _ in range(64)]")
    await scene.dispatch(queued)
    end = await scene.until_ended(queued)
    assert isinstance(end, RunFailed)
    assert end.reason is Reason.OUT_OF_MEMORY


async def test_a_run_that_exceeds_its_time_is_cancelled_with_the_reason_timeout(scene: Scene) -> None:
    queued = await scene.queue(WAITS, timeout_s=1)
    await scene.dispatch(queued)
    end = await scene.until_ended(queued)
    assert isinstance(end, RunCancelled)
    assert end.reason is Reason.TIMEOUT


async def test_a_script_that_exits_with_zero_after_the_timeout_s_signal_is_still_timed_out(scene: Scene) -> None:
    script = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\ntime.sleep(300)"
    queued = await scene.queue(script, timeout_s=1)
    await scene.dispatch(queued)
    end = await scene.until_ended(queued)
    assert isinstance(end, RunCancelled)
    assert (end.reason, end.exit_code) == (Reason.TIMEOUT, 0)


async def test_a_cancelled_run_gets_its_sigterm_and_ends_on_request(scene: Scene) -> None:
    script = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: print('stopping'))\nprint('up')\nsignal.pause()"
    queued = await scene.queue(script)
    await scene.dispatch(queued)
    await scene.until_line(queued, "up")
    await scene.dispatch(scene.revocation(queued))
    end = await scene.until_ended(queued)
    assert isinstance(end, RunCancelled)
    assert end.reason is Reason.USER_REQUEST
    await scene.until_line(queued, "stopping")


async def test_a_replaced_attempt_is_stopped_and_tells_no_end(scene: Scene) -> None:
    queued = await scene.queue(WAITS)
    await scene.dispatch(queued)
    await scene.until_line(queued, "up")
    await scene.dispatch(scene.revocation(queued, Reason.RUNNER_LOST))
    await scene.until(lambda: ref(queued) in scene.heartbeats()[-1].ended)
    await scene.until_nothing_is_left()
    assert scene.ends(queued) == []


async def test_a_revocation_that_comes_before_its_run_keeps_it_from_starting(scene: Scene) -> None:
    queued, other = await scene.queue(WAITS), await scene.queue("print('other')")
    await scene.dispatch(scene.revocation(queued))
    end = await scene.until_ended(queued)
    assert isinstance(end, RunCancelled)
    await scene.dispatch(queued)
    await scene.dispatch(other)
    await scene.until_ended(other)
    assert attempt_events(scene, queued, RunStarted) == []
    assert {event.id for event in attempt_events(scene, queued, RunCancelled)} == {
        attempt_events(scene, queued, RunCancelled)[0].id
    }


async def test_a_run_whose_files_are_gone_is_a_lost_attempt(scene: Scene) -> None:
    queued = await scene.queue("print('never')")
    missing = queued.spec.dataset.model_copy(update={"sha256": "00" * 32})
    await scene.dispatch(queued.model_copy(update={"spec": queued.spec.model_copy(update={"dataset": missing})}))
    lost = await scene.until_ended(queued)
    assert lost.reason is Reason.FETCH_FAILED
    await scene.until_nothing_is_left()

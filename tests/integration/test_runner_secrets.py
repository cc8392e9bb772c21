"""The values of variables: on a tmpfs while a run goes on, masked in all that it says, and nowhere else at any time."""

import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import docker
import pytest
import pytest_asyncio

from schemas.cloudevents import encode
from schemas.events import MetricsReported, RunFailed, RunQueued, RunSucceeded
from schemas.reason import Reason
from services.backbone.crash_points import ENVIRONMENT
from services.backbone.settings import ServiceSettings
from tests.integration.runner_scene import Scene, a_scene, attempt_events

CANARY = "canary-5b07c2-of-these-tests"
TATTLES = """
import json, os, sys, time
key = os.environ["KEY"]
print("my key is", key)
print("and again", key, file=sys.stderr)
with open(os.environ["METRICS_PATH"], "a") as metrics:
    print(json.dumps({"name": f"loss of {key}", "value": 1}), file=metrics)
with open(os.environ["FAILURE_PATH"], "w") as failure:
    failure.write(f"no login\\nwith {key}")
while not os.path.exists("/runyard/out/go"):
    time.sleep(0.05)
raise ValueError(key)
"""


@pytest_asyncio.fixture
async def scene(kafka_settings: ServiceSettings, tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_scene(kafka_settings, tmp_path) as scene:
        yield scene


def holders(folder: Path) -> list[Path]:
    """Find the files below a folder that hold the canary; an `out` is looked into where it is mounted, as files."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.name != "out.img"]
    return [path for path in files if CANARY.encode() in path.read_bytes()]


async def test_a_value_that_a_script_tells_everywhere_is_found_nowhere_but_on_its_tmpfs(scene: Scene) -> None:
    queued = await scene.queue(TATTLES, variables={"KEY": CANARY})
    async with scene.runner():
        await scene.dispatch(queued)
        await scene.until_line(queued, "my key is ***")
        await scene.until(lambda: attempt_events(scene, queued, MetricsReported))
        [name] = scene.containers()
        with closing(docker.APIClient()) as engine:
            assert CANARY not in json.dumps(engine.inspect_container(name))
            assert CANARY.encode() not in engine.logs(name)
        assert [path.name for path in holders(scene.slots)] == ["spec.json"]
        out = scene.folder / "work" / "runs" / name / "out"
        assert [path.parent for path in holders(scene.folder)] == [out, out]  # what the script itself wrote there
        (out / "go").touch()
        end = await scene.until_ended(queued)
        assert not scene.slots.exists()  # gone before the end was told
        await scene.until_nothing_is_left()
    assert isinstance(end, RunFailed)
    assert end.message == "no login\nwith ***"
    await scene.until_line(queued, "ValueError: ***")
    assert "and again ***" in scene.lines(queued)
    [metrics] = [e.data for e in attempt_events(scene, queued, MetricsReported)]
    assert isinstance(metrics, MetricsReported)
    assert [point.name for point in metrics.points] == ["loss of ***"]
    assert [event for event in scene.events(queued) if CANARY in repr(encode(event))] == []
    assert holders(scene.folder) == []


async def test_a_reason_that_names_a_file_shows_no_value(scene: Scene) -> None:
    script = "import os\nos.mkdir('/runyard/out/model')\nos.symlink('x', '/runyard/out/model/' + os.environ['KEY'])"
    queued = await scene.queue(script, variables={"KEY": CANARY})
    async with scene.runner():
        await scene.dispatch(queued)
        end = await scene.until_ended(queued)
        await scene.until_nothing_is_left()
    assert isinstance(end, RunFailed)
    assert end.reason is Reason.ARTIFACT_REFUSED
    assert "***" in str(end.message)
    assert CANARY not in str(end.message)


@pytest.mark.parametrize("point", ["after_container_create", "before_container_start"])
async def test_a_slot_that_a_reboot_has_taken_before_the_start_is_made_again(scene: Scene, point: str) -> None:
    queued = await scene.queue("import os\nprint(len(os.environ['KEY']))", variables={"KEY": CANARY})
    armed = scene.folder / "armed"
    armed.mkdir()
    (armed / point).touch()
    async with scene.runner(**{ENVIRONMENT: str(armed)}) as process:
        await scene.dispatch(queued)
        assert await process.wait() == -signal.SIGKILL
    assert len(scene.containers()) == 1
    shutil.rmtree(scene.slots)
    async with scene.runner():
        assert isinstance(await scene.until_ended(queued), RunSucceeded)
        await scene.until_nothing_is_left()
    assert scene.lines(queued) == [str(len(CANARY))]


async def test_slots_of_a_killed_runner_go_with_its_runs(scene: Scene) -> None:
    queued: RunQueued = await scene.queue("print('up')\nimport time\ntime.sleep(2)", variables={"KEY": CANARY})
    async with scene.runner() as process:
        await scene.dispatch(queued)
        await scene.until_line(queued, "up")
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    (scene.slots / "run-of-nobody-1").mkdir()
    (scene.slots / "run-of-nobody-1" / "spec.json").write_text(CANARY)
    assert len(list(scene.slots.iterdir())) == 2
    async with scene.runner():
        assert isinstance(await scene.until_ended(queued), RunSucceeded)
        await scene.until_nothing_is_left()
    assert holders(scene.folder) == []


async def test_without_a_tmpfs_a_runner_works_and_says_where_secrets_lie(scene: Scene) -> None:
    queued = await scene.queue("import os\nprint(len(os.environ['KEY']))", variables={"KEY": CANARY})
    async with scene.runner(RUNYARD_SLOTS_DIR=str(scene.folder)):
        await scene.dispatch(queued)
        assert isinstance(await scene.until_ended(queued), RunSucceeded)
        await scene.until_nothing_is_left()
    [said] = [line for line in (scene.folder / "runner.log").read_text().splitlines() if "secrets_lie_on_disk" in line]
    assert "it is not on a tmpfs" in said
    assert scene.lines(queued) == [str(len(CANARY))]

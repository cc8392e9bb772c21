"""Checkpoints between real runners: an attempt that is lost is followed by one that goes on, here or elsewhere."""

import asyncio
import base64
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import docker
import pytest_asyncio

from schemas.events import AttemptLost, RunQueued, RunSucceeded
from schemas.ids import checkpoint_key
from schemas.reason import Reason
from services.backbone.settings import ServiceSettings
from tests.integration.runner_scene import PATIENCE_S, Scene, a_scene

GOES_ON = """
import os, pathlib, time
state = pathlib.Path(os.environ["CHECKPOINT_PATH"]) / "deep" / "state"
print("attempt", os.environ["ATTEMPT"], "resume", os.environ["RESUME"])
step = int(state.read_text()) if os.environ["RESUME"] == "1" else 0
state.parent.mkdir(exist_ok=True)
while step < 10:
    step += 1
    print("step", step)
    state.with_suffix(".new").write_text(str(step))
    state.with_suffix(".new").replace(state)
    if step == 5 and os.environ["ATTEMPT"] == "1":
        print("waits to be lost")
        time.sleep(300)
pathlib.Path(os.environ["MODEL_OUTPUT_PATH"]).write_text("model")
"""
EXPECTED = [
    "attempt 1 resume 0",
    *(f"step {step}" for step in range(1, 6)),
    "waits to be lost",
    "attempt 2 resume 1",
    *(f"step {step}" for step in range(6, 11)),
]
OFTEN, NEVER = {"RUNYARD_CHECKPOINT_EVERY_S": "0.1"}, {"RUNYARD_CHECKPOINT_EVERY_S": "3600"}


@pytest_asyncio.fixture
async def scene(kafka_settings: ServiceSettings, tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_scene(kafka_settings, tmp_path) as scene:
        yield scene


@pytest_asyncio.fixture
async def elsewhere(kafka_settings: ServiceSettings, tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_scene(kafka_settings, tmp_path / "elsewhere") as scene:
        yield scene


def shared_with(scene: Scene) -> dict[str, str]:
    """What makes a runner elsewhere one of the same system."""
    key = f"{scene.key.key_id}:{base64.b64encode(scene.key.secret).decode()}"
    return {"RUNYARD_OBJECTS_URL": f"file://{scene.folder}/objects", "RUNYARD_SEALING_KEY": key}


def followed_by(queued: RunQueued, scene: Scene) -> RunQueued:
    return queued.model_copy(update={"attempt": queued.attempt + 1, "runner_id": scene.runner_id})


def kept(scene: Scene, queued: RunQueued) -> Path:
    return scene.folder / "objects" / checkpoint_key(queued.run_id, queued.attempt)


async def until_kept(scene: Scene, queued: RunQueued, state: str) -> None:
    """Wait until the newest checkpoint holds that state."""
    path = kept(scene, queued)
    async with asyncio.timeout(PATIENCE_S):
        while not (path.exists() and state.encode().ljust(512, b"\0") in path.read_bytes()):  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.05)


def kill_container(scene: Scene) -> None:
    client = docker.from_env()
    [name] = scene.containers()
    client.api.kill(name)
    client.close()


async def test_a_run_whose_runner_and_container_are_gone_for_good_goes_on_on_another_runner(
    scene: Scene, elsewhere: Scene
) -> None:
    queued = await scene.queue(GOES_ON)
    async with scene.runner(**OFTEN) as process:
        await scene.dispatch(queued)
        await scene.until_line(queued, "waits to be lost")
        await until_kept(scene, queued, "5")
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    scene.remove_containers()
    again = followed_by(queued, elsewhere)
    async with elsewhere.runner(**OFTEN, **shared_with(scene)):
        await elsewhere.dispatch(again)
        end = await elsewhere.until_ended(again)
        await elsewhere.until(lambda: elsewhere.lines(again) == EXPECTED)
        await elsewhere.until_nothing_is_left()
    assert isinstance(end, RunSucceeded)
    assert end.attempt == 2


async def test_an_attempt_whose_container_was_killed_keeps_its_last_words_before_it_is_told_as_lost(
    scene: Scene,
) -> None:
    queued = await scene.queue(GOES_ON)
    async with scene.runner(**NEVER):
        await scene.dispatch(queued)
        await scene.until_line(queued, "waits to be lost")
        assert not kept(scene, queued).exists()
        kill_container(scene)
        lost = await scene.until_ended(queued)
        assert isinstance(lost, AttemptLost)
        assert lost.reason is Reason.CONTAINER_LOST
        assert kept(scene, queued).exists()
        await scene.dispatch(followed_by(queued, scene))
        await scene.until(lambda: scene.lines(queued) == EXPECTED)
        await scene.until(lambda: any(isinstance(end, RunSucceeded) for end in scene.ends(queued)))
        await scene.until_nothing_is_left()


async def test_a_runner_that_is_stopped_leaves_the_newest_for_others(scene: Scene) -> None:
    queued = await scene.queue(GOES_ON)
    async with scene.runner(**NEVER) as process:
        await scene.dispatch(queued)
        await scene.until_line(queued, "waits to be lost")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    await until_kept(scene, queued, "5")


async def test_a_runner_that_was_killed_and_is_back_goes_on_keeping(scene: Scene) -> None:
    queued = await scene.queue(GOES_ON)
    async with scene.runner(**NEVER) as process:
        await scene.dispatch(queued)
        await scene.until_line(queued, "waits to be lost")
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    assert not kept(scene, queued).exists()
    async with scene.runner(**OFTEN):
        await until_kept(scene, queued, "5")
        await scene.dispatch(scene.revocation(queued))
        await scene.until_ended(queued)


async def test_an_attempt_after_one_that_kept_nothing_or_something_damaged_starts_over(scene: Scene) -> None:
    script = "import os\nprint('resume', os.environ['RESUME'], os.listdir(os.environ['CHECKPOINT_PATH']))"
    nothing, damaged = [followed_by(await scene.queue(script), scene) for _ in range(2)]
    path = kept(scene, damaged.model_copy(update={"attempt": 1}))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0" * 2048)
    async with scene.runner():
        for queued in (nothing, damaged):
            await scene.dispatch(queued)
            assert isinstance(await scene.until_ended(queued), RunSucceeded)
            await scene.until_line(queued, "resume 0 []")
    assert '"checkpoint_left_out"' in (scene.folder / "runner.log").read_text()

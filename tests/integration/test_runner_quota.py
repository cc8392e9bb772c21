"""A runner with the real broker and the real engine: what becomes of runs that keep too much in their output folder."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from schemas.events import AttemptLost, RunFailed, RunStarted, RunSucceeded
from schemas.reason import Reason
from services.backbone.settings import ServiceSettings
from services.runner import quota
from tests.integration.runner_scene import Scene, a_scene, attempt_events

LIMITS = {"RUNYARD_MAX_OUT_BYTES": str(32 << 20), "RUNYARD_MAX_ARTIFACT_BYTES": str(16 << 20)}
KEEPS = """
import os, time
for number in range(%d):
    with open(os.environ["MODEL_OUTPUT_PATH"] + str(number), "wb") as file:
        file.write(bytes(8 << 20))
open(os.environ["MODEL_OUTPUT_PATH"], "wb").write(b"the model")
time.sleep(%d)
"""


@pytest_asyncio.fixture
async def scene(kafka_settings: ServiceSettings, tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_scene(kafka_settings, tmp_path) as scene:
        yield scene


def log_of(scene: Scene) -> str:
    return (scene.folder / "runner.log").read_text()


async def test_where_nothing_can_be_mounted_the_folder_is_watched_and_its_run_ended(scene: Scene) -> None:
    within, beyond = await scene.queue(KEEPS % (3, 2)), await scene.queue(KEEPS % (6, 300))
    async with scene.runner(RUNYARD_LOOP_QUOTA="false", **LIMITS):
        for queued in (within, beyond):
            await scene.dispatch(queued)
        end = await scene.until_ended(beyond)
        assert isinstance(end, RunFailed)
        assert (end.reason, end.exit_code) == (Reason.SCRIPT_ERROR, None)
        assert str(end.message).startswith("disk quota exceeded")
        assert isinstance(await scene.until_ended(within), RunSucceeded)
        await scene.until_nothing_is_left()
    assert log_of(scene).count('"output_quota_watched"') == 1


@pytest.mark.skipif(quota.obstacle() is not None, reason="no file system can be mounted")
async def test_as_root_the_script_finds_its_folder_full_and_nothing_stays_mounted(scene: Scene) -> None:
    within, beyond = await scene.queue(KEEPS % (3, 0)), await scene.queue(KEEPS % (9, 300))
    async with scene.runner(**LIMITS):
        for queued in (within, beyond):
            await scene.dispatch(queued)
        end = await scene.until_ended(beyond)
        assert isinstance(end, RunFailed)
        assert (end.reason, end.exit_code) == (Reason.SCRIPT_ERROR, 1)
        assert "No space left on device" in str(end.message)
        end = await scene.until_ended(within)
        assert isinstance(end, RunSucceeded), end
        assert end.artifact is not None
        assert scene.stored(end.artifact.sha256) == b"the model"
        await scene.until_nothing_is_left()
    assert str(scene.folder) not in Path("/proc/self/mountinfo").read_text()
    assert '"output_quota_watched"' not in log_of(scene)


@pytest.mark.skipif(quota.obstacle() is not None, reason="no file system can be mounted")
async def test_a_run_whose_folder_cannot_have_its_size_is_not_started(scene: Scene) -> None:
    queued = await scene.queue("print('never')")
    async with scene.runner(RUNYARD_MAX_OUT_BYTES=str(1 << 60)):
        await scene.dispatch(queued)
        end = await scene.until_ended(queued)
        await scene.until_nothing_is_left()
    assert isinstance(end, AttemptLost)
    assert (end.reason, end.message) == (Reason.DISK_FULL, "no file system can be made for the output folder")
    assert attempt_events(scene, queued, RunStarted) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give each run a user id of its own")
async def test_runs_that_go_on_at_the_same_time_have_user_ids_of_their_own_over_restarts(scene: Scene) -> None:
    script = "import os, time\nprint('user', os.getuid(), flush=True)\ntime.sleep(300)"
    first, second = await scene.queue(script), await scene.queue(script)
    users = []
    for queued in (first, second):
        async with scene.runner(**LIMITS):
            await scene.dispatch(queued)
            users.append(await scene.until(lambda queued=queued: next(iter(scene.lines(queued)), None)))
    assert len(set(users)) == 2
    assert all(int(user.split()[1]) >= 0x7000_0000 for user in users)
    async with scene.runner(**LIMITS):
        for queued in (first, second):
            await scene.dispatch(scene.revocation(queued))
            await scene.until_ended(queued)
        await scene.until_nothing_is_left()

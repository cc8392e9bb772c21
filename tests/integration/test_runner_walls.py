"""A runner with the real broker and the real engine: it starts no container whose walls it has not confirmed."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import docker
import pytest_asyncio

from schemas.events import RunFailed, RunQueued, RunStarted, RunSucceeded
from schemas.reason import Reason
from services.backbone.settings import ServiceSettings
from services.runner.journal import Journal
from services.runner.sandbox_images import ensure
from services.runner.sandbox_walls import ATTEMPT_LABEL, RUN_LABEL, RUNNER_LABEL
from services.runner.slot import make_slot
from tests.integration.runner_scene import Scene, a_scene, attempt_events


@pytest_asyncio.fixture
async def scene(kafka_settings: ServiceSettings, tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_scene(kafka_settings, tmp_path) as scene:
        yield scene


def made_before(scene: Scene, queued: RunQueued) -> str:
    """Leave a slot and a container behind as if this runner had made them, but with the host's network; its id."""
    scene.slots.mkdir(mode=0o700, exist_ok=True)
    make_slot(scene.slots / f"run-{queued.run_id}-1")  # a container without its slot would be made again
    labels = {RUN_LABEL: queued.run_id, ATTEMPT_LABEL: "1", RUNNER_LABEL: scene.runner_id}
    with contextlib.closing(docker.from_env()) as client:
        made = client.containers.create(
            ensure("python3.11"), ["true"], name=f"run-{queued.run_id}-1", labels=labels, network_mode="host"
        )
        return str(made.id)


async def test_a_container_that_was_left_behind_with_weaker_walls_is_made_anew_and_the_run_goes_on(
    scene: Scene,
) -> None:
    queued = await scene.queue("print('made anew')")
    journal = Journal(scene.folder / "work" / "journal.db")
    journal.accept(queued, None)
    journal.close()
    left = made_before(scene, queued)
    async with scene.runner():
        end = await scene.until_ended(queued)
        await scene.until_nothing_is_left()
    assert isinstance(end, RunSucceeded)
    assert scene.lines(queued) == ["made anew"]
    (started,) = attempt_events(scene, queued, RunStarted)
    assert isinstance(started.data, RunStarted)
    assert started.data.container_id != left


async def test_a_runtime_that_the_operator_named_and_the_engine_lacks_is_not_replaced_by_another(scene: Scene) -> None:
    queued = await scene.queue("print('never')")
    await scene.dispatch(queued)
    async with scene.runner(RUNYARD_OCI_RUNTIME="nosuch"):
        end = await scene.until_ended(queued)
        await scene.until_nothing_is_left()
    assert isinstance(end, RunFailed)
    assert end.reason is Reason.SANDBOX_REFUSED
    assert "nosuch" in str(end.message)

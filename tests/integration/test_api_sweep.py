"""Protects what the sweep must find, and above all what it must leave alone."""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from schemas.ids import checkpoint_key
from tests import life_of_a_run as life
from tests.integration.api_scene import Scene, scene_on
from tests.integration.conftest import Database

DAY = timedelta(days=1)


@pytest.fixture
async def scene(database: Database, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_on(database, tmp_path) as opened:
        yield opened


def age(scene: Scene, how_long: timedelta) -> None:
    """Make everything in the object store that old."""
    moment = (datetime.now(UTC) - how_long).timestamp()
    for path in scene.objects_folder.rglob("*"):
        os.utime(path, (moment, moment))


def contents(scene: Scene) -> set[str]:
    """The digests that are stored."""
    return {path.name for path in scene.objects_folder.glob("objects/*/*")}


async def test_objects_go_a_day_after_nothing_holds_on_to_them(scene: Scene) -> None:
    model_id = await scene.bare_model(dataset_id=await scene.dataset())
    await scene.asset(model_id, content=b"first")
    await scene.asset(model_id, content=b"second")
    assert len(contents(scene)) == 3
    age(scene, DAY - timedelta(minutes=1))
    await scene.sweeper.sweep(datetime.now(UTC))
    assert len(contents(scene)) == 3
    age(scene, DAY + timedelta(minutes=1))
    await scene.sweeper.sweep(datetime.now(UTC))
    assert len(contents(scene)) == 2


async def test_what_a_run_pinned_stays_until_it_ends(scene: Scene) -> None:
    model_id = await scene.model()
    run_id = await scene.accepted(model_id)
    [asset] = (await scene.get(f"/api/v1/models/{model_id}/assets"))["items"]
    await scene.http.delete(f"/api/v1/models/{model_id}/assets/{asset['asset_id']}")
    age(scene, 2 * DAY)
    await scene.sweeper.sweep(datetime.now(UTC))
    assert asset["sha256"] in contents(scene)
    await scene.happen(life.cancelled(run_id=run_id))
    await scene.sweeper.sweep(datetime.now(UTC))
    assert asset["sha256"] not in contents(scene)


async def test_an_artifact_whose_end_is_still_on_its_way_is_left_alone(scene: Scene) -> None:
    model_id = await scene.model()
    run_id = await scene.accepted(model_id)
    artifact = await scene.artifact(b"weights")
    age(scene, timedelta(minutes=9))  # the object store's clock need not be the api's
    await scene.sweeper.sweep(datetime.now(UTC) + 30 * DAY)
    assert artifact.sha256 in contents(scene)
    await scene.succeed(run_id, artifact)
    await scene.sweeper.sweep(datetime.now(UTC) + 30 * DAY)
    assert artifact.sha256 in contents(scene)


async def test_variables_that_a_crash_left_behind_are_deleted(scene: Scene) -> None:
    model_id = await scene.model()
    run_id = await scene.accepted(model_id, environment_vars={"A": "b"})
    await scene.context.variables.create("run-custom-20260313-dead00", {"A": "never accepted"})
    age(scene, 2 * DAY)
    await scene.sweeper.sweep(datetime.now(UTC))
    assert [path.name for path in scene.objects_folder.glob("variables/*")] == [run_id]
    await scene.happen(life.cancelled(run_id=run_id))
    await scene.context.variables.create(run_id, {"A": "left behind"})
    await scene.admin.execute("UPDATE registry.runs SET variables_held = true")
    await scene.sweeper.sweep(datetime.now(UTC))
    assert not list(scene.objects_folder.glob("variables/*"))


async def test_checkpoints_that_come_after_the_end_are_deleted_and_those_of_open_runs_never(scene: Scene) -> None:
    ended = await scene.accepted(await scene.model())
    await scene.happen(life.cancelled(run_id=ended))
    is_open = await scene.accepted(await scene.model())
    for run_id in (ended, is_open, "run-of-nobody"):
        await scene.context.objects.put(checkpoint_key(run_id, 1), b"kept")
    await scene.sweeper.sweep(datetime.now(UTC))
    assert {path.parent.name for path in scene.objects_folder.glob("checkpoints/*/*")} == {is_open, "run-of-nobody"}
    age(scene, 2 * DAY)
    await scene.sweeper.sweep(datetime.now(UTC))
    assert {path.parent.name for path in scene.objects_folder.glob("checkpoints/*/*")} == {is_open}


async def test_keys_and_sent_events_go_after_seven_days_and_unsent_ones_stay(scene: Scene) -> None:
    model_id = await scene.model()
    run_id = await scene.accepted(model_id, key="k")
    await scene.succeed(run_id)
    other = await scene.accepted(model_id)
    await scene.admin.execute("UPDATE registry.idempotency_keys SET created_at = now() - interval '7 days 1 minute'")
    await scene.admin.execute("UPDATE registry.outbox SET sent_at = now()")
    await scene.sweeper.sweep(datetime.now(UTC))
    assert len(await scene.outbox()) == 3
    assert await scene.admin.fetchval("SELECT count(*) FROM registry.idempotency_keys") == 0
    await scene.admin.execute(
        "UPDATE registry.runs SET end_seen_at = now() - interval '8 days' WHERE run_id = $1", run_id
    )
    await scene.sweeper.sweep(datetime.now(UTC))
    assert await scene.outbox() == [f"{other}/training_requested"]


async def test_an_upload_that_a_crash_cut_off_goes_a_day_later(scene: Scene) -> None:
    uploads = scene.objects_folder / "uploads"
    uploads.mkdir()
    (uploads / "cut-off#1").write_bytes(b"half")
    await scene.sweeper.sweep(datetime.now(UTC))
    assert [path.name for path in uploads.iterdir()] == ["cut-off#1"]
    age(scene, DAY + timedelta(minutes=1))
    await scene.sweeper.sweep(datetime.now(UTC))
    assert list(uploads.iterdir()) == []

"""Protects acceptance: one transaction, one run per model, one answer per key, and no secret left behind."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from schemas.ids import variables_key
from services.api.load import LoadView
from services.backbone.errors import ObjectMissing
from tests import life_of_a_run as life
from tests.integration.api_scene import Scene, client_of, published_load, scene_on, token
from tests.integration.conftest import Database

PROBLEMS = "https://runyard.dev/problems/"
CANARY = "canary-8d1f0e"


@pytest.fixture
async def scene(database: Database, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_on(database, tmp_path) as opened:
        yield opened


async def test_an_accepted_run_has_every_field_of_the_page_and_its_defaults(scene: Scene) -> None:
    model_id = await scene.model()
    answer = await scene.train(model_id)
    run = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/v1/models/{model_id}/runs/{run['run_id']}"
    assert re.fullmatch(r"run-custom-\d{8}-[0-9a-f]{6}", run["run_id"])
    assert re.fullmatch(r"mdl-[0-9a-f]{8}", model_id)
    assert run["created_at"].endswith("Z")
    expected = {
        "model_id": model_id,
        "model_type": "custom",
        "status": "queued",
        "entry_point": "train.py",
        "runtime": "python3.11",
        "compute": {"cpu_cores": 2, "memory_gb": 8, "gpu": False},
        "run_label": None,
        "timeout_seconds": 7200,
        "grace_period_seconds": 10,
        "estimated_start_time": None,
        "environment_vars": {},
    }
    assert expected.items() <= run.items()
    assert await scene.get(answer.headers["location"]) == run
    assert (await scene.get(f"/api/v1/models/{model_id}"))["status"] == "training"
    assert await scene.outbox() == [f"{run['run_id']}/training_requested"]


async def test_refusals_have_types_of_their_own(scene: Scene) -> None:
    bare = await scene.bare_model()
    auto = await scene.bare_model(model_type="auto")
    scripted = await scene.bare_model()
    await scene.asset(scripted)
    empty = await scene.bare_model(dataset_id=await scene.dataset(None))
    await scene.asset(empty)
    ready = await scene.model()
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "model-not-custom": (auto, {}),
        "no-script-asset": (bare, {}),
        "no-dataset": (scripted, {}),
        "dataset-empty": (empty, {}),
        "entry-point-not-found": (ready, {"entry_point": "../train.py"}),
        "validation-failed": (ready, {"timeout_seconds": 0}),
    }
    for slug, (model_id, body) in wanted.items():
        refused = await scene.train(model_id, **body)
        assert (refused.status_code, refused.json()["type"]) == (422, PROBLEMS + slug)
    assert (await scene.train("mdl-00000000")).status_code == 404
    assert await scene.outbox() == []


async def test_a_data_asset_is_no_script(scene: Scene) -> None:
    model_id = await scene.bare_model(dataset_id=await scene.dataset())
    await scene.asset(model_id, data={"asset_type": "data"})
    assert (await scene.train(model_id)).json()["type"] == PROBLEMS + "no-script-asset"


async def test_of_many_requests_at_once_one_is_accepted_and_the_others_name_it(scene: Scene) -> None:
    model_id = await scene.model()
    answers = await asyncio.gather(*(scene.train(model_id) for _ in range(8)))
    accepted = [answer for answer in answers if answer.status_code == 202]
    refused = [answer.json() for answer in answers if answer.status_code == 409]
    assert (len(accepted), len(refused)) == (1, 7)
    assert {problem["run_id"] for problem in refused} == {accepted[0].json()["run_id"]}
    assert len(await scene.outbox()) == 1


async def test_of_many_requests_with_one_key_all_get_the_same_answer(scene: Scene) -> None:
    model_id = await scene.model()
    variables = {"SECRET": CANARY}
    answers = await asyncio.gather(*(scene.train(model_id, key="once", environment_vars=variables) for _ in range(8)))
    assert [answer.status_code for answer in answers] == [202] * 8
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 7
    assert len(await scene.outbox()) == 1
    assert [path.name for path in (scene.objects_folder / "variables").iterdir()] == [answers[0].json()["run_id"]]


async def test_a_key_with_another_body_is_refused_and_a_refusal_is_not_kept(scene: Scene) -> None:
    model_id = await scene.model()
    refused = await scene.train(model_id, key="k", entry_point="other.py")
    assert refused.status_code == 422
    first = await scene.train(model_id, key="k", timeout_seconds=7200)
    again = await scene.train(model_id, key="k")  # the default, spelled out or not, is the same request
    other = await scene.train(model_id, key="k", timeout_seconds=60)
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 422)
    assert again.json() == first.json()
    assert other.json()["type"] == PROBLEMS + "idempotency-key-reused"


async def test_keys_belong_to_a_tenant_and_a_path(scene: Scene) -> None:
    first, second = await scene.model(), await scene.model()
    runs = {await scene.accepted(model_id, key="k") for model_id in (first, second)}
    assert len(runs) == 2
    body, headers = {"name": "d"}, {"Idempotency-Key": "k"}
    mine = await scene.http.post("/api/v1/datasets", json=body, headers=headers)
    async with client_of(scene.context, f"Bearer {token(tenant='other')}") as stranger:
        theirs = await stranger.post("/api/v1/datasets", json=body, headers=headers)
    assert mine.json()["dataset_id"] != theirs.json()["dataset_id"]


async def test_a_key_is_forgotten_after_seven_days(scene: Scene) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await scene.http.post("/api/v1/datasets", json={"name": "d"}, headers=headers)
    await scene.admin.execute("UPDATE registry.idempotency_keys SET created_at = now() - interval '7 days 1 second'")
    second = await scene.http.post("/api/v1/datasets", json={"name": "other"}, headers=headers)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["dataset_id"] != second.json()["dataset_id"]


async def test_values_of_variables_stand_in_the_sealed_object_and_nowhere_else(scene: Scene) -> None:
    model_id = await scene.model()
    run_id = await scene.accepted(model_id, key="k", environment_vars={"TOKEN": CANARY, "EMPTY": ""})
    path = f"/api/v1/models/{model_id}/runs/{run_id}"
    assert (await scene.get(path))["environment_vars"] == {"TOKEN": CANARY, "EMPTY": ""}
    tables = await scene.admin.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'registry'")
    for table in (row["tablename"] for row in tables):
        rows = await scene.admin.fetch(f"SELECT t::text AS text FROM registry.{table} t")  # noqa: S608
        assert CANARY not in json.dumps([row["text"] for row in rows]), table
    files = [path for path in scene.objects_folder.rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]

    await scene.succeed(run_id)
    assert (await scene.get(path))["environment_vars"] == {"TOKEN": None, "EMPTY": None}
    with pytest.raises(ObjectMissing):
        await scene.context.objects.get(variables_key(run_id))


async def test_a_refused_request_leaves_no_sealed_variables(scene: Scene) -> None:
    model_id = await scene.model()
    await scene.accepted(model_id)
    answers = await asyncio.gather(*(scene.train(model_id, environment_vars={"TOKEN": CANARY}) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {409}
    assert not list(scene.objects_folder.rglob("variables/*"))


async def test_a_run_pins_what_it_was_accepted_with(scene: Scene) -> None:
    model_id = await scene.model()
    [asset] = (await scene.get(f"/api/v1/models/{model_id}/assets"))["items"]
    await scene.accepted(model_id)
    replaced = await scene.asset(model_id, content=b"print('other')")
    assert replaced.json()["asset_id"] == asset["asset_id"]
    assert replaced.json()["sha256"] != asset["sha256"]
    pinned = json.loads(await scene.admin.fetchval("SELECT value FROM registry.outbox"))["spec"]["assets"]
    assert [(each["asset_id"], each["sha256"]) for each in pinned] == [(asset["asset_id"], asset["sha256"])]


async def test_the_estimate_comes_from_what_the_scheduler_published(scene: Scene) -> None:
    model_id = await scene.model()
    await scene.context.load.on_load([published_load(free_cores=8)])
    run = (await scene.train(model_id)).json()
    assert run["estimated_start_time"] > run["created_at"]
    gpu = (await scene.train(await scene.model(), compute={"gpu": True})).json()
    assert gpu["estimated_start_time"] is None


async def test_cancelling_twice_is_told_once_and_after_the_end_is_refused(scene: Scene) -> None:
    model_id = await scene.model()
    run_id = await scene.accepted(model_id, environment_vars={"A": "b"})
    path = f"/api/v1/models/{model_id}/runs/{run_id}/cancel"
    answers = [await scene.http.post(path) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["cancellation_requested"] is True
    assert answers[0].json()["environment_vars"] == {"A": "b"}
    assert await scene.outbox() == [f"{run_id}/training_requested", f"{run_id}/cancellation_requested"]
    await scene.happen(life.cancellation(run_id), life.cancelled(run_id=run_id))
    late = await scene.http.post(path)
    assert (late.status_code, late.json()["run_id"]) == (409, run_id)


async def test_an_old_leader_does_not_overwrite_the_load_of_a_newer_one() -> None:
    view = LoadView()
    await view.on_load([published_load(epoch=2, free_cores=8), published_load(epoch=1, free_cores=1)])
    assert view.newest is not None
    assert view.newest.epoch == 2

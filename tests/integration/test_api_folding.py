"""Protects the end of a run: version, claim, status and event at once, once, and only by the current attempt."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from schemas.cloudevents import UnknownEvent
from schemas.events import ModelVersionCreated, RunSucceeded
from schemas.ids import checkpoint_key, checkpoints_folder, event_id
from schemas.reason import Reason
from services.api.handlers import Handlers
from services.backbone.consumer import Received
from tests.integration.conftest import Database
from tests.integration.test_api_scene import Api, opened_api
from tests.life_of_a_run import ARTIFACT, at, cancelled, failed, queued, requested, requeued, started, succeeded

VARIABLES = {"LEARNING_RATE": "0.001"}


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with opened_api(database, tmp_path) as opened:
        yield opened


@pytest.fixture
async def model_id(api: Api) -> str:
    return await api.model()


@pytest.fixture
async def run_id(api: Api, model_id: str) -> str:
    return await api.started(model_id, environment_vars=VARIABLES)


def life(run_id: str, end: Any) -> list[Any]:
    return [queued(run_id=run_id), started(run_id=run_id), end]


def without_artifact(run_id: str) -> RunSucceeded:
    return succeeded(run_id=run_id).model_copy(update={"artifact": None, "reason": Reason.NO_ARTIFACT})


async def state(api: Api) -> list[Any]:
    tables = ("runs", "models", "versions", "outbox")
    return [await api.admin.fetch(f"SELECT * FROM {table}") for table in tables]  # noqa: S608 - our own words


async def test_the_status_follows_the_events(api: Api, model_id: str, run_id: str) -> None:
    path, seen = f"models/{model_id}/runs/{run_id}", []
    for fact in life(run_id, succeeded(run_id=run_id)):
        await api.fold(fact)
        seen.append((await api.get(path))["status"])
    assert seen == ["starting", "running", "succeeded"]


async def test_end_version_release_and_event_are_one_transaction(api: Api, model_id: str, run_id: str) -> None:
    await api.fold(*life(run_id, succeeded(run_id=run_id)))
    ended = await api.admin.fetchrow(
        "SELECT v.xmin = m.xmin AND v.xmin = o.xmin AS together, m.active_run_id, m.latest_version, v.version"
        " FROM versions v JOIN models m USING (model_id) JOIN outbox o ON o.subject = v.run_id"
        " WHERE v.run_id = $1 ORDER BY o.id DESC LIMIT 1",
        run_id,
    )
    assert ended is not None
    assert dict(ended) == {"together": True, "active_run_id": None, "latest_version": 1, "version": 1}
    assert await api.outbox(run_id) == ["training_requested", "model_version_created"]


async def test_an_end_whose_version_cannot_be_told_is_no_end(api: Api, model_id: str, run_id: str) -> None:
    await api.fold(queued(run_id=run_id), started(run_id=run_id))
    before = await state(api)
    await api.admin.execute("ALTER TABLE outbox ADD CONSTRAINT nothing_more CHECK (false) NOT VALID")
    with pytest.raises(Exception, match="nothing_more"):
        await api.fold(succeeded(run_id=run_id))
    assert await state(api) == before
    await api.admin.execute("ALTER TABLE outbox DROP CONSTRAINT nothing_more")
    await api.fold(succeeded(run_id=run_id))
    assert (await api.get(f"models/{model_id}"))["latest_version"] == 1


async def test_a_version_is_shown_as_the_run_made_it(api: Api, model_id: str, run_id: str) -> None:
    await api.fold(*life(run_id, succeeded(run_id=run_id)))
    version = await api.get(f"models/{model_id}/versions/1")
    assert version | {"created_at": None} == {
        "version": 1,
        "model_id": model_id,
        "run_id": run_id,
        "kind": "file",
        "sha256": ARTIFACT.sha256,
        "size_bytes": ARTIFACT.size_bytes,
        "created_at": None,
    }
    run = await api.get(f"models/{model_id}/runs/{run_id}")
    assert (run["version"], run["exit_code"], run["reason"]) == (1, 0, None)
    assert run["usage"] == {"peak_memory_bytes": 91_750_400, "cpu_seconds": 58.25, "wall_seconds": 61.0}


async def test_a_second_delivery_changes_nothing(api: Api, run_id: str) -> None:
    events = [requested(run_id), *life(run_id, succeeded(run_id=run_id))]
    await api.fold(*events)
    before = await state(api)
    await api.fold(*events)
    await api.fold(ModelVersionCreated(run_id=run_id, tenant_id="acme", model_id="m", version=9, artifact=ARTIFACT))
    assert await state(api) == before


@pytest.mark.parametrize("late", [succeeded, failed, cancelled], ids=["succeeded", "failed", "cancelled"])
async def test_an_end_of_a_replaced_attempt_changes_nothing(api: Api, run_id: str, late: Any) -> None:
    await api.fold(queued(run_id=run_id), started(run_id=run_id), requeued(run_id=run_id))
    before = await state(api)
    await api.fold(late(attempt=1, run_id=run_id))
    assert await state(api) == before
    await api.fold(queued(2, run_id), started(2, run_id), succeeded(2, run_id))
    assert await api.count("versions") == 1


@pytest.mark.parametrize("late", [succeeded, failed], ids=["succeeded", "failed"])
async def test_the_first_end_counts_and_a_cancelled_run_makes_no_version(
    api: Api, model_id: str, run_id: str, late: Any
) -> None:
    await api.fold(*life(run_id, cancelled(run_id=run_id)), late(run_id=run_id))
    run = await api.get(f"models/{model_id}/runs/{run_id}")
    assert (run["status"], run["reason"], run["version"]) == ("cancelled", "user_request", None)
    assert (await api.get(f"models/{model_id}/versions"))["items"] == []
    assert await api.outbox(run_id) == ["training_requested"]


@pytest.mark.parametrize("end", [succeeded, failed, cancelled], ids=["succeeded", "failed", "cancelled"])
async def test_variables_are_gone_at_the_end_and_their_names_stay(
    api: Api, model_id: str, run_id: str, end: Any
) -> None:
    await api.fold(queued(run_id=run_id), started(run_id=run_id))
    assert await api.has_variables(run_id)
    await api.fold(end(run_id=run_id))
    assert not await api.has_variables(run_id)
    assert not await api.admin.fetchval("SELECT variables_held FROM runs WHERE run_id = $1", run_id)
    assert (await api.get(f"models/{model_id}/runs/{run_id}"))["environment_vars"] == {"LEARNING_RATE": None}


@pytest.mark.parametrize("end", [succeeded, failed, cancelled], ids=["succeeded", "failed", "cancelled"])
async def test_checkpoints_outlive_a_lost_attempt_and_are_gone_at_the_end(api: Api, run_id: str, end: Any) -> None:
    await api.fold(queued(run_id=run_id), started(run_id=run_id))
    others = checkpoint_key(f"{run_id}0", 1)
    for key in (checkpoint_key(run_id, 1), checkpoint_key(run_id, 2), others):
        await api.context.objects.put(key, b"kept")
    await api.fold(requeued(run_id=run_id), end(attempt=1, run_id=run_id))
    assert len(await api.held(checkpoints_folder(run_id))) == 2
    await api.fold(queued(2, run_id), started(2, run_id), end(attempt=2, run_id=run_id))
    assert await api.held("checkpoints") == {others}


async def test_a_lost_attempt_keeps_the_variables_and_the_claim(api: Api, model_id: str, run_id: str) -> None:
    await api.fold(queued(run_id=run_id), started(run_id=run_id), requeued(run_id=run_id))
    assert await api.has_variables(run_id)
    assert (await api.get(f"models/{model_id}"))["status"] == "training"
    assert (await api.train(model_id)).status_code == 409


async def test_a_model_is_draft_then_training_then_trained_and_goes_back_to_what_it_was(
    api: Api, model_id: str
) -> None:
    ends: list[Any] = [failed, without_artifact, succeeded, cancelled, succeeded]
    seen = [(await api.get(f"models/{model_id}"))["status"]]
    for end in ends:
        run_id = await api.started(model_id)
        seen.append((await api.get(f"models/{model_id}"))["status"])
        await api.fold(*life(run_id, end(run_id=run_id)))
        model = await api.get(f"models/{model_id}")
        seen.append(model["status"])
        assert model["last_run"]["run_id"] == run_id
    assert [seen[0], *seen[2::2]] == ["draft", "draft", "draft", "trained", "trained", "trained"]
    assert set(seen[1::2]) == {"training"}
    assert (model["latest_version"], model["last_run"]["version"]) == (2, 2)


async def test_a_run_without_an_artifact_succeeds_and_makes_no_version(api: Api, model_id: str, run_id: str) -> None:
    await api.fold(*life(run_id, without_artifact(run_id)))
    run = await api.get(f"models/{model_id}/runs/{run_id}")
    assert (run["status"], run["reason"], run["version"]) == ("succeeded", "no_artifact", None)
    assert await api.count("versions") == 0


async def test_an_ended_run_cannot_be_cancelled(api: Api, model_id: str, run_id: str) -> None:
    await api.fold(*life(run_id, failed(run_id=run_id)))
    response = await api.http.post(f"/api/v1/models/{model_id}/runs/{run_id}/cancel")
    assert (response.status_code, response.json()["type"].rpartition("/")[2]) == (409, "run-ended")


async def test_strangers_runs_and_unknown_types_are_passed_over(api: Api, run_id: str) -> None:
    before = await state(api)
    await api.fold(requested("run-of-nobody"), succeeded(run_id="run-of-nobody"))
    unknown = UnknownEvent(event_id(run_id, 1, "x"), "/newer", "runyard.run.paused.v7", run_id, at(1), b"{}")
    handlers = Handlers(api.context.pool, api.context.variables, api.context.objects)
    await handlers.on_run_facts([Received("runyard.runs", 0, 1, unknown, b"{}")])
    assert await state(api) == before

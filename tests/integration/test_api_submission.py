"""Protects acceptance: one transaction for all that a run is, once per model and key, and no secret in any table."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Database
from tests.integration.test_api_scene import Api, bearer, opened_api

CANARY = "canary-7b1f4e"
KEY = {"Idempotency-Key": "key-1"}


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with opened_api(database, tmp_path) as opened:
        yield opened


async def test_run_claim_event_and_key_are_written_by_one_transaction(api: Api) -> None:
    model_id = await api.model()
    response = await api.train(model_id, KEY)
    run = response.json()
    assert (response.status_code, run["status"], run["model_type"]) == (202, "queued", "custom")
    assert response.headers["location"] == f"/api/v1/models/{model_id}/runs/{run['run_id']}"
    written = await api.admin.fetch(
        "SELECT xmin::text FROM runs UNION SELECT xmin::text FROM outbox UNION SELECT xmin::text FROM idempotency_keys"
        " UNION SELECT xmin::text FROM models WHERE active_run_id = $1",
        run["run_id"],
    )
    assert len(written) == 1
    assert await api.outbox(run["run_id"]) == ["training_requested"]
    assert (await api.get(f"models/{model_id}"))["status"] == "training"


async def test_two_submissions_of_one_model_at_once_make_one_run(api: Api) -> None:
    model_id = await api.model()
    answers = await asyncio.gather(*(api.train(model_id, environment_vars={"TOKEN": "x"}) for _ in range(2)))
    accepted, refused = sorted(answers, key=lambda answer: answer.status_code)
    assert (accepted.status_code, refused.status_code) == (202, 409)
    assert refused.json()["run_id"] == accepted.json()["run_id"]
    assert refused.json()["type"].endswith("/run-in-progress")
    assert await api.count("runs") == await api.count("outbox") == 1
    assert await api.held("variables") == {f"variables/{accepted.json()['run_id']}"}


async def test_the_same_key_and_body_get_the_first_answer_and_create_nothing(api: Api) -> None:
    model_id = await api.model()
    first = await api.train(model_id, KEY, environment_vars={"TOKEN": CANARY})
    again = await api.train(model_id, KEY, environment_vars={"TOKEN": CANARY})
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert await api.count("runs") == await api.count("outbox") == len(await api.held("variables")) == 1


async def test_defaults_written_out_are_the_same_request(api: Api) -> None:
    model_id = await api.model()
    first = await api.train(model_id, KEY)
    again = await api.train(model_id, KEY, timeout_seconds=7200, compute={"gpu": False, "memory_gb": 8})
    assert again.json() == first.json()


async def test_one_key_used_at_once_by_many_makes_one_run(api: Api) -> None:
    model_id = await api.model()
    answers = await asyncio.gather(*(api.train(model_id, KEY, environment_vars={"A": "1"}) for _ in range(4)))
    assert [answer.status_code for answer in answers] == [202] * 4
    assert len({answer.json()["run_id"] for answer in answers}) == await api.count("runs") == 1
    assert len(await api.held("variables")) == 1


async def test_the_same_key_with_another_body_is_refused(api: Api) -> None:
    model_id = await api.model()
    await api.train(model_id, KEY, environment_vars={"TOKEN": "one"})
    other = await api.train(model_id, KEY, environment_vars={"TOKEN": "two"})
    assert (other.status_code, other.json()["type"].rpartition("/")[2]) == (422, "idempotency-key-reused")
    assert await api.count("runs") == 1


async def test_a_refusal_does_not_use_a_key_up(api: Api) -> None:
    model_id = await api.model()
    assert (await api.train(model_id, KEY, entry_point="other.py")).status_code == 422
    assert (await api.train(model_id, KEY)).status_code == 202


async def test_a_key_is_a_tenants_own(api: Api) -> None:
    path, rival = "/api/v1/datasets", bearer("rival")
    mine = await api.http.post(path, json={"name": "mine"}, headers=KEY)
    theirs = await api.http.post(path, json={"name": "theirs"}, headers=KEY | rival)
    assert (mine.status_code, theirs.status_code) == (201, 201)
    assert mine.json()["dataset_id"] != theirs.json()["dataset_id"]
    again = await api.http.post(path, json={"name": "mine"}, headers=KEY)
    assert (again.json(), await api.count("datasets")) == (mine.json(), 2)


async def test_a_key_is_a_paths_own(api: Api) -> None:
    first, second = await api.model(), await api.model()
    answers = [await api.train(model_id, KEY) for model_id in (first, second)]
    assert [answer.json()["model_id"] for answer in answers] == [first, second]


@pytest.mark.parametrize("key", ["", "k" * 256, "two words"])
async def test_a_malformed_key_is_refused(api: Api, key: str) -> None:
    response = await api.http.post("/api/v1/datasets", json={"name": "x"}, headers={"Idempotency-Key": key})
    assert (response.status_code, await api.count("datasets")) == (422, 0)


async def test_variables_are_sealed_in_the_store_and_shown_to_their_tenant(api: Api) -> None:
    model_id = await api.model()
    run_id = await api.started(model_id, environment_vars={"TOKEN": CANARY})
    [key] = await api.held("variables")
    assert CANARY.encode() not in await api.context.objects.get(key)
    assert (await api.get(f"models/{model_id}/runs/{run_id}"))["environment_vars"] == {"TOKEN": CANARY}


@pytest.mark.parametrize("body", [{"entry_point": "other.py"}, {}], ids=["admission", "in-progress"])
async def test_a_refused_request_leaves_no_variables(api: Api, body: dict[str, Any]) -> None:
    model_id = await api.model()
    if not body:
        await api.started(model_id)
    assert (await api.train(model_id, environment_vars={"TOKEN": CANARY}, **body)).status_code in (409, 422)
    assert await api.held("variables") == set()


async def test_a_database_that_refuses_the_run_leaves_nothing(api: Api) -> None:
    model_id = await api.model()
    await api.admin.execute("ALTER TABLE outbox ADD CHECK (topic = 'nowhere')")
    response = await api.train(model_id, KEY, environment_vars={"TOKEN": CANARY})
    assert response.status_code == 500
    assert CANARY not in response.text
    assert await api.count("runs") == await api.count("idempotency_keys") == 0
    assert await api.held("variables") == set()
    assert (await api.get(f"models/{model_id}"))["status"] == "draft"


async def test_no_table_ever_holds_a_variables_value(api: Api) -> None:
    model_id = await api.model()
    first = await api.train(model_id, KEY, environment_vars={"TOKEN": CANARY})
    await api.train(model_id, KEY, environment_vars={"TOKEN": CANARY})
    await api.train(model_id, environment_vars={"OTHER": CANARY})
    cancel = f"/api/v1/models/{model_id}/runs/{first.json()['run_id']}/cancel"
    assert (await api.http.post(cancel, headers=KEY)).json()["environment_vars"] == {"TOKEN": CANARY}
    tables = await api.admin.fetch(
        "SELECT table_schema || '.' || table_name AS name FROM information_schema.tables"
        " WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')"
    )
    assert {"registry.runs", "registry.outbox", "registry.idempotency_keys"} <= {row["name"] for row in tables}
    for table in tables:
        rows = await api.admin.fetch(f"SELECT found::text AS text FROM {table['name']} AS found")  # noqa: S608
        text = json.dumps([row["text"] for row in rows])
        assert CANARY not in text
        assert CANARY.encode().hex() not in text


async def test_what_a_run_uses_is_pinned_when_it_is_accepted(api: Api) -> None:
    model_id = await api.model()
    run_id = await api.started(model_id)
    pinned = "SELECT state -> 'spec' FROM runs WHERE run_id = $1"
    before = await api.admin.fetchval(pinned, run_id)
    dataset_id = json.loads(before)["dataset"]["dataset_id"]
    assert (await api.content(dataset_id, b"other")).status_code == 200
    replaced = (await api.asset(model_id, b"other()")).json()
    assert (await api.http.delete(f"/api/v1/models/{model_id}/assets/{replaced['asset_id']}")).status_code == 204
    assert await api.admin.fetchval(pinned, run_id) == before
    told = await api.admin.fetchval("SELECT value FROM outbox WHERE subject = $1", run_id)
    assert json.loads(told)["spec"]["assets"] == json.loads(before)["assets"]
    assert replaced["sha256"] not in told


async def test_cancelling_twice_asks_once(api: Api) -> None:
    model_id = await api.model()
    run_id = await api.started(model_id)
    answers = [await api.http.post(f"/api/v1/models/{model_id}/runs/{run_id}/cancel") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[1].json()["cancellation_requested"] is True
    assert await api.outbox(run_id) == ["training_requested", "cancellation_requested"]

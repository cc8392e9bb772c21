"""Protects tenants from one another: what belongs to another one is not there, in no way that could be told."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.cli.embedded_postgres import EmbeddedPostgres
from tests.integration.api_scene import Scene, client_of, scene_on, token
from tests.security.http_scene import OPERATIONS, PROBLEM, Belongings, Operation, furnish, migrated_database

LEAST = {"entry_point": "train.py", "runtime": "python3.11"}
SCRIPT = {"file": ("stolen.py", b"print()")}
SENT: dict[str, dict[str, Any]] = {
    "PUT /api/v1/datasets/{dataset_id}/content": {"params": {"filename": "stolen.csv"}, "content": b"stolen"},
    "POST /api/v1/models/{model_id}/assets": {"files": SCRIPT, "data": {"asset_type": "script"}},
    "DELETE /api/v1/models/{model_id}/assets/{asset_id}": {},
    "POST /api/v1/models/{model_id}/custom/train": {"json": LEAST},
    "POST /api/v1/models/{model_id}/runs/{run_id}/cancel": {},
}
"""What a request that changes something sends."""
LISTS = {"GET /api/v1/datasets", "GET /api/v1/models", "GET /api/v1/audit-log"}
CREATIONS = {"POST /api/v1/datasets", "POST /api/v1/models"}
WITH_IDS = [operation for operation in OPERATIONS if "{" in operation.path]


@dataclass(frozen=True)
class Neighbours:
    """Two tenants of one api; the second one is curious."""

    owner: Scene
    owned: Belongings
    curious: Scene
    own: Belongings

    async def everything(self) -> list[Any]:
        """All that the owner sees."""
        seen = []
        for ids in (self.owned.ended, self.owned.busy):
            for operation in OPERATIONS:
                if operation.method == "GET":
                    answer = await self.owner.http.get(operation.path.format_map(ids))
                    seen.append((str(operation), answer.status_code, answer.content))
        return seen


@pytest_asyncio.fixture(scope="module")
async def neighbours(
    postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Neighbours]:
    folder = Path(tmp_path_factory.mktemp("objects"))
    async with migrated_database(postgres_server) as database, scene_on(database, folder) as owner:
        curious = replace(owner, http=client_of(owner.context, f"Bearer {token('rival')}"))
        yield Neighbours(owner, await furnish(owner, "acme"), curious, await furnish(curious, "rival"))
        await curious.http.aclose()


def absent(identity: str) -> str:
    """An id of the same shape that nobody has."""
    return identity[:-4] + ("0000" if not identity.endswith("0000") else "1111")


def told(answer: httpx.Response, *identities: str) -> tuple[Any, ...]:
    """All that an answer tells, but for the ids that were asked for and the request's own id."""
    text = answer.text
    for identity in identities:
        text = text.replace(identity, "ID")
    headers = [(name, value) for name, value in answer.headers.multi_items() if name != "x-request-id"]
    return answer.status_code, sorted(headers), text


def test_every_endpoint_has_its_case() -> None:
    writing = {str(operation) for operation in WITH_IDS if operation.method != "GET"}
    assert writing == set(SENT)
    assert {str(operation) for operation in OPERATIONS if "{" not in operation.path} == LISTS | CREATIONS


@pytest.mark.parametrize("operation", WITH_IDS, ids=str)
@pytest.mark.parametrize("state", ["ended", "busy"])
async def test_anothers_object_is_as_absent_as_one_that_never_was(
    operation: Operation, state: str, neighbours: Neighbours
) -> None:
    theirs, own = getattr(neighbours.owned, state), getattr(neighbours.own, state)
    names = [name for name in theirs if f"{{{name}}}" in operation.path and name != "version"]
    before = await neighbours.everything()
    for foreign in product([True, False], repeat=len(names)):
        if not any(foreign):
            continue
        taken = [name for name, is_foreign in zip(names, foreign, strict=True) if is_foreign]
        asked = own | {name: theirs[name] for name in taken}
        never = own | {name: absent(theirs[name]) for name in taken}
        there = await _request(neighbours, operation, asked)
        nowhere = await _request(neighbours, operation, never)
        assert there.status_code == 404, (operation, taken)
        assert there.headers["content-type"] == PROBLEM
        assert set(there.json()) == {"type", "title", "status", "detail", "instance"}
        assert told(there, *asked.values()) == told(nowhere, *never.values())
    assert await neighbours.everything() == before


async def _request(neighbours: Neighbours, operation: Operation, ids: dict[str, str]) -> httpx.Response:
    path, sent = operation.path.format_map(ids), SENT.get(str(operation), {})
    return await neighbours.curious.http.request(operation.method, path, **sent)


@pytest.mark.parametrize("query", ["follow=true", "tail=5", "limit=1", "stream=stdout", "name=loss", "after=WzEsMV0"])
@pytest.mark.parametrize("part", ["logs", "metrics"])
async def test_no_parameter_opens_anothers_run(query: str, part: str, neighbours: Neighbours) -> None:
    ids = neighbours.owned.ended
    path = f"/api/v1/models/{ids['model_id']}/runs/{ids['run_id']}/{part}?{query}"
    answer = await neighbours.curious.http.get(path, headers={"Last-Event-ID": "WzEsMV0"})
    assert answer.status_code == 404


def all_ids(belongings: Belongings) -> set[str]:
    return {identity for ids in (belongings.ended, belongings.busy) for identity in ids.values()} - {"1"}


@pytest.mark.parametrize("path", sorted(LISTS))
async def test_no_list_shows_what_is_anothers(path: str, neighbours: Neighbours) -> None:
    text = (await neighbours.curious.http.get(path.removeprefix("GET "))).text
    assert [identity for identity in all_ids(neighbours.owned) if identity in text] == []
    assert any(identity in text for identity in all_ids(neighbours.own))


@pytest.mark.parametrize("name", ["run_id", "model_id"])
async def test_no_filter_of_the_audit_log_finds_what_is_anothers(name: str, neighbours: Neighbours) -> None:
    theirs = neighbours.owned.ended[name]
    found = [await neighbours.curious.http.get("/api/v1/audit-log", params={name: x}) for x in (theirs, absent(theirs))]
    assert found[0].json()["items"] == []
    assert told(found[0], theirs) == told(found[1], absent(theirs))


async def test_a_model_cannot_be_linked_to_anothers_dataset(neighbours: Neighbours) -> None:
    theirs = neighbours.owned.ended["dataset_id"]
    answers = []
    for dataset_id in (theirs, absent(theirs)):
        body = {"name": "m", "model_type": "custom", "dataset_id": dataset_id}
        answers.append(await neighbours.curious.http.post("/api/v1/models", json=body))
    assert answers[0].status_code == 422
    assert answers[0].json()["errors"] == [{"pointer": "/dataset_id", "message": "there is no such dataset"}]
    assert told(answers[0], theirs) == told(answers[1], absent(theirs))


async def test_a_training_cannot_start_from_anothers_script(neighbours: Neighbours) -> None:
    assert (await neighbours.owner.asset(neighbours.owned.ended["model_id"], "owners.py")).status_code == 201
    model_id = await neighbours.curious.model()
    for entry_point in ("owners.py", neighbours.owned.ended["asset_id"]):
        answers = [await neighbours.curious.train(model_id, entry_point=x) for x in (entry_point, absent(entry_point))]
        assert answers[0].status_code == 422
        assert answers[0].json()["type"].endswith("/entry-point-not-found")
        assert told(answers[0], entry_point) == told(answers[1], absent(entry_point))


async def test_anothers_cursor_leads_nowhere_but_through_ones_own_list(neighbours: Neighbours) -> None:
    tried = 0
    for operation in OPERATIONS:
        if operation.method != "GET":
            continue
        first = await neighbours.owner.http.get(operation.path.format_map(neighbours.owned.ended) + "?limit=1")
        cursor = first.json().get("next_cursor") if first.headers["content-type"] == "application/json" else None
        if cursor is None:
            continue
        path = operation.path.format_map(neighbours.own.ended)
        for name in ("cursor", "after"):
            answer = await neighbours.curious.http.get(path, params={name: cursor})
            assert answer.status_code == 200, (operation, answer.text)
            assert [identity for identity in all_ids(neighbours.owned) if identity in answer.text] == []
        tried += 1
    assert tried >= 6  # datasets, models, logs, metrics, events, audit log


@pytest.mark.parametrize("part", ["logs", "metrics"])
async def test_anothers_last_event_id_leads_nowhere_but_through_ones_own_output(
    part: str, neighbours: Neighbours
) -> None:
    theirs, own = neighbours.owned.ended, neighbours.own.ended
    followed = await neighbours.owner.http.get(
        f"/api/v1/models/{theirs['model_id']}/runs/{theirs['run_id']}/{part}?follow=true"
    )
    last = next(line.removeprefix("id: ") for line in followed.text.splitlines() if line.startswith("id: "))
    answer = await neighbours.curious.http.get(
        f"/api/v1/models/{own['model_id']}/runs/{own['run_id']}/{part}?follow=true", headers={"Last-Event-ID": last}
    )
    assert answer.status_code == 200
    assert theirs["run_id"] not in answer.text
    assert own["run_id"] in answer.text


@pytest.mark.parametrize("path", ["/api/v1/datasets", "/api/v1/models"])
async def test_anothers_idempotency_key_is_free(path: str, neighbours: Neighbours) -> None:
    headers, body = {"Idempotency-Key": f"the-key-of-{path}"}, {"name": "same"}
    body |= {"model_type": "custom"} if path.endswith("models") else {}
    first = await neighbours.owner.http.post(path, json=body, headers=headers)
    other = await neighbours.curious.http.post(path, json=body | {"name": "other"}, headers=headers)
    assert (first.status_code, other.status_code) == (201, 201)
    assert "idempotency-replayed" not in other.headers
    assert (first.json()["name"], other.json()["name"]) == ("same", "other")
    assert first.headers["location"] != other.headers["location"]


async def test_anothers_idempotency_key_does_not_replay_what_it_was_used_for(neighbours: Neighbours) -> None:
    headers = {"Idempotency-Key": "used-by-its-owner"}
    model_id = await neighbours.owner.model()
    trained = f"/api/v1/models/{model_id}/custom/train"
    uploaded = f"/api/v1/models/{model_id}/assets"
    upload: dict[str, Any] = {"files": SCRIPT, "data": {"asset_type": "script"}, "headers": headers}
    assert (await neighbours.owner.http.post(uploaded, **upload)).status_code == 201
    accepted = await neighbours.owner.http.post(trained, json=LEAST, headers=headers)
    assert accepted.status_code == 202
    cancelled = f"/api/v1/models/{model_id}/runs/{accepted.json()['run_id']}/cancel"
    assert (await neighbours.owner.http.post(cancelled, headers=headers)).status_code == 202
    assert (await neighbours.curious.http.post(uploaded, **upload)).status_code == 404
    assert (await neighbours.curious.http.post(trained, json=LEAST, headers=headers)).status_code == 404
    assert (await neighbours.curious.http.post(cancelled, headers=headers)).status_code == 404


@pytest.mark.parametrize("tenant", ["ACME", "acme ", " acme", "acme%00", "acm\u0435", "acme/../acme", "*", "%"])
async def test_a_tenant_whose_name_only_resembles_the_owners_sees_nothing(tenant: str, neighbours: Neighbours) -> None:
    async with client_of(neighbours.owner.context, f"Bearer {token(tenant)}") as http:
        for path in sorted(LISTS):
            assert (await http.get(path.removeprefix("GET "))).json()["items"] == []
        assert (await http.get(f"/api/v1/models/{neighbours.owned.ended['model_id']}")).status_code == 404


async def test_a_tenants_name_may_look_like_sql_and_is_a_name_all_the_same(neighbours: Neighbours) -> None:
    for name in ("' OR '1'='1", "acme'--", "acme'; DROP TABLE registry.models;--", "$1", "\\"):
        async with client_of(neighbours.owner.context, f"Bearer {token(name)}") as http:
            assert (await http.get("/api/v1/models")).json() == {"items": [], "next_cursor": None}
    assert (await neighbours.owner.http.get("/api/v1/models")).json()["items"] != []

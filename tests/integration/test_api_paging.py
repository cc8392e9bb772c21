"""Protects lists and declared answers: every item once in pages of two, and no status that the document lacks."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Database
from tests.integration.test_api_scene import MAX_JSON_BYTES, Api, bearer, opened_api
from tests.life_of_a_run import queued, started, succeeded


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with opened_api(database, tmp_path) as opened:
        yield opened


async def pages(api: Api, path: str) -> list[list[Any]]:
    """All pages of two items."""
    found: list[list[Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = await api.get(path, limit=2, **cursor)
        found.append(page["items"])
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


async def five(api: Api, what: str) -> tuple[str, str, list[Any]]:
    """Make five of something; returns their list's path, their id's field and the ids, oldest first."""
    if what == "datasets":
        return what, "dataset_id", [(await api.made(what, {"name": "d"}))["dataset_id"] for _ in range(5)]
    if what == "models":
        body = {"name": "m", "model_type": "auto"}
        return what, "model_id", [(await api.made(what, body))["model_id"] for _ in range(5)]
    model_id = await api.model()
    path = f"models/{model_id}/{what}"
    if what == "assets":
        first = (await api.get(path))["items"][0]["asset_id"]
        rest = [(await api.asset(model_id, b"x", f"{number}.py")).json()["asset_id"] for number in range(4)]
        return path, "asset_id", [first, *rest]
    run_ids = []
    for _ in range(5):
        run_ids.append(run_id := await api.started(model_id))
        await api.fold(queued(run_id=run_id), started(run_id=run_id), succeeded(run_id=run_id))
    return (path, "run_id", run_ids) if what == "runs" else (path, "version", [1, 2, 3, 4, 5])


@pytest.mark.parametrize("what", ["datasets", "models", "assets", "runs", "versions"])
async def test_five_items_come_in_pages_of_two_newest_first_each_once(api: Api, what: str) -> None:
    path, field, made = await five(api, what)
    found = await pages(api, path)
    assert [len(page) for page in found] == [2, 2, 1]
    seen = [item[field] for page in found for item in page]
    assert sorted(seen) == sorted(made)
    times = [item["created_at"] for page in found for item in page]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("what", ["datasets", "models"])
async def test_items_made_in_one_millisecond_are_paged_by_id(api: Api, what: str) -> None:
    path, field, made = await five(api, what)
    await api.admin.execute(f"UPDATE {what} SET created_at = '2026-03-13T16:10:00Z'")  # noqa: S608 - our own words
    seen = [item[field] for page in await pages(api, path) for item in page]
    assert seen == sorted(made, reverse=True)


async def test_an_item_made_while_paging_does_not_shift_what_follows(api: Api) -> None:
    path, field, made = await five(api, "datasets")
    first = await api.get(path, limit=2)
    await api.made("datasets", {"name": "late"})
    rest = await api.get(path, limit=200, cursor=first["next_cursor"])
    assert sorted(item[field] for item in first["items"] + rest["items"]) == sorted(made)


async def test_a_page_that_is_just_full_is_the_last(api: Api) -> None:
    path, _, _ = await five(api, "datasets")
    page = await api.get(path, limit=5)
    assert (len(page["items"]), page["next_cursor"]) == (5, None)


async def test_a_foreign_cursor_shows_only_what_is_the_callers(api: Api) -> None:
    path, _, _ = await five(api, "datasets")
    cursor = (await api.get(path, limit=2))["next_cursor"]
    response = await api.http.get(f"/api/v1/{path}", params={"cursor": cursor}, headers=bearer("rival"))
    assert response.json() == {"items": [], "next_cursor": None}


BODIES: list[dict[str, Any]] = [
    {},
    {"json": {}},
    {"json": {"name": "x", "model_type": "custom", "runtime": "python3.11", "entry_point": "train.py"}},
    {"content": b"{", "headers": {"Content-Type": "application/json"}},
    {"content": b"x" * (MAX_JSON_BYTES + 1), "headers": {"Content-Type": "application/json"}},
    {"content": b"x", "headers": {"Content-Type": "text/plain"}},
    {"params": {"limit": "many", "cursor": "!", "after": "!", "filename": "../a", "since": "x"}},
    {"headers": {"Idempotency-Key": "k" * 300}},
    {"headers": {"Authorization": "Bearer x"}},
    {"headers": bearer(scopes=())},
]


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, told) for path, methods in document["paths"].items() for method, told in methods.items()]


async def test_every_answer_has_a_status_and_media_type_that_the_document_declares(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    model_id = await api.model()
    for path, method, told in operations(document):
        real = path.replace("{model_id}", model_id)
        for url in (real, path):
            url = url.replace("{version}", "1").replace("{", "").replace("}", "")
            for body in BODIES:
                response = await api.http.request(method, url, **body)
                status = str(response.status_code)
                assert status in told["responses"], (method, path, status, response.text)
                if response.status_code >= 400:
                    media_type = response.headers["content-type"]
                    assert media_type in told["responses"][status]["content"], (method, path, status)


async def test_every_declared_problem_has_its_own_status(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    for path, method, told in operations(document):
        assert {"401", "403", "422", "500", "503"} <= told["responses"].keys(), (method, path)
        for status, response in told["responses"].items():
            if int(status) >= 400:
                examples = response["content"]["application/problem+json"]["examples"].values()
                assert {str(example["value"]["status"]) for example in examples} == {status}

"""Protects the bounds of uploads: what arrives is counted, whatever a client announces, and nothing refused stays."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import Database
from tests.integration.test_api_scene import MAX_ASSET_BYTES, MAX_DATASET_BYTES, MAX_JSON_BYTES, Api, opened_api


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with opened_api(database, tmp_path) as opened:
        yield opened


async def chunked(content: bytes) -> AsyncIterator[bytes]:
    """Bytes of which no length is announced."""
    for start in range(0, len(content), 700):
        yield content[start : start + 700]


def too_large(response: httpx.Response, limit: int) -> bool:
    return response.status_code == 413 and response.json()["limit_bytes"] == limit


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "chunked"])
async def test_a_dataset_may_be_as_large_as_its_limit_and_no_byte_more(api: Api, stream: bool) -> None:
    dataset_id = (await api.made("datasets", {"name": "wine"}))["dataset_id"]
    path = f"/api/v1/datasets/{dataset_id}/content?filename=a.csv"
    for size, fits in ((0, True), (MAX_DATASET_BYTES, True), (MAX_DATASET_BYTES + 1, False), (100_000, False)):
        content = b"x" * size
        response = await api.http.put(path, content=chunked(content) if stream else content)
        assert ("content-length" in response.request.headers) is not stream
        assert response.status_code == 200 if fits else too_large(response, MAX_DATASET_BYTES)
    assert (await api.get(f"datasets/{dataset_id}"))["size_bytes"] == MAX_DATASET_BYTES
    assert await api.held("uploads") == set()


@pytest.mark.parametrize("announced", ["1", "0"])
async def test_a_length_that_a_client_made_up_is_not_believed(api: Api, announced: str) -> None:
    dataset_id = (await api.made("datasets", {"name": "wine"}))["dataset_id"]
    content = chunked(b"x" * (MAX_DATASET_BYTES + 1))
    path, headers = f"/api/v1/datasets/{dataset_id}/content?filename=a.csv", {"Content-Length": announced}
    assert too_large(await api.http.put(path, content=content, headers=headers), MAX_DATASET_BYTES)
    assert (await api.get(f"datasets/{dataset_id}"))["sha256"] is None


async def test_an_asset_may_be_as_large_as_its_limit_and_no_byte_more(api: Api) -> None:
    model_id = (await api.made("models", {"name": "m", "model_type": "custom"}))["model_id"]
    assert (await api.asset(model_id, b"x" * MAX_ASSET_BYTES)).json()["size_bytes"] == MAX_ASSET_BYTES
    assert too_large(await api.asset(model_id, b"x" * (MAX_ASSET_BYTES + 1), "b.py"), MAX_ASSET_BYTES)
    assert (await api.asset(model_id, b"x" * 500_000, "c.py")).status_code == 413
    assert [asset["filename"] for asset in (await api.get(f"models/{model_id}/assets"))["items"]] == ["train.py"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "chunked"])
async def test_a_json_body_is_bounded_by_what_arrives(api: Api, stream: bool) -> None:
    for spare, status in ((0, 201), (1, 413)):
        content = b'{"name": "x"}'.ljust(MAX_JSON_BYTES + spare)
        response = await api.http.post(
            "/api/v1/datasets",
            content=chunked(content) if stream else content,
            headers={"Content-Type": "application/json"},
        )
        assert response.status_code == status
    assert await api.count("datasets") == 1


async def test_an_asset_uploaded_again_replaces_the_content_and_keeps_its_id(api: Api) -> None:
    model_id = (await api.made("models", {"name": "m", "model_type": "custom"}))["model_id"]
    first, second = [(await api.asset(model_id, content)).json() for content in (b"one", b"two")]
    assert first["asset_id"] == second["asset_id"]
    assert first["sha256"] != second["sha256"]
    assert await api.count("assets") == 1

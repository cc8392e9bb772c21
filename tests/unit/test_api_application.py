"""Protects the frame around all routes: methods, redirects and bodies that end at two places. Needs no database."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from services.api.application import make_application
from services.backbone.health import Health

PROBLEM = "application/problem+json"


@pytest_asyncio.fixture(scope="module")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_application(None, Health()))
    async with httpx.AsyncClient(transport=transport, base_url="http://api.test") as client:
        yield client


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/v1/models", "GET, POST"),
        ("/api/v1/datasets/dts-1/content", "GET, PUT"),
        ("/api/v1/models/mdl-1/assets", "GET, POST"),
        ("/api/v1/models/mdl-1/assets/ast-1", "DELETE"),
        ("/api/v1/models/mdl-1/custom/train", "POST"),
        ("/api/v1/audit-log", "GET"),
    ],
)
async def test_a_405_names_every_method_of_its_path(path: str, allowed: str, http: httpx.AsyncClient) -> None:
    response = await http.request("OPTIONS", path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert response.headers["content-type"] == PROBLEM


@pytest.mark.parametrize("path", ["/api/v1/models/", "/api/v1/datasets/", "/healthz/", "//api/v1/models"])
async def test_another_spelling_of_a_path_is_a_404_and_no_redirect(path: str, http: httpx.AsyncClient) -> None:
    response = await http.get(path)
    assert (response.status_code, "location" in response.headers) == (404, False)
    assert response.headers["content-type"] == PROBLEM


async def test_a_body_with_two_lengths_is_refused_and_the_connection_ends(http: httpx.AsyncClient) -> None:
    headers = {"Transfer-Encoding": "chunked", "Content-Length": "2"}
    response = await http.post("/api/v1/models", content=b"{}", headers=headers)
    assert (response.status_code, response.headers["connection"]) == (400, "close")
    assert response.json()["type"].endswith("/bad-request")

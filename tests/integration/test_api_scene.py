"""The api on a database of its own, in process: what the other tests of the api stand on, and what needs no token."""

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from schemas.ids import variables_key
from services.api.application import make_application
from services.api.context import Context
from services.api.handlers import Handlers
from services.api.main import SCHEMA, make_context
from services.api.settings import ApiSettings
from services.api.sweep import Sweeper
from services.backbone.health import Health
from services.backbone.postgres import open_pool
from services.cli.tokens import SCOPES, Claims, write_token
from tests.integration.conftest import Database
from tests.life_of_a_run import batch

SECRET = "a secret of at least thirty-two bytes"
LEAST = {"entry_point": "train.py", "runtime": "python3.11"}
MAX_JSON_BYTES, MAX_ASSET_BYTES, MAX_DATASET_BYTES = 100_000, 1_000, 2_000


def bearer(tenant: str = "acme", scopes: tuple[str, ...] = SCOPES) -> dict[str, str]:
    """The header of a valid token."""
    return {"Authorization": "Bearer " + write_token(SECRET, Claims(tenant, "ada", scopes), int(time.time()))}


@dataclass(frozen=True)
class Api:
    """A running api, its database as the administrator sees it, and a client that may do everything."""

    context: Context
    http: httpx.AsyncClient
    admin: asyncpg.Connection

    async def made(self, path: str, body: dict[str, Any], **more: Any) -> Any:
        response = await self.http.post(f"/api/v1/{path}", json=body, **more)
        assert response.status_code == 201, response.text
        return response.json()

    async def get(self, path: str, **parameters: Any) -> Any:
        response = await self.http.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()

    async def content(self, dataset_id: str, content: bytes = b"a,b\n1,2\n", **more: Any) -> httpx.Response:
        path = f"/api/v1/datasets/{dataset_id}/content"
        return await self.http.put(path, params={"filename": "data.csv"}, content=content, **more)

    async def asset(self, model_id: str, content: bytes, name: str = "train.py", **more: Any) -> httpx.Response:
        path, form = f"/api/v1/models/{model_id}/assets", {"asset_type": "script"}
        return await self.http.post(path, files={"file": (name, content)}, data=form, **more)

    async def model(self, **more: Any) -> str:
        """A model that can be trained."""
        dataset_id = (await self.made("datasets", {"name": "wine"}, **more))["dataset_id"]
        assert (await self.content(dataset_id, **more)).status_code == 200
        body = {"name": "wine", "model_type": "custom", "dataset_id": dataset_id}
        model_id: str = (await self.made("models", body, **more))["model_id"]
        assert (await self.asset(model_id, b"print()", **more)).status_code == 201
        return model_id

    async def train(self, model_id: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        path = f"/api/v1/models/{model_id}/custom/train"
        return await self.http.post(path, json=LEAST | body, headers=headers)

    async def started(self, model_id: str, **body: Any) -> str:
        response = await self.train(model_id, **body)
        assert response.status_code == 202, response.text
        run_id: str = response.json()["run_id"]
        return run_id

    async def fold(self, *facts: Any) -> None:
        """Hand events to the api's handler, as its consumer would."""
        await Handlers(self.context.pool, self.context.variables, self.context.objects).on_run_facts(batch(*facts))

    @property
    def sweeper(self) -> Sweeper:
        return Sweeper(self.context.pool, self.context.objects, self.context.variables)

    async def held(self, prefix: str) -> set[str]:
        """The keys of the objects below a prefix."""
        return {found.key async for found in self.context.objects.listing(prefix)}

    async def has_variables(self, run_id: str) -> bool:
        return await self.context.objects.stored_at(variables_key(run_id)) is not None

    async def count(self, table: str) -> int:
        found: int = await self.admin.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608 - our own words
        return found

    async def outbox(self, run_id: str) -> list[str]:
        """The types of a run's events that were decided here, in order."""
        rows = await self.admin.fetch("SELECT headers FROM outbox WHERE subject = $1 ORDER BY id", run_id)
        return [dict(json.loads(row["headers"]))["ce_type"].split(".")[2] for row in rows]


@asynccontextmanager
async def opened_api(database: Database, folder: Path) -> AsyncIterator[Api]:
    """Open an api on a test's own database and folder."""
    settings = ApiSettings(
        postgres_url=SecretStr(database.api_url),
        objects_url=f"file://{folder}",
        sealing_key=SecretStr("k1:" + base64.b64encode(b"k" * 32).decode()),
        jwt_secret=SecretStr(SECRET),
        max_json_bytes=MAX_JSON_BYTES,
        max_asset_bytes=MAX_ASSET_BYTES,
        max_dataset_bytes=MAX_DATASET_BYTES,
        follow_poll_s=0.01,
    )
    pool = await open_pool(database.api_url, SCHEMA, 5)
    admin = await asyncpg.connect(database.admin_url, server_settings={"search_path": SCHEMA})
    async with httpx.AsyncClient() as unused:
        context = make_context(settings, pool, Health(), unused)
        transport = httpx.ASGITransport(make_application(context, context.health))
        async with httpx.AsyncClient(transport=transport, base_url="http://api.test", headers=bearer()) as http:
            yield Api(context, http, admin)
    await admin.close()
    pool.terminate()


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with opened_api(database, tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/asyncapi"])
async def test_what_is_for_machines_needs_no_token(api: Api, path: str) -> None:
    assert (await api.http.get(path, headers={"Authorization": ""})).status_code == 200


async def test_a_part_that_fails_makes_the_api_not_ready_and_is_named(api: Api) -> None:
    api.context.health.failing("relay", "Kafka does not answer")
    response = await api.http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["parts"]["relay"]["detail"] == "Kafka does not answer"


async def test_every_answer_carries_a_request_id_and_keeps_a_given_one(api: Api) -> None:
    assert (await api.http.get("/api/v1/models")).headers["x-request-id"].startswith("req-")
    given = await api.http.get("/nowhere", headers={"X-Request-ID": "mine-1"})
    assert (given.status_code, given.headers["x-request-id"]) == (404, "mine-1")
    assert given.headers["content-type"] == "application/problem+json"


WRITES: list[Callable[[Api], Any]] = [
    lambda api: api.http.get("/api/v1/models"),
    lambda api: api.http.post("/api/v1/datasets", json={"name": "wine"}),
    lambda api: api.train("mdl-00000000"),
]


@pytest.mark.parametrize("request_of", WRITES, ids=["read", "write", "train"])
async def test_without_its_database_the_api_asks_to_come_back(api: Api, request_of: Callable[[Api], Any]) -> None:
    await api.context.pool.close()
    response = await request_of(api)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.headers["content-type"] == "application/problem+json"


async def test_connections_that_the_server_cut_are_replaced(api: Api) -> None:
    await api.get("models")
    name = await api.admin.fetchval("SELECT current_database()")
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND application_name = $2"
    await api.admin.fetch(cut, name, f"runyard-{SCHEMA}")
    answers = [(await api.http.get("/api/v1/models")).status_code for _ in range(6)]
    assert set(answers) <= {200, 503}
    assert answers[-1] == 200


async def test_a_database_that_cannot_be_reached_is_a_503_and_its_return_is_noticed(api: Api) -> None:
    name = await api.admin.fetchval("SELECT current_database()")
    await api.admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    await api.context.pool.expire_connections()
    assert (await api.http.get("/api/v1/models")).status_code == 503
    await api.admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
    assert (await api.http.get("/api/v1/models")).status_code == 200

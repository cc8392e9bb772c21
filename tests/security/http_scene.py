"""What the HTTP part of the security suite stands on: the api on a database of its own behind a real server.

Requests go over loopback sockets, as a stranger's would; `say` writes bytes that no HTTP client would write.
"""

import asyncio
import base64
import json
import secrets
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import uvicorn
from pydantic import SecretStr

from services.api.main import SCHEMA, make_context, make_server
from services.api.settings import ApiSettings
from services.backbone.health import Health
from services.backbone.postgres import open_pool
from services.cli.embedded_postgres import EmbeddedPostgres
from services.cli.migrate import migrate_all
from tests import life_of_a_run as life
from tests.integration.api_scene import SEALING_KEY, SECRET, Scene
from tests.integration.conftest import PASSWORDS, Database

DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parents[2] / "schemas" / "exported" / "openapi.json").read_text())
PROBLEM = "application/problem+json"
WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Operation:
    """An endpoint as the OpenAPI document has it."""

    method: str
    path: str
    scope: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


OPERATIONS = [
    Operation(method.upper(), path, said["x-required-scope"])
    for path, item in DOCUMENT["paths"].items()
    for method, said in item.items()
]


@asynccontextmanager
async def migrated_database(server: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A migrated database for the length of a block."""
    name = f"security_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(server.admin_url)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        url = urlunsplit(urlsplit(server.admin_url)._replace(path=f"/{name}"))
        await migrate_all(url, PASSWORDS)
        yield Database(url)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


def api_settings(database: Database, folder: Path, **changes: Any) -> ApiSettings:
    """Settings of an api on a database and a folder; tokens by the tests' secret, unless `changes` say otherwise."""
    told: dict[str, Any] = {
        "postgres_url": SecretStr(database.api_url),
        "objects_url": f"file://{folder}",
        "sealing_key": SecretStr(SEALING_KEY),
        "jwt_secret": SecretStr(SECRET),
        "follow_poll_s": 0.02,
    }
    return ApiSettings(**(told | changes))


@dataclass(frozen=True, slots=True)
class Served:
    """An api that listens, and its server."""

    address: str
    server: uvicorn.Server

    async def let_go(self) -> None:
        """Wait until no connection is open any more."""
        async with asyncio.timeout(WAIT_S):
            while self.server.server_state.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@asynccontextmanager
async def served(settings: ApiSettings) -> AsyncIterator[Served]:
    """Serve the api over loopback as the service itself does."""
    pool = await open_pool(settings.postgres_url.get_secret_value(), SCHEMA, 8)
    async with httpx.AsyncClient() as client:
        server = make_server(settings, make_context(settings, pool, Health(), client))
        async with listening(server) as address:
            yield Served(address, server)
    await pool.close()


@asynccontextmanager
async def listening(server: uvicorn.Server) -> AsyncIterator[str]:
    """Let a server listen on a free port of the loopback address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server._serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task


@dataclass(frozen=True, slots=True)
class Belongings:
    """What a tenant has: `ended` has run and made version 1, `busy` has a run in progress."""

    ended: dict[str, str]
    busy: dict[str, str]


async def furnish(scene: Scene, tenant: str) -> Belongings:
    """Give a tenant objects of every kind; the scene's client speaks for it."""
    ended, busy = await _submitted(scene), await _submitted(scene)
    run_id, model_id = ended["run_id"], ended["model_id"]
    await scene.succeed(run_id)
    begun = [life.requested(ids["run_id"], tenant_id=tenant, model_id=ids["model_id"]) for ids in (ended, busy)]
    rest = [life.queued(run_id=run_id), life.started(run_id=run_id), life.succeeded(run_id=run_id)]
    await scene.auditor.on_runs(life.batch(*begun, *rest))
    await scene.auditor.on_output([life.received(life.logs("one", "two", run_id=run_id))])
    await scene.auditor.on_output([life.received(life.metrics(0.5, 0.25, first=3, run_id=run_id))])
    assert (await scene.get(f"/api/v1/models/{model_id}"))["latest_version"] == 1
    return Belongings(ended, busy)


async def _submitted(scene: Scene) -> dict[str, str]:
    dataset_id = await scene.dataset()
    model_id = await scene.bare_model(dataset_id=dataset_id)
    asset_id = (await scene.asset(model_id)).json()["asset_id"]
    run_id = await scene.accepted(model_id, environment_vars={"EPOCHS": "3"})
    return {"dataset_id": dataset_id, "model_id": model_id, "asset_id": asset_id, "run_id": run_id, "version": "1"}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it stood on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def slug(self) -> str:
        """Which of our problems it is."""
        return str(json.loads(self.body)["type"]).rsplit("/", 1)[-1]


async def say(address: str, *pieces: bytes) -> list[Reply]:
    """Write bytes to a connection of one's own and read every answer until the server closes it."""
    reader, writer = await connected(address)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    return await answers(reader, writer)


async def connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a server."""
    parts = urlsplit(address)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[Reply]:
    """Read every answer until the server closes the connection."""
    try:
        async with asyncio.timeout(WAIT_S):
            return [reply async for reply in _replies(reader)]
    finally:
        writer.close()


async def _replies(reader: asyncio.StreamReader) -> AsyncIterator[Reply]:
    try:
        while status_line := await reader.readline():
            headers = {}
            while (line := await reader.readline()).strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            status, length = int(status_line.split()[1]), headers.get("content-length")
            if status < 200:
                body = b""
            else:
                body = await (reader.read() if length is None else reader.readexactly(int(length)))
            yield Reply(status, headers, body)
    except ConnectionError:  # cut: what was read before it counts
        return


def head(line: str, *headers: str, token: str | None = None) -> bytes:
    """Write the head of a request that asks to close the connection behind it."""
    lines = [f"{line} HTTP/1.1", "Host: api.test", "Connection: close", *headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunked(*pieces: bytes) -> bytes:
    """Write pieces as a chunked body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def encoded(part: bytes) -> str:
    """Base64url as tokens have it."""
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def without(values: Iterable[str], missing: str) -> str:
    """Join all words but one."""
    return " ".join(value for value in values if value != missing)

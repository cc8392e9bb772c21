"""Protects `/readyz`: it flips within seconds when Kafka, PostgreSQL or the engine goes away, names it, and comes back.

Nobody is ended for it, however long it takes. The broker is this module's own; a database goes away by its limit of
connections, the engine by a door in front of its socket.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio

from schemas.topics import TOPICS
from services.backbone.kafka import ensure_topics
from services.backbone.settings import ServiceSettings
from services.cli.embedded_kafka import EmbeddedKafka
from services.cli.embedded_process import free_port
from tests.integration.conftest import Database

STARTS_WITHIN_S = 60.0
FLIPS_WITHIN_S = 20.0
STUCK_AFTER_S = 4.0
LONGER_THAN_THE_LIMIT_S = 10.0
SEALING_KEY = "k1:" + "A" * 43 + "="
ENGINE = "/var/run/docker.sock"
CUT_ALL_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest_asyncio.fixture(scope="module")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedKafka]:
    """A broker that a test may kill and start again."""
    server = EmbeddedKafka(tmp_path_factory.mktemp("mortal"))
    await server.start()
    await ensure_topics(ServiceSettings(kafka_bootstrap_servers=server.bootstrap_servers), TOPICS)
    yield server
    await server.stop()


class Door:
    """A socket in front of the engine's, which can be shut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._pass, self.path)

    async def shut(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._open:
                writer.close()
            self.path.unlink(missing_ok=True)
            self._server = None

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(ENGINE)
        self._open |= {writer, inner_writer}
        try:
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer), return_exceptions=True)
        finally:
            for each in (writer, inner_writer):
                self._open.discard(each)
                each.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()


class Service:
    """A service as a process of its own, and its probes."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self.process = process
        self._url = url
        self._log = log

    async def until(self, condition: Callable[[int, dict[str, Any]], object], within_s: float = FLIPS_WITHIN_S) -> None:
        """Wait until /readyz answers so; the process must live, and /healthz must say so."""
        said: object = None
        try:
            async with asyncio.timeout(within_s), httpx.AsyncClient(base_url=self._url, timeout=5) as http:
                while True:
                    assert self.process.returncode is None, self._log.read_text()[-3000:]
                    try:
                        ready, healthy = await http.get("/readyz"), await http.get("/healthz")
                    except httpx.HTTPError as error:
                        said = error
                    else:
                        said = ready.text
                        assert healthy.status_code == 200, healthy.text
                        if condition(ready.status_code, ready.json()["parts"]):
                            return
                    await asyncio.sleep(0.1)
        except TimeoutError as late:
            raise AssertionError(f"not within {within_s} s; it says {said}") from late

    async def until_ready(self, within_s: float = STARTS_WITHIN_S) -> None:
        await self.until(lambda code, _: code == 200, within_s)

    async def until_not_ready(self) -> None:
        await self.until(lambda code, _: code == 503)

    async def until_failing(self, part: str) -> None:
        await self.until(lambda code, parts: code == 503 and not parts[part]["ok"])


@asynccontextmanager
async def service(name: str, kafka: EmbeddedKafka, folder: Path, **settings: str) -> AsyncIterator[Service]:
    port = free_port()
    shared = {
        "RUNYARD_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "RUNYARD_INSTANCE_ID": "test",
        "RUNYARD_API_PORT": str(port),
        "RUNYARD_HEALTH_PORT": str(port),
        "RUNYARD_STUCK_AFTER_S": str(STUCK_AFTER_S),
        "RUNYARD_OBJECTS_URL": f"file://{folder}/objects",
        "RUNYARD_SEALING_KEY": SEALING_KEY,
        "RUNYARD_JWT_SECRET": "a secret of at least thirty-two bytes",
        "RUNYARD_WORK_DIR": str(folder / "work"),
        "RUNYARD_HEARTBEAT_S": "1",
    }
    log = folder / f"{name}.log"
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"services.{name}.main", env={**os.environ, **shared, **settings}, stderr=said
        )
    try:
        yield Service(process, f"http://127.0.0.1:{port}", log)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


PARTS = {
    "api": ("api.runs", "api.load"),
    "scheduler": ("scheduler.runs", "scheduler.runners"),
    "auditor": ("auditor.runs", "auditor.output"),
    "runner": ("dispatch", "heartbeat"),
}


@asynccontextmanager
async def services(
    kafka: EmbeddedKafka, database: Database, folder: Path, *names: str
) -> AsyncIterator[dict[str, Service]]:
    """Several services, ready."""
    async with AsyncExitStack() as stack:
        running = {}
        for name in names:
            url = getattr(database, f"{name}_url", "")
            running[name] = await stack.enter_async_context(service(name, kafka, folder, RUNYARD_POSTGRES_URL=url))
        await each(running, Service.until_ready)
        yield running


async def each(running: dict[str, Service], wait: Callable[[Service], Coroutine[Any, Any, None]]) -> None:
    """Wait for all services side by side."""
    async with asyncio.TaskGroup() as group:
        for one in running.values():
            group.create_task(wait(one))


async def test_kafka_goes_away_for_longer_than_the_limit_and_comes_back(
    kafka: EmbeddedKafka, database: Database, tmp_path: Path
) -> None:
    async with services(kafka, database, tmp_path, *PARTS) as running:
        kafka.kill()
        for name, parts in PARTS.items():
            for part in parts:
                await running[name].until_failing(part)
        await asyncio.sleep(LONGER_THAN_THE_LIMIT_S)
        await each(running, Service.until_not_ready)
        await kafka.start()
        await each(running, Service.until_ready)


async def test_postgres_goes_away_for_longer_than_the_limit_and_comes_back(
    kafka: EmbeddedKafka, database: Database, tmp_path: Path
) -> None:
    admin = await asyncpg.connect(database.admin_url)
    own = await admin.fetchval("SELECT current_database()")
    async with services(kafka, database, tmp_path, "api", "scheduler", "auditor") as running:
        await admin.execute(f"ALTER DATABASE {own} CONNECTION LIMIT 0")
        await admin.execute(CUT_ALL_OTHERS)
        await each(running, lambda one: one.until_failing("postgres"))
        await asyncio.sleep(LONGER_THAN_THE_LIMIT_S)
        await each(running, Service.until_not_ready)
        await admin.execute(f"ALTER DATABASE {own} CONNECTION LIMIT -1")
        await each(running, Service.until_ready)
    await admin.close()


async def test_the_engine_goes_away_and_comes_back(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    door = Door(tmp_path / "engine.sock")
    await door.open()
    async with service("runner", kafka, tmp_path, DOCKER_HOST=f"unix://{door.path}") as running:
        await running.until_ready()
        await door.shut()
        await running.until_failing("engine")
        await door.open()
        await running.until_ready()
    await door.shut()

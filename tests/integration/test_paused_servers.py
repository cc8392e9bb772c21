"""Protects what was accepted from servers that hang, vanish and die: PostgreSQL and Apache Kafka in containers.

Paused means that connections stay open and nobody answers; cut off, that nobody can be reached; killed, that everything
breaks at once. After each of them nothing is lost and nothing is there twice.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer
from pydantic import SecretStr

from schemas.cloudevents import CloudEvent, encode
from schemas.topics import RUNS, TOPICS
from services.api import submission
from services.auditor.main import audit
from services.auditor.settings import AuditorSettings
from services.backbone import publisher as publishing
from services.backbone.errors import PublishFailed, is_transient
from services.backbone.health import Health
from services.backbone.kafka import client_options, ensure_topics
from services.backbone.outbox import enqueue, to_its_topic
from services.backbone.postgres import open_connection, open_pool
from services.backbone.publisher import Outgoing, Publisher
from services.backbone.relay import Relay
from services.backbone.settings import ServiceSettings
from services.cli.embedded_process import free_port
from services.cli.migrate import migrate_all
from tests.integration.api_scene import Scene, scene_on
from tests.integration.commit_proxy import CommitProxy
from tests.integration.conftest import PASSWORDS, Database, _named
from tests.integration.container_servers import Servers, servers_in_containers
from tests.life_of_a_run import told, whole_life

DEADLINE_S = 40.0
PAUSE_S = 3.0


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with servers_in_containers() as started:
        yield started


@pytest_asyncio.fixture
async def database(servers: Servers) -> AsyncIterator[Database]:
    """A database of this test's own, in the container's server, which is waited for."""
    name = f"test_{secrets.token_hex(6)}"
    await answering(servers)
    await on_server(servers, f"CREATE DATABASE {name}")
    made = Database(_named(servers.admin_url, name))
    await migrate_all(made.admin_url, PASSWORDS)
    yield made
    await on_server(servers, f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture
async def settings(servers: Servers) -> ServiceSettings:
    found = ServiceSettings(kafka_bootstrap_servers=servers.bootstrap_servers)
    await ensure_topics(found, TOPICS)
    return found


@pytest_asyncio.fixture
async def publisher(settings: ServiceSettings) -> AsyncIterator[Publisher]:
    made = Publisher(client_options(settings))
    yield made
    await made.close()


async def on_server(servers: Servers, statement: str) -> None:
    connection = await asyncpg.connect(servers.admin_url)
    await connection.execute(statement)
    await connection.close()


async def answering(servers: Servers) -> None:
    """Wait until PostgreSQL answers."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return await on_server(servers, "SELECT 1")
            await asyncio.sleep(0.1)


async def until(condition: Callable[[], Awaitable[bool]], *tasks: asyncio.Task[None]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            for task in tasks:
                if task.done():
                    await task
            await asyncio.sleep(0.1)


@asynccontextmanager
async def in_the_background(*works: Awaitable[None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield tasks  # type: ignore[misc]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Writer:
    """A service in miniature: commits one run's whole life after the other, and remembers what it was told of."""

    def __init__(self, database: Database) -> None:
        self.committed: list[str] = []
        self._url = database.api_url

    async def run(self) -> None:
        """Commit until cancelled."""
        pool = await open_pool(self._url, "registry", 2)
        try:
            while True:
                run_id = f"run-custom-20261124-{secrets.token_hex(4)}"
                async with pool.acquire() as connection, connection.transaction():
                    await enqueue(connection, [to_its_topic(event) for event in life(run_id)])
                self.committed.append(run_id)
                await asyncio.sleep(0.01)
        finally:
            pool.terminate()


def life(run_id: str) -> list[CloudEvent]:
    return [told(fact, second) for second, fact in enumerate(whole_life(run_id))]


def auditing(servers: Servers, database: Database, group: str) -> Awaitable[None]:
    url = SecretStr(database.auditor_url)
    settings = AuditorSettings(kafka_bootstrap_servers=servers.bootstrap_servers, postgres_url=url)
    return audit(settings, Health(), group)


async def stored(database: Database) -> dict[str, list[str]]:
    """What the ledger has: run → its events' ids in order."""
    connection = await open_connection(database.auditor_url, "ledger")
    rows = await connection.fetch("SELECT run_id, event_id FROM run_events ORDER BY run_id, version")
    await connection.close()
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["run_id"], []).append(str(row["event_id"]))
    return found


async def unsent(database: Database) -> int:
    connection = await open_connection(database.api_url, "registry")
    count: int = await connection.fetchval("SELECT count(*) FROM outbox WHERE sent_at IS NULL")
    await connection.close()
    return count


async def assert_all_arrives(database: Database, writer: Writer, *tasks: asyncio.Task[None]) -> None:
    """Everything committed is in the ledger, once and in order, and nothing waits in the outbox."""

    async def arrived() -> bool:
        return set(writer.committed) <= set(await stored(database)) and not await unsent(database)

    await until(arrived, *tasks)
    found = await stored(database)
    for run_id in writer.committed:
        assert found[run_id] == [str(event.id) for event in life(run_id)], run_id


async def test_postgres_paused_under_writers_a_relay_and_an_auditor(
    servers: Servers, database: Database, publisher: Publisher, group: str
) -> None:
    writer = Writer(database)
    relay = Relay(database.api_url, "registry", publisher, RUNS.name, Health())
    async with in_the_background(relay.run(), auditing(servers, database, group)) as tasks:
        async with in_the_background(writer.run(), Writer(database).run()) as writing:
            await until(lambda: some(writer, 20), *tasks, *writing)
            for _ in range(2):
                with servers.postgres.paused():
                    before = len(writer.committed)
                    await asyncio.sleep(PAUSE_S)
                    assert len(writer.committed) <= before + 1, "it was not paused"
                await until(partial(some, writer, before + 20), *tasks, *writing)
        await assert_all_arrives(database, writer, *tasks)


async def some(writer: Writer, count: int) -> bool:
    return len(writer.committed) >= count


async def test_kafka_paused_while_publishing_is_an_unknown_outcome_within_the_bound(
    servers: Servers, settings: ServiceSettings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "SEND_TIMEOUT_S", 3.0)
    monkeypatch.setattr(publishing, "STOP_TIMEOUT_S", 2.0)
    run_id = f"run-custom-20261124-{secrets.token_hex(4)}"
    events = [Outgoing(RUNS.name, run_id, *encode(event)) for event in life(run_id)]
    await publisher.publish(events[:1])
    began = time.monotonic()
    with servers.kafka.paused(), pytest.raises(PublishFailed) as failure:
        await publisher.publish(events)
    assert time.monotonic() - began < 3 + 2 + 2
    assert is_transient(failure.value)
    await publisher.publish(events)
    assert set(await ids_on_the_topic(settings, run_id)) == {str(event.id) for event in life(run_id)}


async def ids_on_the_topic(settings: ServiceSettings, run_id: str) -> list[str]:
    """Read the topic from its beginning until the run's last event is there; returns the ids of its events."""
    last, found = str(life(run_id)[-1].id), list[str]()
    consumer = AIOKafkaConsumer(RUNS.name, **client_options(settings), auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            while last not in found:
                record = await consumer.getone()
                if record.key == run_id.encode():
                    found.append(dict(record.headers)["ce_id"].decode())
    finally:
        await consumer.stop()
    return found


async def test_a_broker_that_is_cut_off_and_comes_back(
    servers: Servers, database: Database, publisher: Publisher, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "SEND_TIMEOUT_S", 3.0)
    health, writer = Health(), Writer(database)
    relay = Relay(database.api_url, "registry", publisher, RUNS.name, health)
    async with in_the_background(relay.run(), auditing(servers, database, group)) as tasks:
        async with in_the_background(writer.run()) as writing:
            await until(lambda: some(writer, 20), *tasks, *writing)
            with servers.kafka.cut_off():
                await until(lambda: interrupted(health), *tasks, *writing)
                await until(partial(some, writer, len(writer.committed) + 20), *tasks, *writing)
        await assert_all_arrives(database, writer, *tasks)


async def interrupted(health: Health) -> bool:
    return not health.works("relay")


@pytest_asyncio.fixture
async def proxy(servers: Servers) -> AsyncIterator[CommitProxy]:
    async with CommitProxy(free_port(), servers.postgres.port).open() as opened:
        yield opened


@pytest_asyncio.fixture
async def scene(database: Database, proxy: CommitProxy, tmp_path: Path) -> AsyncIterator[Scene]:
    """An api whose connections go through the proxy."""
    through = Database(database.admin_url.replace(f":{proxy.target}/", f":{proxy.port}/"))
    async with scene_on(through, tmp_path) as opened:
        yield opened


async def runs_of(database: Database, model_id: str) -> list[str]:
    """The model's runs, each of which has exactly one event in the outbox."""
    connection = await open_connection(database.api_url, "registry")
    rows = await connection.fetch("SELECT run_id FROM runs WHERE model_id = $1", model_id)
    told_of = await connection.fetch("SELECT subject FROM outbox WHERE subject = ANY($1)", [row[0] for row in rows])
    await connection.close()
    assert sorted(row[0] for row in rows) == sorted(row[0] for row in told_of)
    return [str(row[0]) for row in rows]


async def test_postgres_killed_between_a_commit_and_its_answer_and_back_in_time(
    servers: Servers, database: Database, scene: Scene, proxy: CommitProxy
) -> None:
    def kill_and_start() -> None:
        servers.postgres.kill()
        servers.postgres.start()

    model_id = await scene.model()
    proxy.break_next_commit("before the answer", kill_and_start)
    answer = await scene.train(model_id, environment_vars={"TOKEN": "kept"})
    assert proxy.broken == 1
    assert answer.status_code == 202, answer.text
    await answering(servers)
    assert await runs_of(database, model_id) == [answer.json()["run_id"]]
    assert await scene.context.variables.read(answer.json()["run_id"]) == {"TOKEN": "kept"}


async def test_postgres_killed_between_a_commit_and_its_answer_and_not_back_in_time(
    servers: Servers, database: Database, scene: Scene, proxy: CommitProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "LOOK_FOR_S", 1.0)
    model_id = await scene.model()
    proxy.break_next_commit("before the answer", servers.postgres.kill)
    try:
        unknown = await scene.train(model_id, key="the-same")
    finally:
        servers.postgres.start()
    assert proxy.broken == 1
    assert unknown.status_code == 503, unknown.text
    assert int(unknown.headers["retry-after"]) > 0
    await answering(servers)
    assert await runs_of(database, model_id) == [unknown.json()["run_id"]]
    again = await scene.train(model_id, key="the-same")
    assert again.status_code == 202, again.text
    assert again.json()["run_id"] == unknown.json()["run_id"]
    assert await runs_of(database, model_id) == [unknown.json()["run_id"]]


async def test_a_connection_that_breaks_behind_a_commit_takes_nothing_of_it_back(
    database: Database, scene: Scene, proxy: CommitProxy
) -> None:
    model_id = await scene.model()
    proxy.break_next_commit("behind the answer")
    answer = await scene.train(model_id)
    assert proxy.broken == 1
    assert answer.status_code == 202, answer.text
    assert await runs_of(database, model_id) == [answer.json()["run_id"]]

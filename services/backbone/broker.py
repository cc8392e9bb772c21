"""Which Kafka cluster a service works with: the one that its own schema names, and no other.

Offsets, and outbox rows that are marked sent, mean nothing to another cluster: one that answers in its place, since
the data of the first was lost, has never heard of the runs. So a service joins the cluster that its schema names, holds
a shared lock on that name while it works, and waits while another one answers, until `runyard replay --open-runs` has
told that one what it must know, and has named it. The first cluster ever is taken as it is.
"""

import asyncio
import contextlib
from collections.abc import Sequence

import asyncpg
import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from schemas.topics import Topic
from services.backbone.crash_points import crash_point
from services.backbone.errors import TransientError, is_transient
from services.backbone.health import Health
from services.backbone.kafka import client_options
from services.backbone.postgres import Connection, open_connection
from services.backbone.retry import until_it_works
from services.backbone.settings import ServiceSettings

PART = "broker"
LOCK_CLASS = 7_305_004
REQUEST_TIMEOUT_MS = 10_000
LOOK_EVERY_S = 1.0
CLOSE_TIMEOUT_S = 2.0

log = structlog.get_logger()


class BrokerReplaced(Exception):
    """Another cluster answers now: the process ends, and its next start waits until that one is named."""


class Broker:
    """One service's work with one cluster, from `join` to `leave`. `cluster_id` is empty before."""

    def __init__(self, settings: ServiceSettings, postgres_url: str, schema: str, health: Health) -> None:
        self.cluster_id = ""
        self._settings = settings
        self._postgres_url = postgres_url
        self._schema = schema
        self._health = health
        self._connection: asyncpg.Connection | None = None

    async def join(self) -> str:
        """Wait until the cluster that answers is the one that the schema names; returns its id."""
        self._health.expect(PART)
        while True:
            found = await cluster_id(self._settings)
            if await until_it_works("postgres", lambda found=found: self._lock(found)):  # type: ignore[misc]
                self.cluster_id = found
                self._health.ok(PART, f"cluster {found}")
                crash_point("after_cluster_joined")
                return found
            told = f"Kafka cluster {found} answers, which this database does not speak of: runyard replay --open-runs"
            self._health.failing(PART, told)
            log.warning("broker_not_ours", schema=self._schema, cluster_id=found)
            await asyncio.sleep(LOOK_EVERY_S)

    async def hold(self, every_s: float) -> None:
        """Make sure, from time to time, that nothing has changed.

        Raises:
            BrokerReplaced: another cluster answers, or another one is named.
        """
        while True:
            await asyncio.sleep(every_s)
            found = await cluster_id(self._settings)
            if found != self.cluster_id or not await until_it_works("postgres", self._still_held):
                raise BrokerReplaced(f"cluster {found} answers in place of {self.cluster_id}")

    async def leave(self) -> None:
        """Let go of the lock."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, asyncpg.InterfaceError, TimeoutError):
                await connection.close(timeout=CLOSE_TIMEOUT_S)

    async def _still_held(self) -> bool:
        """Whether the lock is held; after the connection broke it is taken again, if it is there to be taken."""
        if self._connection is not None:
            try:
                return bool(await self._connection.fetchval("SELECT true", timeout=5))
            except Exception as error:
                if not is_transient(error):
                    raise
                await self.leave()
        return await self._lock(self.cluster_id)

    async def _lock(self, cluster: str) -> bool:
        """Take the shared lock if this cluster is the named one, or the first."""
        connection = await open_connection(self._postgres_url, self._schema)
        try:
            if await _try_lock(connection, self._schema) and await _named(connection, cluster) == cluster:
                self._connection = connection
        finally:
            if self._connection is not connection:
                await connection.close(timeout=CLOSE_TIMEOUT_S)
        return self._connection is connection


async def _try_lock(connection: Connection, schema: str) -> bool:
    held: bool = await connection.fetchval("SELECT pg_try_advisory_lock_shared($1, hashtext($2))", LOCK_CLASS, schema)
    return held


async def _named(connection: Connection, cluster: str) -> str:
    await connection.execute("INSERT INTO broker (cluster_id) VALUES ($1) ON CONFLICT DO NOTHING", cluster)
    named: str = await connection.fetchval("SELECT cluster_id FROM broker")
    return named


# -- for the operator's step, which tells a new cluster what it must know


async def named_cluster(connection: Connection) -> str | None:
    """Tell which cluster a schema names; None before the first."""
    cluster: str | None = await connection.fetchval("SELECT cluster_id FROM broker")
    return cluster


async def wait_until_left(connection: Connection, schema: str, patience_s: float) -> None:
    """Take the lock that every instance of a service shares while it works with the named cluster.

    Raises:
        asyncpg.LockNotAvailableError: one of them still does.
    """
    await connection.execute("SELECT set_config('lock_timeout', $1, false)", f"{int(patience_s * 1000)}ms")
    await connection.execute("SELECT set_config('statement_timeout', '0', false)")
    await connection.execute(
        "SELECT pg_advisory_lock($1, hashtext($2))", LOCK_CLASS, schema, timeout=patience_s + CLOSE_TIMEOUT_S
    )


async def name_cluster(connection: Connection, schemas: Sequence[str], cluster: str) -> None:
    """Name the cluster that services shall work with, for several schemas at once; as the administrator."""
    async with connection.transaction():
        for schema in schemas:
            await connection.execute("SELECT set_config('search_path', $1, true)", schema)
            await connection.execute(
                "INSERT INTO broker (cluster_id) VALUES ($1)"
                " ON CONFLICT (only_one) DO UPDATE SET cluster_id = excluded.cluster_id",
                cluster,
            )


# -- asking Kafka


async def cluster_id(settings: ServiceSettings) -> str:
    """Ask Kafka for its cluster's id; waits, with backoff, for a broker that is not there yet."""
    found, _ = await until_it_works("kafka", lambda: _describe(settings))
    return found


async def cluster_with(settings: ServiceSettings, topics: Sequence[Topic]) -> str:
    """Wait until a cluster answers that has these topics; returns its id."""
    while True:
        found, existing = await until_it_works("kafka", lambda: _describe(settings))
        if existing >= {topic.name for topic in topics}:
            return found
        await asyncio.sleep(LOOK_EVERY_S)


async def watch(settings: ServiceSettings, expected: str, every_s: float) -> None:
    """Ask from time to time whether it is still the same cluster.

    Raises:
        BrokerReplaced: it is another one.
    """
    while True:
        await asyncio.sleep(every_s)
        found = await cluster_id(settings)
        if found != expected:
            raise BrokerReplaced(f"cluster {found} answers in place of {expected}")


async def _describe(settings: ServiceSettings) -> tuple[str, set[str]]:
    admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        await admin.start()
        return str((await admin.describe_cluster())["cluster_id"]), set(await admin.list_topics())
    except KafkaError as error:
        raise TransientError(repr(error)) from error
    finally:
        await admin.close()

"""Which Kafka cluster a service works with: the one that its own schema names, and no other.

Offsets, and outbox rows that are marked sent, mean nothing to another cluster: one that answers in its place, since
the data of the first was lost, has never heard of the runs. So a service joins the cluster that its schema names, holds
a shared lock on that name while it works, and waits while another one answers, until `runyard replay --open-runs` has
told that one what it must know, and has named it. The first cluster ever is taken as it is, unless it makes topics by
itself or has some with other partitions than ours: then everybody waits for an operator. A cluster that has lost its
topics and kept its id cannot be told apart from before, so nobody works with it until it has a new one.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg
import structlog
from aiokafka.errors import KafkaError

from schemas.topics import RUNS, TOPICS, Topic
from services.backbone.crash_points import crash_point
from services.backbone.errors import BrokerReplaced, TransientError, is_transient
from services.backbone.health import Health
from services.backbone.kafka import (
    admin_client,
    client_options,
    ensure_topics,
    partitions_of,
    why_it_makes_topics,
    why_unfit,
)
from services.backbone.postgres import Connection, open_connection
from services.backbone.retry import until_it_works
from services.backbone.settings import ServiceSettings

PART = "broker"
LOCK_CLASS = 7_305_004
LOOK_EVERY_S = 1.0
CLOSE_TIMEOUT_S = 2.0
GIVE_NEW_ID = "format it anew with another cluster id, then: runyard replay --open-runs"

log = structlog.get_logger()


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
        self._health.failing(PART, "Kafka or PostgreSQL has not answered yet")
        while True:
            found = await until_it_works("kafka", lambda: describe(self._settings))
            why_not = await self._unfit(found)
            if why_not is None:
                why_not = await until_it_works("postgres", lambda found=found: self._lock(found))  # type: ignore[misc]
            if why_not is None:
                self.cluster_id = found.cluster_id
                self._health.ok(PART, f"cluster {self.cluster_id}")
                crash_point("after_cluster_joined")
                return self.cluster_id
            self._health.failing(PART, why_not)
            log.warning("broker_not_ours", schema=self._schema, cluster_id=found.cluster_id, why=why_not)
            await asyncio.sleep(LOOK_EVERY_S)

    async def hold(self, every_s: float) -> None:
        """Make sure, from time to time, that nothing has changed.

        Raises:
            BrokerReplaced: another cluster answers, it has lost its topics, or another one is named.
        """
        while True:
            found = await _still_there(self._settings, self.cluster_id, every_s)
            if not await until_it_works("postgres", lambda found=found: self._still_held(found)):  # type: ignore[misc]
                raise BrokerReplaced(f"cluster {self.cluster_id} is not the one to work with any more")

    async def leave(self) -> None:
        """Let go of the lock."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, asyncpg.InterfaceError, TimeoutError):
                await connection.close(timeout=CLOSE_TIMEOUT_S)

    async def _unfit(self, found: "Cluster") -> str | None:
        """Say why nobody may work with a cluster, whoever it is."""
        problem = why_unfit(found.topics, TOPICS)
        return problem or await until_it_works("kafka", lambda: why_it_makes_topics(self._settings))

    async def _still_held(self, found: "Cluster") -> bool:
        """Whether the lock is held; after the connection broke it is taken again, if it is there to be taken."""
        if self._connection is not None:
            try:
                return bool(await self._connection.fetchval("SELECT true", timeout=5))
            except Exception as error:
                if not is_transient(error):
                    raise
                await self.leave()
        return await self._lock(found) is None

    async def _lock(self, found: "Cluster") -> str | None:
        """Take the shared lock if this cluster is the named one, or the first; returns why not."""
        connection = await open_connection(self._postgres_url, self._schema)
        why_not: str | None = "it was not asked"
        try:
            why_not = await self._why_not(connection, found)
        finally:
            if why_not is None:
                self._connection = connection
            else:
                await connection.close(timeout=CLOSE_TIMEOUT_S)
        return why_not

    async def _why_not(self, connection: Connection, found: "Cluster") -> str | None:
        if not await share_lock(connection, self._schema):
            return "a Kafka cluster is being told the open runs"
        if await named_cluster(connection) is None:
            await ensure_topics(self._settings, TOPICS)  # before it is named: a named one without topics has lost them
            await connection.execute(
                "INSERT INTO broker (cluster_id) VALUES ($1) ON CONFLICT DO NOTHING", found.cluster_id
            )
        elif not found.has_history:
            return f"Kafka cluster {found.cluster_id} has lost its topics: {GIVE_NEW_ID}"
        if await named_cluster(connection) != found.cluster_id:
            return f"Kafka cluster {found.cluster_id} answers, and another one is known: runyard replay --open-runs"
        return None


async def share_lock(connection: Connection, schema: str) -> bool:
    """Try to keep the operator's step away from a schema, for as long as the connection lives."""
    held: bool = await connection.fetchval("SELECT pg_try_advisory_lock_shared($1, hashtext($2))", LOCK_CLASS, schema)
    return held


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


@dataclass(frozen=True, slots=True)
class Cluster:
    """The Kafka cluster that answers, and the topics that it has, with the number of their partitions."""

    cluster_id: str
    topics: Mapping[str, int]

    @property
    def has_history(self) -> bool:
        """Whether the topic is there that holds the life of every run."""
        return RUNS.name in self.topics


async def cluster_id(settings: ServiceSettings) -> str:
    """Ask Kafka for its cluster's id; waits, with backoff, for a broker that is not there yet."""
    return (await until_it_works("kafka", lambda: describe(settings))).cluster_id


async def cluster_with(settings: ServiceSettings, topics: Sequence[Topic]) -> str:
    """Wait until a cluster answers that has these topics; returns its id."""
    while True:
        found = await until_it_works("kafka", lambda: describe(settings))
        missing = sorted({topic.name for topic in topics} - set(found.topics))
        if not missing:
            return found.cluster_id
        log.info("waiting_for_topics", cluster_id=found.cluster_id, missing=missing)
        await asyncio.sleep(LOOK_EVERY_S)


async def watch(settings: ServiceSettings, expected: str, every_s: float) -> None:
    """Ask from time to time whether it is still the same cluster.

    Raises:
        BrokerReplaced: it is another one, or it has lost its topics.
    """
    while True:
        await _still_there(settings, expected, every_s)


async def describe(settings: ServiceSettings) -> Cluster:
    """Ask Kafka once which cluster it is, and what it has.

    Raises:
        TransientError: it does not answer.
    """
    try:
        async with admin_client(client_options(settings)) as admin:
            topics = await partitions_of(admin)
            return Cluster(str((await admin.describe_cluster())["cluster_id"]), topics)
    except KafkaError as error:
        raise TransientError(repr(error)) from error


async def _still_there(settings: ServiceSettings, expected: str, after_s: float) -> Cluster:
    await asyncio.sleep(after_s)
    found = await until_it_works("kafka", lambda: describe(settings))
    if found.cluster_id != expected:
        raise BrokerReplaced(f"cluster {found.cluster_id} answers in place of {expected}")
    if not found.has_history:
        raise BrokerReplaced(f"cluster {expected} has lost its topics")
    return found

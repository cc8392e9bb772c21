"""The relay: moves an outbox to Kafka in commit order per run, exactly as it stands, until Kafka has it.

One relay per outbox works, held by an advisory lock on the very connection that reads and marks, so that a relay that
lost its lock cannot mark anything. It is woken by one NOTIFY per transaction, with a poll behind it. Rows for
the first topic are acknowledged before the others of a batch are sent: nobody acts on a copy before the fact is there.
"""

import asyncio
import contextlib
from collections.abc import Sequence

import asyncpg
import structlog
from prometheus_client import Gauge

from services.backbone.broker import named_cluster, share_lock
from services.backbone.crash_points import crash_point
from services.backbone.errors import BrokerReplaced, is_transient
from services.backbone.health import Health
from services.backbone.outbox import OutboxRow, mark_sent, oldest_unsent_s, unsent
from services.backbone.postgres import open_connection
from services.backbone.publisher import Publisher
from services.backbone.retry import delays
from services.backbone.watchdog import LOOK_EVERY_S, Seen, Watchdog

BATCH_ROWS = 500
POLL_S = 1.0
LOCK_CLASS = 7_305_002
PART = "relay"

OLDEST_UNSENT = Gauge(
    "runyard_outbox_oldest_unsent_seconds", "Age of the oldest row that Kafka has not acknowledged", ["outbox"]
)

log = structlog.get_logger()


class Relay:
    """The relay of one service's outbox. `first_topic` is the one whose rows are acknowledged before any other's."""

    def __init__(self, postgres_url: str, schema: str, publisher: Publisher, first_topic: str, health: Health) -> None:
        self._postgres_url = postgres_url
        self._schema = schema
        self._publisher = publisher
        self._first_topic = first_topic
        self._health = health
        self._wake = asyncio.Event()
        self._cluster_id: str | None = None
        self._sent = 0
        self._relays = False
        self._failure: str | None = None

    async def run(self) -> None:
        """Relay for ever; a transient failure starts over with a new connection.

        Raises:
            ExceptionGroup: a bug; `Stuck`: rows wait, nothing fails, and still none is sent; or `BrokerReplaced`.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._relay_for_ever())
            group.create_task(self._watch())

    async def _relay_for_ever(self) -> None:
        pauses = delays()
        while True:
            try:
                await self._hold_and_relay()
            except Exception as error:
                if not is_transient(error):
                    raise
                self._relays, self._failure = False, repr(error)
                self._health.failing(PART, self._failure)
                log.warning("relay_interrupted", outbox=self._schema, error=repr(error))
                await asyncio.sleep(next(pauses))
            else:
                pauses = delays()

    async def _hold_and_relay(self) -> None:
        connection = await open_connection(self._postgres_url, self._schema)
        try:
            await connection.add_listener(f"outbox_{self._schema}", self._notified)
            while not await self._lock(connection):
                self._works("another instance relays")
                await asyncio.sleep(POLL_S)
            crash_point("after_relay_lock")
            self._relays = True
            while True:
                await self._relay_all(connection)
                self._works()
                await self._sleep_until_woken()
        finally:
            with contextlib.suppress(OSError, asyncpg.InterfaceError, TimeoutError):
                await connection.close(timeout=2)

    async def _lock(self, connection: asyncpg.Connection) -> bool:
        """Take the relay's own lock, and share the one that keeps the operator's step away.

        Both hang on this connection: a relay that lost it, with the database, must not tell a cluster that others are
        just telling the open runs.
        """
        held: bool = await connection.fetchval(
            "SELECT pg_try_advisory_lock($1, hashtext($2))", LOCK_CLASS, self._schema
        )
        if not held or not await share_lock(connection, self._schema):
            return False
        named = await named_cluster(connection)
        self._cluster_id = self._cluster_id or named
        if named != self._cluster_id:
            raise BrokerReplaced(f"cluster {named} is to be worked with in place of {self._cluster_id}")
        return True

    def _notified(self, *_: object) -> None:
        self._wake.set()

    async def _sleep_until_woken(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._wake.wait()
        self._wake.clear()

    async def _relay_all(self, connection: asyncpg.Connection) -> None:
        while rows := await unsent(connection, BATCH_ROWS):
            crash_point("after_outbox_read")
            await self._send(connection, [row for row in rows if row.topic == self._first_topic])
            crash_point("after_first_topic_sent")
            await self._send(connection, [row for row in rows if row.topic != self._first_topic])

    async def _send(self, connection: asyncpg.Connection, rows: Sequence[OutboxRow]) -> None:
        if rows:
            await self._publisher.publish(rows)
            crash_point("after_outbox_publish")
            await mark_sent(connection, [row.id for row in rows])
            crash_point("after_outbox_marked")
            self._sent += len(rows)
            log.debug("relayed", outbox=self._schema, rows=len(rows))

    def _works(self, detail: str | None = None) -> None:
        self._failure = None
        self._health.ok(PART, detail)

    async def _watch(self) -> None:
        """Look at the outbox over another connection: tell how old its rows are, and whether they get on."""
        watchdog = Watchdog(PART, self._health)
        while True:
            try:
                await self._look(watchdog)
            except Exception as error:
                if not is_transient(error):
                    raise
                watchdog.look(Seen(self._sent, waiting=False), "PostgreSQL does not answer")
                await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self, watchdog: Watchdog) -> None:
        connection = await open_connection(self._postgres_url, self._schema)
        try:
            while True:
                oldest_s = await oldest_unsent_s(connection)
                OLDEST_UNSENT.labels(self._schema).set(oldest_s or 0.0)
                seen = Seen(self._sent, oldest_s is not None and self._relays, self._failure is not None)
                watchdog.look(seen, f"a row of the outbox has waited for {oldest_s or 0:.0f} s")
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            with contextlib.suppress(OSError, asyncpg.InterfaceError, TimeoutError):
                await connection.close(timeout=2)

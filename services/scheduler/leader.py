"""Becoming the leader, and stepping down: a lock on a connection of its own, and the epoch row behind it.

Whoever lost the lock without noticing changes nothing, because of the epoch. What a leader does is in `leading`; all
that it knows of runners is gone with its term. Decides nothing.
"""

import asyncio
import contextlib

import asyncpg
import structlog

from services.backbone.crash_points import crash_point
from services.backbone.errors import is_transient
from services.backbone.health import Health
from services.backbone.postgres import open_connection
from services.backbone.publisher import Publisher
from services.backbone.retry import delays
from services.scheduler import store
from services.scheduler.errors import Superseded
from services.scheduler.leading import Leading
from services.scheduler.roster import Roster
from services.scheduler.rounds import Term
from services.scheduler.settings import SchedulerSettings

PART = "leader"
CLOSE_TIMEOUT_S = 2.0

log = structlog.get_logger()


class Leader:
    """One instance's candidacy."""

    def __init__(self, settings: SchedulerSettings, pool: asyncpg.Pool, publisher: Publisher, health: Health) -> None:
        self._settings = settings
        self._pool = pool
        self._publisher = publisher
        self._health = health

    async def run(self) -> None:
        """Lead whenever nobody else does; a lost connection or a later leader ends a term, not the process."""
        pauses = delays()
        while True:
            try:
                await self._stand()
            except Exception as error:
                if not all(is_transient(each) or isinstance(each, Superseded) for each in _leaves(error)):
                    raise
                self._health.failing(PART, repr(error))
                log.warning("stepped_down", error=repr(error))
                await asyncio.sleep(next(pauses))

    async def _stand(self) -> None:
        connection = await open_connection(self._settings.postgres_url.get_secret_value(), store.SCHEMA)
        try:
            while not await store.try_lock(connection):
                self._health.ok(PART, "another instance leads")
                await asyncio.sleep(self._settings.tick_s)
            crash_point("after_leader_lock")
            await self._lead(connection)
        finally:
            with contextlib.suppress(OSError, asyncpg.InterfaceError, TimeoutError):
                await connection.close(timeout=CLOSE_TIMEOUT_S)

    async def _lead(self, connection: asyncpg.Connection) -> None:
        settings = self._settings
        epoch = await store.begin_epoch(connection)
        crash_point("after_epoch_begun")
        log.info("leads", epoch=epoch)
        roster = Roster(epoch, settings.lease_s, settings.heartbeat_s)
        term = Term(epoch, roster, settings.max_attempts, settings.heartbeat_s)
        leading = Leading(settings, term, self._pool, self._publisher, self._health)
        await connection.add_listener(store.FOLDED, leading.wake)
        async with asyncio.TaskGroup() as group:
            group.create_task(leading.run())
            group.create_task(self._hold(connection))

    async def _hold(self, connection: asyncpg.Connection) -> None:
        while True:
            await store.still_connected(connection)
            await asyncio.sleep(self._settings.tick_s)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]

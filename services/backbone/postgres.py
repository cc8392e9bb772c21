"""Connections to PostgreSQL: a pool whose search path is the service's own schema, with bounded statements.

Owns how a service connects to its database, waits for it and notices that it is gone; never knows a table.
"""

import asyncio

import asyncpg

from services.backbone.errors import is_transient
from services.backbone.health import Health
from services.backbone.retry import until_it_works

SERVER_SETTINGS = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
}

PART = "postgres"
CHECK_EVERY_S = 2.0
ANSWER_TIMEOUT_S = 3.0

Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy


async def open_pool(url: str, schema: str, size: int) -> asyncpg.Pool:
    """Open a pool; waits, with backoff, for a server that is not there yet."""

    async def attempt() -> asyncpg.Pool:
        return await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=size,
            timeout=10,
            command_timeout=40,
            server_settings={**SERVER_SETTINGS, "search_path": schema, "application_name": f"runyard-{schema}"},
        )

    return await until_it_works("postgres", attempt)


async def open_connection(url: str, schema: str) -> asyncpg.Connection:
    """Open one connection of its own, for a lock or for LISTEN. No waiting: the caller has a loop around it."""
    settings = {**SERVER_SETTINGS, "search_path": schema, "application_name": f"runyard-{schema}-lock"}
    return await asyncpg.connect(url, timeout=10, command_timeout=40, server_settings=settings)


async def watch_postgres(pool: asyncpg.Pool, health: Health) -> None:
    """Report whether the database answers, every few seconds, until cancelled."""
    health.expect(PART)
    while True:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S), pool.acquire() as connection:
                await connection.execute("SHOW server_version")
        except Exception as error:
            if not is_transient(error):
                raise
            health.failing(PART, f"PostgreSQL does not answer: {error!r}")
        else:
            health.ok(PART)
        await asyncio.sleep(CHECK_EVERY_S)

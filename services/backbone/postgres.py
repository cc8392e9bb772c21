"""Connections to PostgreSQL: a pool whose search path is the service's own schema, with bounded statements.

Owns how a service connects and waits for its database; never knows a table.
"""

import asyncpg

from services.backbone.retry import until_it_works

SERVER_SETTINGS = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
}

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

"""Transactions of the registry: begun, committed and, when the commit's outcome is unknown, saying so.

The statements are in the `store_*` files beside this one; no other file of the api speaks SQL, but for `history`, which
reads the ledger's views.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg

from services.backbone.errors import TransientError, is_transient
from services.backbone.postgres import Connection

ACQUIRE_TIMEOUT_S = 10.0
BROKEN = (asyncpg.InterfaceError, asyncpg.PostgresError, OSError)

Executor = asyncpg.Pool | Connection
"""What runs a statement: the pool for a single one, a connection inside a transaction."""


class CommitUnknown(TransientError):
    """The server did not answer the COMMIT: what was written may be durable (FACTS.md), or not."""


@asynccontextmanager
async def transaction(pool: asyncpg.Pool) -> AsyncIterator[Connection]:
    """Run a block in one transaction.

    Raises:
        CommitUnknown: everything was written and the commit's outcome is not known.
    """
    connection = await pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
    try:
        transaction = connection.transaction()
        await transaction.start()
        try:
            yield connection
        except BaseException:
            with suppress(*BROKEN):
                await transaction.rollback()
            raise
        try:
            await transaction.commit()
        except Exception as error:
            if is_transient(error):
                raise CommitUnknown(repr(error)) from error
            raise
    finally:
        with suppress(*BROKEN):  # a connection that breaks behind the commit takes nothing of it back
            await pool.release(connection)

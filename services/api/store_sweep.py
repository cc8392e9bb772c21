"""Rows that have served their time, and which objects are still needed. Nothing but SQL and what it returns."""

from collections.abc import Sequence
from datetime import datetime

from services.api.store import Executor
from services.backbone.outbox import sweep
from services.backbone.postgres import Connection

KEYS_KEPT = "7 days"
OUTBOX_KEPT = "7 days"

DELETE_KEYS = "DELETE FROM idempotency_keys WHERE created_at < now() - $1::text::interval"
SWEPT_RUNS = """
UPDATE runs SET outbox_swept = true WHERE run_id IN (
    SELECT run_id FROM runs WHERE NOT outbox_swept AND end_seen_at < now() - $1::text::interval LIMIT $2
) RETURNING run_id
"""
NEEDED = """
SELECT sha256 FROM datasets WHERE sha256 = ANY($1::text[])
UNION SELECT sha256 FROM assets WHERE sha256 = ANY($1::text[])
UNION SELECT sha256 FROM versions WHERE sha256 = ANY($1::text[])
UNION SELECT pinned ->> 'sha256' FROM runs
    CROSS JOIN LATERAL jsonb_array_elements(state -> 'spec' -> 'assets' || (state -> 'spec' -> 'dataset')) pinned
    WHERE end_seen_at IS NULL AND pinned ->> 'sha256' = ANY($1::text[])
"""
OLDEST_OPEN_RUN = "SELECT min(created_at) FROM runs WHERE end_seen_at IS NULL"
ENDED_RUNS = "SELECT run_id FROM runs WHERE end_seen_at IS NOT NULL AND run_id = ANY($1::text[])"
HOLDERS = "SELECT run_id FROM runs WHERE run_id = ANY($1::text[])"


async def delete_old_keys(executor: Executor) -> None:
    """Forget answers that need not be repeated any more."""
    await executor.execute(DELETE_KEYS, KEYS_KEPT)


async def sweep_outbox(connection: Connection, limit: int) -> int:
    """Forget the sent events of runs that ended long ago; returns how many runs were swept."""
    runs = [row["run_id"] for row in await connection.fetch(SWEPT_RUNS, OUTBOX_KEPT, limit)]
    await sweep(connection, runs)
    return len(runs)


async def needed_digests(executor: Executor, digests: Sequence[str]) -> set[str]:
    """Tell which of these objects something still refers to."""
    return {row["sha256"] for row in await executor.fetch(NEEDED, list(digests))}


async def oldest_open_run(executor: Executor) -> datetime | None:
    """Tell when the oldest run that has not ended was accepted; None when all have.

    Not only of those that are shown as running: while the registry lags, a queued one may have stored its artifact.
    """
    moment: datetime | None = await executor.fetchval(OLDEST_OPEN_RUN)
    return moment


async def ended_runs(executor: Executor, run_ids: Sequence[str]) -> set[str]:
    """Tell which of these runs have ended."""
    return {row["run_id"] for row in await executor.fetch(ENDED_RUNS, list(run_ids))}


async def known_runs(executor: Executor, run_ids: Sequence[str]) -> set[str]:
    """Tell which of these runs exist."""
    return {row["run_id"] for row in await executor.fetch(HOLDERS, list(run_ids))}

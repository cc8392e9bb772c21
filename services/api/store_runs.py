"""Rows of runs, of the claim that a run has on its model, and of versions. Nothing but SQL and what it returns."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from schemas.run import Run
from services.api.resources import Version
from services.api.store import Executor
from services.backbone.postgres import Connection

Place = tuple[datetime | None, str | None]


class RunIdTaken(Exception):
    """Another run has this id: a longer one is needed."""


INSERT_RUN = """
INSERT INTO runs (run_id, tenant_id, model_id, status, state, created_at, variables_held)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
CLAIM_MODEL = "UPDATE models SET active_run_id = $2 WHERE model_id = $1 AND active_run_id IS NULL RETURNING true"


async def claim_model(connection: Connection, run: Run) -> bool:
    """Give a run its model, for itself alone; False when another run has it."""
    return bool(await connection.fetchval(CLAIM_MODEL, run.model_id, run.run_id))


async def insert_run(connection: Connection, run: Run) -> None:
    """Add a run.

    Raises:
        RunIdTaken: its id is another run's.
    """
    values = (run.run_id, run.tenant_id, run.model_id, run.status, run.model_dump_json(), run.requested_at)
    try:
        await connection.execute(INSERT_RUN, *values, bool(run.spec.variable_names))
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "runs_pkey":
            raise RunIdTaken(run.run_id) from error
        raise


SELECT_RUN = "SELECT state FROM runs WHERE run_id = $1 AND model_id = $2 AND tenant_id = $3"
LOCK_RUN = "SELECT state FROM runs WHERE run_id = $1 FOR NO KEY UPDATE"


async def select_run(executor: Executor, tenant_id: str, model_id: str, run_id: str) -> Run | None:
    """Read one run of a tenant's model."""
    state = await executor.fetchval(SELECT_RUN, run_id, model_id, tenant_id)
    return None if state is None else Run.model_validate_json(state)


async def lock_run(connection: Connection, run_id: str) -> Run | None:
    """Read a run and lock its row, which keeps the order of its events."""
    state = await connection.fetchval(LOCK_RUN, run_id)
    return None if state is None else Run.model_validate_json(state)


OPEN_RUNS = "SELECT run_id FROM runs WHERE end_seen_at IS NULL ORDER BY run_id"
SELECT_STATES = "SELECT state FROM runs WHERE run_id = ANY($1::text[])"


async def open_run_ids(executor: Executor) -> list[str]:
    """Name the runs that have not ended, of all tenants."""
    return [row["run_id"] for row in await executor.fetch(OPEN_RUNS)]


async def states_of(executor: Executor, run_ids: Sequence[str]) -> list[Run]:
    """Read runs, of all tenants."""
    return [Run.model_validate_json(row["state"]) for row in await executor.fetch(SELECT_STATES, list(run_ids))]


LIST_RUNS = """
SELECT state FROM runs
WHERE model_id = $1 AND ($2::timestamptz IS NULL OR (created_at, run_id) < ($2, $3::text))
ORDER BY created_at DESC, run_id DESC LIMIT $4
"""


async def list_runs(executor: Executor, model_id: str, place: Place, limit: int) -> list[Run]:
    """Read a model's runs behind a place, newest first."""
    rows = await executor.fetch(LIST_RUNS, model_id, *place, limit)
    return [Run.model_validate_json(row["state"]) for row in rows]


UPDATE_RUN = """
UPDATE runs SET status = $2, state = $3, end_seen_at = CASE WHEN $4 THEN coalesce(end_seen_at, now()) END
WHERE run_id = $1
"""


async def update_run(connection: Connection, run: Run) -> None:
    """Keep a run's state; the database's clock says when its end was first seen."""
    await connection.execute(UPDATE_RUN, run.run_id, run.status, run.model_dump_json(), run.status.is_end)


RELEASE_MODEL = "UPDATE models SET active_run_id = NULL WHERE model_id = $1 AND active_run_id = $2"
NEXT_VERSION = "UPDATE models SET latest_version = latest_version + 1 WHERE model_id = $1 RETURNING latest_version"
INSERT_VERSION = """
INSERT INTO versions (model_id, version, run_id, kind, sha256, size_bytes, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""


async def release_model(connection: Connection, run: Run) -> None:
    """End a run's claim on its model."""
    await connection.execute(RELEASE_MODEL, run.model_id, run.run_id)


async def insert_next_version(connection: Connection, run: Run, now: datetime) -> int:
    """Make a run's artifact the next version of its model, and return its number."""
    version: int = await connection.fetchval(NEXT_VERSION, run.model_id)
    artifact = run.artifact
    assert artifact is not None  # noqa: S101 - decided by the caller
    values = (run.run_id, artifact.kind, artifact.sha256, artifact.size_bytes, now)
    await connection.execute(INSERT_VERSION, run.model_id, version, *values)
    return version


LIST_VERSIONS = """
SELECT version, model_id, run_id, kind, sha256, size_bytes, created_at FROM versions
WHERE model_id = $1 AND ($2::integer IS NULL OR version < $2) ORDER BY version DESC LIMIT $3
"""
SELECT_VERSION = """
SELECT version, model_id, run_id, kind, sha256, size_bytes, created_at FROM versions
WHERE model_id = $1 AND version = $2
"""


async def list_versions(executor: Executor, model_id: str, before: int | None, limit: int) -> list[Version]:
    """Read a model's versions below a number, newest first."""
    return [Version(**row) for row in await executor.fetch(LIST_VERSIONS, model_id, before, limit)]


async def select_version(executor: Executor, model_id: str, version: int) -> Version | None:
    """Read one version of a model."""
    row = await executor.fetchrow(SELECT_VERSION, model_id, version)
    return None if row is None else Version(**row)


VARIABLES_GONE = "UPDATE runs SET variables_held = false WHERE run_id = $1"
LEFTOVER_VARIABLES = "SELECT run_id FROM runs WHERE variables_held AND end_seen_at IS NOT NULL LIMIT $1"


async def variables_gone(executor: Executor, run_id: str) -> None:
    """Remember that a run's variables were deleted."""
    await executor.execute(VARIABLES_GONE, run_id)


async def leftover_variables(executor: Executor, limit: int) -> list[str]:
    """Find ended runs whose variables may still be there."""
    return [row["run_id"] for row in await executor.fetch(LEFTOVER_VARIABLES, limit)]

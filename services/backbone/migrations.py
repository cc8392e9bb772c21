"""Numbered migrations: each service's own Postgres schema, owned by the administrator, used by the service's role.

A migration is a file `NNNN_slug.sql`; it runs once, in one transaction with the row that remembers it, with the
search path set to its schema. A changed file that already ran is refused. Never drops anything by itself.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import asyncpg

LOCK = 7_305_001
"""Advisory lock that keeps two migrators apart."""

GRANT_TABLES = "ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %I"
"""What a service may do with the tables that its migrations make; a migration revokes what it must not."""


class MigrationChanged(Exception):
    """A migration that already ran reads differently now."""


@dataclass(frozen=True, slots=True)
class SchemaPlan:
    """A Postgres schema, the role that uses it, and the folders whose migrations build it, in order."""

    schema: str
    role: str
    folders: tuple[Path, ...]


async def migrate(admin_url: str, plans: tuple[SchemaPlan, ...], passwords: dict[str, str]) -> list[str]:
    """Bring every schema up to date; returns the migrations that ran, as `schema/file`.

    Args:
        admin_url: of a role that may create roles and schemas in the database.
        plans: in the order in which they depend on one another.
        passwords: by role; a role that exists gets its password set again.
    """
    connection = await asyncpg.connect(admin_url, timeout=10)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK)
        for plan in plans:
            await _ensure_role(connection, plan.role, passwords.get(plan.role))
        return [name for plan in plans for name in await _migrate_schema(connection, plan)]
    finally:
        await connection.close()


async def _ensure_role(connection: asyncpg.Connection, role: str, password: str | None) -> None:
    exists = await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role)
    if not exists:
        await connection.execute(await _quoted(connection, "CREATE ROLE %I LOGIN", role))
    if password is not None:
        await connection.execute(await _quoted(connection, "ALTER ROLE %I PASSWORD %L", role, password))


async def _migrate_schema(connection: asyncpg.Connection, plan: SchemaPlan) -> list[str]:
    await connection.execute(await _quoted(connection, "CREATE SCHEMA IF NOT EXISTS %I", plan.schema))
    await connection.execute(await _quoted(connection, "GRANT USAGE ON SCHEMA %I TO %I", plan.schema, plan.role))
    await connection.execute(await _quoted(connection, GRANT_TABLES, plan.schema, plan.role))
    await connection.execute(await _quoted(connection, "SET search_path TO %I", plan.schema))
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations"
        " (name text PRIMARY KEY, sha256 text NOT NULL, ran_at timestamptz NOT NULL)"
    )
    done = {row["name"]: row["sha256"] for row in await connection.fetch("SELECT name, sha256 FROM migrations")}
    ran = []
    for file in (file for folder in plan.folders for file in sorted(folder.glob("[0-9]*.sql"))):
        name, sql = f"{file.parent.parent.name}/{file.stem}", file.read_text()
        digest = hashlib.sha256(sql.encode()).hexdigest()
        if name not in done:
            await _run(connection, name, sql, digest)
            ran.append(f"{plan.schema}/{name}")
        elif done[name] != digest:
            raise MigrationChanged(f"{file} ran before and reads differently now: add a new migration instead")
    return ran


async def _run(connection: asyncpg.Connection, name: str, sql: str, digest: str) -> None:
    async with connection.transaction():
        await connection.execute(sql)
        await connection.execute("INSERT INTO migrations VALUES ($1, $2, now())", name, digest)


async def _quoted(connection: asyncpg.Connection, template: str, *words: str) -> str:
    """Fill identifiers (%I) and literals (%L) into a statement; the server does the quoting."""
    statement: str = await connection.fetchval("SELECT format($1, VARIADIC $2::text[])", template, list(words))
    return statement

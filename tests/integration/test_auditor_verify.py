"""Protects verify and rebuild: one altered row is named, and rebuilding gives the same tables."""

from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from services.auditor import store
from services.auditor.handlers import Handlers
from services.auditor.history import event_hash
from services.auditor.replay import RebuildReport, rebuild
from services.auditor.verify import VerifyReport, verify
from services.backbone.postgres import open_pool
from tests.integration.conftest import Database
from tests.life_of_a_run import batch, cancelled, failed, requested, started, whole_life


@pytest.fixture
async def filled(database: Database) -> AsyncIterator[Database]:
    """A ledger with one run from its request to its version, and one that was cancelled and has a stale end."""
    pool = await open_pool(database.auditor_url, "ledger", 2)
    async with pool.acquire() as connection:
        handlers = Handlers(pool, await store.epoch_of(connection, "cluster-1"))
    await handlers.on_runs(batch(*whole_life("one"), requested("two"), cancelled(run_id="two"), failed(run_id="two")))
    yield database
    await pool.close()


async def by_hand(database: Database, *statements: str) -> None:
    """Alter rows as only a superuser can, who switches triggers off."""
    owner = await asyncpg.connect(database.admin_url, server_settings={"search_path": "ledger"})
    try:
        await owner.execute("SET session_replication_role = replica")
        for statement in statements:
            await owner.execute(statement)
    finally:
        await owner.close()


async def test_an_untouched_ledger_holds_together(filled: Database) -> None:
    seen: list[int] = []
    report = await verify(filled.auditor_url, seen.append)
    assert report == VerifyReport(events=8, runs=2, audit_entries=5, first_difference=None)
    assert report.ok
    assert seen == [8]


async def test_an_empty_ledger_holds_together(database: Database) -> None:
    assert await verify(database.admin_url) == VerifyReport(events=0, runs=0, audit_entries=0)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        (
            "UPDATE run_events SET data = jsonb_set(data, '{exit_code}', '1') WHERE run_id = 'one' AND version = 4",
            "run_events one/4: data: expected ",
        ),
        (
            "UPDATE run_events SET value = replace(convert_from(value, 'UTF8'), 'ada', 'eve')::bytea"
            " WHERE run_id = 'one' AND version = 1",
            "run_events one/1: data: expected ",
        ),
        ("UPDATE run_events SET source = 'x' WHERE run_id = 'one' AND version = 2", "run_events one/2: hash: "),
        (
            "UPDATE run_events SET kafka_offset = 99 WHERE run_id = 'one' AND version = 3",
            "run_events one/3: hash: ",
        ),
        (
            "UPDATE run_events SET stale = NULL WHERE run_id = 'two' AND version = 3",
            "run_events two/3: stale: expected 'already_ended', found None",
        ),
        (
            "DELETE FROM run_events WHERE run_id = 'one' AND version = 2",
            "run_events one/3: version: expected 2, found 3",
        ),
        (
            "DELETE FROM run_events WHERE run_id = 'one' AND version = 5",
            "runs one: run.version: expected None, found 1",
        ),
        (
            "UPDATE runs SET run = jsonb_set(run, '{status}', '\"failed\"') WHERE run_id = 'one'",
            "runs one: run.status: expected 'succeeded', found 'failed'",
        ),
        ("UPDATE runs SET last_version = 7 WHERE run_id = 'one'", "runs one: last_version: expected 5, found 7"),
        ("UPDATE runs SET run = '{}' WHERE run_id = 'one'", "runs one: run: expected "),
        ("DELETE FROM runs WHERE run_id = 'one'", "runs one: run_id: expected 'one', found None"),
        (
            "UPDATE audit_entries SET actor = 'eve' WHERE index = 1",
            "audit_entries 1: actor: expected 'ada', found 'eve'",
        ),
        (
            "UPDATE audit_entries SET details = details || '{\"timeout_seconds\": 1}' WHERE index = 1",
            "audit_entries 1: details: expected ",
        ),
        (
            "UPDATE audit_entries SET hash = repeat('f', 64) WHERE index = 2",
            "audit_entries 2: hash: expected ",
        ),
        (
            "DELETE FROM audit_entries WHERE index = 5",
            "audit_entries of two: action: expected 'model.custom_training_ended', found None",
        ),
        ("UPDATE audit_entries SET index = 9 WHERE index = 5", "audit_entries 9: index: expected 5, found 9"),
        ("UPDATE audit_head SET index = 4", "audit_head true: index: expected 5, found 4"),
    ],
    ids=lambda text: text[:60] if text.startswith(("UPDATE", "DELETE")) else "",
)
async def test_the_first_difference_is_named_after_one_row_is_altered(
    filled: Database, statement: str, named: str
) -> None:
    await by_hand(filled, statement)
    report = await verify(filled.auditor_url)
    assert not report.ok
    assert (report.first_difference or "").startswith(named)


async def test_a_forged_entry_of_a_run_that_is_nowhere_is_found(filled: Database) -> None:
    await by_hand(
        filled,
        "INSERT INTO audit_entries SELECT 6, action, tenant_id, actor, model_id, 'run-forged', request_id,"
        " gen_random_uuid(), event_hash, occurred_at, details, repeat('a', 64), repeat('b', 64)"
        " FROM audit_entries WHERE index = 1",
    )
    report = await verify(filled.auditor_url)
    assert report.first_difference == "runs run-forged: run_id: expected 'run-forged', found None"


async def test_an_event_whose_hashes_were_forged_to_fit_is_betrayed_by_the_audit_chain(filled: Database) -> None:
    """Whoever rewrites an event and all that is hashed in its run has not rewritten what the audit entries say."""
    owner = await asyncpg.connect(filled.admin_url, server_settings={"search_path": "ledger"})
    last = (await store.events_of(owner, ["one"]))["one"][-1].event
    before = await owner.fetchval("SELECT hash FROM run_events WHERE run_id = 'one' AND version = 4")
    forged = event_hash(before, replace(last, arrival=replace(last.arrival, source="/eve")))
    await owner.execute("SET session_replication_role = replica")
    await owner.execute("UPDATE run_events SET source = '/eve', hash = $1 WHERE run_id = 'one' AND version = 5", forged)
    await owner.execute("UPDATE runs SET last_hash = $1 WHERE run_id = 'one'", forged)
    await owner.close()
    report = await verify(filled.auditor_url)
    assert report.first_difference == "audit_entries 3: actor: expected '/eve', found '/runyard/test'"


async def tables(database: Database) -> list[list[asyncpg.Record]]:
    owner = await asyncpg.connect(database.admin_url, server_settings={"search_path": "ledger"})
    try:
        return [
            await owner.fetch("SELECT * FROM runs ORDER BY run_id"),
            await owner.fetch("SELECT * FROM run_events ORDER BY run_id, version"),
            await owner.fetch("SELECT * FROM audit_entries ORDER BY index"),
        ]
    finally:
        await owner.close()


async def test_rebuilding_gives_the_same_tables(filled: Database) -> None:
    before = await tables(filled)
    assert await rebuild(filled.auditor_url) == RebuildReport(events=8, runs=2, changed=0, missing_audit_entries=0)
    await by_hand(filled, "DELETE FROM runs")
    assert await rebuild(filled.auditor_url) == RebuildReport(events=8, runs=2, changed=2, missing_audit_entries=0)
    assert await tables(filled) == before


async def test_rebuilding_mends_projections_and_tells_of_missing_entries(filled: Database) -> None:
    before = await tables(filled)
    await by_hand(
        filled,
        "UPDATE runs SET run = '{}' WHERE run_id = 'one'",
        "INSERT INTO runs (run_id, last_hash) VALUES ('run-nobody-knows', '')",
        "DELETE FROM audit_entries WHERE index = 1",
    )
    assert await rebuild(filled.admin_url) == RebuildReport(events=8, runs=3, changed=2, missing_audit_entries=1)
    assert (await tables(filled))[0] == before[0]


async def test_storing_goes_on_after_a_rebuild(filled: Database) -> None:
    await rebuild(filled.auditor_url)
    pool = await open_pool(filled.auditor_url, "ledger", 2)
    await Handlers(pool, 1).on_runs(batch(started(run_id="two")))
    await pool.close()
    assert await verify(filled.auditor_url) == VerifyReport(events=9, runs=2, audit_entries=5)

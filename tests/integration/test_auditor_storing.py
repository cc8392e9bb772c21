"""Protects the ledger's storing: numbered without gaps, nothing twice, nothing dropped, nothing ever changed."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import asyncpg
import pytest

from schemas.cloudevents import UnknownEvent
from schemas.events import LogsAppended
from schemas.parts import MetricPoint
from schemas.topics import OUTPUT, RUNS
from services.auditor import store
from services.auditor.handlers import Handlers
from services.auditor.verify import verify
from services.backbone.consumer import Received
from services.backbone.errors import PoisonError, is_poison
from services.backbone.postgres import open_pool
from tests.integration.conftest import Database
from tests.life_of_a_run import (
    RUN_ID,
    at,
    batch,
    cancellation,
    cancelled,
    failed,
    found,
    logs,
    metrics,
    queued,
    received,
    requested,
    started,
    succeeded,
    waiting,
    whole_life,
)


@pytest.fixture
async def handlers(database: Database) -> AsyncIterator[Handlers]:
    pool = await open_pool(database.auditor_url, "ledger", 4)
    async with pool.acquire() as connection:
        epoch = await store.epoch_of(connection, "cluster-1")
    yield Handlers(pool, epoch)
    await pool.close()


@pytest.fixture
async def api(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """What the api sees: the published views, and nothing else."""
    connection = await asyncpg.connect(database.api_url)
    yield connection
    await connection.close()


@pytest.fixture
async def auditor(database: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database.auditor_url, server_settings={"search_path": "ledger"})
    yield connection
    await connection.close()


async def versions(api: asyncpg.Connection, run_id: str = RUN_ID) -> list[tuple[int, str, str | None]]:
    rows = await api.fetch(
        "SELECT version, type, stale FROM ledger.run_events_v1 WHERE run_id = $1 ORDER BY version", run_id
    )
    return [(row["version"], row["type"].split(".")[2], row["stale"]) for row in rows]


async def actions(api: asyncpg.Connection) -> list[str]:
    return [row["action"] for row in await api.fetch("SELECT action FROM ledger.audit_log_v1 ORDER BY index")]


WHOLE_LIFE = [
    (1, "training_requested", None),
    (2, "queued", None),
    (3, "started", None),
    (4, "succeeded", None),
    (5, "model_version_created", None),
]


async def test_events_are_numbered_in_order_and_folded(handlers: Handlers, api: asyncpg.Connection) -> None:
    await handlers.on_runs(batch(*whole_life()))
    assert await versions(api) == WHOLE_LIFE
    row = await api.fetchrow("SELECT * FROM ledger.runs_v1")
    assert dict(row) == {
        "run_id": RUN_ID,
        "tenant_id": "acme",
        "status": "succeeded",
        "attempt": 1,
        "output_sequence": 4,
        "last_event_version": 5,
        "stored_output_sequence": 0,
    }


async def test_the_same_batch_again_changes_nothing(handlers: Handlers, api: asyncpg.Connection) -> None:
    await handlers.on_runs(batch(*whole_life()))
    before = await api.fetch("SELECT * FROM ledger.audit_log_v1")
    await handlers.on_runs(batch(*whole_life()))
    assert await versions(api) == WHOLE_LIFE
    assert await api.fetch("SELECT * FROM ledger.audit_log_v1") == before


async def test_a_repeated_event_leaves_no_gap_in_the_numbers(handlers: Handlers, api: asyncpg.Connection) -> None:
    await handlers.on_runs(batch(requested(), requested(), queued()))
    await handlers.on_runs(batch(queued(), started(), started(), succeeded()))
    assert await versions(api) == WHOLE_LIFE[:4]


async def test_events_of_a_replaced_attempt_and_after_the_end_are_stored_as_stale(
    handlers: Handlers, api: asyncpg.Connection
) -> None:
    await handlers.on_runs(batch(requested(), queued(), started(attempt=2), cancelled(), failed()))
    assert [stale for _, _, stale in await versions(api)] == [None, None, "replaced_attempt", None, "already_ended"]


async def test_a_second_request_with_another_id_starts_nothing_twice(
    handlers: Handlers, api: asyncpg.Connection
) -> None:
    await handlers.on_runs([received(requested()), received(requested(actor="eve"), sequence=1)])
    assert [stale for _, _, stale in await versions(api)] == [None, "already_requested"]
    assert await actions(api) == ["model.custom_training_started"]


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (b'{"later":1e2,"text":"a\\u0000b"}', {"later": 100.0, "text": "a�b"}),
        (b"\xff\xfe no JSON", None),
        (b'{"n": NaN}', None),
        (b"[" * 50_000, None),
        (b'"\\ud800"', "�"),
    ],
    ids=["json-with-nul", "bytes", "nan", "deep", "surrogate"],
)
async def test_an_unknown_type_is_stored_byte_for_byte(
    handlers: Handlers, api: asyncpg.Connection, auditor: asyncpg.Connection, value: bytes, data: object
) -> None:
    event = UnknownEvent(uuid4(), "/newer", "runyard.run.paused.v7", RUN_ID, at(1), value)
    await handlers.on_runs([*batch(requested()), Received(RUNS.name, 0, 1, event, value), *batch(queued())])
    assert await versions(api) == [(1, "training_requested", None), (2, "paused", "unknown_type"), (3, "queued", None)]
    row = await auditor.fetchrow("SELECT value, data FROM run_events WHERE version = 2")
    assert (row["value"], json.loads(row["data"])) == (value, data)


async def test_events_before_the_request_are_stored_and_the_run_begins_with_it(
    handlers: Handlers, api: asyncpg.Connection
) -> None:
    await handlers.on_runs(batch(queued()))
    assert await api.fetchval("SELECT status FROM ledger.runs_v1") is None
    await handlers.on_runs([received(requested(), 1)])
    assert [stale for _, _, stale in await versions(api)] == ["unknown_run", None]
    assert await api.fetchval("SELECT status FROM ledger.runs_v1") == "queued"


async def test_the_audit_log_tells_start_cancellation_and_end_once(handlers: Handlers, api: asyncpg.Connection) -> None:
    await handlers.on_runs(batch(requested(), waiting(), cancellation(), cancelled(), failed()))
    assert await actions(api) == [
        "model.custom_training_started",
        "model.custom_training_cancellation_requested",
        "model.custom_training_ended",
    ]
    first, second, third = await api.fetch("SELECT * FROM ledger.audit_log_v1 ORDER BY index")
    assert (first["actor"], first["request_id"], first["tenant_id"]) == ("ada", "req-1", "acme")
    assert json.loads(first["details"]) == {
        "entry_point": "train.py",
        "runtime": "python3.11",
        "compute": {"cpu_cores": 4, "memory_gb": 16, "gpu": False},
        "timeout_seconds": 14400,
        "run_label": "custom-run-experiment-1",
        "variable_names": ["LEARNING_RATE", "EPOCHS"],
        "dataset_id": "dts-1",
        "assets": {"train.py": "a" * 64},
    }
    assert (second["actor"], second["request_id"]) == ("bob", "req-2")
    assert json.loads(third["details"]) == {
        "status": "cancelled",
        "reason": "user_request",
        "attempt": 1,
        "exit_code": None,
    }
    assert [first["previous_hash"], second["previous_hash"]] == ["0" * 64, first["hash"]]


async def test_text_that_postgres_refuses_does_not_keep_a_run_out_of_the_ledger(
    handlers: Handlers, api: asyncpg.Connection, database: Database
) -> None:
    end = failed().model_copy(update={"message": "nul \0 here"})
    await handlers.on_runs(batch(requested(actor="a\0da"), end))
    assert await api.fetchval("SELECT actor FROM ledger.audit_log_v1 ORDER BY index LIMIT 1") == "a�da"
    assert (await verify(database.auditor_url)).first_difference is None


@pytest.mark.parametrize(
    "run_id", ["nul\0", "".join(str(uuid4()) for _ in range(1000))], ids=["nul", "too-long-for-an-index"]
)
async def test_an_id_that_postgres_cannot_hold_is_poison(handlers: Handlers, run_id: str) -> None:
    with pytest.raises((asyncpg.DataError, asyncpg.ProgramLimitExceededError)) as caught:
        await handlers.on_runs(batch(requested(run_id)))
    assert is_poison(caught.value)


async def test_a_number_that_canonical_json_cannot_say_is_poison(handlers: Handlers) -> None:
    with pytest.raises(PoisonError):
        await handlers.on_runs([replace(received(requested()), offset=2**60)])


async def test_output_is_stored_once_even_before_its_run(handlers: Handlers, api: asyncpg.Connection) -> None:
    output = batch(logs("one", "two"), metrics(0.5, 0.25, first=3))
    await handlers.on_output(output)
    assert await api.fetchval("SELECT tenant_id FROM ledger.log_lines_v1 LIMIT 1") is None
    await handlers.on_runs(batch(requested(), queued(), started(), succeeded()))
    await handlers.on_output(output)
    lines = await api.fetch("SELECT sequence, text, tenant_id FROM ledger.log_lines_v1 ORDER BY sequence")
    assert [tuple(line) for line in lines] == [(1, "one", "acme"), (2, "two", "acme")]
    points = await api.fetch("SELECT sequence, name, value, step FROM ledger.metric_points_v1 ORDER BY sequence")
    assert [tuple(point) for point in points] == [(3, "loss", 0.5, 0), (4, "loss", 0.25, 1)]
    row = await api.fetchrow("SELECT output_sequence, stored_output_sequence FROM ledger.runs_v1")
    assert tuple(row) == (4, 4)


async def test_points_of_one_line_are_all_stored_and_each_once(handlers: Handlers, api: asyncpg.Connection) -> None:
    two_lines = batch(found(2, 0.5, 0.25, 0.125), found(3, 1.5), found(2, 9.0, attempt=2), logs("one", "two", first=2))
    for _ in range(3):
        await handlers.on_output(two_lines)
    rows = await api.fetch(
        "SELECT attempt, sequence, place, name, value, step FROM ledger.metric_points_v1 ORDER BY 1, 2, 3"
    )
    assert [tuple(row) for row in rows] == [
        (1, 2, 1, "m1", 0.5, None),
        (1, 2, 2, "m2", 0.25, None),
        (1, 2, 3, "m3", 0.125, None),
        (1, 3, 1, "m1", 1.5, None),
        (2, 2, 1, "m1", 9.0, None),
    ]


async def test_points_of_a_line_do_not_say_that_the_line_is_stored(handlers: Handlers, api: asyncpg.Connection) -> None:
    stored = "SELECT stored_output_sequence FROM ledger.runs_v1"
    await handlers.on_runs(batch(requested()))
    assert await api.fetchval(stored) == 0
    await handlers.on_output(batch(found(4, 0.5)))
    assert await api.fetchval(stored) == 0
    await handlers.on_output(batch(metrics(0.5, first=3)))
    assert await api.fetchval(stored) == 3
    await handlers.on_output(batch(logs("a line", first=4)))
    assert await api.fetchval(stored) == 4
    await handlers.on_output(batch(found(5, 0.5), metrics(0.5, 0.25, first=6)))
    assert await api.fetchval(stored) == 7


async def test_output_of_a_lost_attempt_does_not_count_as_the_final_ones(
    handlers: Handlers, api: asyncpg.Connection
) -> None:
    await handlers.on_runs(batch(requested()))
    await handlers.on_output(batch(logs("lost", first=90, attempt=2), logs("kept", first=1)))
    assert await api.fetchval("SELECT stored_output_sequence FROM ledger.runs_v1") == 1


async def test_what_a_script_prints_cannot_stop_the_auditor(handlers: Handlers, api: asyncpg.Connection) -> None:
    point = MetricPoint(sequence=2, name="lo\0ss", value=1e308, step=10**30, at=at(0))
    odd = metrics().model_copy(update={"points": (point,)})
    dropped = LogsAppended(**(logs("a\0b").model_dump(exclude={"type"}) | {"dropped_lines": 7}))
    await handlers.on_output(batch(dropped, odd))
    line = await api.fetchrow("SELECT text, dropped_before FROM ledger.log_lines_v1")
    assert tuple(line) == ("a�b", 7)
    stored = await api.fetchrow("SELECT name, value, step FROM ledger.metric_points_v1")
    assert tuple(stored) == ("lo�ss", 1e308, None)


async def test_output_of_an_unknown_type_is_kept_and_what_does_not_belong_there_is_poison(
    handlers: Handlers, auditor: asyncpg.Connection
) -> None:
    event = UnknownEvent(uuid4(), "/newer", "runyard.run.images_drawn.v1", RUN_ID, at(1), b"{}")
    for _ in range(2):
        await handlers.on_output([Received(OUTPUT.name, 0, 1, event, b"{}")])
    assert await auditor.fetchval("SELECT array_agg(type) FROM unread_output") == ["runyard.run.images_drawn.v1"]
    with pytest.raises(PoisonError, match="does not belong"):
        await handlers.on_output(batch(requested()))


async def test_two_auditors_storing_the_same_runs_at_once_agree(
    handlers: Handlers, api: asyncpg.Connection, database: Database
) -> None:
    runs = [f"run-{number}" for number in range(8)]
    forth = [fact for run_id in runs for fact in whole_life(run_id)]
    back = [fact for run_id in reversed(runs) for fact in whole_life(run_id)]
    await asyncio.gather(*(handlers.on_runs(batch(*facts)) for facts in (forth, back, forth, back)))
    for run_id in runs:
        assert await versions(api, run_id) == WHOLE_LIFE
    assert (await actions(api)).count("model.custom_training_started") == 8
    assert (await verify(database.auditor_url)).first_difference is None


@pytest.mark.parametrize("table", ["run_events", "audit_entries"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET run_id = 'x'", "DELETE FROM {}", "TRUNCATE {}"], ids=["update", "delete", "truncate"]
)
async def test_history_is_append_only_for_the_role_and_for_the_owner(
    handlers: Handlers, auditor: asyncpg.Connection, database: Database, table: str, statement: str
) -> None:
    await handlers.on_runs(batch(*whole_life()))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await auditor.execute(statement.format(table))
    owner = await asyncpg.connect(database.admin_url, server_settings={"search_path": "ledger"})
    try:
        with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
            await owner.execute(statement.format(table))
    finally:
        await owner.close()


@pytest.mark.parametrize("table", ["run_events", "runs", "audit_entries", "log_lines", "audit_head"])
async def test_the_api_reads_views_and_no_tables(api: asyncpg.Connection, table: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await api.fetch(f"SELECT * FROM ledger.{table}")  # noqa: S608 - our own word


async def test_another_cluster_begins_another_epoch(auditor: asyncpg.Connection) -> None:
    first, again = await store.epoch_of(auditor, "one"), await store.epoch_of(auditor, "one")
    assert first == again != await store.epoch_of(auditor, "two")

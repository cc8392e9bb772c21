"""Protects the auditor as it runs: topics in, ledger out, poison aside, and nothing new when everything comes again."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from pydantic import SecretStr

from schemas.cloudevents import CloudEvent, encode
from schemas.events import LogsAppended, MessageRefused, MetricsReported
from schemas.topics import DEAD_LETTERS, RUNS, address_of
from services.auditor.main import audit
from services.auditor.settings import AuditorSettings
from services.auditor.verify import verify
from services.backbone.broker import cluster_id, watch
from services.backbone.errors import BrokerReplaced
from services.backbone.health import Health
from services.backbone.kafka import client_options
from services.backbone.settings import ServiceSettings
from tests.integration.conftest import Database
from tests.life_of_a_run import logs, metrics, requested, told, whole_life

DEADLINE_S = 45


@pytest.fixture
async def settings(kafka_settings: ServiceSettings, database: Database) -> AuditorSettings:
    return AuditorSettings(
        kafka_bootstrap_servers=kafka_settings.kafka_bootstrap_servers,
        postgres_url=SecretStr(database.auditor_url),
        postgres_pool_size=4,
    )


@pytest.fixture
async def ledger(database: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database.auditor_url, server_settings={"search_path": "ledger"})
    yield connection
    await connection.close()


@asynccontextmanager
async def auditing(settings: AuditorSettings, group: str) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(audit(settings, Health(), group))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], Awaitable[bool]], task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            if task.done():
                await task
            await asyncio.sleep(0.05)


async def send(settings: ServiceSettings, events: Sequence[CloudEvent], *raw: tuple[str, bytes]) -> None:
    """Publish events to their topics, with raw records of no meaning on `runyard.runs` between them."""
    producer = AIOKafkaProducer(**client_options(settings))
    await producer.start()
    try:
        for key, value in raw:
            await producer.send_and_wait(RUNS.name, value, key=key.encode())
        for event in events:
            topic, key = address_of(event.data)
            headers, value = encode(event)
            await producer.send_and_wait(topic.name, value, key=key.encode(), headers=headers)
    finally:
        await producer.stop()


async def counts(ledger: asyncpg.Connection, run_ids: Sequence[str]) -> tuple[int, ...]:
    tables = ("run_events", "audit_entries", "log_lines", "metric_points")
    sql = "SELECT count(*) FROM {} WHERE run_id = ANY($1)"
    return tuple([await ledger.fetchval(sql.format(table), run_ids) for table in tables])


async def test_topics_are_stored_and_reading_them_again_changes_nothing(
    settings: AuditorSettings, database: Database, ledger: asyncpg.Connection, group: str
) -> None:
    run_ids = [f"run-{secrets.token_hex(6)}" for _ in range(20)]
    facts = [fact for run_id in run_ids for fact in (*whole_life(run_id), *output(run_id))]
    await send(settings, [told(fact) for fact in facts])

    async def all_stored() -> bool:
        return await counts(ledger, run_ids) == (100, 60, 40, 40)

    async with auditing(settings, group) as task:
        await until(all_stored, task)
    before = await ledger.fetch("SELECT * FROM run_events ORDER BY run_id, version")
    wait_for = f"run-{secrets.token_hex(6)}"
    await send(settings, [told(fact) for fact in whole_life(wait_for)])

    async def came_again() -> bool:
        return (await counts(ledger, [wait_for]))[0] == 5

    async with auditing(settings, f"{group}-from-offset-0") as task:
        await until(came_again, task)
        await until(all_stored, task)
    after = await ledger.fetch("SELECT * FROM run_events WHERE run_id <> $1 ORDER BY run_id, version", wait_for)
    assert after == before
    assert await counts(ledger, run_ids) == (100, 60, 40, 40)
    assert (await verify(database.auditor_url)).first_difference is None


def output(run_id: str) -> list[LogsAppended | MetricsReported]:
    return [logs("one", "two", run_id=run_id), metrics(0.5, 0.25, first=3, run_id=run_id)]


async def test_poison_goes_to_the_dead_letters_and_the_rest_goes_on(
    settings: AuditorSettings, ledger: asyncpg.Connection, group: str
) -> None:
    run_id, mark = f"run-{secrets.token_hex(6)}", secrets.token_hex(8)
    no_text = told(requested(f"{mark}\0"))
    await send(settings, [no_text, *(told(fact) for fact in whole_life(run_id))], (run_id, mark.encode()))

    async def stored() -> bool:
        return (await counts(ledger, [run_id]))[0] == 5

    async with auditing(settings, group) as task:
        await until(stored, task)
        reasons = await refusals(settings, mark, 2)
    assert sorted(reason.split(":")[0] for reason in reasons) == [
        "CharacterNotInRepertoireError",
        "ce_specversion is not 1.0",
    ]


async def refusals(settings: ServiceSettings, mark: str, wanted: int) -> list[str]:
    """Wait for this many of the auditor's dead letters that hold a mark, and tell their reasons."""
    consumer = AIOKafkaConsumer(DEAD_LETTERS.name, **client_options(settings), auto_offset_reset="earliest")
    await consumer.start()
    found: list[str] = []
    try:
        async with asyncio.timeout(DEADLINE_S):
            while len(found) < wanted:
                record = await consumer.getone()
                letter = MessageRefused.model_validate_json(record.value)
                if mark.encode() in base64.b64decode(letter.value_base64 or ""):
                    found.append(letter.reason)
    finally:
        await consumer.stop()
    return found


async def test_whoever_watches_a_cluster_is_told_when_another_one_answers(settings: AuditorSettings) -> None:
    found = await cluster_id(settings)
    with pytest.raises(BrokerReplaced):
        await watch(settings, f"not-{found}", every_s=0.01)

"""Protects the bond between a database and its Kafka cluster: nobody works with one that has not heard of the runs."""

import asyncio

import asyncpg
import pytest

from services.backbone.broker import (
    GIVE_NEW_ID,
    PART,
    Broker,
    Cluster,
    cluster_id,
    describe,
    name_cluster,
    named_cluster,
    wait_until_left,
)
from services.backbone.errors import BrokerReplaced
from services.backbone.health import Health
from services.backbone.settings import ServiceSettings
from tests.integration.conftest import Database

SCHEMA = "scheduling"


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def broker(database: Database, kafka_settings: ServiceSettings, health: Health) -> Broker:
    return Broker(kafka_settings, database.scheduler_url, SCHEMA, health)


async def admin_of(database: Database) -> asyncpg.Connection:
    return await asyncpg.connect(database.admin_url, server_settings={"search_path": SCHEMA})


async def test_the_first_cluster_is_taken_as_it_is(
    broker: Broker, database: Database, kafka_settings: ServiceSettings
) -> None:
    joined = await broker.join()
    admin = await admin_of(database)
    assert joined == await cluster_id(kafka_settings) == await named_cluster(admin)
    await broker.leave()
    await admin.close()


async def test_a_service_waits_and_says_so_while_another_cluster_answers_than_its_schema_names(
    broker: Broker, database: Database, health: Health, kafka_settings: ServiceSettings
) -> None:
    admin = await admin_of(database)
    await name_cluster(admin, [SCHEMA], "the-lost-one")
    joining = asyncio.create_task(broker.join())
    async with asyncio.timeout(20):
        while "replay --open-runs" not in (health.parts[PART].detail or "" if PART in health.parts else ""):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert not health.works(PART)
    assert not joining.done()
    await name_cluster(admin, [SCHEMA], await cluster_id(kafka_settings))
    async with asyncio.timeout(20):
        await joining
    assert health.works(PART)
    await broker.leave()
    await admin.close()


async def test_whoever_works_with_a_cluster_ends_when_another_one_answers(broker: Broker) -> None:
    await broker.join()
    broker.cluster_id = "the-one-before"
    with pytest.raises(BrokerReplaced):
        await broker.hold(every_s=0.01)
    await broker.leave()


async def test_the_hold_survives_a_connection_that_breaks(broker: Broker, database: Database) -> None:
    await broker.join()
    admin = await admin_of(database)
    holding = asyncio.create_task(broker.hold(every_s=0.01))
    mine = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND database ="
    mine += " (SELECT oid FROM pg_database WHERE datname = current_database())"
    first = await admin.fetchval(mine)
    await admin.execute("SELECT pg_terminate_backend($1)", first)
    async with asyncio.timeout(20):
        while await admin.fetchval(mine) in (first, None):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert not holding.done()
    holding.cancel()
    await asyncio.wait([holding])
    await broker.leave()
    await admin.close()


async def test_a_new_cluster_is_not_told_before_the_last_service_has_let_go_of_the_old_one(
    broker: Broker, database: Database
) -> None:
    await broker.join()
    admin = await admin_of(database)
    with pytest.raises(asyncpg.LockNotAvailableError):
        await wait_until_left(admin, SCHEMA, patience_s=0.2)
    await broker.leave()
    await wait_until_left(admin, SCHEMA, patience_s=5)
    await admin.close()


async def test_a_cluster_that_kept_its_id_and_lost_its_topics_is_not_worked_with(broker: Broker) -> None:
    cluster = await broker.join()
    await broker.leave()
    assert GIVE_NEW_ID in str(await broker._lock(Cluster(cluster, {"another.topic": 6})))
    assert await broker._lock(Cluster(cluster, {"runyard.runs": 6})) is None
    await broker.leave()


async def test_a_service_that_is_told_to_stop_while_a_client_of_kafka_closes_stops(
    kafka_settings: ServiceSettings,
) -> None:
    asking = asyncio.create_task(describe(kafka_settings))

    def closing() -> bool:
        return any(task.cancelling() and "_md_synchronizer" in repr(task) for task in asyncio.all_tasks())

    async with asyncio.timeout(20):
        while not closing():  # noqa: ASYNC110
            await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()

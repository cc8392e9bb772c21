"""Protects what a new cluster is told: all that was decided. The lost one may have had what is not marked as sent."""

import asyncpg

from schemas.topics import RUNS
from services.backbone.outbox import enqueue, kept, kept_about, mark_sent, to_its_topic, unsent
from services.backbone.postgres import open_connection
from tests import life_of_a_run as life
from tests.integration.conftest import Database


async def scene(database: Database) -> asyncpg.Connection:
    """Two decided events, of which only the second is known to have been sent."""
    connection = await open_connection(database.api_url, "registry")
    async with connection.transaction():
        await enqueue(connection, [to_its_topic(life.told(fact)) for fact in (life.requested(), life.cancellation())])
    _, second = await unsent(connection, 10)
    await mark_sent(connection, [second.id])
    return connection


async def test_what_is_not_marked_as_sent_is_kept_with_the_rest(database: Database) -> None:
    connection = await scene(database)
    asked, cancelled = life.told(life.requested()), life.told(life.cancellation())
    assert [row.event_id for row in await kept(connection, RUNS.name, 0, 10)] == [asked.id, cancelled.id]
    rows = await kept_about(connection, RUNS.name, [life.RUN_ID])
    assert [dict(row.headers)["ce_id"].decode() for row in rows] == [str(asked.id), str(cancelled.id)]
    await connection.close()

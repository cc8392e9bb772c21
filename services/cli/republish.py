"""Telling Kafka the open runs again, from PostgreSQL: by hand, or because a broker that lost its data cannot know them.

Owns the order of the steps. Where another cluster answers than the services know, they wait for this: it waits until
the last of them has let go of the old one, tells the new one every run that is open or that somebody may have missed,
makes the other topics, which is what runners wait for, and only then names the cluster that everybody goes on with.
May be killed anywhere and begun again: what is told twice is absorbed by its ids.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import asyncpg

from schemas.topics import RUNS, TOPICS
from services.api import store_runs as registry
from services.auditor import store as ledger
from services.backbone.broker import GIVE_NEW_ID, describe, name_cluster, named_cluster, wait_until_left
from services.backbone.kafka import client_options, ensure_topics, why_unfit
from services.backbone.outbox import OutboxRow, kept, kept_about
from services.backbone.postgres import open_connection
from services.backbone.publisher import SEND_TIMEOUT_S, STOP_TIMEOUT_S, Publisher
from services.backbone.retry import until_it_works
from services.backbone.settings import ServiceSettings
from services.cli.errors import CliError
from services.cli.retelling import Known, retell
from services.scheduler import store as scheduling

REGISTRY, SCHEDULING, LEDGER = SCHEMAS = ("registry", "scheduling", "ledger")
PAGE_RUNS = 100
PAGE_ROWS = 5_000
BATCH_RECORDS = 500
PATIENCE_S = 90.0
EMPTIED_AFTER_S = SEND_TIMEOUT_S + STOP_TIMEOUT_S
"""How long a producer may still send what it was given before its process let go."""

Progress = Callable[[int, int, int], None]
"""Told from time to time: runs told, of how many, and events."""


@dataclass(frozen=True, slots=True)
class Retold:
    """What was told. `replaced` is whether it was to another cluster than the services knew."""

    cluster_id: str
    replaced: bool
    runs: int
    events: int


def no_progress(*_: int) -> None:
    """Tell nobody."""


async def republish_open_runs(
    admin_url: str,
    kafka: ServiceSettings,
    progress: Progress = no_progress,
    *,
    only_if_replaced: bool = False,
    emptied_after_s: float = EMPTIED_AFTER_S,
) -> Retold:
    """Publish the history of every open run to the cluster that answers, and let the services go on with it.

    Args:
        admin_url: of the database, as its administrator.
        kafka: how to reach the broker.
        progress: called after each page of runs.
        only_if_replaced: do nothing where the cluster is the one that the services know.
        emptied_after_s: how long producers of services may still send after these let go; 0 where none runs.

    Raises:
        CliError: a service still works with the old cluster, the new one has the old one's id, or topics that are not
            ours.
    """
    async with _schemas(admin_url) as of:
        cluster = await until_it_works("kafka", lambda: describe(kafka))
        if problem := why_unfit(cluster.topics, TOPICS):
            raise CliError(problem)
        found, named = cluster.cluster_id, [await named_cluster(connection) for connection in of.values()]
        replaced = any(each not in (None, found) for each in named)
        if found in named and not replaced and not cluster.has_history:
            raise CliError(f"Kafka cluster {found} has lost its topics and kept its id: {GIVE_NEW_ID}")
        if only_if_replaced and not replaced:
            return Retold(found, replaced, 0, 0)
        if replaced:
            await _wait_until_all_left(of)
            await asyncio.sleep(emptied_after_s)  # there is no topic yet that they could send to
        await ensure_topics(kafka, [RUNS])
        runs, events = await _tell(of, kafka, progress)
        await ensure_topics(kafka, TOPICS)
        if replaced:
            await name_cluster(of[LEDGER], SCHEMAS, found)
    return Retold(found, replaced, runs, events)


@asynccontextmanager
async def _schemas(admin_url: str) -> AsyncIterator[dict[str, asyncpg.Connection]]:
    """Open a connection to each service's schema, as the administrator."""
    async with AsyncExitStack() as stack:
        of = {}
        for schema in SCHEMAS:
            of[schema] = await open_connection(admin_url, schema)
            stack.push_async_callback(of[schema].close)
        yield of


async def _wait_until_all_left(of: dict[str, asyncpg.Connection]) -> None:
    for schema, connection in of.items():
        try:
            await wait_until_left(connection, schema, PATIENCE_S)
        except (asyncpg.LockNotAvailableError, TimeoutError) as error:
            raise CliError(
                f"a service that owns `{schema}` still works with the old Kafka cluster after {PATIENCE_S:.0f} s:"
                " see that all of them reach the new one, or stop them; then do this again"
            ) from error


async def _tell(of: dict[str, asyncpg.Connection], kafka: ServiceSettings, progress: Progress) -> tuple[int, int]:
    publisher = Publisher(client_options(kafka))
    run_ids, events = sorted(await _run_ids(of)), 0
    try:
        for at in range(0, len(run_ids), PAGE_RUNS):
            page = run_ids[at : at + PAGE_RUNS]
            records = [record for known in await _known(of, page) for record in retell(known)]
            for begin in range(0, len(records), BATCH_RECORDS):
                batch = records[begin : begin + BATCH_RECORDS]
                await until_it_works("kafka", partial(publisher.publish, batch))
            events += len(records)
            progress(at + len(page), len(run_ids), events)
    finally:
        await publisher.close()
    return len(run_ids), events


async def _run_ids(of: dict[str, asyncpg.Connection]) -> set[str]:
    """Name the runs that anybody takes for open, and those of which the ledger has not stored all that was told."""
    found = {
        *await registry.open_run_ids(of[REGISTRY]),
        *await scheduling.open_run_ids(of[SCHEDULING]),
        *await ledger.open_run_ids(of[LEDGER]),
    }
    for schema in (REGISTRY, SCHEDULING):
        after = 0
        while rows := await kept(of[schema], RUNS.name, after, PAGE_ROWS):
            stored = await ledger.known_ids(of[LEDGER], [row.event_id for row in rows])
            found |= {row.subject for row in rows if row.event_id not in stored}
            after = rows[-1].id
    return found


async def _known(of: dict[str, asyncpg.Connection], page: Sequence[str]) -> list[Known]:
    stored = await ledger.events_of(of[LEDGER], page)
    rows = [row for schema in (REGISTRY, SCHEDULING) for row in await kept_about(of[schema], RUNS.name, page)]
    runs = [*await registry.states_of(of[REGISTRY], page), *await scheduling.states_of(of[SCHEDULING], page)]
    of_run = {run_id: list(group) for run_id, group in groupby(sorted(rows, key=_run_id), key=_run_id)}
    return [
        Known(
            run_id,
            [row.event.arrival for row in stored[run_id]],
            of_run.get(run_id, []),
            [run for run in runs if run.run_id == run_id],
        )
        for run_id in page
    ]


def _run_id(row: OutboxRow) -> str:
    return row.key

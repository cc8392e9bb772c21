"""Protects runners from the silence of all: a broker that is away for longer than the lease loses nobody.

The runners are stopped while it comes back, so that the leader hears itself before it hears them: what must not count
is the time in which nobody could be heard.
"""

import asyncio
import time
from pathlib import Path

import pytest

from tests.chaos.evidence import Outage
from tests.chaos.gathering import Witnesses, at_rest, gather, lost_attempts
from tests.chaos.harness import RUNNERS, Chaos, ChaosOptions, chaos_system
from tests.chaos.invariants import check
from tests.chaos.observing import Observer
from tests.chaos.submitting import Book, Order, Submitter

LEASE_S, AWAY_S, STOPPED_S = 10.0, 12.0, 2.0
NAPS_30_S = Order(1, "away", "cancelled", {})
"""Of itself it ends well; nobody cancels it here."""


async def until_started(chaos: Chaos) -> None:
    async with asyncio.timeout(60):
        while not any('"run_started"' in chaos.services[name].log_path.read_text() for name in RUNNERS):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def be_away(chaos: Chaos) -> list[Outage]:
    """Kill Kafka for longer than the lease; the runners are stopped until the leader has heard itself again."""
    began, restarts = time.time(), chaos.restarts["kafka"]
    with chaos.holding("kafka"):
        chaos.kafka.kill()
        await asyncio.sleep(AWAY_S)
        stopped = time.time()
        for name in RUNNERS:
            chaos.halt(name)
    while chaos.restarts["kafka"] == restarts:  # noqa: ASYNC110 - a child has no event to wait for
        await asyncio.sleep(0.05)
    back = time.time()
    await chaos.ready("scheduler")
    await asyncio.sleep(STOPPED_S)
    for name in RUNNERS:
        chaos.go_on(name)
    await chaos.ready()
    ended = time.time()
    return [Outage("kafka", "killed", began, ended, back), *(Outage(n, "halted", stopped, ended) for n in RUNNERS)]


@pytest.mark.timeout(240)
async def test_a_broker_that_is_away_for_longer_than_a_lease_loses_nobody(tmp_path: Path) -> None:
    book = Book(tmp_path / "told.jsonl")
    async with chaos_system(tmp_path / "data", ChaosOptions(lease_s=LEASE_S)) as chaos:
        observer, submitter = Observer(), Submitter(chaos.api_url, chaos.token, book)
        observer.start()
        try:
            await submitter.submit(NAPS_30_S)
            await until_started(chaos)
            outages = await be_away(chaos)
            assert await at_rest(chaos, book, 90)
        finally:
            await submitter.close()
            observer.stop()
        evidence = await gather(chaos, Witnesses(book, observer, outages, time.time()))
    assert lost_attempts(evidence) == 0
    assert [row.attempt for row in evidence.tables["ledger"].values()] == [1]
    assert await check(evidence) == []

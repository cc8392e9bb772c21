"""The gate before a runner's starts: it is open only while nothing unread can forbid one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest_asyncio

from schemas.parts import Capacity
from services.backbone.errors import PublishFailed
from services.backbone.health import Health
from services.runner.dispatch import Dispatch
from services.runner.events import Outgoing
from services.runner.heartbeat import Heart, Offer
from services.runner.journal import Journal

OFFER = Offer(Capacity(cpu_cores=1, memory_gb=1, gpus=0), (), 0)


class Reading:
    """A reading of the partition whose end a test decides."""

    def __init__(self) -> None:
        self.at_the_end = asyncio.Event()
        self.ended = False

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True

    async def wait_until_caught_up(self) -> None:
        await self.at_the_end.wait()


class Kafka:
    """Takes heartbeats while it is there."""

    away = False

    async def publish(self, outgoing: Sequence[Outgoing]) -> None:
        assert outgoing
        if self.away:
            raise PublishFailed("nobody answers")


class Bench:
    """A dispatch with readings in the place of Kafka's."""

    def __init__(self, folder: Path) -> None:
        self.kafka = Kafka()
        self.heart = Heart(Journal(folder / "journal.db"), cast(Any, self.kafka), Health(), 5.0)
        self.gate = asyncio.Event()
        self.readings: list[Reading] = []
        self.dispatch = Dispatch(self._read, self.heart, self.gate)

    def _read(self) -> Any:
        self.readings.append(Reading())
        return self.readings[-1]

    async def beat(self, *, away: bool) -> None:
        self.kafka.away = away
        await self.heart._beat(OFFER)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(100):  # turns of the loop: nothing here waits for anything else
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    running = asyncio.create_task(bench.dispatch.run())
    await until(lambda: len(bench.readings) == 1)
    yield bench
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    bench.heart.journal.close()


async def test_the_gate_opens_at_the_end_and_closes_when_the_runner_is_cut_off(bench: Bench) -> None:
    assert not bench.gate.is_set()
    bench.readings[0].at_the_end.set()
    await until(bench.gate.is_set)
    await bench.beat(away=True)
    await until(lambda: bench.readings[0].ended)
    assert not bench.gate.is_set()
    assert len(bench.readings) == 1
    await bench.beat(away=False)
    await until(lambda: len(bench.readings) == 2)
    assert not bench.gate.is_set()
    bench.readings[1].at_the_end.set()
    await until(bench.gate.is_set)


async def test_who_was_cut_off_while_he_read_reads_once_more_before_anything_starts(bench: Bench) -> None:
    """The end that he was reading to was that of before: a revocation may have come meanwhile."""
    await bench.beat(away=True)
    await bench.beat(away=False)
    opened = asyncio.create_task(bench.gate.wait())
    bench.readings[0].at_the_end.set()
    await until(lambda: len(bench.readings) == 2)
    assert bench.readings[0].ended
    assert not opened.done()
    bench.readings[1].at_the_end.set()
    await opened

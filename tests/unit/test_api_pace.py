"""Protects slow lines and our own slowness: only what a client makes us wait for counts, and a rate is an average."""

from collections.abc import Iterable

import pytest
from starlette.types import Message

from services.api.pace import Pace, TooSlow

GRACE_S, BYTES_PER_S = 10.0, 100


class Line:
    """A line over which pieces come, each after some seconds of waiting."""

    def __init__(self, pieces: Iterable[tuple[float, int]]) -> None:
        self.now = 1000.0
        self._pieces = iter(pieces)

    async def receive(self) -> Message:
        wait_s, size = next(self._pieces)
        self.now += wait_s
        return {"type": "http.request", "body": b"x" * size, "more_body": True}

    def pace(self) -> Pace:
        return Pace(self.receive, GRACE_S, BYTES_PER_S, lambda: self.now)


async def received(pace: Pace, times: int) -> int:
    for _ in range(times):
        await pace.receive()
    return pace.received


async def test_a_body_at_the_least_rate_is_taken_for_as_long_as_it_lasts() -> None:
    assert await received(Line([(1.0, BYTES_PER_S)] * 10_000).pace(), 10_000) == 1_000_000


async def test_a_body_a_little_below_the_rate_uses_up_its_grace() -> None:
    pace = Line([(1.0, BYTES_PER_S - 10)] * 1000).pace()
    with pytest.raises(TooSlow):
        await received(pace, 1000)
    assert 95 * 90 <= pace.received <= 105 * 90  # it lacks a tenth of a second every second: ten seconds last a hundred


async def test_a_stop_within_the_grace_is_forgiven_and_a_longer_one_is_not() -> None:
    assert await received(Line([(9.0, 1), (0.5, 1)]).pace(), 2) == 2
    with pytest.raises(TooSlow):
        await received(Line([(10.0, 0), (0.0, 1)]).pace(), 2)


async def test_what_came_fast_pays_for_a_later_stop() -> None:
    assert await received(Line([(0.0, 100 * BYTES_PER_S), (109.0, 1), (0.0, 1)]).pace(), 3) == 10_002


async def test_our_own_slowness_is_not_the_clients() -> None:
    line = Line([(0.0, 1)] * 100)
    pace = line.pace()
    for _ in range(100):
        await pace.receive()
        line.now += 60  # the object store takes its time
    assert pace.received == 100

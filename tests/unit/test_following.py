"""Protects the thread that follows a container's output from outliving, or dying loudly of, the loop that it feeds."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import cast

import pytest

from schemas.parts import MetricDefinition
from services.runner.definitions import MeasuredLog, Meter
from services.runner.following import CHUNKS_AHEAD, Following
from services.runner.frames import Frame
from services.runner.sandbox import LogStream


class Endless:
    """A container that talks for ever."""

    def __iter__(self) -> Iterator[bytes]:
        number = 0
        while True:
            number += 1
            yield b'{"seq":%d,"type":"dropped","lines":1,"bytes":1}\n' % number

    def close(self) -> None:
        return


class Short:
    """A container that says three things and then its last word."""

    def __iter__(self) -> Iterator[bytes]:
        for seq, text in enumerate(("loss=0.5", "nothing", "loss=0.25"), 1):
            said = {"seq": seq, "type": "log", "stream": "stdout", "text": text, "at": "2026-03-13T16:10:00Z"}
            yield json.dumps(said).encode() + b"\n"
        yield b'{"seq":4,"type":"end","exit_code":0,"signal":null}\n'

    def close(self) -> None:
        return


async def test_metrics_are_found_in_the_lines_by_the_thread_that_reads_them() -> None:
    meter = Meter([MetricDefinition(name="loss", regex="loss=(.*)")], 1 << 20)
    following = Following(cast(LogStream, Short()), meter)
    frames: list[Frame] = []
    while (more := await following.next(5)) is not None:
        frames += more
    following.close()
    values = [[one.value for one in frame.found] for frame in frames if isinstance(frame, MeasuredLog)]
    assert (values, [frame.seq for frame in frames]) == ([[0.5], [0.25]], [1, 2, 3, 4])
    assert not following.measuring


class Broken(Meter):
    """A meter with a bug."""

    def read(self, frame: Frame) -> Frame:
        raise AssertionError("a bug")


async def test_a_thread_that_breaks_is_the_end_of_what_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda about: None)
    following = Following(cast(LogStream, Short()), Broken((), 0))
    assert await following.next(5) is None
    assert not following.measuring
    await asyncio.to_thread(until_the_threads_are_over)


def test_the_thread_ends_quietly_when_the_loop_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[object] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)

    async def follow_until_it_waits() -> None:
        following = Following(cast(LogStream, Endless()), Meter((), 0))
        while following._frames.qsize() < CHUNKS_AHEAD:  # noqa: ASYNC110 - a thread fills it
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)  # one more is being handed over

    asyncio.run(follow_until_it_waits())
    until_the_threads_are_over()
    assert broken == []


def until_the_threads_are_over() -> None:
    for thread in threading.enumerate():
        if thread.name == "following":
            thread.join(5)
            assert not thread.is_alive()

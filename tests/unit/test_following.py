"""Protects the thread that follows a container's output from outliving, or dying loudly of, the loop that it feeds."""

import asyncio
import threading
from collections.abc import Iterator
from typing import cast

import pytest

from services.runner.following import CHUNKS_AHEAD, Following
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


def test_the_thread_ends_quietly_when_the_loop_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[object] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)

    async def follow_until_it_waits() -> None:
        following = Following(cast(LogStream, Endless()))
        while following._frames.qsize() < CHUNKS_AHEAD:  # noqa: ASYNC110 - a thread fills it
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)  # one more is being handed over

    asyncio.run(follow_until_it_waits())
    for thread in threading.enumerate():
        if thread.name == "following":
            thread.join(5)
            assert not thread.is_alive()
    assert broken == []

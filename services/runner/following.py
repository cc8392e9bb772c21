"""One thread that follows one container's output and hands its frames to the event loop, never faster than they go.

The engine's stream blocks, so it gets a thread of its own, which also looks for metrics in the lines: that may take
long, and holds nobody up. While Kafka is away the thread waits, and the engine's log keeps the rest. A stream's end
proves nothing about the container: whoever follows asks the engine afterwards.
"""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as NotYet
from typing import Any

from services.runner.definitions import Meter
from services.runner.errors import EngineUnavailable
from services.runner.frames import End, Frame, FrameDecoder
from services.runner.sandbox import LogStream

CHUNKS_AHEAD = 16
LOOK_UP_EVERY_S = 0.5


class Following:
    """Frames of one stream, from its beginning.

    `pressing` says that there is nothing to wait for: as much as may wait is waiting, or nothing more will come.
    `measuring` says that something was read and is still looked at, so a silence is not the stream's.
    """

    def __init__(self, stream: LogStream, meter: Meter) -> None:
        self.pressing = asyncio.Event()
        self.measuring = False
        self._stream = stream
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._frames: asyncio.Queue[list[Frame] | None] = asyncio.Queue(CHUNKS_AHEAD)
        self._closed = threading.Event()
        self._over = self._ended = False
        threading.Thread(target=self._read, name="following", daemon=True).start()

    async def next(self, idle_s: float) -> list[Frame] | None:
        """Wait for frames and return all that are there; none after `idle_s` without any, None at the stream's end."""
        if self._over:
            return None
        try:
            async with asyncio.timeout(idle_s):
                frames = await self._frames.get()
        except TimeoutError:
            return []
        found: list[Frame] = []
        while frames is not None:
            found += frames
            if self._frames.empty():
                if not self._ended:
                    self.pressing.clear()
                return found
            frames = self._frames.get_nowait()
        self._over = True
        return found or None

    def close(self) -> None:
        """Stop the thread, whatever it waits for."""
        self._closed.set()
        try:
            self._stream.close()
        except EngineUnavailable:
            return  # broken already

    def _read(self) -> None:
        try:
            heard = self._hand_on()
        except BaseException:
            self.measuring = False
            self._hand_over(None)  # nobody shall wait for more
            raise
        if heard:
            self._hand_over(None)

    def _hand_on(self) -> bool:
        """Hand on what the stream says, to its end; False when nobody listens any more."""
        decoder = FrameDecoder()
        for chunk in self._stream:
            self.measuring = True
            frames = [self._meter.read(frame) for frame in decoder.feed(chunk)]
            if frames and not self._hand_over(frames):
                return False
            self.measuring = False
        return True

    def _hand_over(self, frames: list[Frame] | None) -> bool:
        put = self._in_loop(self._put(frames))
        while put is not None and not self._closed.is_set():
            try:
                put.result(LOOK_UP_EVERY_S)
            except NotYet:
                continue
            except CancelledError:  # the loop is ending, and cancels whatever waits in it
                return False
            return True
        if put is not None:
            put.cancel()
        return False

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop is closed: the process is about to end
            work.close()
            return None

    async def _put(self, frames: list[Frame] | None) -> None:
        if frames is None or any(isinstance(frame, End) for frame in frames):
            self._ended = True
        if self._ended or self._frames.qsize() >= CHUNKS_AHEAD - 1:
            self.pressing.set()
        await self._frames.put(frames)

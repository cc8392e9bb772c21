"""The engine for asynchronous code: blocking calls go to threads of their own, silence is told as ill health.

Owns the connection and the threads; never decides what an engine's answer means for a run.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from services.backbone.health import Health
from services.backbone.retry import delays
from services.runner.errors import EngineRefused, EngineUnavailable
from services.runner.sandbox import Sandbox

THREADS = 16
WATCH_EVERY_S = 2.0
PATIENCE_S = 5.0
PART = "engine"

log = structlog.get_logger()

Answer = TypeVar("Answer")


@dataclass
class Engine:
    """One engine, connected when it is first needed and whenever it has come back."""

    health: Health
    _sandbox: Sandbox | None = None
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "engine"))

    async def ask(self, call: Callable[[Sandbox], Answer], patience_s: float | None = None) -> Answer:
        """Ask the engine, again and again while it does not answer; None for `patience_s` means for ever.

        Raises:
            EngineUnavailable: it did not answer for that long.
            EngineRefused: it said no.
        """
        since = time.monotonic()
        for delay in delays():
            try:
                return await self.ask_once(call)
            except EngineUnavailable as error:
                if patience_s is not None and time.monotonic() - since > patience_s:
                    raise
                log.warning("waiting_for", what=PART, error=str(error), again_in_s=round(delay, 2))
                await asyncio.sleep(delay)
        raise AssertionError("delays never end")

    async def ask_once(self, call: Callable[[Sandbox], Answer]) -> Answer:
        """Ask the engine once, and note whether it answered."""
        try:
            answer = await self.in_thread(lambda: call(self._connected()))
        except EngineUnavailable as error:
            self.health.failing(PART, str(error))
            raise
        self.health.ok(PART)
        return answer

    async def in_thread(self, work: Callable[[], Answer]) -> Answer:
        """Do something that blocks in one of the engine's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def watch(self) -> None:
        """Ask the engine every few seconds whether it is there, so that its health is never old; until cancelled."""
        while True:
            asking = asyncio.create_task(self.ask_once(lambda sandbox: sandbox.ping()))
            try:
                if not (await asyncio.wait([asking], timeout=PATIENCE_S))[0]:
                    self.health.failing(PART, f"no answer for {PATIENCE_S:.0f} s")
                with contextlib.suppress(EngineUnavailable, EngineRefused):
                    await asking
            finally:
                asking.cancel()
            await asyncio.sleep(WATCH_EVERY_S)

    def close(self) -> None:
        """Let the connection go; containers run on."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._sandbox is not None:
            self._sandbox.close()

    def _connected(self) -> Sandbox:
        if self._sandbox is None:
            self._sandbox = Sandbox.connect()
        return self._sandbox

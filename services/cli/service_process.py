"""One service as a child process: started, watched, started again when it dies, stopped in bounded time.

Owns when a dead service is worth another start. It dies with this process (`embedded_process` sets the parent-death
signal), so a killed `runyard up` leaves nothing behind. Never knows what a service does.
"""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.cli.embedded_process import POLL_S, ServerProcess
from services.cli.errors import CliError

QUICK_DEATH_S = 15.0
MOST_QUICK_DEATHS = 5
FIRST_DELAY_S = 0.5
STOP_TIMEOUT_S = 12.0
READY_TIMEOUT_S = 120.0
"""Kafka waits 45 s for a member of a group that was killed before it lets its successor read."""
READY_POLL_S = 0.2
CHECKOUT = Path(__file__).parents[2]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows a death: another start after a delay, or none (`delay_s` is None)."""

    quick_deaths: int
    delay_s: float | None


def after_death(quick_deaths: int, lived_s: float) -> Verdict:
    """Decide what follows a service's death: a start with doubling delays, until it died quickly five times in a row.

    >>> after_death(quick_deaths=0, lived_s=3600)
    Verdict(quick_deaths=0, delay_s=0.5)
    >>> after_death(quick_deaths=4, lived_s=1)
    Verdict(quick_deaths=5, delay_s=None)
    """
    if lived_s >= QUICK_DEATH_S:
        return Verdict(0, FIRST_DELAY_S)
    deaths = quick_deaths + 1
    return Verdict(deaths, None if deaths >= MOST_QUICK_DEATHS else FIRST_DELAY_S * 2**deaths)


class ServiceProcess:
    """A service of ours.

    Args:
        name: as in `services.<name>.main`.
        folder: of its log and pid file.
        environment: its settings.
        url: where it answers `/readyz`.
    """

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str], url: str) -> None:
        self.name = name
        self.restarts = 0
        self._folder = folder
        self._environment = dict(environment)
        self._url = url
        self._process = ServerProcess(name, folder, signal.SIGTERM)
        self._started_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """Where it logs."""
        return self._process.log_path

    async def start(self) -> None:
        """Start it, without waiting until it is ready."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._started_at = time.monotonic()
        command = [sys.executable, "-m", f"services.{self.name}.main"]
        await self._process.spawn(command, environment={"PYTHONPATH": str(CHECKOUT), **self._environment})

    def kill(self) -> None:
        """Kill it at once (SIGKILL), as a crash would; `keep_running` starts it again, or `start` does."""
        self._process.kill()

    async def stop(self) -> None:
        """End it in good order, or by force when it takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.stop()
        self._process.kill()

    async def keep_running(self, say: Say) -> None:
        """Start it again whenever it dies.

        Raises:
            CliError: it keeps dying; the text says where its log is and how it ends.
        """
        quick_deaths = 0
        while True:
            while self.pid is not None:  # noqa: ASYNC110 - a child has no event to wait for
                await asyncio.sleep(POLL_S * 5)
            verdict = after_death(quick_deaths, time.monotonic() - self._started_at)
            quick_deaths = verdict.quick_deaths
            if verdict.delay_s is None:
                raise CliError(f"the {self.name} keeps dying. {self._log_end()}")
            say(f"the {self.name} died; starting it again in {verdict.delay_s:.1f} s (log: {self.log_path})")
            await asyncio.sleep(verdict.delay_s)
            await self.start()
            self.restarts += 1

    async def wait_until_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until every part of it works. Services wait for each other, so one that ends now has a reason to.

        Raises:
            CliError: it ended, or does not get there in time; the text says which part is missing.
        """
        report = "it does not answer"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), httpx.AsyncClient(timeout=5) as client:
                while True:
                    if self.pid is None:
                        raise CliError(f"the {self.name} ended while starting. {self._log_end()}")
                    try:
                        answer = await client.get(f"{self._url}/readyz")
                    except httpx.HTTPError as error:
                        report = f"it does not answer ({type(error).__name__})"
                    else:
                        if answer.status_code == httpx.codes.OK:
                            return
                        report = answer.text
                    await asyncio.sleep(READY_POLL_S)
        raise CliError(f"the {self.name} was not ready within {timeout_s:.0f} s: {report}\n{self._log_end()}")

    def _log_end(self) -> str:
        return f"Its log, {self.log_path}, ends with:\n{self._process.log_tail()}"

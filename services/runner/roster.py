"""The attempts that live in this process, each a task of its own; their memory is the journal, not this list."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from schemas.parts import RunAttempt
from services.runner.attempt import Attempt
from services.runner.journal import Entry
from services.runner.setting_up import Surroundings


@dataclass
class Roster:
    """Launches attempts and hands stop orders to them."""

    around: Surroundings
    _alive: dict[RunAttempt, Attempt] = field(default_factory=dict)
    _starts: asyncio.Queue[Coroutine[Any, Any, None]] = field(default_factory=asyncio.Queue)

    async def run(self) -> None:
        """Take up what the journal says is unfinished, then live as long as the process.

        Raises:
            ExceptionGroup: an attempt could not even write its end down.
        """
        for entry in self.around.journal.unfinished():
            self.launch(entry)
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(await self._starts.get())

    def launch(self, entry: Entry) -> None:
        """Let an unfinished attempt live, unless it does already."""
        if entry.queued is None or entry.ref in self._alive:
            return
        attempt = Attempt(entry, entry.queued, self.around)
        self._alive[entry.ref] = attempt
        self._starts.put_nowait(self._live(entry.ref, attempt))

    def stop(self, ref: RunAttempt) -> None:
        """Tell an attempt that a cause was journaled."""
        if (attempt := self._alive.get(ref)) is not None:
            attempt.stop()

    async def _live(self, ref: RunAttempt, attempt: Attempt) -> None:
        try:
            await attempt.run()
        finally:
            del self._alive[ref]

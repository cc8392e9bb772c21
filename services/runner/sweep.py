"""Sweeping the host: containers and folders that belong to no unfinished attempt, and what the journal may forget.

It runs at start and every minute, so that whatever a crash left behind goes away. It must never touch what an
unfinished attempt may need: what exists is listed first, the journal is asked afterwards.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from schemas.parts import RunAttempt
from services.backbone.crash_points import crash_point
from services.runner import folder
from services.runner.engine import Engine
from services.runner.errors import EngineRefused
from services.runner.journal import Journal
from services.runner.packages import Packages
from services.runner.slot import close_slots

EVERY_S = 60.0
JOURNAL_KEPT = timedelta(days=8)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sweep:
    """The broom of one runner."""

    journal: Journal
    engine: Engine
    runs_folder: Path
    slots_folder: Path | None
    packages: Packages

    async def run(self) -> None:
        """Sweep now and then until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(EVERY_S)

    async def once(self) -> None:
        """Remove strangers; waits for the engine as long as it takes."""
        holding = self.journal.holding_seats()
        containers = await self.engine.ask(lambda engine: engine.owned(self.journal.runner_id))
        folders = await asyncio.to_thread(self._folders)
        unfinished = {entry.ref for entry in self.journal.unfinished()}
        needed = {f"run-{ref.run_id}-{ref.attempt}" for ref in unfinished}
        for container in containers:
            if RunAttempt(run_id=container.run_id, attempt=container.attempt) not in unfinished:
                log.info("container_swept", run_id=container.run_id, attempt=container.attempt)
                await self._remove_container(container.name)
                crash_point("after_container_swept")
        for path in folders:
            if path.name not in needed:
                await self._remove_folder(path)
                crash_point("after_folder_swept")
        await asyncio.to_thread(close_slots, self.slots_folder)
        left = {container.name for container in containers} | {path.name for path in folders}
        for ref in holding:
            if f"run-{ref.run_id}-{ref.attempt}" not in left:
                self.journal.release_seat(ref)
        await self.packages.sweep()
        self.journal.forget(datetime.now(UTC) - JOURNAL_KEPT)

    def _folders(self) -> list[Path]:
        found: list[Path] = []
        for place in (self.slots_folder, self.runs_folder):
            with suppress(FileNotFoundError):  # an attempt that ends takes the slots' folder along
                found += place.iterdir() if place is not None else ()
        return found

    async def _remove_container(self, name: str) -> None:
        try:
            await self.engine.ask(lambda engine: engine.remove(name))
        except EngineRefused as error:
            log.warning("sweep_failed", container=name, error=error.reason)

    async def _remove_folder(self, path: Path) -> None:
        try:
            await asyncio.to_thread(folder.remove, path)
        except OSError as error:
            log.warning("sweep_failed", folder=path.name, error=str(error))

"""The runner's outbox: events of its attempts' lives leave the journal in order, each until Kafka has it.

Never gives up and never changes a byte: an end that was journaled is told, if it takes a week.
"""

import asyncio
from dataclasses import dataclass, field

from services.backbone.crash_points import crash_point
from services.backbone.errors import TransientError
from services.backbone.health import Health
from services.backbone.publisher import Publisher
from services.backbone.retry import until_it_works
from services.backbone.watchdog import LOOK_EVERY_S, Seen, Watchdog
from services.runner.journal import Journal


@dataclass
class Delivery:
    """Empties one journal's outbox."""

    journal: Journal
    publisher: Publisher
    health: Health
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _delivered: int = 0
    _retrying: bool = False

    def wake(self) -> None:
        """There may be something new."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled.

        Raises:
            ExceptionGroup: a bug, or `Stuck`: events wait, nothing fails, and still none is delivered.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deliver())
            group.create_task(self._watch())

    async def _deliver(self) -> None:
        while True:
            self._wake.clear()
            while await until_it_works("kafka", self._deliver_some):
                pass
            await self._wake.wait()

    async def _deliver_some(self) -> bool:
        waiting = self.journal.unpublished()
        if not waiting:
            return False
        crash_point("before_events_publish")
        try:
            await self.publisher.publish([item.event for item in waiting])
        except TransientError:
            self._retrying = True
            raise
        self._retrying = False
        crash_point("after_events_publish")
        self.journal.mark_published(item.position for item in waiting)
        self._delivered += len(waiting)
        crash_point("after_events_marked")
        return True

    async def _watch(self) -> None:
        watchdog = Watchdog("delivery", self.health)
        while True:
            waiting = bool(self.journal.unpublished(limit=1))
            watchdog.look(Seen(self._delivered, waiting, self._retrying), "events wait in the journal")
            await asyncio.sleep(LOOK_EVERY_S)

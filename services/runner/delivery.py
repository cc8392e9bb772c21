"""The runner's outbox: events of its attempts' lives leave the journal in order, each until Kafka has it.

Never gives up and never changes a byte: an end that was journaled is told, if it takes a week.
"""

import asyncio
from dataclasses import dataclass, field

from services.backbone.crash_points import crash_point
from services.backbone.publisher import Publisher
from services.backbone.retry import until_it_works
from services.runner.journal import Journal


@dataclass
class Delivery:
    """Empties one journal's outbox."""

    journal: Journal
    publisher: Publisher
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """There may be something new."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
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
        await self.publisher.publish([item.event for item in waiting])
        crash_point("after_events_publish")
        self.journal.mark_published(item.position for item in waiting)
        crash_point("after_events_marked")
        return True

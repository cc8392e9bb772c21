"""What the scheduler last published about queue and capacity, for estimates. In memory, read anew at each start."""

from collections.abc import Sequence

from schemas.cloudevents import CloudEvent
from schemas.events import SchedulerLoad
from services.backbone.consumer import Received


class LoadView:
    """The newest SchedulerLoad, if any was heard; a late word of a former leader does not replace a newer one's."""

    def __init__(self) -> None:
        self.newest: SchedulerLoad | None = None

    async def on_load(self, batch: Sequence[Received]) -> None:
        """Take over what the scheduler published."""
        for received in batch:
            event = received.event
            load = event.data if isinstance(event, CloudEvent) else None
            if isinstance(load, SchedulerLoad) and (self.newest is None or load.epoch >= self.newest.epoch):
                self.newest = load

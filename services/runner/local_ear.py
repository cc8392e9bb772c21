"""The ear in Kafka's place when scripts are run here: it hears what a runner tells, and tells it on, as it happens.

Owns nothing but the ends that were heard; never decides anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from schemas.cloudevents import CloudEvent, decode
from schemas.events import (
    AttemptLost,
    LogsAppended,
    MetricsReported,
    RunCancelled,
    RunFailed,
    RunStarted,
    RunSucceeded,
)
from schemas.parts import LogLine, MetricPoint
from services.backbone.publisher import Record
from services.runner.journal import Journal

End = RunSucceeded | RunFailed | RunCancelled | AttemptLost


class Listener(Protocol):
    """Who is told what a run does, as it happens."""

    def on_started(self, container_id: str) -> None:
        """Take note that the script runs."""

    def on_line(self, line: LogLine) -> None:
        """Take note of a line of output."""

    def on_point(self, point: MetricPoint) -> None:
        """Take note of a metric's value."""


@dataclass
class Ear:
    """Hears what the runner tells: output at once, the events of its lives out of its journal."""

    journal: Journal
    listeners: dict[str, Listener] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)

    async def publish(self, records: Sequence[Record]) -> None:
        """Hear output, which comes as it would go to Kafka."""
        for record in records:
            self._hear(record)

    def deliver(self) -> None:
        """Hear the events that wait in the journal."""
        waiting = self.journal.unpublished()
        for item in waiting:
            self._hear(item.event)
        self.journal.mark_published(item.position for item in waiting)

    def _hear(self, record: Record) -> None:
        event = decode(record.headers, record.value)
        data = event.data if isinstance(event, CloudEvent) else None
        match data:
            case RunStarted():
                self.listeners[data.run_id].on_started(data.container_id)
            case LogsAppended():
                for line in data.lines:
                    self.listeners[data.run_id].on_line(line)
            case MetricsReported():
                for point in data.points:
                    self.listeners[data.run_id].on_point(point)
            case RunSucceeded() | RunFailed() | RunCancelled() | AttemptLost():
                self.ends[data.run_id] = data
            case _:
                return  # nothing else is the business of somebody who watches

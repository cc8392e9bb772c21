"""Which cluster a process works with: the one that its schema names, under a shared lock; else it waits.

Mirrors `services/backbone/broker.py`. A process that finds another cluster, or its lock gone, ends and starts again.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.bus import Bus
from tests.simulation.database import Postgres
from tests.simulation.world import Exit, Process, Steps

LOOK_EVERY_S = 1.0
CHECK_EVERY_S = 4.0


@dataclass(slots=True)
class Membership:
    """One process's work with one cluster."""

    postgres: Postgres
    bus: Bus
    process: Process
    schema: str
    named: dict[str, int]

    def work(self, begin: Callable[[], None]) -> Steps[None]:
        """Wait until the cluster that answers is the one that the schema names, begin, and make sure now and then.

        Raises:
            Exit: another cluster answers, or another one is named.
        """
        while not self._reach() or not self._lock(self.bus.cluster):
            yield LOOK_EVERY_S
        cluster = self.bus.cluster
        begin()
        while True:
            yield CHECK_EVERY_S
            while not self._reach():
                yield LOOK_EVERY_S
            held = self.process in self.postgres.sharers[self.schema]
            if self.bus.cluster != cluster or not (held or self._lock(cluster)):
                raise Exit

    def _reach(self) -> bool:
        return self.bus.reachable(self.process) and not self.postgres.is_down

    def _lock(self, cluster: int) -> bool:
        if self.named["id"] != cluster or not self.postgres.share(self.schema, self.process):
            return False
        self.process.world.say(self.process.name, "works with cluster", cluster)
        return True

"""All schemas of the one database, and which Kafka cluster each of them names."""

from dataclasses import dataclass, field

from tests.simulation.auditing import Tables as Ledger
from tests.simulation.registry import Tables as Registry
from tests.simulation.scheduling import Tables as Scheduling


@dataclass(slots=True)
class Tables:
    """What survives every process."""

    registry: Registry = field(default_factory=Registry)
    scheduling: Scheduling = field(default_factory=Scheduling)
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def named(self) -> dict[str, dict[str, int]]:
        """The one row of each schema's `broker`."""
        return {
            "registry": self.registry.cluster,
            "scheduling": self.scheduling.cluster,
            "ledger": self.ledger.cluster,
        }

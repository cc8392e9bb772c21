"""What goes wrong in one simulation, and how often: each seed draws its own mixture ("swarm testing", Groce 2012).

Most seeds know only some kinds of faults, so that no kind hides what another one would show.
"""

from dataclasses import dataclass
from random import Random

KINDS = (
    "kill",
    "stop",
    "cut_off",
    "lose_runner",
    "lose_container",
    "broker_down",
    "database_down",
    "lose_leader_lock",
    "lose_relay_lock",
    "rebalance",
    "reset_offsets",
)
"""Faults that come from outside, at any time."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities per operation, and the kinds of outside faults with the pause between two of them."""

    publish_fails: float
    ack_lost: float
    lands_late: float
    commit_fails: float
    commit_unknown: float
    offset_commit_lost: float
    mean_steps_to_crash: float | None
    slowness_s: float
    kinds: tuple[str, ...]
    every_s: float
    storm_s: float
    instances: int
    loses_broker: bool

    @classmethod
    def drawn(cls, random: Random) -> "Faults":
        """Draw a mixture."""

        def rate(most: float) -> float:
            return random.choice((0.0, 0.0, most / 5, most))

        return cls(
            publish_fails=rate(0.15),
            ack_lost=rate(0.15),
            lands_late=random.choice((0.0, 0.5)),
            commit_fails=rate(0.05),
            commit_unknown=rate(0.1),
            offset_commit_lost=rate(0.3),
            mean_steps_to_crash=random.choice((None, 150.0, 600.0)),
            slowness_s=random.choice((0.05, 1.5)),
            kinds=tuple(kind for kind in KINDS if random.random() < 0.35),
            every_s=random.choice((2.0, 6.0, 20.0)),
            storm_s=random.choice((20.0, 60.0, 120.0)),
            instances=random.choice((1, 2)),
            loses_broker=random.random() < 0.25,
        )

    def steps_to_crash(self, random: Random) -> int | None:
        """Draw after how many steps of whatever process the next one is killed."""
        mean = self.mean_steps_to_crash
        return None if mean is None else 1 + int(random.expovariate(1 / mean))

    def downtime_s(self, random: Random) -> float:
        """Draw how long a killed process stays away: mostly shorter than a lease, sometimes longer."""
        return random.choice((0.1, 1.0, 3.0, 3.0, 10.0, 45.0))

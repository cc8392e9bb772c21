"""One simulation: a seed in, a report out. A broken promise comes with the seed and the command that replays it."""

from dataclasses import dataclass

from tests.simulation import invariants
from tests.simulation.storm import Storm
from tests.simulation.system import Rules, System
from tests.simulation.watching import Violation
from tests.simulation.world import World

BOUND_S = 600.0
"""After the storm: three attempts of at most 60 s, leases of 30 s, and what a busy runner lets the others wait."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one simulation did."""

    seed: int
    runs: int
    events: int
    steps: int
    seconds: float
    trace: tuple[str, ...] = ()


class Broken(AssertionError):
    """A promise does not hold for a seed."""


DEFAULT = Rules()


def simulate(seed: int, rules: Rules = DEFAULT, *, traced: bool = False) -> Report:
    """Let one world live, and check every promise.

    Raises:
        Broken: with the command that replays it.
    """
    world = World(seed, traced=traced)
    system = System(world, rules)
    try:
        _live(world, system)
    except Exception as violation:  # a bug ends a process in reality, and is a violation here
        trace = "\n".join(world.trace or ())
        command = f"python -m tests.simulation --seed {seed} --trace"
        raise Broken(f"seed {seed}, at {world.now:.3f} s: {violation!r}\n{trace}\nreplay: {command}") from violation
    events = sum(len(each) for each in system.ledger.events.values())
    return Report(seed, len(system.registry.runs), events, world.steps, world.now, tuple(world.trace or ()))


def _live(world: World, system: System) -> None:
    system.start()
    world.spawn("storm", Storm(system).run())
    world.run(world.faults.storm_s + BOUND_S, system.is_at_rest)
    if not system.is_at_rest():
        raise Violation(f"not at rest {BOUND_S} s after the faults stopped: {system.what_is_open()}")
    invariants.check(system)

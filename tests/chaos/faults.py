"""What breaks, and when: a plan out of one seed, and the breaker that carries it out and notes how long each took.

The plan is pure. The breaker owns the record of outages; it never waits for runs and never judges. A part recovers by
the harness's restarter, so the breaker only breaks.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

from tests.chaos.evidence import Outage
from tests.chaos.harness import SERVICES, Chaos

KILLS_EVERY_S = (1.0, 10.0)
BIG_ONES_EVERY_S = (7.0, 12.0)
QUIET_AT_FIRST_S = 2.0
POLL_S = 0.02
RECOVERY_TIMEOUT_S = 180.0
HALTS = tuple(f"halt {name}" for name in ("runner", "scheduler", "auditor", "api", "runner-2"))
SERVERS = ("kill postgres", "kill kafka", "stop kafka", "kill engine", "stop engine")
CUTS = ("refuse runner-2", "silence runner-2")
LONGER_THAN_A_LEASE = (*HALTS, *CUTS, "kill kafka")
"""What is away for so long loses its runs; Kafka, which is the silence of all, loses nobody's."""
ONCE_EACH = ("kill postgres", "halt runner", "kill kafka", "refuse runner-2", "kill engine", "halt scheduler")
"""What even a short soak has; the others follow."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that breaks: `what` is a verb and a part, `lasts_s` how long it stays so before it may recover."""

    at_s: float
    what: str
    lasts_s: float = 0.0

    @property
    def part(self) -> str:
        """What it happens to."""
        return self.what.split()[1]

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.at_s:6.1f} s  {self.what}{lasts}"


def plan(random: Random, duration_s: float, lease_s: float, *, engine: bool) -> list[Fault]:
    """Draw what breaks within a time: a service killed every 1–10 s, and beside it a bigger fault of each kind in turn.

    Args:
        random: the seed's.
        duration_s: when it is over; what lasts ends a little later.
        lease_s: what is halted or cut off is so for longer than this; so is Kafka when it is killed.
        engine: whether there is an engine that may be broken.
    """
    faults, at = [], QUIET_AT_FIRST_S
    while (at := at + random.uniform(*KILLS_EVERY_S)) < duration_s:
        faults.append(Fault(at, f"kill {random.choice(SERVICES)}"))
    at = QUIET_AT_FIRST_S
    for what in _in_turn(random):
        if not engine and what.endswith("engine"):
            continue
        lasts = lease_s + random.uniform(1, 6) if what in LONGER_THAN_A_LEASE else random.choice((0.0, 1.0, 4.0))
        faults.append(Fault(at, what, lasts))
        if (at := at + random.uniform(*BIG_ONES_EVERY_S)) > duration_s:
            break
    return sorted(faults, key=lambda fault: fault.at_s)


def _in_turn(random: Random) -> Iterator[str]:
    yield from ONCE_EACH
    everything = [*HALTS, *SERVERS, *CUTS]
    rest = [what for what in everything if what not in ONCE_EACH]
    while True:
        random.shuffle(rest)
        yield from rest
        rest = list(everything)


class Breaker:
    """Carries out faults on one system.

    Attributes:
        outages: what could not work, and when; complete once `carry_out` has returned.
        recoveries: seconds from each fault's end to the part being ready again, by fault.
    """

    def __init__(self, chaos: Chaos, say: Callable[[str], None] = lambda line: None) -> None:
        self.outages: list[Outage] = []
        self.recoveries: dict[str, list[float]] = defaultdict(list)
        self._chaos = chaos
        self._say = say
        self._busy: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._back: dict[str, float] = {}

    async def carry_out(self, faults: Sequence[Fault]) -> None:
        """Break everything at its time; returns when all of it has recovered."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
                group.create_task(self._break(fault))

    async def _break(self, fault: Fault) -> None:
        self._say(str(fault))
        verb, part = fault.what.split()
        if verb in ("refuse", "silence"):
            await self._cut(fault)
        elif verb == "halt":
            await self._halt(fault)
        elif part in self._chaos.services:
            await self._kill_service(fault)
        else:
            await self._stop_server(fault)

    async def _kill_service(self, fault: Fault) -> None:
        async with self._outage(fault, "killed"):
            restarts = self._chaos.restarts[fault.part]
            self._chaos.services[fault.part].kill()
            await self._restarted(fault.part, restarts)
            await self._chaos.ready(fault.part, timeout_s=RECOVERY_TIMEOUT_S)

    async def _halt(self, fault: Fault) -> None:
        async with self._outage(fault, "halted") as mended:
            self._chaos.halt(fault.part)
            await asyncio.sleep(fault.lasts_s)
            self._chaos.go_on(fault.part)
            mended()
            await self._chaos.ready(fault.part, timeout_s=RECOVERY_TIMEOUT_S)

    async def _cut(self, fault: Fault) -> None:
        async with self._busy["proxy"], self._outage(fault, "cut_off") as mended:
            await self._chaos.proxy.cut(silent=fault.what.startswith("silence"))
            await asyncio.sleep(fault.lasts_s)
            self._back[fault.part] = time.time()
            await self._chaos.proxy.mend()
            mended()
            await self._chaos.ready(fault.part, timeout_s=RECOVERY_TIMEOUT_S)

    async def _stop_server(self, fault: Fault) -> None:
        """Kill a server, or stop it in good order; it stays away for a while, then everybody has to be well again."""
        chaos, part = self._chaos, fault.part
        async with self._busy[part], self._outage(fault, "killed") as mended:
            restarts = chaos.restarts[part]
            with chaos.holding(part):
                await self._end_server(fault)
                await asyncio.sleep(fault.lasts_s)
            mended()
            await self._restarted(part, restarts)
            self._back[part] = time.time()
            await chaos.ready(timeout_s=RECOVERY_TIMEOUT_S)

    async def _end_server(self, fault: Fault) -> None:
        chaos = self._chaos
        if fault.what == "stop kafka":
            await chaos.kafka.stop()
        elif fault.what == "stop engine" and chaos.engine is not None:
            await chaos.engine.end()
        elif fault.what == "kill engine" and chaos.engine is not None:
            chaos.engine.kill()
        else:
            (chaos.kafka if fault.part == "kafka" else chaos.postgres).kill()

    async def _restarted(self, part: str, before: int) -> None:
        async with asyncio.timeout(RECOVERY_TIMEOUT_S):
            while self._chaos.restarts[part] == before:  # noqa: ASYNC110 - a child has no event to wait for
                await asyncio.sleep(POLL_S)

    @asynccontextmanager
    async def _outage(self, fault: Fault, how: str) -> AsyncIterator[Callable[[], None]]:
        """Note an outage from here to the end of the block; recovery counts from the call of what is handed over."""
        began, mended_at = time.time(), time.monotonic()

        def mended() -> None:
            nonlocal mended_at
            mended_at = time.monotonic()

        try:
            yield mended
        finally:
            self.outages.append(Outage(fault.part, how, began, time.time(), self._back.pop(fault.part, None)))
            self.recoveries[fault.what].append(time.monotonic() - mended_at)

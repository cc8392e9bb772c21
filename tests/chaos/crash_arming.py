"""Arming crash points in a running system, and telling which went off, when, and how long it took to get over it.

Owns the folders that `RUNYARD_CRASH_POINTS` names, one per service (both runners share theirs: whoever passes first
dies). A point is armed by one scenario at a time. Never says what drives a service past a point.
"""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.backbone.crash_points import ENVIRONMENT
from tests.chaos.crash_places import ALL, Place
from tests.chaos.evidence import Outage
from tests.chaos.harness import RUNNERS, SERVICES, Chaos

POLL_S = 0.01


class NeverReached(AssertionError):
    """A point stayed armed: nothing that was driven passed it."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A process that died at a point; `recovery_s`: until its service said again that every part of it works.

    Of two runners that died at the same moment nobody knows which it was: `names` has both.
    """

    place: Place
    names: tuple[str, ...]
    at: float
    recovery_s: float


def armed_in(root: Path) -> dict[str, dict[str, str]]:
    """Make the folders, and the environment by which each service of the harness finds its own."""
    for service in ALL:
        (root / service).mkdir(parents=True)
    return {name: {ENVIRONMENT: str(root / _service_of(name))} for name in SERVICES}


class Armory:
    """The points of one system."""

    def __init__(self, chaos: Chaos, root: Path) -> None:
        self.kills: list[Kill] = []
        self.halts: list[Outage] = []
        self._chaos = chaos
        self._root = root
        self._turns: defaultdict[Place, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._expected: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def armed(self, places: Collection[Place]) -> AsyncIterator["Armed"]:
        """Arm points for a block; at its end those that went off have been got over, and no other is left armed."""
        async with contextlib.AsyncExitStack() as turns:
            for place in sorted(places):
                await turns.enter_async_context(self._turns[place])
            for place in places:
                self._path(place).touch()
            watches = {place: asyncio.create_task(self._watch(place)) for place in places}
            try:
                yield Armed(self, watches)
                async with asyncio.timeout(120):
                    await asyncio.gather(*(watch for place, watch in watches.items() if not self.is_armed(place)))
            finally:
                for place, watch in watches.items():
                    self._path(place).unlink(missing_ok=True)
                    watch.cancel()
                await asyncio.gather(*watches.values(), return_exceptions=True)

    def is_armed(self, place: Place) -> bool:
        """Whether a point has not gone off yet."""
        return self._path(place).exists()

    async def kill(self, name: str) -> None:
        """Kill a service without a crash point, and wait until it is there again."""
        while self._chaos.services[name].pid is None:  # noqa: ASYNC110 - a restart has no event
            await asyncio.sleep(POLL_S)
        self._expected[_service_of(name)] += 1
        before = self._chaos.restarts[name]
        began = time.time()
        self._chaos.services[name].kill()
        while self._chaos.restarts[name] == before:  # noqa: ASYNC110 - a restart has no event
            await asyncio.sleep(POLL_S)
        await self._chaos.ready(name)
        self.halts.append(Outage(name, "killed", began, time.time()))

    def outages(self) -> list[Outage]:
        """Tell when which part was away."""
        killed = [
            Outage(name, "killed", kill.at, kill.at + kill.recovery_s) for kill in self.kills for name in kill.names
        ]
        return killed + self.halts

    def unexplained_deaths(self) -> dict[str, int]:
        """Count deaths, by service, that no crash point and nobody else here brought about.

        There may be fewer than kills: a process that a point has just killed can be killed once more by somebody else.
        """
        deaths: Counter[str] = Counter()
        for name, count in self._chaos.restarts.items():
            deaths[_service_of(name)] += count
        deaths.subtract(kill.place.service for kill in self.kills)
        deaths.subtract(self._expected)
        return {service: count for service, count in deaths.items() if count > 0}

    async def _watch(self, place: Place) -> None:
        """Wait until a point goes off, and until its service is there again."""
        path, candidates = self._path(place), _names_of(place.service)
        before = [self._chaos.restarts[name] for name in candidates]
        while path.exists():
            before = [self._chaos.restarts[name] for name in candidates]
            await asyncio.sleep(POLL_S)
        at, began = time.time(), time.monotonic()
        while not (died := self._restarted(candidates, before)):  # noqa: ASYNC110 - a restart has no event
            await asyncio.sleep(POLL_S)
        await self._chaos.ready(*died)
        self.kills.append(Kill(place, died, at, time.monotonic() - began))

    def _restarted(self, names: Sequence[str], before: Sequence[int]) -> tuple[str, ...]:
        pairs = zip(names, before, strict=True)
        return tuple(name for name, restarts in pairs if self._chaos.restarts[name] > restarts)

    def _path(self, place: Place) -> Path:
        return self._root / place.service / place.point


@dataclass(frozen=True, slots=True)
class Armed:
    """Some points that a scenario has armed."""

    armory: Armory
    watches: dict[Place, asyncio.Task[None]]

    def left(self) -> list[Place]:
        """Tell which have not gone off yet."""
        return [place for place in self.watches if self.armory.is_armed(place)]


def _service_of(name: str) -> str:
    return "runner" if name in RUNNERS else name


def _names_of(service: str) -> tuple[str, ...]:
    return RUNNERS if service == "runner" else (service,)

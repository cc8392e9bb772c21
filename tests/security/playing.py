"""Plays families of hostile cases on a stage and gathers what is wrong; sentinels are compared after every case.

Owns the order: probes of a family together, light attacks and checks a few at a time, heavy ones beside a neighbour.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tests.security import sentinels
from tests.security.case import Attack, Check, Complaint, Family, Probe
from tests.security.judging import judge_attack, judge_probes
from tests.security.neighbour import Neighbourhood
from tests.security.stage import Stage

AT_ONCE = 3
PROBES_TOGETHER = 60
"""So many that the limit on processes is no matter, and one that ends the container is soon found."""


@dataclass
class Played:
    """What came of one family."""

    family: str
    cases: int = 0
    complaints: list[Complaint] = field(default_factory=list)


@dataclass
class Player:
    """Plays on one stage."""

    stage: Stage
    neighbourhood: Neighbourhood
    tell: Callable[[Complaint], None] = lambda complaint: None

    @classmethod
    def on(cls, stage: Stage, tell: Callable[[Complaint], None] = lambda complaint: None) -> "Player":
        """Make a player with a neighbour of the same stage."""
        return cls(stage, Neighbourhood(stage), tell)

    async def play(self, family: Family) -> Played:
        """Play all cases of a family; afterwards nothing may be left."""
        played = Played(family.name, family.size)
        for first in range(0, len(family.probes), PROBES_TOGETHER):
            some = family.probes[first : first + PROBES_TOGETHER]
            await self._watched(f"{family.name}: probes from {first + 1}", self._probe(family.name, some), played)
        await together(self.attack(family.name, attack, played) for attack in family.attacks if not attack.heavy)
        for attack in family.attacks:
            if attack.heavy:
                await self.attack(family.name, attack, played)
        await together(self.check(family.name, check, played) for check in family.checks)
        left = await self.stage.leftovers()
        played.complaints += [Complaint(family.name, "left behind", what) for what in left]
        return played

    async def attack(self, family: str, attack: Attack, played: Played) -> None:
        """Play one script."""
        name = f"{family}: {attack.name}"
        work = self._beside(attack, name) if attack.heavy else self._alone(attack, name)
        await self._watched(name, work, played)

    async def check(self, family: str, check: Check, played: Played) -> None:
        """Do one check."""
        await self._watched(f"{family}: {check.name}", self._check(family, check), played)

    async def _alone(self, attack: Attack, name: str) -> list[Complaint]:
        return judge_attack(attack, await self.stage.play(attack), name)

    async def _beside(self, attack: Attack, name: str) -> list[Complaint]:
        runs, suffered = await self.neighbourhood.attacked_by(attack, name)
        return [wrong for seen in runs for wrong in judge_attack(attack, seen, name)] + suffered

    async def _probe(self, family: str, probes: Sequence[Probe]) -> list[Complaint]:
        return judge_probes(probes, await self.stage.probe(family, probes), f"{family}: ")

    async def _check(self, family: str, check: Check) -> list[Complaint]:
        wrong = await check.run(self.stage)
        return [Complaint(f"{family}: {check.name}", "escape", wrong)] if wrong else []

    async def _watched(self, name: str, work: Awaitable[list[Complaint]], played: Played) -> None:
        """Do some work with the host's sentinels taken before and after."""
        before = self.stage.sentinels()
        try:
            found = await work
        except Exception as broken:  # noqa: BLE001 - a case that breaks the suite itself is a finding like any other
            found = [Complaint(name, "suite broke", repr(broken))]
        changed = sentinels.changes(before, self.stage.sentinels())
        found += [Complaint(name, "sentinel changed", text) for text in changed]
        played.complaints += found
        for complaint in found:
            self.tell(complaint)


async def together(work: Iterable[Awaitable[None]]) -> None:
    """Do some things, a few at a time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(thing: Awaitable[None]) -> None:
        async with gate:
            await thing

    async with asyncio.TaskGroup() as group:
        for thing in work:
            group.create_task(one(thing))

"""The neighbour: an honest training beside an attack, and how much longer it takes there than alone.

Other work on this machine disturbs both measurements, so a time that is too long is measured again, alone and beside;
an attack that really takes the neighbour's share does so each time. Where others are busy between the tries nothing can
be said of an attack that failed all of them: it is told as not judged, never as harmless.
"""

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path

from tests.security.case import Attack, Complaint, Seen
from tests.security.stage import Recorder, Stage

MOST = 1.5
"""How many times as long as alone the neighbour may take (issue 5)."""
TRIES = 3
QUIET_CORES = 0.5
"""What everybody else on this machine may keep busy, while nothing of the suite runs, for a time to mean something."""
WEIGHTS = "weights 40"

TRAINING = Attack(
    name="the neighbour",
    script=f"""
    import hashlib
    began, hoard = time.monotonic(), bytearray(32 << 20)
    for step in range(40):
        hoard[step << 12 : (step + 1) << 12] = b"x" * 4096
        hashlib.sha256(hoard).digest()
        with open(METRICS, "a") as metrics:
            metrics.write(json.dumps({{"name": "loss", "value": 1 / (step + 1), "step": step}}) + "\\n")
        with open(f"{{OUT}}/state", "wb") as state:
            state.write(hoard[: 1 << 20])
    print("took", time.monotonic() - began)
    open(MODEL, "w").write("{WEIGHTS}")
    """,
    reasons=(None,),
    timeout_s=120,
)


@dataclass
class Neighbourhood:
    """Remembers how long the neighbour takes alone."""

    stage: Stage
    alone_s: float | None = None
    unjudged: list[str] = field(default_factory=list)

    async def attacked_by(self, attack: Attack, name: str) -> tuple[Seen, list[Complaint]]:
        """Run an attack with the neighbour beside it; what was seen of it, and what the neighbour suffered."""
        factors, others = list[float](), 0.0
        for _ in range(TRIES):
            if self.alone_s is None:
                self.alone_s, harmed = took(await self.stage.play(TRAINING))
            seen, beside = await self._beside(attack)
            beside_s, harmed = took(beside)
            if harmed:
                return seen, [Complaint(name, "neighbour harmed", harmed)]
            factors.append(beside_s / self.alone_s)
            if factors[-1] <= MOST:
                return seen, []
            self.alone_s = None  # it may be that this machine has other work now: measure again
            others = max(others, await busy_cores())
        if others > QUIET_CORES:
            self.unjudged.append(f"{name} (others kept {others:.1f} cores busy)")
            return seen, []
        text = f"it took {', '.join(f'{factor:.2f}' for factor in factors)} times as long as alone"
        return seen, [Complaint(name, "neighbour harmed", text)]

    async def _beside(self, attack: Attack) -> tuple[Seen, Seen]:
        recorder = Recorder(self.stage.client)
        attacking = asyncio.create_task(self.stage.play(attack, recorder))
        started = asyncio.create_task(recorder.started.wait())
        await asyncio.wait((attacking, started), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        beside = await self.stage.play(TRAINING)
        return await attacking, beside


async def busy_cores(within_s: float = 1.0) -> float:
    """Measure how many cores of this machine are at work (proc(5), /proc/stat)."""
    before = _busy_ticks()
    await asyncio.sleep(within_s)
    return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / within_s


def _busy_ticks() -> int:
    user, nice, system, _idle, _iowait, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
    return user + nice + system + sum(rest)


def took(seen: Seen) -> tuple[float, str]:
    """Tell how long the neighbour trained, and what is wrong with its end if anything is."""
    times = [float(text.split()[1]) for text in seen.texts if text.startswith("took ")]
    if seen.end.reason is not None or seen.artifact is None or not times:
        return 0.0, f"it ended with {seen.end.reason}: {seen.end.message}"
    if seen.artifact.read_text() != WEIGHTS or len(seen.points) != 40:
        return 0.0, f"its artifact or its {len(seen.points)} metrics are not what it wrote"
    return times[0], ""

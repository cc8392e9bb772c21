"""The neighbour: an honest training beside an attack, and how much slower its steps are there than alone.

The training begins first, and alone. Then the attack is let loose. What the training did alone is compared with what
it did from the attack's first moment on, whether that was contained soon or went on, by stamps that both scripts take
of the clock that all containers of a host share. Too little time after that is a complaint, too (`judge_neighbour`).

Other work on this machine disturbs both measurements, so a pace that is too slow is measured again, alone and beside;
an attack that really takes the neighbour's share does so each time. Where others are busy between the tries nothing can
be said of an attack that failed all of them: it is told as not judged, never as harmless.
"""

import asyncio
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import dedent

from tests.security.case import Attack, Complaint, Seen
from tests.security.judging import ENOUGH_S, Pace, judge_neighbour, pace_within
from tests.security.stage import Recorder, Stage

TRIES = 3
ALONE_S = 1.0
BESIDE_S = (3.0, 6.0, 12.0)
"""How long the trainings last beside an attack: there is another one while the attacks began too late in them."""
QUIET_CORES = 0.5
"""What everybody else on this machine may keep busy, while nothing of the suite runs, for a time to mean something."""
WEIGHTS = "weights 40"
STEP, BEGAN = "step at ", "attack at "
STAMPED = re.compile(rf"{BEGAN}(\d+\.\d{{6}})")


def training(lasts_s: float) -> Attack:
    """Write a training that hashes, writes and reports for some seconds, and stamps each of its steps."""
    return Attack(
        name="the neighbour",
        script=f"""
        import hashlib
        until, hoard, step = time.monotonic() + {lasts_s}, bytearray(32 << 20), 0
        print("{STEP}%.6f" % time.time(), flush=True)
        while time.monotonic() < until:
            step += 1
            hoard[step << 12 : (step + 1) << 12] = b"x" * 4096
            hashlib.sha256(hoard).digest()
            with open(METRICS, "a") as metrics:
                metrics.write(json.dumps({{"name": "loss", "value": 1 / step, "step": step}}) + "\\n")
            with open(f"{{OUT}}/state", "wb") as state:
                state.write(hoard[: 1 << 20])
            print("{STEP}%.6f" % time.time(), flush=True)
        open(MODEL, "w").write("{WEIGHTS}")
        """,
        reasons=(None,),
        timeout_s=120,
    )


@dataclass
class Neighbourhood:
    """Trains beside attacks, and remembers beside which of them nothing could be said."""

    stage: Stage
    unjudged: list[str] = field(default_factory=list)

    async def attacked_by(self, attack: Attack, name: str) -> tuple[list[Seen], list[Complaint]]:
        """Run an attack beside the neighbour; what was seen of each of its runs, and what the neighbour suffered."""
        seen, suffered, others = list[Seen](), list[Complaint](), 0.0
        for _ in range(TRIES):
            try:
                alone, beside = await self._paces(attack, seen)
            except TrainingHarmedError as harmed:
                return seen, [Complaint(name, "neighbour harmed", str(harmed))]
            found = judge_neighbour(alone, beside, name)
            if not any(complaint.kind == "neighbour harmed" for complaint in found):
                return seen, found
            suffered += found
            others = max(others, await busy_cores())
        if others > QUIET_CORES:
            self.unjudged.append(f"{name} (others kept {others:.1f} cores busy)")
            return seen, []
        return seen, suffered

    async def _paces(self, attack: Attack, seen: list[Seen]) -> tuple[Pace, Pace]:
        """Train, alone and then beside the attack, until that was long enough; adds what was seen of its runs."""
        alone, beside = Pace(), Pace()
        for beside_s in BESIDE_S:
            trained, released_at, attacked = await self._round(attack, beside_s)
            seen.append(attacked)
            stamps, began = steps_of(trained), began_at(attacked)
            alone += pace_within(stamps, (stamps[0], released_at))
            beside += pace_within(stamps, (stamps[-1] if began is None else began, stamps[-1]))
            if beside.seconds >= ENOUGH_S:
                break
        return alone, beside

    async def _round(self, attack: Attack, beside_s: float) -> tuple[Seen, float, Seen]:
        """Train once; what was seen of that, when the attack was let loose, and what was seen of the attack."""
        recorder = Recorder(self.stage.client)
        async with asyncio.TaskGroup() as group:
            trains = group.create_task(self.stage.play(training(ALONE_S + beside_s), recorder))
            began = group.create_task(recorder.printed.wait())
            await asyncio.wait((trains, began), return_when=asyncio.FIRST_COMPLETED)
            began.cancel()
            await asyncio.wait((trains,), timeout=ALONE_S)
            released_at = time.time()
            attacks = group.create_task(self.stage.play(stamped(attack)))
        return trains.result(), released_at, attacks.result()


class TrainingHarmedError(Exception):
    """The neighbour did not end as an honest training does."""


def stamped(attack: Attack) -> Attack:
    """Let an attack tell when it begins; when it ends it may not be able to."""
    return replace(attack, script=f'print("{BEGAN}%.6f" % time.time(), flush=True)\n{dedent(attack.script)}')


def began_at(seen: Seen) -> float | None:
    """Tell when an attack began by its own first stamp; its children's may be interlaced."""
    began = next(filter(None, (STAMPED.match(text) for text in seen.texts)), None)
    return float(began[1]) if began else None


def steps_of(seen: Seen) -> Sequence[float]:
    """Tell when the neighbour's steps ended, the first stamp being that of its beginning.

    Raises:
        TrainingHarmedError: it ended badly, or its artifact or metrics are not what it wrote.
    """
    stamps = [float(text.removeprefix(STEP)) for text in seen.texts if text.startswith(STEP)]
    if seen.end.reason is not None or seen.artifact is None or len(stamps) < 2:
        raise TrainingHarmedError(f"it ended with {seen.end.reason}: {seen.end.message}")
    if seen.artifact.read_text() != WEIGHTS or len(seen.points) != len(stamps) - 1:
        raise TrainingHarmedError(f"its artifact or its {len(seen.points)} metrics are not what it wrote")
    return stamps


async def busy_cores(within_s: float = 1.0) -> float:
    """Measure how many cores of this machine are at work (proc(5), /proc/stat)."""
    before = _busy_ticks()
    await asyncio.sleep(within_s)
    return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / within_s


def _busy_ticks() -> int:
    user, nice, system, _idle, _iowait, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
    return user + nice + system + sum(rest)

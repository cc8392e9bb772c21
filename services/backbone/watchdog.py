"""Noticing that a part of a service stands still though nothing keeps it from working, and ending the process.

Owns the decision (`stands_still`, pure) and the thread that notices an event loop which does not turn. A sick
dependency is no standstill: while a part retries, or what it needs does not answer, no time counts against it; nor does
time in which the process itself was stopped. Never mends anything: the supervisor starts the process again.
"""

import asyncio
import faulthandler
import os
import sys
import threading
import time
from dataclasses import dataclass, field, replace

import structlog

from services.backbone.errors import Stuck
from services.backbone.health import Health
from services.backbone.postgres import PART as POSTGRES

LOOK_EVERY_S = 2.0
LONGEST_STEP_S = 2 * LOOK_EVERY_S
"""What one look may count for: a process that was stopped for an hour has not stood still for an hour."""
TICK_S = 0.5
LAST_RESORT_S = 25.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at a part.

    Attributes:
        done: grows with everything that the part gets done.
        waiting: whether there is anything to do.
        excused: it retries what failed for now, or what it needs does not answer.
    """

    done: int
    waiting: bool
    excused: bool = False


@dataclass(frozen=True, slots=True)
class Standstill:
    """How long a part has done nothing though it should have, and what it had done by then."""

    done: int = -1
    for_s: float = 0.0


def stands_still(before: Standstill, seen: Seen, elapsed_s: float) -> Standstill:
    """Judge a part by what is seen of it.

    >>> stands_still(Standstill(7, 10.0), Seen(7, waiting=True), elapsed_s=2)
    Standstill(done=7, for_s=12.0)
    >>> stands_still(Standstill(7, 10.0), Seen(8, waiting=True), elapsed_s=2)
    Standstill(done=8, for_s=0.0)
    """
    if seen.excused or not seen.waiting or seen.done != before.done:
        return Standstill(seen.done)
    return Standstill(seen.done, before.for_s + min(elapsed_s, LONGEST_STEP_S))


@dataclass
class Watchdog:
    """Watches one part of a service by its name, look by look."""

    name: str
    health: Health
    _standstill: Standstill = Standstill()
    _looked_at: float = field(default_factory=time.monotonic)

    def look(self, seen: Seen, doing: str) -> None:
        """Take a look; `doing` says in words what the part should be doing.

        Raises:
            Stuck: it has stood still for longer than the limit.
        """
        now = time.monotonic()
        seen = replace(seen, excused=seen.excused or self.health.fails(POSTGRES))
        self._standstill = stands_still(self._standstill, seen, now - self._looked_at)
        self._looked_at = now
        if self._standstill.for_s > self.health.stuck_after_s:
            raise declare_stuck(self.health, self.name, doing, self._standstill.for_s)


def declare_stuck(health: Health, part: str, doing: str, for_s: float) -> Stuck:
    """Say that a part is stuck, where people and probes look, and make the error that ends the process."""
    health.stuck = f"{part} has not got on for {for_s:.0f} s: {doing}"
    log.critical("stuck", part=part, doing=doing, for_s=round(for_s, 1))
    return Stuck(health.stuck)


async def watch_loop(health: Health) -> None:
    """Watch the event loop from a thread of its own, until cancelled; a loop that does not turn ends the process."""
    watch = _LoopWatch(health.stuck_after_s)
    threading.Thread(target=watch.run, name="loop watchdog", daemon=True).start()
    try:
        while True:
            watch.turns += 1
            await asyncio.sleep(TICK_S)
    finally:
        watch.over.set()


class _LoopWatch:
    """Counts, in its own time, how long the event loop has not turned."""

    def __init__(self, limit_s: float) -> None:
        self.turns = 0
        self.over = threading.Event()
        self._limit_s = limit_s

    def run(self) -> None:
        turns, still_s, woke_at = self.turns, 0.0, time.monotonic()
        while not self.over.wait(TICK_S):
            now = time.monotonic()
            still_s = still_s + min(now - woke_at, 2 * TICK_S) if turns == self.turns else 0.0
            turns, woke_at = self.turns, now
            if still_s > self._limit_s:
                end_process(f"the event loop has not turned for {still_s:.0f} s", part="event loop", for_s=still_s)


def end_process(why: str, **details: object) -> None:
    """End the process at once, with the stacks of all its threads in the log."""
    log.critical("stuck", doing=why, **details)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stderr.flush()
    os._exit(1)


def end_process_if_it_hangs(why: str, after_s: float = LAST_RESORT_S) -> None:
    """Give a process that is about to end some time to do so in good order, and no more."""

    def wait() -> None:
        time.sleep(after_s)
        end_process(f"still here {after_s:.0f} s after it failed: {why}")

    threading.Thread(target=wait, name="last resort", daemon=True).start()

"""The virtual world: one clock, one seeded source of chance, and the order in which everything happens.

Whatever runs is a task: a generator that yields between its atomic steps. The world decides, by chance alone, how long
each step takes, and so what happens next; it may end a whole process between any two steps. No real time, no threads,
and never a choice from anything without an order.
"""

import heapq
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TypeVar

from tests.simulation.faults import Faults

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Nap:
    """A pause that ends early when somebody wakes the task."""

    seconds: float


Steps = Generator[float | Nap | None, None, Result]
"""What a task is made of: a yielded number is a pause in seconds, None sleeps until somebody wakes the task."""

STEP = 0.0
"""The boundary of an atomic step: anything may happen before the next one."""

PARKED = None
BEGINNING = datetime(2026, 3, 13, 16, tzinfo=UTC)
SLOW_STEP = 0.02


class Crashed(Exception):
    """The process in which somebody waited for an answer is gone."""


@dataclass(slots=True, eq=False)
class Task:
    """A generator in a process, or outside all of them (`process` None). `due` None: parked."""

    name: str
    steps: Steps[None]
    process: "Process | None"
    due: float | None = None
    alive: bool = True
    naps: bool = False
    woken: bool = False

    def cancel(self) -> None:
        """End between two steps, while the process lives: what it had begun is rolled back."""
        self.alive = False
        self.steps.close()


@dataclass(slots=True, eq=False)
class Process:
    """Something that can be killed, stopped or cut off from the broker, and started again with nothing in memory."""

    world: "World"
    name: str
    boot: Callable[[], None]
    tasks: list[Task] = field(default_factory=list)
    on_crash: list[Callable[[], None]] = field(default_factory=list)
    up: bool = False
    life: int = 0
    stopped_until: float = 0.0
    cut_off_until: float = 0.0

    def start(self) -> None:
        """Start with empty memory, unless it runs."""
        if not self.up:
            self.up = True
            self.life += 1
            self.world.say(self.name, "starts")
            self.boot()

    def crash(self) -> None:
        """End between two steps, like kill -9."""
        if not self.up:
            return
        self.world.say(self.name, "is killed")
        self.up = False
        for task in self.tasks:
            task.alive = False
        self.tasks.clear()
        endings, self.on_crash = self.on_crash, []
        for clean_up in endings:
            clean_up()

    def spawn(self, name: str, steps: Steps[None]) -> Task:
        """Add a task to this life of the process."""
        task = self.world.spawn(name, steps, self)
        self.tasks.append(task)
        return task


class World:
    """The clock, the dice and the tasks."""

    def __init__(self, seed: int, *, traced: bool = False) -> None:
        self.random = Random(seed)
        self.faults = Faults.drawn(self.random)
        self.now = 0.0
        self.steps = 0
        self.stormy = True
        self.trace: list[str] | None = [] if traced else None
        self.processes: list[Process] = []
        self._queue: list[tuple[float, int, Task]] = []
        self._count = 0
        self._steps_to_crash = self.faults.steps_to_crash(self.random)

    @property
    def moment(self) -> datetime:
        """The time of the day, to the millisecond, as it travels in events."""
        return BEGINNING + timedelta(milliseconds=int(self.now * 1000))

    def say(self, who: str, what: str, *more: object) -> None:
        """Add a line to the trace, if there is one."""
        if self.trace is not None:
            words = " ".join(str(each) for each in more)
            self.trace.append(f"{self.now:9.3f} {who:<12} {what} {words}".rstrip())

    def chance(self, probability: float) -> bool:
        """Throw the dice for a fault; nothing goes wrong once the storm is over."""
        return self.stormy and probability > 0 and self.random.random() < probability

    def spawn(self, name: str, steps: Steps[None], process: Process | None = None) -> Task:
        """Let a task begin soon."""
        task = Task(name, steps, process)
        self._schedule(task, self._latency())
        return task

    def wake(self, task: Task) -> None:
        """Let a sleeping task go on soon; one that is not asleep will not fall asleep next time."""
        if task.due is None or task.naps:
            self._schedule(task, self._latency())
        else:
            task.woken = True

    def run(self, until: float, stop: Callable[[], bool]) -> None:
        """Let things happen until a time, or until a condition holds; the condition is looked at now and then."""
        looks = 0
        while self._queue and self.now < until:
            self._step()
            looks += 1
            if looks % 64 == 0 and stop():
                return

    def _step(self) -> None:
        due, _, task = heapq.heappop(self._queue)
        if not task.alive or due != task.due:
            return
        self.now = max(self.now, due)
        process = task.process
        if process is not None:
            if process.stopped_until > self.now:
                self._schedule(task, process.stopped_until - self.now + self._latency())
                return
            if self._strikes():
                self._kill(process)
                return
        self.steps += 1
        try:
            pause = next(task.steps)
        except StopIteration:
            task.alive = False
            return
        if not task.alive:
            return
        self._sleep(task, pause)

    def _sleep(self, task: Task, pause: float | Nap | None) -> None:
        if isinstance(pause, float):
            self._schedule(task, pause + self._latency())
        elif task.woken:
            task.woken = False
            self._schedule(task, self._latency())
        elif pause is None:
            task.due = None
        else:
            self._schedule(task, pause.seconds)
            task.naps = True

    def _schedule(self, task: Task, delay: float) -> None:
        self._count += 1
        task.naps = False
        task.due = self.now + delay
        heapq.heappush(self._queue, (task.due, self._count, task))

    def _latency(self) -> float:
        dice = self.random.random()
        return dice * 0.02 if dice > SLOW_STEP else dice * self.faults.slowness_s / SLOW_STEP

    def _strikes(self) -> bool:
        if not self.stormy or self._steps_to_crash is None:
            return False
        self._steps_to_crash -= 1
        if self._steps_to_crash > 0:
            return False
        self._steps_to_crash = self.faults.steps_to_crash(self.random)
        return True

    def _kill(self, process: Process) -> None:
        process.crash()
        self.spawn("restart", self._restart(process))

    def _restart(self, process: Process) -> Steps[None]:
        yield self.faults.downtime_s(self.random)
        process.start()

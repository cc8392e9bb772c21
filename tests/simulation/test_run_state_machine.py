"""Drives the run aggregate as a state machine, beside an oracle that was written from docs/run-lifecycle.md alone.

The oracle knows words, not code: a status, an attempt, whether the runner gave up, how it ended, and a version.
"""

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.events import RunFact
from schemas.run import Run, evolve
from tests import life_of_a_run as life

ATTEMPTS = st.integers(1, 4)


@dataclass
class Oracle:
    """What the table in docs/run-lifecycle.md says of one run; `status` is empty before it was requested."""

    status: str = ""
    attempt: int = 1
    gave_up: bool = False
    asked_to_stop: bool = False
    version: int | None = None
    ends: int = 0

    def is_current(self, attempt: int, *statuses: str) -> bool:
        """Whether a fact of an attempt counts in one of these statuses."""
        return self.status in statuses and attempt == self.attempt

    def end(self, attempt: int, status: str, *statuses: str) -> bool:
        """The first end of the current attempt counts."""
        if not self.is_current(attempt, *statuses):
            return False
        self.status, self.ends = status, self.ends + 1
        return True


class RunMachine(RuleBasedStateMachine):
    """Any fact, of any attempt, at any time: `evolve` does what the documents say, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.run: Run | None = None
        self.oracle = Oracle()
        self.told: list[tuple[RunFact, bool]] = []

    def tell(self, fact: RunFact, counts: bool) -> None:
        """Fold a fact; it must have an effect exactly if it counts."""
        before = self.run
        evolution = evolve(before, fact, life.at(len(self.told)))
        self.run = evolution.run
        self.told.append((fact, counts))
        assert (evolution.stale is None) == counts, (type(fact).__name__, evolution.stale, self.oracle)
        if not counts:
            assert self.run == before

    @rule()
    def requested(self) -> None:
        counts = self.oracle.status == ""
        if counts:
            self.oracle.status = "queued"
        self.tell(life.requested(), counts)

    @rule(attempt=ATTEMPTS)
    def waits(self, attempt: int) -> None:
        self.tell(life.waiting(attempt), self.oracle.is_current(attempt, "queued"))

    @rule(attempt=ATTEMPTS)
    def assigned(self, attempt: int) -> None:
        counts = self.oracle.is_current(attempt, "queued")
        if counts:
            self.oracle.status, self.oracle.gave_up = "starting", False
        self.tell(life.queued(attempt), counts)

    @rule(attempt=ATTEMPTS)
    def started(self, attempt: int) -> None:
        counts = self.oracle.is_current(attempt, "starting")
        if counts:
            self.oracle.status = "running"
        self.tell(life.started(attempt), counts)

    @rule()
    def asked_to_stop(self) -> None:
        counts = self.oracle.status in ("queued", "starting", "running")
        self.oracle.asked_to_stop |= counts
        self.tell(life.cancellation(), counts)

    @rule(attempt=ATTEMPTS)
    def lost(self, attempt: int) -> None:
        counts = self.oracle.is_current(attempt, "starting", "running")
        self.oracle.gave_up |= counts
        self.tell(life.lost(attempt), counts)

    @rule(attempt=ATTEMPTS)
    def requeued(self, attempt: int) -> None:
        counts = self.oracle.status in ("starting", "running") and attempt == self.oracle.attempt + 1
        if counts:
            self.oracle.status, self.oracle.attempt, self.oracle.gave_up = "queued", attempt, False
        self.tell(life.requeued(attempt), counts)

    @rule(attempt=ATTEMPTS)
    def succeeded(self, attempt: int) -> None:
        self.tell(life.succeeded(attempt), self.oracle.end(attempt, "succeeded", "starting", "running"))

    @rule(attempt=ATTEMPTS)
    def failed(self, attempt: int) -> None:
        self.tell(life.failed(attempt), self.oracle.end(attempt, "failed", "queued", "starting", "running"))

    @rule(attempt=ATTEMPTS)
    def cancelled(self, attempt: int) -> None:
        self.tell(life.cancelled(attempt), self.oracle.end(attempt, "cancelled", "queued", "starting", "running"))

    @rule()
    def versioned(self) -> None:
        counts = self.oracle.status == "succeeded" and self.oracle.version is None
        if counts:
            self.oracle.version = 1
        self.tell(life.versioned(), counts)

    @precondition(lambda self: len(self.told) > 1)
    @rule(data=st.data())
    def told_again_from_some_place(self, data: st.DataObject) -> None:
        """Offsets were reset: what had an effect is told again from some place on, and everything is as it was.

        What came before its time is another matter: told again in time it would count (`services/cli/retelling.py`).
        """
        place = data.draw(st.integers(0, len(self.told) - 1))
        run = self.run
        for number, (fact, counted) in enumerate(self.told[place:]):
            run = evolve(run, fact, life.at(place + number)).run if counted else run
        assert run is None or self.run is None or _essence(run) == _essence(self.run)

    @invariant()
    def both_say_the_same(self) -> None:
        if self.run is None:
            assert self.oracle.status == ""
            return
        said = (self.run.status, self.run.attempt, self.run.attempt_lost, self.run.cancellation_requested)
        oracle = self.oracle
        ended = oracle.status in ("succeeded", "failed", "cancelled")
        assert said == (oracle.status, oracle.attempt, oracle.gave_up, oracle.asked_to_stop)
        assert self.run.version == oracle.version
        assert oracle.ends == int(ended) == int(self.run.ended_at is not None)


def _essence(run: Run) -> Run:
    """What must not change when facts are told again; why a run waits is told by the last who said so."""
    return run.model_copy(update={"reason": None, "message": None, "estimated_start_at": None})


RunMachine.TestCase.settings = settings(
    derandomize=True,
    max_examples=300,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRunMachine = RunMachine.TestCase

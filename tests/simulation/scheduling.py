"""The scheduler's tables, and what its store does with them: folding, the view of a round, writing effects.

Mirrors `services/scheduler/store.py` statement by statement; an integration test compares the two.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from statistics import median

from schemas.cloudevents import CloudEvent
from schemas.estimate import fits
from schemas.parts import RunnerLoad
from schemas.reason import RunStatus
from services.backbone.outbox import Message
from services.scheduler.effects import Effect
from services.scheduler.folding import FoldedRun, begun, duration_s, fold
from services.scheduler.placement import Told, WaitingRun
from services.scheduler.recovery import Assignment
from services.scheduler.store import View
from tests.simulation.database import ConstraintBroken, Outbox, Transaction
from tests.simulation.world import Task

ASSIGNED = (RunStatus.STARTING, RunStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class RunRow:
    """A row of `runs`, without what is generated from the state."""

    folded: FoldedRun
    told: Told | None = None
    duration_s: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class AssignmentRow:
    """A row of `assignments`."""

    run_id: str
    attempt: int
    runner_id: str
    dispatch_partition: int | None
    assigned_at: datetime
    revoked: bool = False
    over: bool = False


@dataclass(slots=True)
class Tables:
    """The schema `scheduling`."""

    runs: dict[str, RunRow] = field(default_factory=dict)
    assignments: dict[tuple[str, int], AssignmentRow] = field(default_factory=dict)
    leadership: dict[str, int] = field(default_factory=lambda: {"epoch": 0})
    outbox: Outbox = field(default_factory=Outbox)
    cluster: dict[str, int] = field(default_factory=lambda: {"id": 1})
    leaders: list[Task] = field(default_factory=list)
    open: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Index `assignments_open`: the open assignment of each run."""


@dataclass(slots=True)
class Writing:
    """What one transaction reads and writes: its own writes are seen by it."""

    tables: Tables
    transaction: Transaction
    now: float
    moment: datetime
    runs: dict[str, RunRow] = field(default_factory=dict)
    assignments: dict[tuple[str, int], AssignmentRow] = field(default_factory=dict)

    def fold_batch(self, events: Sequence[CloudEvent]) -> None:
        """Fold events into the locked runs, as `Folds.on_run_facts` does."""
        for event in events:
            run = begun(event)
            if run is not None and self._run(run.run.run_id) is None:
                self.runs[run.run.run_id] = RunRow(run)
        known = {run_id: row.folded for run_id in sorted({e.subject for e in events}) if (row := self._run(run_id))}
        changed = fold(known, events)
        for run_id, folded in changed.items():
            before = self._run(run_id)
            assert before is not None
            ended_at = (self.now if before.ended_at is None else before.ended_at) if folded.run.status.is_end else None
            self.runs[run_id] = replace(before, folded=folded, duration_s=duration_s(folded.run), ended_at=ended_at)
            self._close_assignment(folded)
            self._rebuild_assignment(folded)

    def write_effects(self, effects: Sequence[Effect], settled_s: float) -> None:
        """Write what decisions change and say."""
        for each in effects:
            row = self._run(each.run_id)
            assert row is not None
            if each.pending:
                row = replace(row, folded=replace(row.folded, pending=each.pending), told=None)
            if each.told:
                told = Told(each.told.reason, each.told.estimated_start_at)
                folded = replace(row.folded, told_count=row.folded.told_count + 1)
                row = replace(row, folded=folded, told=told)
            self.runs[each.run_id] = row
            if each.assigned_to:
                self._assign(each, each.assigned_to)
            if each.revoked and (held := self._assignment(each.run_id, each.attempt)) is not None:
                self._put_assignment(replace(held, revoked=True))
        unknown = [each.again for each in effects if each.again and not self._send_again(each.again, settled_s)]
        messages = [message for each in effects for message in each.messages]
        self.transaction.enqueue(self.tables.outbox, [*messages, *unknown])

    def flush(self) -> None:
        """Hand the writes to the transaction."""
        for run_id, row in self.runs.items():
            self.transaction.put(self.tables.runs, run_id, row)
        for key, assignment in self.assignments.items():
            self.transaction.put(self.tables.assignments, key, assignment)
            if not assignment.over:
                self.transaction.put(self.tables.open, assignment.run_id, key)

    def locked(self, run_ids: Iterable[str]) -> dict[str, FoldedRun]:
        """Read runs whose rows are locked."""
        return {run_id: row.folded for run_id in run_ids if (row := self._run(run_id)) is not None}

    def _run(self, run_id: str) -> RunRow | None:
        return self.runs.get(run_id) or self.tables.runs.get(run_id)

    def _assignment(self, run_id: str, attempt: int) -> AssignmentRow | None:
        key = (run_id, attempt)
        return self.assignments.get(key) or self.tables.assignments.get(key)

    def _open_assignment(self, run_id: str) -> AssignmentRow | None:
        key = self.tables.open.get(run_id)
        found = [*self.assignments.values(), *([self.tables.assignments[key]] if key else [])]
        for row in found:
            latest = self._assignment(row.run_id, row.attempt)
            if latest is not None and latest.run_id == run_id and not latest.over:
                return latest
        return None

    def _put_assignment(self, row: AssignmentRow) -> None:
        self.assignments[row.run_id, row.attempt] = row

    def _close_assignment(self, folded: FoldedRun) -> None:
        """Give back the compute of an attempt that is over."""
        run = folded.run
        held = self._open_assignment(run.run_id)
        if held is None:
            return
        going = run.status in ASSIGNED or (run.status is RunStatus.QUEUED and folded.pending is not None)
        if not (run.attempt == held.attempt and going):
            self._put_assignment(replace(held, over=True))

    def _rebuild_assignment(self, folded: FoldedRun) -> None:
        """Give an assigned run its assignment, if this database never assigned it."""
        run = folded.run
        if run.status not in ASSIGNED or run.runner_id is None or self._open_assignment(run.run_id) is not None:
            return
        if self._assignment(run.run_id, run.attempt) is None:
            self._put_assignment(AssignmentRow(run.run_id, run.attempt, run.runner_id, None, self.moment))

    def _assign(self, each: Effect, runner_id: str) -> None:
        if self._assignment(each.run_id, each.attempt) is not None or self._open_assignment(each.run_id) is not None:
            raise ConstraintBroken(f"{each.run_id} is assigned already")
        partition = each.messages[-1].partition
        self._put_assignment(AssignmentRow(each.run_id, each.attempt, runner_id, partition, self.moment))

    def _send_again(self, message: Message, settled_s: float) -> bool:
        row = self.tables.outbox.find(message.event.id, message.topic)
        if row is None:
            return False
        if row.sent_at is not None and row.sent_at < self.now - settled_s:
            self.transaction.again.append((self.tables.outbox, row, message.partition))
        return True


def read_view(tables: Tables, moment: datetime, runners: Sequence[RunnerLoad], *, sees_pending: bool = True) -> View:
    """Read what a round of decisions is based on; not to see what is pending is a planted bug."""
    ended = [(row.ended_at or 0.0, row.duration_s) for row in tables.runs.values() if row.duration_s is not None]
    typical = median(each for _, each in sorted(ended, reverse=True)[:50]) if ended else None
    waiting = sorted(
        (row for row in tables.runs.values() if _waits(row) or (not sees_pending and _is_queued(row))),
        key=lambda row: (row.folded.run.requested_at, row.folded.run.run_id),
    )
    hopeful = [(row, _is_takeable(row, runners)) for row in waiting]
    takeable = [_waiting_run(tables, row, typical) for row, able in hopeful if able and not _is_cancelled(row)]
    hopeless = [row for row, able in hopeful if not able and not _is_cancelled(row)]
    hopeless.sort(key=lambda row: row.told is not None)
    behind = [replace(_waiting_run(tables, row, typical), avoid_runner_id=None) for row in hopeless]
    cancelled = tuple((r.folded.run.run_id, r.folded.run.attempt) for r in waiting if _is_cancelled(r))
    held = sorted(row.run_id for key in tables.open.values() if not (row := tables.assignments[key]).over)
    assignments = tuple(_assignment(tables, tables.assignments[tables.open[run_id]]) for run_id in held)
    return View(moment, (*takeable, *behind), cancelled, assignments, typical)


def _waits(row: RunRow) -> bool:
    return _is_queued(row) and row.folded.pending is None


def _is_queued(row: RunRow) -> bool:
    return row.folded.run.status is RunStatus.QUEUED


def _is_cancelled(row: RunRow) -> bool:
    return row.folded.run.cancellation_requested


def _is_takeable(row: RunRow, runners: Sequence[RunnerLoad]) -> bool:
    spec = row.folded.run.spec
    return any(spec.runtime in each.runtimes and fits(each.capacity, spec.compute) for each in runners)


def _waiting_run(tables: Tables, row: RunRow, typical: float | None) -> WaitingRun:
    run = row.folded.run
    before = tables.assignments.get((run.run_id, run.attempt - 1))
    timeout_s = float(run.spec.timeout_s)
    return WaitingRun(
        run.run_id,
        run.attempt,
        run.spec.compute,
        run.spec.runtime,
        timeout_s if typical is None else min(timeout_s, typical),
        before.runner_id if before else None,
        row.told,
    )


def _assignment(tables: Tables, held: AssignmentRow) -> Assignment:
    folded = tables.runs[held.run_id].folded
    run = folded.run
    return Assignment(
        run_id=held.run_id,
        attempt=held.attempt,
        runner_id=held.runner_id,
        dispatch_partition=held.dispatch_partition,
        compute=run.spec.compute,
        timeout_s=run.spec.timeout_s,
        assigned_at=held.assigned_at,
        pending=folded.pending is not None,
        revoked=held.revoked,
        attempt_lost=run.attempt_lost,
        cancellation_requested=run.cancellation_requested,
        reason=run.reason,
        message=run.message,
    )

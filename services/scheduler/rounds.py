"""One round of the leader: read what is there, decide, and write it all in one transaction.

Guarded twice: by the leader's epoch and by each run's locked row, so that a leader that was superseded, or a decision
that was overtaken, changes nothing. The queue and the assignments are read anew each round: Postgres is the truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from schemas.events import SchedulerLoad
from schemas.parts import Compute
from services.backbone.crash_points import crash_point
from services.backbone.postgres import Connection
from services.scheduler import store
from services.scheduler.effects import Decision, QueueAgain, RevokeAgain, effect_of
from services.scheduler.load import load_after, occupation
from services.scheduler.placement import Assign, Wait, is_news, place
from services.scheduler.reconciliation import PATIENCE_BEATS, differences, due, outlasting
from services.scheduler.recovery import Assignment, Cancel, recover
from services.scheduler.roster import Roster

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Term:
    """What one leader knows while it leads."""

    epoch: int
    roster: Roster
    max_attempts: int
    heartbeat_s: float


async def play_round(connection: Connection, term: Term, at: float) -> SchedulerLoad:
    """Decide on everything that can be decided now.

    Args:
        connection: outside a transaction.
        term: the leader's.
        at: the leader's monotonic clock, in seconds.

    Returns:
        Queue and capacity, as they are after the round's decisions.

    Raises:
        Superseded: another instance leads.
    """
    view = await store.read_view(connection, term.roster.loads({}, at))
    partitions = term.roster.partitions()
    lost = term.roster.lost((each.runner_id for each in view.assignments), at)
    term.roster.forget(lost)
    load = _load(term, view, at)
    placed = place(view.queue, load.runners, load.occupied, view.now)
    told = {run.run_id: run.told for run in view.queue}
    assigned = [each for each in placed if isinstance(each, Assign)]
    waits = [each for each in placed if isinstance(each, Wait) and is_news(each, told[each.run_id])]
    decisions: list[Decision] = [
        *recover(view.assignments, lost, term.max_attempts),
        *(Cancel(run_id, attempt) for run_id, attempt in view.cancelled),
        *assigned,
        *(waits if term.roster.is_settled(at) else ()),
        *compare(term.roster, view.assignments),
    ]
    if decisions:
        await persist(connection, term, decisions, partitions, view.now)
    return load_after(load, view.queue, assigned, view.now)


async def persist(
    connection: Connection,
    term: Term,
    decisions: Sequence[Decision],
    partitions: Mapping[str, int],
    now: datetime,
) -> None:
    """Write those decisions that still hold, with what they say, in one transaction.

    Raises:
        Superseded: another instance leads, and nothing was written.
    """
    async with connection.transaction():
        await store.hold_epoch(connection, term.epoch)
        runs = await store.lock_runs(connection, [each.run_id for each in decisions])
        pairs = [(each, effect_of(each, runs.get(each.run_id), partitions, now)) for each in decisions]
        settled_s = (PATIENCE_BEATS - 1) * term.heartbeat_s
        await store.write_effects(connection, [effect for _, effect in pairs if effect], settled_s)
        crash_point("before_decisions_commit")
    crash_point("after_decisions_commit")
    for decision, effect in pairs:
        if effect:
            log.info("decided", decision=type(decision).__name__, run_id=decision.run_id, attempt=decision.attempt)


def compare(roster: Roster, assignments: Sequence[Assignment]) -> list[Decision]:
    """Compare heartbeats that came since the last round with what was assigned, and say again what did not arrive."""
    decisions: list[Decision] = []
    for seen in roster.uncompared():
        runner_id = seen.heartbeat.runner_id
        found = differences(seen.heartbeat, [each for each in assignments if each.runner_id == runner_id])
        seen.missing = outlasting(seen.missing, found.missing)
        seen.unwanted = outlasting(seen.unwanted, found.unwanted)
        seen.compared = True
        decisions += [QueueAgain(each.run_id, each.attempt, runner_id) for each in due(seen.missing)]
        decisions += [RevokeAgain(each.run_id, each.attempt, runner_id) for each in due(seen.unwanted)]
    return decisions


def _load(term: Term, view: store.View, at: float) -> SchedulerLoad:
    computes: dict[str, list[Compute]] = {}
    for each in view.assignments:
        computes.setdefault(each.runner_id, []).append(each.compute)
    return SchedulerLoad(
        epoch=term.epoch,
        runners=term.roster.loads(computes, at),
        occupied=tuple(occupation(each, view.typical_run_s, view.now) for each in view.assignments),
        queue=(),
        typical_run_s=view.typical_run_s,
    )

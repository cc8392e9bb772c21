"""The scheduler's tables: the only module of the service that speaks SQL.

Rows of runs are locked in the order of their ids, by folds and decisions alike, so that nobody waits in a circle.
Never decides anything; what is written was decided on rows that are locked here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from schemas.parts import Compute, RunnerLoad
from schemas.reason import Reason
from schemas.run import Run
from services.backbone.outbox import Message, enqueue
from services.backbone.postgres import Connection
from services.scheduler.effects import Effect
from services.scheduler.errors import Superseded
from services.scheduler.folding import FoldedRun, duration_s
from services.scheduler.placement import Told, WaitingRun
from services.scheduler.recovery import Assignment

SCHEMA = "scheduling"
FOLDED = "scheduling_folded"
"""Channel that wakes the leader after a fold, in whichever instance it happened."""

LEADER_LOCK = 7_305_003
QUEUE_RUNS = 1_000
DURATIONS = 50
SWEPT_RUNS = 500
KEPT_AFTER_END = "7 days"


@dataclass(frozen=True, slots=True)
class View:
    """What a round of decisions is based on, by the database's clock. `queue` is in order of arrival."""

    now: datetime
    queue: tuple[WaitingRun, ...]
    cancelled: tuple[tuple[str, int], ...]
    assignments: tuple[Assignment, ...]
    typical_run_s: float | None


# -- folding


async def begin_runs(connection: Connection, runs: Sequence[FoldedRun]) -> None:
    """Add runs that are not known yet."""
    await connection.executemany(
        "INSERT INTO runs (run_id, state, requested_at, traceparent) VALUES ($1, $2::jsonb, $3, $4)"
        " ON CONFLICT (run_id) DO NOTHING",
        [(each.run.run_id, each.run.model_dump_json(), each.run.requested_at, each.traceparent) for each in runs],
    )


async def lock_runs(connection: Connection, run_ids: Sequence[str]) -> dict[str, FoldedRun]:
    """Read runs and lock their rows until the transaction ends."""
    rows = await connection.fetch(
        "SELECT run_id, state, pending, told_count, traceparent FROM runs WHERE run_id = ANY($1::text[])"
        " ORDER BY run_id FOR UPDATE",
        sorted(set(run_ids)),
    )
    return {
        row["run_id"]: FoldedRun(
            Run.model_validate_json(row["state"]), row["pending"], row["told_count"], row["traceparent"]
        )
        for row in rows
    }


async def save_runs(connection: Connection, runs: Sequence[FoldedRun]) -> None:
    """Write what the folds made of runs, and give back the compute of attempts that are over.

    A run that is assigned though this database never assigned it (it was rebuilt from the topic) gets its assignment.
    """
    await connection.executemany(
        "UPDATE runs SET state = $2::jsonb, pending = $3, duration_s = $4,"
        " ended_at = CASE WHEN $5 THEN coalesce(ended_at, now()) END WHERE run_id = $1",
        [
            (each.run.run_id, each.run.model_dump_json(), each.pending, duration_s(each.run), each.run.status.is_end)
            for each in runs
        ],
    )
    run_ids = [each.run.run_id for each in runs]
    await connection.execute(
        "UPDATE assignments a SET over_at = now() FROM runs r"
        " WHERE r.run_id = a.run_id AND r.run_id = ANY($1::text[]) AND a.over_at IS NULL AND NOT (r.attempt = a.attempt"
        " AND (r.status IN ('starting', 'running') OR (r.status = 'queued' AND r.pending IS NOT NULL)))",
        run_ids,
    )
    await connection.execute(
        "INSERT INTO assignments (run_id, attempt, runner_id)"
        " SELECT run_id, attempt, state ->> 'runner_id' FROM runs WHERE run_id = ANY($1::text[])"
        " AND status IN ('starting', 'running') AND state ->> 'runner_id' IS NOT NULL ON CONFLICT DO NOTHING",
        run_ids,
    )


async def wake_leader(connection: Connection) -> None:
    """Tell the leader, when the transaction commits, that there is something new to decide on."""
    await connection.execute("SELECT pg_notify($1, '')", FOLDED)


# -- leading


async def try_lock(connection: asyncpg.Connection) -> bool:
    """Try to become the leader, for as long as the connection lives."""
    held: bool = await connection.fetchval("SELECT pg_try_advisory_lock($1, hashtext($2))", LEADER_LOCK, SCHEMA)
    return held


async def begin_epoch(connection: Connection) -> int:
    """Begin to lead: from now on decisions of earlier leaders change nothing."""
    epoch: int = await connection.fetchval("UPDATE leadership SET epoch = epoch + 1 RETURNING epoch")
    return epoch


async def still_connected(connection: Connection) -> None:
    """Raise what the connection raises if it is gone, and the lock with it."""
    await connection.fetchval("SELECT 1", timeout=5)


async def hold_epoch(connection: Connection, epoch: int) -> None:
    """Make sure that nobody begins to lead before this transaction ends.

    Raises:
        Superseded: somebody has.
    """
    if not await connection.fetchval("SELECT true FROM leadership WHERE epoch = $1 FOR SHARE", epoch):
        raise Superseded(f"epoch {epoch} is over")


# -- deciding


async def read_view(connection: Connection, runners: Sequence[RunnerLoad]) -> View:
    """Read what is to be decided on.

    The queue is bounded. Runs that no given runner could ever take come behind those that one could, and have a bound
    of their own, so that however many of them there are they hold nobody up.
    """
    assignments = await _open_assignments(connection)
    takeable = await _waiting(connection, _TAKEABLE, runners)
    hopeless = await _waiting(connection, _HOPELESS, runners)
    cancelled = await connection.fetch(
        "SELECT run_id, attempt FROM runs WHERE status = 'queued' AND pending IS NULL AND cancellation_requested"
        " ORDER BY requested_at, run_id LIMIT $1",
        QUEUE_RUNS,
    )
    row = await connection.fetchrow(
        "SELECT now() AS now, (SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY duration_s) FROM (SELECT duration_s"
        " FROM runs WHERE duration_s IS NOT NULL ORDER BY ended_at DESC LIMIT $1) last) AS typical",
        DURATIONS,
    )
    if row is None:
        raise AssertionError("a SELECT without FROM has a row")
    typical: float | None = row["typical"]
    queue = tuple(_waiting_run(each, typical) for each in (*takeable, *hopeless))
    return View(row["now"], queue, tuple((each[0], each[1]) for each in cancelled), assignments, typical)


_TAKEABLE = """
SELECT r.run_id, r.attempt, r.cpu_cores, r.memory_gb, r.gpu, r.runtime, r.timeout_s, r.told_reason, r.told_estimate_at,
       a.runner_id AS avoided
FROM runs r LEFT JOIN assignments a ON a.run_id = r.run_id AND a.attempt = r.attempt - 1
WHERE r.status = 'queued' AND r.pending IS NULL AND NOT r.cancellation_requested AND EXISTS (
    SELECT FROM unnest($1::int[], $2::int[], $3::int[], $4::text[]) AS k(cpu_cores, memory_gb, gpus, runtime)
    WHERE r.cpu_cores <= k.cpu_cores AND r.memory_gb <= k.memory_gb AND r.gpu::int <= k.gpus AND r.runtime = k.runtime)
ORDER BY r.requested_at, r.run_id LIMIT $5
"""

_HOPELESS = """
SELECT r.run_id, r.attempt, r.cpu_cores, r.memory_gb, r.gpu, r.runtime, r.timeout_s, r.told_reason, r.told_estimate_at,
       NULL AS avoided
FROM runs r
WHERE r.status = 'queued' AND r.pending IS NULL AND NOT r.cancellation_requested AND NOT EXISTS (
    SELECT FROM unnest($1::int[], $2::int[], $3::int[], $4::text[]) AS k(cpu_cores, memory_gb, gpus, runtime)
    WHERE r.cpu_cores <= k.cpu_cores AND r.memory_gb <= k.memory_gb AND r.gpu::int <= k.gpus AND r.runtime = k.runtime)
ORDER BY r.told_reason IS NOT NULL, r.requested_at, r.run_id LIMIT $5
"""


async def _waiting(connection: Connection, statement: str, runners: Sequence[RunnerLoad]) -> list[asyncpg.Record]:
    kinds = {(each.capacity, runtime) for each in runners for runtime in each.runtimes}
    return await connection.fetch(
        statement,
        [capacity.cpu_cores for capacity, _ in kinds],
        [capacity.memory_gb for capacity, _ in kinds],
        [capacity.gpus for capacity, _ in kinds],
        [runtime for _, runtime in kinds],
        QUEUE_RUNS,
    )


def _waiting_run(row: asyncpg.Record, typical_run_s: float | None) -> WaitingRun:
    told = Told(Reason(row["told_reason"]), row["told_estimate_at"]) if row["told_reason"] else None
    expected_s = row["timeout_s"] if typical_run_s is None else min(row["timeout_s"], typical_run_s)
    return WaitingRun(
        row["run_id"], row["attempt"], _compute(row), row["runtime"], float(expected_s), row["avoided"], told
    )


def _compute(row: asyncpg.Record) -> Compute:
    return Compute(cpu_cores=row["cpu_cores"], memory_gb=row["memory_gb"], gpu=row["gpu"])


async def _open_assignments(connection: Connection) -> tuple[Assignment, ...]:
    rows = await connection.fetch(
        "SELECT a.run_id, a.attempt, a.runner_id, a.dispatch_partition, a.assigned_at, a.revoked, r.cpu_cores,"
        " r.memory_gb, r.gpu, r.timeout_s, r.pending IS NOT NULL AS pending, r.attempt_lost, r.cancellation_requested,"
        " r.state ->> 'reason' AS reason, r.state ->> 'message' AS message"
        " FROM assignments a JOIN runs r USING (run_id) WHERE a.over_at IS NULL ORDER BY a.run_id"
    )
    return tuple(
        Assignment(
            run_id=row["run_id"],
            attempt=row["attempt"],
            runner_id=row["runner_id"],
            dispatch_partition=row["dispatch_partition"],
            compute=_compute(row),
            timeout_s=row["timeout_s"],
            assigned_at=row["assigned_at"],
            pending=row["pending"],
            revoked=row["revoked"],
            attempt_lost=row["attempt_lost"],
            cancellation_requested=row["cancellation_requested"],
            reason=Reason(row["reason"]) if row["reason"] else None,
            message=row["message"],
        )
        for row in rows
    )


async def write_effects(connection: Connection, effects: Sequence[Effect], settled_s: float) -> None:
    """Write what decisions change, and enqueue what they say; the rows of their runs are locked.

    Args:
        connection: inside the transaction that locked the rows.
        effects: of decisions that still hold.
        settled_s: what was acknowledged less than so long ago is not sent again.
    """
    await connection.executemany(
        "UPDATE runs SET pending = $2, told_reason = NULL, told_estimate_at = NULL WHERE run_id = $1",
        [(each.run_id, each.pending) for each in effects if each.pending],
    )
    await connection.executemany(
        "UPDATE runs SET told_reason = $2, told_estimate_at = $3, told_count = told_count + 1 WHERE run_id = $1",
        [(each.run_id, each.told.reason, each.told.estimated_start_at) for each in effects if each.told],
    )
    await connection.executemany(
        "INSERT INTO assignments (run_id, attempt, runner_id, dispatch_partition) VALUES ($1, $2, $3, $4)",
        [
            (each.run_id, each.attempt, each.assigned_to, each.messages[-1].partition)
            for each in effects
            if each.assigned_to
        ],
    )
    await connection.executemany(
        "UPDATE assignments SET revoked = true WHERE run_id = $1 AND attempt = $2",
        [(each.run_id, each.attempt) for each in effects if each.revoked],
    )
    unknown = [
        each.again for each in effects if each.again and not await _send_again(connection, each.again, settled_s)
    ]
    await enqueue(connection, [*(message for each in effects for message in each.messages), *unknown])


async def _send_again(connection: Connection, message: Message, settled_s: float) -> bool:
    """Let the relay send an outbox row once more, the very same bytes; returns whether there is such a row at all."""
    event = message.event
    await connection.execute(
        "UPDATE outbox SET sent_at = NULL, partition = coalesce($4, partition) WHERE subject = $1 AND event_id = $2"
        " AND topic = $3 AND sent_at < now() - make_interval(secs => $5)",
        event.subject,
        event.id,
        message.topic,
        message.partition,
        settled_s,
    )
    exists: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM outbox WHERE subject = $1 AND event_id = $2 AND topic = $3)",
        event.subject,
        event.id,
        message.topic,
    )
    return exists


# -- keeping


async def runs_to_sweep(connection: Connection) -> list[str]:
    """Name and lock runs whose end is so long ago that nothing of theirs is republished any more."""
    rows = await connection.fetch(
        "SELECT run_id FROM runs WHERE NOT swept AND ended_at < now() - $1::text::interval"
        " ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED",
        KEPT_AFTER_END,
        SWEPT_RUNS,
    )
    return [row["run_id"] for row in rows]


async def open_run_ids(connection: Connection) -> list[str]:
    """Name the runs that have not ended."""
    return [row["run_id"] for row in await connection.fetch("SELECT run_id FROM runs WHERE ended_at IS NULL")]


async def states_of(connection: Connection, run_ids: Sequence[str]) -> list[Run]:
    """Read what was folded of runs, without locking them."""
    rows = await connection.fetch("SELECT state FROM runs WHERE run_id = ANY($1::text[])", list(run_ids))
    return [Run.model_validate_json(row["state"]) for row in rows]


async def mark_swept(connection: Connection, run_ids: Sequence[str]) -> None:
    """Remember which runs' outbox rows are gone; the runs themselves stay."""
    await connection.execute("UPDATE runs SET swept = true WHERE run_id = ANY($1::text[])", run_ids)

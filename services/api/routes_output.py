"""What a run printed, measured and went through: logs, metrics and events."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from schemas.parts import Stream
from schemas.run import Run
from services.api import problems
from services.api.context import Call, CurrentCall
from services.api.cursors import Position, decode_cursor, decode_position, encode_cursor, encode_position
from services.api.downsampling import FEWEST_POINTS, downsample
from services.api.following import Chapter, Entry, follow
from services.api.guard import GuardedRoute, guarded
from services.api.history import (
    NamedPoint,
    StoredOutput,
    select_events,
    select_last_lines,
    select_lines,
    select_points,
    stored_output,
)
from services.api.parameters import DEFAULT_PAGE, FilterText, LastEventId, Limit, NumberCursor, OutputCursor
from services.api.resources import Logs, Metrics, MetricSeries, OutputLine, Page, Point, RunHistoryEvent
from services.api.routes_runs import found_run

DEFAULT_LINES, MOST_LINES = 1_000, 10_000
DEFAULT_POINTS, MOST_POINTS = 1_000, 10_000
POINTS_READ = 100_000
"""How many points one answer is made of; `next_cursor` goes on behind them."""

router = APIRouter(prefix="/api/v1/models/{model_id}/runs/{run_id}", tags=["history"], route_class=GuardedRoute)


class NamedMetricPoint(Point):
    """A followed point: the metric's name with it."""

    name: str = Field(description="The metric.")


class Reading(BaseModel):
    """Where a reader is, and whether to follow. `Last-Event-ID` wins: browsers send it by themselves."""

    after: Position
    follow: bool
    resumed: bool


async def _reading(
    after: OutputCursor = None,
    follow: Annotated[
        bool, Query(description="Stream as server-sent events until the run's output is complete.")
    ] = False,
    last_event_id: LastEventId = None,
) -> Reading:
    resumed = last_event_id is not None
    return Reading(after=decode_position(last_event_id or after), follow=follow, resumed=resumed)


class Wanted(BaseModel):
    """Which lines of a log are wanted."""

    stream: Stream | None
    limit: int
    tail: int | None


async def _wanted(
    stream: Annotated[Stream | None, Query(description="Only what was written to this stream.")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LINES, description="How many lines at most.")] = DEFAULT_LINES,
    tail: Annotated[
        int | None, Query(ge=1, le=MOST_LINES, description="Only the last lines; `after` is ignored.")
    ] = None,
) -> Wanted:
    return Wanted(stream=stream, limit=limit, tail=tail)


@router.get(
    "/logs",
    summary="Read or follow a run's log",
    response_model=Logs,
    **guarded("models:read", problems.NOT_FOUND, returns="text/event-stream"),
)
async def get_logs(
    run_id: str,
    model_id: str,
    call: CurrentCall,
    reading: Annotated[Reading, Depends(_reading)],
    wanted: Annotated[Wanted, Depends(_wanted)],
) -> Response | Logs:
    """Read what the script printed, from a cursor on; `complete` says that nothing will follow.

    With `follow=true` lines come as server-sent events of type `log`, each with its cursor as id, and an `end` at last.
    """
    await found_run(call, model_id, run_id)
    after = reading.after
    if wanted.tail is not None and not reading.resumed:
        lines = await select_last_lines(call.context.pool, run_id, wanted.stream, wanted.tail)
        after = (lines[0].attempt, lines[0].sequence - 1, 0) if lines else after
    if not reading.follow:
        return await _logs(call, model_id, run_id, wanted, after)

    async def look(position: Position) -> Chapter:
        run, complete = await _completeness(call, model_id, run_id)
        lines = await select_lines(call.context.pool, run_id, position, wanted.stream, MOST_LINES)
        entries = [Entry(encode_position(_place_of(line)), _place_of(line), line) for line in lines]
        return Chapter(run, entries, complete and len(lines) < MOST_LINES)

    return follow("log", look, after, call.context.limits.follow_poll_s)


async def _logs(call: Call, model_id: str, run_id: str, wanted: Wanted, after: Position) -> Logs:
    _, complete = await _completeness(call, model_id, run_id)
    limit = wanted.tail or wanted.limit
    lines = await select_lines(call.context.pool, run_id, after, wanted.stream, limit + 1)
    shown = lines[:limit]
    cursor = encode_position(_place_of(shown[-1]) if shown else after)
    return Logs(run_id=run_id, items=shown, next_cursor=cursor, complete=complete and len(lines) <= limit)


def _place_of(line: OutputLine) -> Position:
    return line.attempt, line.sequence, 0


async def _completeness(call: Call, model_id: str, run_id: str) -> tuple[Run, bool]:
    """Tell whether all output of a run is stored. Asked before lines are read, so that lines only turn out more."""
    run = await found_run(call, model_id, run_id)
    if not run.status.is_end:
        return run, False
    stored: StoredOutput = await stored_output(call.context.pool, run_id)
    whole = stored.attempt == run.attempt and stored.sequence >= (run.output_sequence or 0)
    return run, whole or not run.output_sequence


class WantedSeries(BaseModel):
    """Which metrics are wanted, and how many points of each."""

    name: str | None
    max_points: int


async def _wanted_series(
    name: FilterText = None,
    max_points: Annotated[
        int, Query(ge=FEWEST_POINTS, le=MOST_POINTS, description="Points of a series at most; its extremes are kept.")
    ] = DEFAULT_POINTS,
) -> WantedSeries:
    return WantedSeries(name=name, max_points=max_points)


@router.get(
    "/metrics",
    summary="Read or follow a run's metrics",
    response_model=Metrics,
    **guarded("models:read", problems.NOT_FOUND, returns="text/event-stream"),
)
async def get_metrics(
    run_id: str,
    model_id: str,
    call: CurrentCall,
    reading: Annotated[Reading, Depends(_reading)],
    wanted: Annotated[WantedSeries, Depends(_wanted_series)],
) -> Response | Metrics:
    """Read what the script wrote to METRICS_PATH and what metric definitions found in its log, a series for each name.

    `complete` says that nothing will follow.

    With `follow=true` points come as server-sent events of type `metric`, each with its cursor as id, then an `end`.
    """
    await found_run(call, model_id, run_id)
    if not reading.follow:
        _, complete = await _completeness(call, model_id, run_id)
        points = await select_points(call.context.pool, run_id, reading.after, wanted.name, POINTS_READ)
        cursor = encode_position(points[-1].position if points else reading.after)
        series = _series(points, wanted.max_points)
        whole = complete and len(points) < POINTS_READ
        return Metrics(run_id=run_id, series=series, next_cursor=cursor, complete=whole)

    async def look(position: Position) -> Chapter:
        run, complete = await _completeness(call, model_id, run_id)
        points = await select_points(call.context.pool, run_id, position, wanted.name, MOST_POINTS)
        return Chapter(run, [_followed(found) for found in points], complete and len(points) < MOST_POINTS)

    return follow("metric", look, reading.after, call.context.limits.follow_poll_s)


def _followed(found: NamedPoint) -> Entry:
    resource = NamedMetricPoint(name=found.name, **found.point.model_dump())
    return Entry(encode_position(found.position), found.position, resource)


def _series(points: Sequence[NamedPoint], max_points: int) -> list[MetricSeries]:
    by_name: dict[str, list[Point]] = {}
    for found in points:
        by_name.setdefault(found.name, []).append(found.point)
    return [
        MetricSeries(name=name, points=downsample(all_of, lambda p: p.value, max_points), total_points=len(all_of))
        for name, all_of in by_name.items()
    ]


@router.get("/events", summary="Read a run's history", **guarded("models:read", problems.NOT_FOUND))
async def get_events(
    run_id: str, model_id: str, call: CurrentCall, limit: Limit = DEFAULT_PAGE, cursor: NumberCursor = None
) -> Page[RunHistoryEvent]:
    """Read everything that happened to a run, event by event, as it is stored."""
    await found_run(call, model_id, run_id)
    after = 0 if cursor is None else int(decode_cursor(cursor, int)[0])
    found = await select_events(call.context.pool, run_id, after, limit + 1)
    items = found[:limit]
    following = encode_cursor(items[-1].version) if len(found) > limit else None
    return Page(items=items, next_cursor=following)

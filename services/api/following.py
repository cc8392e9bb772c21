"""Following a run's output as server-sent events: what is stored, then what comes, then the end.

A stream goes on where its client left off, by `Last-Event-ID`, and always ends with an `end` event that says how the
run ended; a stream without one was cut off.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent

from schemas.run import Run
from services.api.cursors import Position

PING_S = 15


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to send, and the cursor behind it."""

    cursor: str
    position: Position
    resource: BaseModel


@dataclass(frozen=True, slots=True)
class Chapter:
    """What a look at the store brought: entries in order, and whether nothing will follow them."""

    run: Run
    entries: Sequence[Entry]
    complete: bool


Look = Callable[[Position], Awaitable[Chapter]]
"""Reads what stands behind a position."""


def follow(kind: str, look: Look, after: Position, poll_s: float) -> EventSourceResponse:
    """Stream entries as events of a kind until the output is complete."""
    return EventSourceResponse(_events(kind, look, after, poll_s), ping=PING_S, headers={"Cache-Control": "no-store"})


async def _events(kind: str, look: Look, after: Position, poll_s: float) -> AsyncIterator[ServerSentEvent]:
    while True:
        chapter = await look(after)
        for entry in chapter.entries:
            after = entry.position
            yield ServerSentEvent(entry.resource.model_dump_json(), event=kind, id=entry.cursor)
        if chapter.complete:
            yield ServerSentEvent(_end(chapter.run).model_dump_json(), event="end")
            return
        if not chapter.entries:
            await asyncio.sleep(poll_s)


class StreamEnd(BaseModel):
    """The data of an `end` event."""

    run_id: str
    status: str
    reason: str | None
    version: int | None


def _end(run: Run) -> StreamEnd:
    return StreamEnd(run_id=run.run_id, status=run.status, reason=run.reason, version=run.version)

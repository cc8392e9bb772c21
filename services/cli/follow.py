"""Following a run over REST until it has ended and everything that it printed was seen.

Owns reconnecting: a stream that breaks goes on behind the last event that was seen (Last-Event-ID), so nothing is lost
or shown twice. What is shown, and how, is the watcher's.
"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Protocol

from services.cli.api_client import Api, Json
from services.cli.errors import ApiUnreachable

POLL_S = 0.5
RECONNECT_S = 1.0
GIVE_UP_S = 120.0
"""How long nobody may answer before following gives up; the run goes on without it."""
ENDS = frozenset({"succeeded", "failed", "cancelled"})


class Watcher(Protocol):
    """Who is told what happens to a run."""

    def on_run(self, run: Json) -> None:
        """Take note of the run's state; called whenever it was asked for."""

    def on_line(self, line: Json) -> None:
        """Take note of a line that the script printed."""

    def on_point(self, point: Json) -> None:
        """Take note of a metric's value."""


def path_of(run: Json) -> str:
    """Name a run's place in the API."""
    return f"/models/{run['model_id']}/runs/{run['run_id']}"


async def follow_run(api: Api, run: Json, watcher: Watcher) -> Json:
    """Tell a watcher everything about a run, its end last; returns the run as it ended."""
    async with asyncio.TaskGroup() as group:
        group.create_task(follow_stream(api, f"{path_of(run)}/logs", watcher.on_line))
        group.create_task(follow_stream(api, f"{path_of(run)}/metrics", watcher.on_point))
        following = group.create_task(_follow_state(api, run, watcher))
    ended = following.result()
    watcher.on_run(ended)
    return ended


async def follow_stream(api: Api, path: str, on_item: Callable[[Json], None], after: str | None = None) -> None:
    """Hand on each item of a followed list until its end, over as many connections as it takes.

    Raises:
        ApiUnreachable: nobody answered for too long.
    """
    heard_at = time.monotonic()
    while True:
        try:
            async for event in api.events(path, after, follow="true"):
                heard_at = time.monotonic()
                if event.event == "end":
                    return
                if event.data:  # a server that is being stopped may leave an event without any
                    on_item(json.loads(event.data))
                    after = event.id
        except ApiUnreachable:
            if time.monotonic() - heard_at > GIVE_UP_S:
                raise
        await asyncio.sleep(RECONNECT_S)


async def _follow_state(api: Api, run: Json, watcher: Watcher) -> Json:
    heard_at = time.monotonic()
    while True:
        try:
            run = await api.get(path_of(run))
            heard_at = time.monotonic()
        except ApiUnreachable:
            if time.monotonic() - heard_at > GIVE_UP_S:
                raise
        else:
            if run["status"] in ENDS:
                return run
            watcher.on_run(run)
        await asyncio.sleep(POLL_S)

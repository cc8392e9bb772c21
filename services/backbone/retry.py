"""Waiting between tries: one backoff for everything that may go well later.

Owns how long; never decides what is worth trying again (see `errors.is_transient`).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import structlog

from services.backbone.errors import is_transient

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0

log = structlog.get_logger()

Result = TypeVar("Result")


def delays() -> Iterator[float]:
    """Yield seconds to wait: doubling from 0.1 s up to 5 s, with full jitter above half of each."""
    delay = FIRST_DELAY_S
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        delay = min(delay * 2, LONGEST_DELAY_S)


async def until_it_works(what: str, attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Call until no transient failure is raised; log each failure under `what`. Other errors pass through."""
    for delay in delays():
        try:
            return await attempt()
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("waiting_for", what=what, error=repr(error), again_in_s=round(delay, 2))
            await asyncio.sleep(delay)
    raise AssertionError("delays never end")

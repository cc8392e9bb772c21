"""Running a service: its parts side by side until a signal comes or one of them fails.

SIGTERM and SIGINT end the parts in good order and the process with 0. A part that raises is a bug or a lost cause: it
is logged, the others are cancelled, and the process ends with 1, for its supervisor to start again.
"""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger()


async def run_parts(*parts: Coroutine[Any, Any, None]) -> None:
    """Run parts until one ends by an error or a signal asks the process to stop.

    Raises:
        ExceptionGroup: what the failed parts raised.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part) for part in parts]
        await stop.wait()
        log.info("service_stopping")
        for task in tasks:
            task.cancel()


def run_service(main: Coroutine[Any, Any, None]) -> None:
    """Run a service's main coroutine and end the process: 0 after a signal, 1 after a failure."""
    try:
        asyncio.run(main)
    except Exception:
        log.exception("service_failed")
        sys.exit(1)
    log.info("service_stopped")

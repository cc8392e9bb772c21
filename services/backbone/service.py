"""Running a service: its parts side by side until a signal comes or one of them fails.

SIGTERM and SIGINT end the parts in good order and the process with 0. A part that raises is a bug or a lost cause: it
is logged, the others are cancelled, and the process ends with 1, for its supervisor to start again. What does not let
itself be cancelled is ended by force.
"""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import structlog

from services.backbone.errors import Stuck, TooMuchPoison
from services.backbone.watchdog import end_process_if_it_hangs

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
        for task in tasks:
            task.add_done_callback(_bound_the_end)
        await stop.wait()
        log.info("service_stopping")
        for task in tasks:
            task.cancel()


def run_service(main: Coroutine[Any, Any, None]) -> None:
    """Run a service's main coroutine and end the process: 0 after a signal, 1 after a failure."""
    try:
        asyncio.run(main)
    except Exception as error:
        log.exception("service_failed")
        for reason in why_it_stopped_itself(error):
            log.critical("service_stopped_itself", reason=reason)
        sys.exit(1)
    log.info("service_stopped")


def why_it_stopped_itself(error: BaseException) -> list[str]:
    """Find, among what ended a service, what it did on purpose: the last words of its log.

    >>> why_it_stopped_itself(ExceptionGroup("", [KeyError("a bug"), Stuck("the relay has not got on")]))
    ['the relay has not got on']
    """
    if isinstance(error, BaseExceptionGroup):
        return [reason for each in error.exceptions for reason in why_it_stopped_itself(each)]
    return [str(error)] if isinstance(error, Stuck | TooMuchPoison) else []


def _bound_the_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        end_process_if_it_hangs(repr(error))

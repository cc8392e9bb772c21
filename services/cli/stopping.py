"""Running a coroutine that Ctrl-C or SIGTERM ends in good order, and a second one at once.

Owns the signals of a command that holds a system. Never decides what stopping means: that is the coroutine's `finally`.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from services.cli.service_process import Say

EXIT_KILLED = 130


async def until_stopped(work: Coroutine[Any, Any, None], say: Say, kill: Callable[[], None]) -> bool:
    """Run some work until it ends or a signal cancels it; True when it was a signal.

    Args:
        work: what is cancelled by the first signal.
        say: told what happens.
        kill: ends all child processes at once; a second signal calls it and ends this process, too.
    """
    task = asyncio.create_task(work)
    stopped = False

    def on_signal() -> None:
        nonlocal stopped
        if stopped:
            kill()
            os._exit(EXIT_KILLED)
        stopped = True
        say("stopping everything in order; once more kills it")
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped:
            raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return stopped

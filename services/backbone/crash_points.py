"""Named places at which a test may kill the process: just before or after a side effect that the next one depends on.

`RUNYARD_CRASH_POINTS` names a folder; unset, as it is wherever nobody tests crashes, a point costs one `if`. A file of
a point's name in it arms that point: whoever gets there first removes the file and dies at once (SIGKILL, so nothing is
flushed, rolled back or said), once per arming, over restarts, in a system that may have been running for long.

The folder is a constant read at import, unlike every setting: it never changes while a process lives, it decides
nothing of what a service does, and as a setting it would have to be handed to every room for the tests' sake alone.
"""

import os
import signal
from pathlib import Path

ENVIRONMENT = "RUNYARD_CRASH_POINTS"

FOLDER = Path(folder) if (folder := os.environ.get(ENVIRONMENT)) else None


def crash_point(name: str) -> None:
    """Die here if a test has armed this point. Names are literals, unique, and say what has or has not happened yet."""
    if FOLDER is not None:
        _die_if_armed(FOLDER / name)


def _die_if_armed(armed: Path) -> None:
    try:
        armed.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)

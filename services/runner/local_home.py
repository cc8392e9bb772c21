"""The folder of one that runs scripts here: made for it alone, held by a lock, found by the next when it was killed.

Owns the folder's name and its lock; never looks into it.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "runyard-local-"


@contextmanager
def new_home() -> Iterator[Path]:
    """Make a folder and hold it for the length of a block; whoever made it removes it, too."""
    home = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = _held_lock(home)
    try:
        yield home
    finally:
        os.close(lock)


def abandoned_homes() -> Iterator[Path]:
    """Yield the folders of those who were killed, each held while it is looked after."""
    for home in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = _taken_lock(home)
        if lock is not None:
            try:
                yield home
            finally:
                os.close(lock)


def _held_lock(home: Path) -> int:
    """Make a folder's lock, held before it has the name by which it is found: nobody can come in between."""
    unnamed = home / "lock.new"
    lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    unnamed.rename(home / "lock")
    return lock


def _taken_lock(home: Path) -> int | None:
    """Take the lock of a folder of ours whose owner is gone; None for any other."""
    with suppress(OSError):
        if home.lstat().st_uid != os.geteuid():
            return None
        lock = os.open(home / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return None
        return lock
    return None

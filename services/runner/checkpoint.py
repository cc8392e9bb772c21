"""What a script keeps at CHECKPOINT_PATH, on this host: looked at from outside, taken as a tar, laid out for the next.

A script may write there at any moment, so a snapshot is consistent file by file: one that changes while it is read
voids the snapshot. What is in the folder is hostile, as in `artifact`; this owns when a snapshot is due, and never
knows where it goes.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from services.runner.artifact import Limits, RefusedError, pack_folder
from services.runner.descriptors import FOLDER
from services.runner.folder import Owner
from services.runner.unpacking import unpack

NAME = "checkpoint"
"""What CHECKPOINT_PATH ends with."""
RESTLESS_LOOKS = 6
"""After so many looks in a row that each saw a change, a snapshot is tried in spite of it."""


Sight = tuple[str, int, int, int, int, int]
"""One entry, not opened: its path, mode, size, times of content and of inode, inode."""
Look = frozenset[Sight]

NOTHING: Look = frozenset()


@dataclass
class Pace:
    """Decides, look by look, when a snapshot is due: what has changed, and is quiet, or has not been quiet for long.

    >>> pace, one, two = Pace(), frozenset({("a", 0, 1, 1, 1, 1)}), frozenset({("a", 0, 2, 2, 2, 1)})
    >>> pace.is_due(one), pace.is_due(two), pace.is_due(two)
    (False, False, True)
    """

    kept: Look = NOTHING
    _before: Look = NOTHING
    _restless: int = 0

    def is_due(self, look: Look) -> bool:
        """Take a look in; an empty folder is nothing to keep."""
        quiet = look == self._before
        self._before = look
        if look in (self.kept, NOTHING):
            self._restless = 0
            return False
        self._restless = 0 if quiet else self._restless + 1
        return quiet or self._restless >= RESTLESS_LOOKS

    def keep(self, look: Look) -> None:
        """Note what the newest snapshot shows, or what cannot be taken as it is."""
        self.kept = look
        self._restless = 0


def look_at(out_folder: Path, limits: Limits) -> Look:
    """Look at the folder, no further than the limits; what cannot be seen now is left out."""
    seen: set[Sight] = set()
    with suppress(OSError), _opened(out_folder) as out:
        about = os.stat(NAME, dir_fd=out, follow_symlinks=False)
        if stat.S_ISDIR(about.st_mode):
            _look_into(out, NAME, "", seen, limits)
        else:
            seen.add(_sight(NAME, about))
    return frozenset(seen)


def take(out_folder: Path, target: BinaryIO, limits: Limits) -> int:
    """Take a snapshot as a tar; returns how many files are in it: without any it is none.

    Raises:
        ChangedError: a file changed meanwhile.
        RefusedError: something is there that cannot be taken.
        OSError: it could not be read, or the runner's own disk is full.
    """
    with _opened(out_folder) as out, _opened_strictly(out) as folder:
        return pack_folder(folder, target, limits, keep_times=True)


def lay_out(out_folder: Path, archive: BinaryIO | None, owner: Owner, limits: Limits) -> None:
    """Make the folder, and put into it what an earlier attempt has kept; `out_folder` is there, and has no such folder.

    Raises:
        DamagedError: the archive is none of ours: `unpacking.check` says so before.
        OSError: the disk is full.
    """
    folder = out_folder / NAME
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, owner.uid, owner.gid)
    if archive is not None:
        unpack(archive, folder, owner, limits)


@contextmanager
def _opened(path: Path | str, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, FOLDER, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _opened_strictly(out: int) -> Iterator[int]:
    """Open the folder, which the script may have replaced by anything."""
    try:
        opened = os.open(NAME, FOLDER, dir_fd=out)
    except OSError as problem:
        raise RefusedError(f"CHECKPOINT_PATH is no folder that can be read: {problem.strerror}") from problem
    try:
        yield opened
    finally:
        os.close(opened)


def _look_into(parent: int, name: str, prefix: str, seen: set[Sight], limits: Limits) -> None:
    if prefix.count("/") >= limits.max_depth:
        return
    with suppress(OSError), _opened(name, parent) as folder:
        with os.scandir(folder) as found:
            entries = list(islice(found, limits.max_files + 1 - len(seen)))
        for entry in entries:
            if len(seen) > limits.max_files:
                return
            with suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                seen.add(_sight(prefix + entry.name, about))
                if stat.S_ISDIR(about.st_mode):
                    _look_into(folder, entry.name, f"{prefix}{entry.name}/", seen, limits)


def _sight(path: str, about: os.stat_result) -> Sight:
    return path, about.st_mode, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino

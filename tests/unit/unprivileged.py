"""Lets a test that runs as root meet permissions as a runner without root does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Be nobody, whose the folder is, for the length of a block, and work in it: what lies above is closed to him.

    With the effective user id the kernel takes the right to pass over permissions away, and gives it back
    (capabilities(7)).
    """
    before = Path.cwd()
    os.chdir(folder)
    if is_root := os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        os.chdir(before)

"""The slots: what the shims read, and the folder on a tmpfs where they lie, since they hold the values of variables.

A slot is mounted into its container, read-only. The shim lies in it as a folder that Python runs, with its modules
below their own names, so that one import means the same file here and there; nothing else of ours goes along.
"""

import ctypes
import hashlib
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import services
from services import runner
from services.runner import shim

TMPFS_MAGIC = 0x01021994  # linux/magic.h
STATFS_BYTES = 256
"""More than any architecture's `struct statfs`, whose first word is the type (statfs(2))."""


def write_shim(slot: Path) -> None:
    """Write the shim into a slot: `shim/__main__.py`, and its package below."""
    start = slot / "shim"
    package = start.joinpath(*shim.__name__.split("."))
    package.mkdir(parents=True)
    for source in Path(str(shim.__file__)).parent.glob("*.py"):
        shutil.copyfile(source, (start if source.name == "__main__.py" else package) / source.name)
    for outer in (services, runner):
        shutil.copyfile(str(outer.__file__), start.joinpath(*outer.__name__.split("."), "__init__.py"))


def slots_folder(slots_dir: Path, work_dir: Path) -> Path:
    """Name the folder of one runner's slots: by its work folder, so that the next process there sweeps it."""
    return slots_dir / f"runyard-{hashlib.sha256(str(work_dir.absolute()).encode()).hexdigest()[:16]}"


def open_slots(slots: Path) -> str | None:
    """Make the folder for this user alone, unless it is there; return why secrets cannot lie in it, if so."""
    try:
        slots.mkdir(mode=0o700, exist_ok=True)
        about = slots.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
            return "it belongs to somebody else"
        slots.chmod(0o700)
        return None if is_tmpfs(slots) else "it is not on a tmpfs"
    except OSError as problem:
        return str(problem.strerror)


def close_slots(slots: Path | None) -> None:
    """Remove the folder unless slots of running containers are in it."""
    if slots is not None:
        with suppress(OSError):
            slots.rmdir()


def is_tmpfs(path: Path) -> bool:
    """Ask the kernel for the type of a file system."""
    about = ctypes.create_string_buffer(STATFS_BYTES)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), about) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ctypes.c_long.from_buffer(about).value == TMPFS_MAGIC

"""The slots: what the shims read, and the folder on a tmpfs where they lie, since they hold the values of variables.

A slot is mounted into its container, read-only. The shim lies in it as a folder that Python runs, with its modules
below their own names, so that one import means the same file here and there; nothing else of ours goes along.
"""

import ctypes
import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

import services
from services import runner
from services.runner import shim

TMPFS_MAGIC = 0x01021994  # linux/magic.h
TRIES = 100
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


def make_slot(slot: Path) -> None:
    """Make an empty slot, and the folder around it if nobody else has one there.

    Raises:
        OSError: secrets cannot lie there.
    """
    for _ in range(TRIES):
        with suppress(FileNotFoundError):  # somebody else ended just now, and took the folder along
            if (problem := _problem_of(slot.parent)) is not None:
                raise OSError(f"{slot.parent}: {problem}")
            slot.mkdir(mode=0o700)
            return
    raise OSError(f"{slot.parent}: it goes away again and again")


def why_unusable(slots: Path) -> str | None:
    """Try whether the folder can be made for this user alone, on a tmpfs; return why not, if so."""
    try:
        return _problem_of(slots)
    except OSError as problem:
        return str(problem.strerror)
    finally:
        close_slots(slots)


def _problem_of(slots: Path) -> str | None:
    with suppress(FileExistsError):  # `exist_ok` looks twice, and somebody may take it away in between
        slots.mkdir(mode=0o700)
    folder = os.open(slots, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            return "it belongs to somebody else"
        os.fchmod(folder, 0o700)
        return None if is_tmpfs(folder) else "it is not on a tmpfs"
    finally:
        os.close(folder)


def close_slots(slots: Path | None) -> None:
    """Remove the folder unless a slot is in it."""
    if slots is not None:
        with suppress(OSError):
            slots.rmdir()


def is_tmpfs(folder: int) -> bool:
    """Ask the kernel for the type of the file system that an open folder is on."""
    about = ctypes.create_string_buffer(STATFS_BYTES)
    if ctypes.CDLL(None, use_errno=True).fstatfs(folder, about) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ctypes.c_long.from_buffer(about).value == TMPFS_MAGIC

"""The slots: what the shims read, and the folder on a tmpfs where they lie, since they hold the values of variables.

A slot is mounted into its container, read-only. The shim lies in it as a folder that Python runs, with its modules
below their own names, so that one import means the same file here and there; nothing else of ours goes along.
"""

import ctypes
import hashlib
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import services
from services import runner
from services.runner import shim
from services.runner.descriptors import FOLDER

TMPFS_MAGIC = 0x01021994  # linux/magic.h
TRIES = 100
STATFS_BYTES = 256
"""More than any architecture's `struct statfs`, whose first word is the type (statfs(2))."""


def write_shim(slot: Path) -> None:
    """Write the shim into a slot: `shim/__main__.py`, and its package below. It is no secret: all may read it."""
    folders, files = _shim()
    for folder in folders:
        os.mkdir(f"{slot}/{folder}")  # noqa: PTH102 - many, and at each start: pathlib takes three times as long
        os.chmod(f"{slot}/{folder}", 0o755)  # noqa: PTH101, S103 - whatever the umask is
    for name, content in files:
        with open(f"{slot}/{name}", "xb") as file:  # noqa: PTH123
            os.fchmod(file.fileno(), 0o444)
            file.write(content)


@cache
def _shim() -> tuple[list[str], list[tuple[str, bytes]]]:
    """Read the shim once: its folders, outer ones first, and its files, by their names in a slot."""
    packages = [services, runner, shim]
    folders = ["shim", *(f"shim/{package.__name__.replace('.', '/')}" for package in packages)]
    files = [(f"{folder}/__init__.py", package) for folder, package in zip(folders[1:], packages, strict=True)]
    own = Path(str(shim.__file__)).parent
    sources = {name: Path(str(package.__file__)) for name, package in files}
    sources |= {f"{folders[-1]}/{source.name}": source for source in own.glob("[!_]*.py")}
    sources |= {"shim/__main__.py": own / "__main__.py"}
    return folders, [(name, source.read_bytes()) for name, source in sources.items()]


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
    folder = os.open(slots, FOLDER)
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

"""Lays out a tar that a runner has packed, as if a stranger had: the archive was somewhere else in the meantime.

`check` reads all of its headers before `unpack` writes anything, and only what `pack_folder` makes passes: regular
files and folders with plain names, parents first, nothing twice, within limits. Everything is created below directory
descriptors, never over something that is there. It must never be given to `tarfile` to extract.
"""

import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from services.runner.artifact import Limits, is_text
from services.runner.descriptors import FOLDER
from services.runner.folder import Owner

FOLDER_MODE, FILE_MODE = 0o755, 0o644
CHUNK_BYTES = 1 << 20
BYTES_PER_ENTRY = 16 << 10
"""What an entry takes at most beside its content: headers, and its whole path, which may be 32 names of 255 bytes."""

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNREADABLE = (tarfile.TarError, ValueError, ArithmeticError, EOFError, RecursionError, MemoryError)
"""What `tarfile` raises on headers that were made to break it."""


class DamagedError(Exception):
    """The archive is none that may be unpacked; the text says why."""


@dataclass(frozen=True)
class _Entry:
    """A file or a folder of an archive: where it goes, and where its bytes are."""

    member: tarfile.TarInfo
    names: tuple[str, ...]


def most_archive_bytes(limits: Limits) -> int:
    """Tell how large the tar of a folder within limits can be."""
    return limits.max_bytes + (limits.max_files + 1) * BYTES_PER_ENTRY


def check(archive: BinaryIO, limits: Limits) -> None:
    """Read an archive, from where it stands, to its end.

    Raises:
        DamagedError: it is not what `pack_folder` makes within these limits.
    """
    with _opened(archive) as tar:
        for _ in _entries(tar, limits):
            continue


def unpack(archive: BinaryIO, target: Path, owner: Owner, limits: Limits) -> None:
    """Lay out an archive, from where it stands, in a folder that is empty and that nobody else writes to.

    Raises:
        DamagedError: as `check`, which should have been asked before.
        OSError: the disk is full.
    """
    with _opened(archive) as tar, _folder(target) as top:
        for entry in _entries(tar, limits):
            with _parent(top, entry.names) as parent:
                if entry.member.isdir():
                    _make_folder(parent, entry.names[-1], owner)
                else:
                    _make_file(parent, tar, entry, owner)


@contextmanager
def _opened(archive: BinaryIO) -> Iterator[tarfile.TarFile]:
    """Open an archive for a block, in which what `tarfile` cannot read is damage."""
    try:
        with tarfile.open(fileobj=archive, mode="r:", encoding="utf-8") as tar:
            yield tar
    except _UNREADABLE as error:
        raise DamagedError(f"the archive cannot be read: {type(error).__name__}") from error


def _entries(tar: tarfile.TarFile, limits: Limits) -> Iterator[_Entry]:
    folders: set[tuple[str, ...]] = {()}
    files: set[tuple[str, ...]] = set()
    size_bytes = 0
    for member in tar:
        names = _names(member.name, limits)
        if names in folders or names in files or names[:-1] not in folders:
            raise DamagedError(f"{member.name!r} is there twice, or comes before its folder")
        if member.type == tarfile.DIRTYPE:
            folders.add(names)
        elif member.type == tarfile.REGTYPE and not member.issparse():
            files.add(names)
            size_bytes += member.size
        else:
            raise DamagedError(f"{member.name!r} is neither a regular file nor a folder")
        if size_bytes > limits.max_bytes or len(folders) + len(files) > limits.max_files + 1:
            raise DamagedError("it is larger than it may be here")
        yield _Entry(member, names)


def _names(path: str, limits: Limits) -> tuple[str, ...]:
    names = tuple(path.split("/"))
    if any(name in ("", ".", "..") or len(name.encode(errors="replace")) > 255 for name in names) or not is_text(path):
        raise DamagedError(f"{path!r} is no path below a folder")
    if len(names) > limits.max_depth:
        raise DamagedError(f"folders are nested deeper than {limits.max_depth}")
    return names


@contextmanager
def _folder(name: Path | str, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(name, FOLDER, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _parent(top: int, names: tuple[str, ...]) -> Iterator[int]:
    """Open the folder of an entry, one name at a time."""
    descriptor = os.dup(top)
    try:
        for name in names[:-1]:
            with _folder(name, descriptor) as below:
                os.dup2(below, descriptor, inheritable=False)
        yield descriptor
    finally:
        os.close(descriptor)


def _make_folder(parent: int, name: str, owner: Owner) -> None:
    os.mkdir(name, FOLDER_MODE, dir_fd=parent)
    with _folder(name, parent) as descriptor:
        _hand_over(descriptor, FOLDER_MODE, owner)


def _make_file(parent: int, tar: tarfile.TarFile, entry: _Entry, owner: Owner) -> None:
    source = tar.extractfile(entry.member)
    if source is None:
        raise AssertionError("a regular file has content")
    descriptor = os.open(entry.names[-1], _NEW_FILE, 0o600, dir_fd=parent)
    with os.fdopen(descriptor, "wb") as target, closing(source):
        shutil.copyfileobj(source, target, CHUNK_BYTES)
        target.flush()
        _hand_over(descriptor, FILE_MODE, owner)
        with suppress(OverflowError, OSError):  # a time that this file system cannot hold
            os.utime(descriptor, (entry.member.mtime, entry.member.mtime))


def _hand_over(descriptor: int, mode: int, owner: Owner) -> None:
    os.fchmod(descriptor, mode)
    if os.geteuid() == 0:
        os.fchown(descriptor, owner.uid, owner.gid)

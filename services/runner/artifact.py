"""Takes what a script left at MODEL_OUTPUT_PATH, as bytes that nobody can change any more.

`collect` is called when every process of the container is gone, and still trusts nothing: entries are opened below
directory descriptors without following links, then asked what they are. Only regular files with one name pass.
`pack_folder` is its walk, for folders of scripts that still run, too. Neither may load, unpickle or unpack anything.
"""

import errno
import hashlib
import os
import shutil
import stat
import tarfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

from services.runner.descriptors import FILE, FOLDER

NAME = "model"
"""What MODEL_OUTPUT_PATH ends with."""

_SPARSE_FROM_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """How large an artifact may be; `max_bytes` is the sum of the files, `max_files` counts folders, too."""

    max_bytes: int
    max_files: int = 10_000
    max_depth: int = 32


@dataclass(frozen=True)
class NoArtifact:
    """The script wrote nothing there, or a folder without a single file."""


@dataclass(frozen=True)
class Collected:
    """The artifact as a private file: a file as it was, a folder as a plain tar."""

    path: Path
    sha256: str
    size_bytes: int
    kind: Literal["file", "folder"]


@dataclass(frozen=True)
class Refused:
    """Something is there that must not become a version."""

    reason: str
    anonymous: str = ""
    """The same without the name that the script has chosen."""


Collection = NoArtifact | Collected | Refused


class RefusedError(Exception):
    """Something is there that must not be taken; unwinds the walk with the reason.

    `what` is the reason without the path, which the script has chosen.
    """

    def __init__(self, what: str, path: str | None = None) -> None:
        super().__init__(what if path is None else f"{path!r} {what}")
        self.what = what
        self.anonymous = what if path is None else f"'***' {what}"


class ChangedError(RefusedError):
    """Somebody writes there just now."""


def collect(out_folder: Path, private_file: Path, limits: Limits) -> Collection:
    """Copy the artifact to a private file, its digest taken of the very bytes that were written.

    The tar is the same for the same names and bytes: sorted, without times, owners or modes of the sandbox.

    Raises:
        OSError: The runner's own disk failed; nothing is known about the artifact then.
    """
    try:
        with _opened(out_folder) as out:
            if not _exists(out):
                return NoArtifact()
            with private_file.open("x+b") as target:
                kind = _take(out, target, limits)
                size_bytes = target.seek(0, os.SEEK_END)
                target.seek(0)
                sha256 = hashlib.file_digest(target, "sha256").hexdigest()
    except RefusedError as problem:
        private_file.unlink(missing_ok=True)
        return Refused(str(problem), problem.anonymous)
    if kind is None:
        private_file.unlink()
        return NoArtifact()
    return Collected(private_file, sha256, size_bytes, kind)


@contextmanager
def _opened(out_folder: Path) -> Iterator[int]:
    """Open `out`, which a script with the runner's user id may have closed to it."""
    with _refused_where_closed():
        out = os.open(out_folder, FOLDER)
    try:
        yield out
    finally:
        os.close(out)


@contextmanager
def _refused_where_closed() -> Iterator[None]:
    try:
        yield
    except PermissionError as problem:
        raise RefusedError("the output folder cannot be read") from problem


def _exists(out: int) -> bool:
    with _refused_where_closed():
        try:
            os.stat(NAME, dir_fd=out, follow_symlinks=False)
        except FileNotFoundError:
            return False
    return True


def _take(out: int, target: BinaryIO, limits: Limits) -> Literal["file", "folder"] | None:
    """Copy what is there; None for a folder without a file."""
    with _entry(out, NAME, NAME) as (descriptor, about):
        if stat.S_ISREG(about.st_mode):
            _check_file(descriptor, about, NAME, limits.max_bytes)
            _copy(descriptor, about, NAME, target)
            return "file"
        return "folder" if pack_folder(descriptor, target, limits) else None


def pack_folder(folder: int, target: BinaryIO, limits: Limits, *, keep_times: bool = False) -> int:
    """Put what is in a folder, by its descriptor, into a tar; returns how many files that are.

    Args:
        folder: opened for reading; it stays open.
        target: where the tar goes.
        limits: how large it may be.
        keep_times: give each file the second at which it was last written.

    Raises:
        ChangedError: a file changed or went away while it was read.
        RefusedError: something is there that is neither a regular file nor a folder, or it is too large.
        OSError: it could not be read or written.
    """
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        walk = _Walk(tar, limits, keep_times)
        walk.add_folder(folder, "", 1)
    return walk.files


@dataclass
class _Walk:
    """Puts a folder into a tar and keeps count."""

    tar: tarfile.TarFile
    limits: Limits
    keep_times: bool
    entries: int = 0
    files: int = 0
    size_bytes: int = 0

    def add_folder(self, folder: int, prefix: str, depth: int) -> None:
        if depth > self.limits.max_depth:
            raise RefusedError(f"folders are nested deeper than {self.limits.max_depth}")
        for name in self._names(folder):
            path = prefix + name
            with _entry(folder, name, path) as (descriptor, about):
                if stat.S_ISREG(about.st_mode):
                    self._add_file(descriptor, about, path)
                else:
                    self.tar.addfile(_member(path, tarfile.DIRTYPE, 0o755))
                    self.add_folder(descriptor, path + "/", depth + 1)

    def _names(self, folder: int) -> list[str]:
        with os.scandir(folder) as found:
            names = [entry.name for entry in islice(found, self.limits.max_files - self.entries + 1)]
        self.entries += len(names)
        if self.entries > self.limits.max_files:
            raise RefusedError(f"more than {self.limits.max_files} files")
        return sorted(names)

    def _add_file(self, descriptor: int, about: os.stat_result, path: str) -> None:
        _check_file(descriptor, about, path, self.limits.max_bytes - self.size_bytes)
        self.files += 1
        self.size_bytes += about.st_size
        member = _member(path, tarfile.REGTYPE, 0o644)
        member.size = about.st_size
        if self.keep_times:
            member.mtime = int(about.st_mtime)
        with open(descriptor, "rb", closefd=False) as source, _unchanged(descriptor, about, path):
            self.tar.addfile(member, source)


def _member(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    """Describe an entry by nothing but its name, so that the same files make the same tar."""
    member = tarfile.TarInfo(path)
    member.type, member.mode = kind, mode
    return member


def is_text(name: str) -> bool:
    """Whether a name can be shown and written as UTF-8: no control characters, no bytes that are no text."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


@contextmanager
def _entry(parent: int, name: str, path: str) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file or a folder; anything else is refused."""
    if not is_text(name):
        raise RefusedError("has a name that is not text", path)
    try:
        descriptor = os.open(name, FILE, dir_fd=parent)
    except OSError as problem:
        if problem.errno == errno.ENOENT:
            raise ChangedError("went away while it was read", path) from problem
        if problem.errno not in (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EACCES, errno.EPERM):
            raise
        what = "is a symbolic link" if problem.errno == errno.ELOOP else "is no file that can be read"
        raise RefusedError(what, path) from problem
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
            raise RefusedError("is neither a regular file nor a folder", path)
        yield descriptor, about
    finally:
        os.close(descriptor)


def _check_file(descriptor: int, about: os.stat_result, path: str, max_bytes: int) -> None:
    if about.st_nlink == 0:
        raise ChangedError("was replaced while it was opened", path)
    if about.st_nlink != 1:
        raise RefusedError("is a hard link", path)
    if about.st_size > max_bytes:
        raise RefusedError("larger than it may be")
    if about.st_size >= _SPARSE_FROM_BYTES and _hole_bytes(descriptor, about.st_size) > about.st_size // 2:
        raise RefusedError("is a sparse file", path)


def _hole_bytes(descriptor: int, size: int) -> int:
    """Return how much of a file was never written (lseek(2)); where the file system cannot tell, nothing."""
    position = holes = 0
    while position < size:
        try:
            data = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as problem:
            if problem.errno != errno.ENXIO:
                raise
            data = size  # no data up to the end
        holes += data - position
        position = size if data >= size else _next_hole(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return holes


def _next_hole(descriptor: int, position: int) -> int:
    try:
        return os.lseek(descriptor, position, os.SEEK_HOLE)
    except OSError as problem:
        if problem.errno != errno.ENXIO:
            raise
        raise ChangedError("changed while it was read") from problem  # it is shorter now


def _copy(descriptor: int, about: os.stat_result, path: str, target: BinaryIO) -> None:
    with open(descriptor, "rb", closefd=False) as source, _unchanged(descriptor, about, path):
        shutil.copyfileobj(source, target)


@contextmanager
def _unchanged(descriptor: int, before: os.stat_result, path: str) -> Iterator[None]:
    """See that a file stays as it is for the length of a block, whatever else goes wrong in it."""
    try:
        yield
    finally:
        after = os.fstat(descriptor)
        if _state(after) != _state(before):
            raise ChangedError("changed while it was read", path)


def _state(about: os.stat_result) -> tuple[int, int, int]:
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns

"""Installed sets of packages on the runner's own disk, one folder each, named by the set's key.

A set appears whole or not at all, read-only, and belongs to nobody who runs scripts. The folder is kept below a size by
removing what was used longest ago, never what a run has mounted: the run's own folder says which set that is, so a
runner that was killed knows it, too. It must never follow a link or believe a name of what an install has left.
"""

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from services.runner import folder
from services.runner.descriptors import FOLDER

SITE, ABOUT, USES = "site", "about.json", "packages.key"
MOST_FILES, DEEPEST = 200_000, 64
LEAST_BYTES = 4096
"""What any file or folder counts as, however small: its inode, and a block of the disk."""


class NotKept(Exception):
    """An install has left what is not kept; the text says what."""


@dataclass
class PackageCache:
    """The sets of one runner. Decisions are taken in the event loop's thread; `keep` and `remove` may run in others.

    Attributes:
        folder: where the sets are.
        runs_folder: where the runs' folders are, each of which may say that it uses a set.
    """

    folder: Path
    runs_folder: Path
    max_bytes: int
    _held: Counter[str] = field(default_factory=Counter)

    def find(self, key: str) -> Path | None:
        """Find a set, and note that it is used now."""
        path = self.folder / key
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Keep a set until the end of the block, whether it is there already or not."""
        self._held[key] += 1
        try:
            yield
        finally:
            self._held[key] -= 1
            self._held += Counter()  # forgets those that nobody holds

    def use(self, run: Path, key: str) -> None:
        """Say that a run has a set mounted, for as long as its folder exists."""
        (run / USES).write_text(key)

    def used_by(self, run: Path) -> Path | None:
        """Find the folder of the set that a run has mounted; None when it has none."""
        try:
            return self.folder / (run / USES).read_text()
        except FileNotFoundError:
            return None

    def keep(self, key: str, site: Path, max_bytes: int) -> None:
        """Take an installed folder in; nothing may write to it any more.

        Raises:
            NotKept: it holds something else than files and folders, or too much.
            OSError: the disk is full.
        """
        size_bytes = seal(site, max_bytes)
        part = self.folder / f"{key}.{uuid4().hex}.part"
        part.mkdir(parents=True)
        part.chmod(0o755)  # whatever the umask is
        site.rename(part / SITE)
        (part / SITE).chmod(0o555)  # only now: without root a folder that is read-only cannot be moved
        (part / ABOUT).write_text(json.dumps({"size_bytes": size_bytes}))
        part.rename(self.folder / key)

    def excess(self) -> list[Path]:
        """Tell which sets have to go, and put them aside, so that nobody finds them any more."""
        sets = sorted((path.stat().st_mtime, path) for path in self._finished())
        total, leaving = sum(_size(path) for _, path in sets), []
        kept = {*self._held, *self._used()}
        for _, path in sets:
            if total > self.max_bytes and path.name not in kept:
                total -= _size(path)
                leaving.append(path.rename(path.with_name(f"{path.name}.{uuid4().hex}.part")))
        return leaving

    def clear_unfinished(self) -> None:
        """Remove what an earlier process was still writing or removing; to be called before the first use."""
        self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        for leftover in self.folder.glob("*.part"):
            remove(leftover)

    def _finished(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.suffix != ".part"] if self.folder.exists() else []

    def _used(self) -> Iterator[str]:
        for note in self.runs_folder.glob(f"*/{USES}"):
            with suppress(FileNotFoundError):
                yield note.read_text()


def seal(top: Path, max_bytes: int) -> int:
    """Make a folder of installed packages read-only and root's, if we are root; return what it takes on the disk.

    Raises:
        NotKept: it holds a link, a device or the like, or more than it may.
    """
    size_bytes = 0
    with _opened(top) as handle:
        for count, (parent, name, about) in enumerate(_walk(handle), 1):
            size_bytes += _taken(about)
            if count > MOST_FILES:
                raise NotKept(f"there are more than {MOST_FILES} files")
            if size_bytes > max_bytes:
                raise NotKept(f"they take more than {max_bytes} bytes")
            if os.geteuid() == 0:
                os.chown(name, 0, 0, dir_fd=parent, follow_symlinks=False)
            executable = stat.S_ISDIR(about.st_mode) or about.st_mode & stat.S_IXUSR
            os.chmod(name, 0o555 if executable else 0o444, dir_fd=parent)
        if os.geteuid() == 0:
            os.chown(handle, 0, 0)
    return size_bytes


def size_of(top: Path, enough: int) -> int:
    """Measure what a folder takes on the disk while it is written to; stops when it is more than enough.

    More files or deeper folders than are ever kept count as too much, and so does a folder that is closed to us, which
    is what a build script may do to it where we are not root: what is in there cannot be measured.
    """
    if not top.is_dir():
        return 0
    size_bytes = 0
    try:
        with _opened(top) as handle:
            for count, (_, _, about) in enumerate(_walk(handle, any_kind=True), 1):
                size_bytes += _taken(about)
                if size_bytes > enough or count > MOST_FILES:
                    return enough + 1
    except (NotKept, OSError):
        return enough + 1
    return size_bytes


def has_room(place: Path, max_bytes: int) -> bool:
    """Tell whether the disk below a folder has room for the largest install.

    pip has cleared away what it could not finish before anybody asks; but no install takes more than the largest may,
    so a disk that has as much now has not been filled by one.
    """
    disk = os.statvfs(place)
    counts_files = disk.f_files > 0  # some file systems have no fixed number of inodes, and say 0
    return disk.f_bavail * disk.f_frsize >= max_bytes and (not counts_files or disk.f_favail >= MOST_FILES)


def _taken(about: os.stat_result) -> int:
    return max(about.st_blocks * 512, LEAST_BYTES)


def remove(path: Path) -> None:
    """Delete a set or what is left of one."""
    if path.exists():
        path.chmod(0o700)
        folder.remove(path)


def _size(path: Path) -> int:
    try:
        return int(json.loads((path / ABOUT).read_text())["size_bytes"])
    except (OSError, ValueError, KeyError):
        return 0


@contextmanager
def _opened(top: Path) -> Iterator[int]:
    try:
        handle = os.open(top, FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        raise NotKept("nothing was installed") from None
    try:
        yield handle
    finally:
        os.close(handle)


def _walk(handle: int, depth: int = 0, *, any_kind: bool = False) -> Iterator[tuple[int, str, os.stat_result]]:
    """Yield all that is below an open folder: its own folder's descriptor, its name, and what it is."""
    if depth > DEEPEST:
        raise NotKept(f"folders are more than {DEEPEST} deep")
    with os.scandir(handle) as entries:
        for entry in entries:
            try:
                about = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # it is being written to
            is_folder = stat.S_ISDIR(about.st_mode)
            if not (any_kind or is_folder or stat.S_ISREG(about.st_mode)):
                raise NotKept(f"{entry.name!r} is neither a file nor a folder")
            yield handle, entry.name, about
            if is_folder:
                yield from _walk_into(handle, entry.name, depth + 1, any_kind)


def _walk_into(parent: int, name: str, depth: int, any_kind: bool) -> Iterator[tuple[int, str, os.stat_result]]:
    try:
        handle = os.open(name, FOLDER, dir_fd=parent)
    except OSError as problem:
        if any_kind and problem.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return  # it was a folder a moment ago
        raise
    try:
        yield from _walk(handle, depth, any_kind=any_kind)
    finally:
        os.close(handle)

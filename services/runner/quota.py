"""How much a script may keep in `out`: a file system of its own of that size, where the runner may mount one.

As root each run gets an ext4 in a sparse file beside `out`, mounted by a loop device before its container is made. The
folder below the mount is closed to everybody, so that an engine that does not see the mount gives the script nothing to
write in. Elsewhere `excess` measures, and who calls it every second bounds the rest. Nothing here opens a file of the
script, follows a link, or decides what comes of an excess.
"""

import ctypes
import errno
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from services.runner.descriptors import FOLDER

MAX_DEPTH = 64
"""How deep folders may be nested where they have to be measured; an artifact's may be 32 deep."""
INODE_BYTES, SPARE_BYTES = 256, 24 << 20
"""What ext4 takes for itself: its default inode, and its own reserve of 16 MiB with some metadata (mke2fs(8))."""
CAP_SYS_ADMIN = 1 << 21
OPTIONS = "loop,nosuid,nodev,noatime"  # not `noexec`: /tmp is executable, so it would stop nobody (docs/security.md)
FEATURES = "^has_journal,^resize_inode"  # it never outlives the run that writes it


@dataclass(frozen=True, slots=True)
class Quota:
    """What one run may keep in `out`: bytes, and files with folders."""

    max_bytes: int
    max_files: int


def obstacle() -> str | None:
    """Say why this process cannot mount a file system that the engine sees; None when nothing speaks against it."""
    if os.geteuid() != 0:
        return "the runner is not root"
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    if not int(effective, 16) & CAP_SYS_ADMIN:
        return "the runner may not mount (CAP_SYS_ADMIN)"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    if any(shutil.which(tool, path=_path()) is None for tool in ("mkfs.ext4", "mount", "umount")):
        return "mkfs.ext4 or mount is not installed"
    return None


def attach(out: Path, quota: Quota) -> None:
    """Give an empty `out` a file system of its own, for the user that it belongs to.

    Raises:
        OSError: it cannot be made or mounted.
    """
    about, image = out.stat(), _image(out)
    _make(image, quota, about)
    os.chown(out, 0, 0)
    out.chmod(0)
    try:
        _mount(image, out)
    except OSError:
        image.unlink()
        os.chown(out, about.st_uid, about.st_gid)
        out.chmod(0o700)
        raise
    (out / "lost+found").rmdir()
    out.chmod(0o700)


def attach_again(out: Path) -> None:
    """Mount what `attach` has made, where a restart of the host has unmounted it.

    Raises:
        OSError: it cannot be mounted.
    """
    if _image(out).exists() and not out.is_mount():
        _mount(_image(out), out)


def settle(out: Path) -> None:
    """Write what was kept in `out` down to the disk below.

    Raises:
        OSError: that disk is full or broken; what is read from `out` may not be what was written.
    """
    if not out.is_mount():
        return
    folder = os.open(out, FOLDER)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(folder) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(folder)


def detach(folder: Path) -> None:
    """Unmount all that is mounted below a folder, the innermost first.

    Raises:
        OSError: something is still in use there.
    """
    top = f"{os.path.realpath(folder)}/"
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    points = [_unescaped(line.split()[4]) for line in lines]
    for point in sorted((point for point in points if point.startswith(top)), reverse=True):
        _run("umount", point)


def excess(out: Path, quota: Quota) -> str | None:
    """Measure what lies in `out`, and say in which way it is more than it may be; None when it is not.

    Files that are deleted and still open are not seen. What is being changed meanwhile counts as it was met. What
    cannot be measured is too much: without root the script has the runner's user id, and closes folders as it likes.
    """
    try:
        top = os.open(out, FOLDER)
    except FileNotFoundError:
        return None
    except OSError as problem:
        return _unmeasurable(problem)
    try:
        _Measure(quota).add(top, 1)
    except _ExcessError as found:
        return str(found)
    except OSError as problem:
        return _unmeasurable(problem)
    finally:
        os.close(top)
    return None


def _unmeasurable(problem: OSError) -> str:
    return f"a folder that cannot be measured ({problem.strerror})"


class _ExcessError(Exception):
    """Unwinds the walk with what was found."""


@dataclass
class _Measure:
    """Walks below directory descriptors and keeps count; it ends as soon as there is too much."""

    quota: Quota
    used_bytes: int = 0
    files: int = 0
    linked: set[int] = field(default_factory=set)

    def add(self, folder: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _ExcessError(f"folders nested deeper than {MAX_DEPTH}")
        with os.scandir(folder) as entries:
            for entry in entries:
                self._count(folder, entry, depth)

    def _count(self, folder: int, entry: "os.DirEntry[str]", depth: int) -> None:
        try:
            about = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        self.files += 1
        if about.st_ino not in self.linked:
            self.used_bytes += about.st_blocks * 512
        if about.st_nlink > 1 and not stat.S_ISDIR(about.st_mode):
            self.linked.add(about.st_ino)
        if self.used_bytes > self.quota.max_bytes:
            raise _ExcessError(f"more than {self.quota.max_bytes} bytes")
        if self.files > self.quota.max_files:
            raise _ExcessError(f"more than {self.quota.max_files} files")
        if stat.S_ISDIR(about.st_mode):
            self._enter(folder, entry.name, depth)

    def _enter(self, folder: int, name: str, depth: int) -> None:
        try:
            inner = os.open(name, FOLDER, dir_fd=folder)
        except OSError as problem:
            if problem.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # it is something else by now
                return
            raise
        try:
            self.add(inner, depth + 1)
        finally:
            os.close(inner)


def _image(out: Path) -> Path:
    return out.with_name(f"{out.name}.img")


def _make(image: Path, quota: Quota, owner: os.stat_result) -> None:
    """Make a file system under a name that nobody mounts, and give it its own name when it is whole."""
    unfinished = image.with_suffix(".part")
    with unfinished.open("wb") as file:
        file.truncate(quota.max_bytes + quota.max_bytes // 1024 + quota.max_files * INODE_BYTES + SPARE_BYTES)
    extended = f"root_owner={owner.st_uid}:{owner.st_gid},lazy_itable_init=1,nodiscard"
    inodes = str(quota.max_files + 11)  # the first ten are ext4's own, then lost+found
    _run(
        "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-O", FEATURES, "-E", extended, "-N", inodes, str(unfinished)
    )
    unfinished.rename(image)


def _mount(image: Path, out: Path) -> None:
    """Mount without following links of the script's, if the kernel knows how (5.10)."""
    try:
        _run("mount", "-t", "ext4", "-o", f"{OPTIONS},nosymfollow", str(image), str(out))
    except OSError:
        _run("mount", "-t", "ext4", "-o", OPTIONS, str(image), str(out))


def _run(*command: str) -> None:
    environment = {"PATH": _path(), "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise OSError(errno.EIO, f"{command[0]} failed: {said}")


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _unescaped(point: bytes) -> str:
    r"""Read a mount point as mountinfo writes it (proc_pid_mountinfo(5)).

    >>> _unescaped(rb"/a\040b")
    '/a b'
    """
    return os.fsdecode(point.decode("unicode_escape").encode("latin-1"))

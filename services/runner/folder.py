"""The run's folder on the host, as the container gets it mounted: code, data and out, and the slot beside it.

It owns how files get in and how everything goes away again. What a script has left in `out` is hostile: nothing here
follows a link, opens a file of the script or relies on a path below `out`. The cache's files are linked, not copied:
they are read-only for everybody, in folders that are mounted read-only.
"""

import errno
import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from services.backbone.crash_points import crash_point
from services.runner import plugins, quota
from services.runner.descriptors import FOLDER
from services.runner.shim.masking import Mask
from services.runner.shim.orders import Orders as ShimOrders
from services.runner.slot import close_slots, make_slot, write_shim

PYTHON = "/opt/python/bin/python3"
"""Where every runtime image has its interpreter."""
MOUNTED_AT = "/runyard"
PACKAGES = f"{MOUNTED_AT}/packages"
"""Where a run finds what was installed from its requirements, in `site`."""
SCRATCH = "/tmp"  # noqa: S108 - a tmpfs of the container's own
PLUGINS = f"{MOUNTED_AT}/slot/plugins"


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of one attempt's folder are.

    `slots` is the folder on a tmpfs where the slot lies, under the name of `path`; without one it lies in `path`.
    """

    path: Path
    slots: Path | None = None

    @property
    def slot(self) -> Path:
        """What the shim reads: itself, plugins for what the script imports, its orders with the variables' values."""
        return self.path / "slot" if self.slots is None else self.slots / self.path.name

    @property
    def code(self) -> Path:
        """The script assets; the script's working directory."""
        return self.path / "code"

    @property
    def data(self) -> Path:
        """The dataset and the data assets."""
        return self.path / "data"

    @property
    def out(self) -> Path:
        """The only part that the script writes."""
        return self.path / "out"

    def hide(self, text: str) -> str:
        """Take out of an engine's words where on this host things lie: that is nothing for a script's owner.

        >>> RunFolder(Path("/srv/runs/run-1-1"), Path("/dev/shm/own")).hide("no /srv/runs/x, no /dev/shm/own/y")
        'no …/runs/x, no …/y'
        """
        for place in (self.path.parent.parent, self.slots):
            text = text if place is None else text.replace(str(place), "…")
        return text


@dataclass(frozen=True)
class Orders:
    """What the shim is told: which script, with what, for how long.

    `variables` are the script's own; they reach it byte for byte, stand nowhere but in the slot, and are masked in all
    that is told of the script. `grace_s` is the time between SIGTERM and SIGKILL. `resume` says that an earlier
    attempt's checkpoint lies in the checkpoint folder.
    """

    run_id: str
    attempt: int
    entry_point: str
    dataset_filename: str
    variables: Mapping[str, str]
    deadline_s: float
    grace_s: float = 10.0
    max_line_bytes: int = 16 * 1024
    max_output_bytes: int = 64 * 1024 * 1024
    max_lines_per_s: int = 2000
    max_bytes_per_s: int = 4 * 1024 * 1024
    has_packages: bool = False
    resume: bool = False


@dataclass(frozen=True)
class Contents:
    """What lies in `code` and `data`: file name → where the cache has it."""

    code: Mapping[str, Path]
    data: Mapping[str, Path]


@dataclass(frozen=True)
class Owner:
    """Whom the script runs as. Without root that is always the runner itself."""

    uid: int
    gid: int


def prepare(folder: RunFolder, orders: Orders, contents: Contents, owner: Owner) -> None:
    """Lay the folder out afresh; what an interrupted preparation left is removed first.

    Must not be called while a container of this attempt exists: it has the old folders mounted.

    Raises:
        ValueError: A file name is not a plain name.
        OSError: The disk is full, a cached file is gone, or the slots lie on no tmpfs of ours any more.
    """
    clear(folder)
    folder.path.mkdir(mode=0o700, parents=True)
    for part in (folder.code, folder.data, folder.out):
        part.mkdir(mode=0o700)
    if folder.slots is None:
        folder.slot.mkdir(mode=0o700)
    else:
        make_slot(folder.slot)
    _fill(folder.code, contents.code)
    _fill(folder.data, contents.data)
    write_shim(folder.slot)
    (folder.slot / "spec.json").write_text(json.dumps(shim_spec(orders)), encoding="utf-8")
    plugins.lay_out(folder.slot / "plugins")
    (folder.slot / "spec.json").chmod(0o400)
    folder.slot.chmod(0o500)
    if os.geteuid() == 0:
        for path in (folder.out, folder.slot, folder.slot / "spec.json"):
            os.chown(path, owner.uid, owner.gid)


def shim_spec(orders: Orders) -> dict[str, object]:
    """Return what `spec.json` says, in the words of the shim."""
    given = environment(orders)
    return {
        "argv": [PYTHON, "-u", f"{MOUNTED_AT}/code/{orders.entry_point}"],
        "cwd": f"{MOUNTED_AT}/code",
        "environment": given,
        "secret_names": sorted(name for name, value in orders.variables.items() if given.get(name) == value),
        "metrics_path": given["METRICS_PATH"],
        "failure_path": given["FAILURE_PATH"],
        "deadline_s": orders.deadline_s,
        "grace_s": orders.grace_s,
        "max_line_bytes": orders.max_line_bytes,
        "max_output_bytes": orders.max_output_bytes,
        "max_lines_per_s": orders.max_lines_per_s,
        "max_bytes_per_s": orders.max_bytes_per_s,
    }


def environment(orders: Orders) -> dict[str, str]:
    """Compose the script's environment: its own variables win over the defaults, what we promise wins over both."""
    defaults = {
        "PATH": "/opt/python/bin:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "USER": "runyard",  # the user id has no name in the image, and MLflow and others ask for one
        **plugins.variables(SCRATCH),
    }
    path = (f"{PACKAGES}/site" if orders.has_packages else "", orders.variables.get("PYTHONPATH", ""), PLUGINS)
    promised = {
        "DATASET_PATH": f"{MOUNTED_AT}/data/{orders.dataset_filename}",
        "MODEL_OUTPUT_PATH": f"{MOUNTED_AT}/out/model",
        "METRICS_PATH": f"{MOUNTED_AT}/out/metrics.jsonl",
        "FAILURE_PATH": f"{MOUNTED_AT}/out/failure",
        "CHECKPOINT_PATH": f"{MOUNTED_AT}/out/checkpoint",
        "RUN_ID": orders.run_id,
        "ATTEMPT": str(orders.attempt),
        "RESUME": "1" if orders.resume else "0",
        "PYTHONPATH": ":".join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {**defaults, **orders.variables, **promised}


def mask_of(folder: RunFolder) -> Mask | None:
    """Make the mask over the values that the slot holds; None where the slot is gone."""
    try:
        return Mask(ShimOrders((folder.slot / "spec.json").read_bytes()).secrets)
    except FileNotFoundError:
        return None


def clear(folder: RunFolder) -> None:
    """Delete all that an attempt has on this host, the secrets first; what is gone already is fine."""
    clear_slot(folder)
    remove(folder.path)


def clear_slot(folder: RunFolder) -> None:
    """Delete the secrets, which nobody needs once the script is over."""
    remove(folder.slot)
    close_slots(folder.slots)


def remove(path: Path) -> None:
    """Delete a run's folder and all that the script made of it; a folder that is gone already is fine.

    Trees of any depth and folders without permissions go, too: each subfolder is first moved up to the top, so that
    two descriptors are enough. What is mounted there is unmounted first. Nothing may write there any more.

    Raises:
        OSError: something is still in use.
    """
    if not path.exists():
        return
    crash_point("before_mounts_detached")
    quota.detach(path)
    crash_point("after_mounts_detached")
    try:
        top = os.open(path, FOLDER)
    except FileNotFoundError:
        return
    try:
        os.fchmod(top, 0o700)
        names = count()
        while batch := _entries(top):
            for name in batch:
                _remove_entry(top, name, names)
    finally:
        os.close(top)
    path.rmdir()


def _fill(target: Path, files: Mapping[str, Path]) -> None:
    for name, source in files.items():
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"not a plain file name: {name!r}")
        try:
            os.link(source, target / name)
        except OSError as problem:
            if problem.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                raise
            shutil.copyfile(source, target / name)  # the cache is on another disk, or its file system has no links
        (target / name).chmod(0o444)
    target.chmod(0o755)


def _entries(folder: int) -> list[str]:
    """Return the next names in a folder: not all of them, since the script decides how many there are."""
    with os.scandir(folder) as found:
        return [entry.name for entry in islice(found, 10_000)]


def _remove_entry(top: int, name: str, names: "count[int]") -> None:
    if not _is_folder(top, name):
        os.unlink(name, dir_fd=top)
        return
    folder = _open_writable(top, name)
    try:
        while batch := _entries(folder):
            for inner in batch:
                if _is_folder(folder, inner):
                    _hoist(folder, inner, top, names)
                else:
                    os.unlink(inner, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def _is_folder(parent: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _hoist(folder: int, name: str, top: int, names: "count[int]") -> None:
    """Move a subfolder to the top under a name that nobody has; without root it must be writable to be moved."""
    os.close(_open_writable(folder, name))
    while True:
        try:
            os.rename(name, f".removed-{next(names)}", src_dir_fd=folder, dst_dir_fd=top)
        except OSError as problem:
            if problem.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        else:
            return


def _open_writable(parent: int, name: str) -> int:
    """Open a folder whose permissions the script may have taken away; the mode is set without following a link."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)  # noqa: PTH101 - a descriptor, not a path
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)

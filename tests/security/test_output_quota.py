"""The output folder's own file system: as large as it may be, closed where it is not mounted, gone with its folder."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.runner import folder, quota
from services.runner.artifact import Collected, Limits, collect
from services.runner.frames import End, FrameDecoder, Log
from services.runner.quota import Quota
from services.runner.sandbox import Sandbox
from tests.security.sandbox_scene import a_spec

MIB = 1 << 20
UID = 2_000_000_001
QUOTA = Quota(max_bytes=32 * MIB, max_files=50)
OBSTACLE = quota.obstacle()

pytestmark = [
    pytest.mark.skipif(OBSTACLE is not None, reason=f"no file system can be mounted: {OBSTACLE}"),
    pytest.mark.timeout(60),
]


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A run's output folder with its file system mounted; whatever a test leaves mounted is unmounted."""
    out = tmp_path / "run" / "out"
    out.mkdir(parents=True, mode=0o700)
    os.chown(out, UID, UID)
    quota.attach(out, QUOTA)
    yield out
    quota.detach(tmp_path)


def mounts(path: Path) -> list[list[str]]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split() for line in lines if f" {path}" in line]


def loop_devices(path: Path) -> str:
    return subprocess.run(
        ["losetup", "-j", str(path)], capture_output=True, text=True, check=True, env={"PATH": quota._path()}
    ).stdout


def fill(path: Path, size: int) -> int:
    """Write until it fails; return how much there was room for."""
    written = 0
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while written < size:
            written += file.write(b"x" * min(MIB, size - written))
    return written


def test_it_belongs_to_the_script_is_empty_and_cannot_do_harm_on_the_host(out: Path) -> None:
    about = out.stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o7777) == (UID, UID, 0o700)
    assert list(out.iterdir()) == []
    (mount,) = mounts(out)
    assert {"nosuid", "nodev", "nosymfollow"} <= set(mount[5].split(","))
    (out / "link").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic"):
        (out / "link").read_bytes()


def test_as_much_as_may_be_fits_and_not_much_more(out: Path) -> None:
    assert fill(out / "file", QUOTA.max_bytes) == QUOTA.max_bytes
    more = fill(out / "more", 2 * quota.SPARE_BYTES)
    assert more < quota.SPARE_BYTES
    with pytest.raises(OSError, match="No space") as full:
        (out / "last").write_bytes(b"x" * MIB)
    assert full.value.errno == errno.ENOSPC


def test_as_many_files_as_may_be_fit_and_few_more(out: Path) -> None:
    made = 0
    with contextlib.suppress(OSError):
        for made in range(10_000):
            (out / str(made)).touch()
    assert QUOTA.max_files <= made <= QUOTA.max_files + 100  # inodes come in blocks of sixteen


def test_it_costs_nothing_until_it_is_written_to(out: Path) -> None:
    image = out.with_name("out.img").stat()
    assert image.st_size > QUOTA.max_bytes
    assert image.st_blocks * 512 < MIB


def test_where_it_is_not_mounted_nobody_can_write(out: Path) -> None:
    quota.detach(out.parent)
    about = out.stat()
    assert (about.st_uid, about.st_mode & 0o7777) == (0, 0)


def test_what_was_kept_is_there_again_when_it_is_mounted_again(out: Path) -> None:
    (out / "model").write_text("weights")
    quota.attach_again(out)
    assert len(mounts(out)) == 1
    quota.detach(out.parent)
    assert list(out.iterdir()) == []
    quota.attach_again(out)
    found = collect(out, out.parent / "private", Limits(max_bytes=MIB))
    assert isinstance(found, Collected)
    assert (out.parent / "private").read_text() == "weights"


def test_it_goes_with_its_folder_and_leaves_neither_mount_nor_loop_device(out: Path) -> None:
    (out / "deep" / "er").mkdir(parents=True)
    folder.remove(out.parent)
    assert not out.parent.exists()
    assert mounts(out) == []
    assert loop_devices(out.with_name("out.img")) == ""


def test_it_stays_while_somebody_uses_it_and_goes_afterwards(out: Path) -> None:
    with (out / "open").open("wb"):
        with pytest.raises(OSError, match="busy"):
            folder.remove(out.parent)
        assert (out / "open").exists()
    folder.remove(out.parent)
    assert not out.parent.exists()


def test_a_disk_below_that_is_full_is_told_before_anything_is_collected(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    try:
        out = disk / "run" / "out"
        out.mkdir(parents=True)
        quota.attach(out, Quota(64 * MIB, 50))
        quota.settle(out)
        fill(out / "model", 32 * MIB)
        with pytest.raises(OSError, match=r"."):
            quota.settle(out)
    finally:
        quota.detach(disk)
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_mounted_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run" / "out"
    out.mkdir(parents=True, mode=0o700)
    os.chown(out, UID, UID)
    monkeypatch.setattr(quota, "OPTIONS", "loop,no_kernel_knows_this")
    with pytest.raises(OSError, match="mount failed"):
        quota.attach(out, QUOTA)
    about = out.stat()
    assert (about.st_uid, about.st_mode & 0o7777) == (UID, 0o700)
    assert list(out.parent.iterdir()) == [out]


FILLS = r"""
import errno, os
model = os.environ["MODEL_OUTPUT_PATH"]
open(model, "wb").write(b"weights")
try:
    for number in range(100):
        open(model + str(number), "wb").write(bytes(8 << 20))
except OSError as problem:
    print(problem.errno == errno.ENOSPC, number)
"""


def test_a_script_is_told_that_its_folder_is_full_and_its_artifact_is_collected(
    image: str, runtime: str, tmp_path: Path
) -> None:
    with a_spec(tmp_path, image, runtime, FILLS) as spec, contextlib.closing(Sandbox.connect()) as sandbox:
        quota.attach(spec.folder.out, QUOTA)
        sandbox.create(spec)
        sandbox.start(spec.name)
        decoder = FrameDecoder()
        frames = [frame for chunk in sandbox.follow(spec.name) for frame in decoder.feed(chunk)]
        assert isinstance(frames[-1], End)
        (said,) = [frame.text for frame in frames if isinstance(frame, Log)]
        full, files = said.split()
        assert full == "True", said
        assert 3 <= int(files) <= 7  # 32 MiB, and at most the spare 24
        sandbox.remove(spec.name)
        quota.settle(spec.folder.out)
        found = collect(spec.folder.out, spec.folder.path / "private", Limits(max_bytes=MIB))
        assert isinstance(found, Collected)
        assert found.size_bytes == 7
    assert mounts(tmp_path) == []

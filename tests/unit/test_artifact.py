"""What may become a version, and what a script tries to hand over instead."""

import hashlib
import io
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from services.runner.artifact import Collected, Collection, Limits, NoArtifact, Refused, collect
from tests.unit.unprivileged import unprivileged

LIMITS = Limits(max_bytes=4_000_000, max_files=20, max_depth=4)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def take(out: Path) -> Collection:
    return collect(out, out.parent / "private", LIMITS)


def refusal(out: Path) -> str:
    found = take(out)
    assert isinstance(found, Refused), found
    assert not (out.parent / "private").exists()
    return found.reason


def members(path: Path) -> list[tuple[str, int, str | None]]:
    with tarfile.open(path, "r:") as tar:
        return [(m.name, m.mode, None if (file := tar.extractfile(m)) is None else file.read().decode()) for m in tar]


def test_a_file_is_taken_as_it_is(out: Path) -> None:
    (out / "model").write_bytes(b"weights")
    (out / "metrics.jsonl").write_bytes(b"not part of it")
    found = take(out)
    assert found == Collected(out.parent / "private", hashlib.sha256(b"weights").hexdigest(), 7, "file")
    assert (out.parent / "private").read_bytes() == b"weights"


def test_a_folder_becomes_a_plain_tar_of_its_files(out: Path) -> None:
    (out / "model/deep/empty").mkdir(parents=True)
    (out / "model/deep/b").write_text("2")
    (out / "model/-a ü").write_text("1")
    (out / "model/-a ü").chmod(0o7777)
    found = take(out)
    assert isinstance(found, Collected)
    assert found.kind == "folder"
    assert found.size_bytes == found.path.stat().st_size
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()
    assert members(found.path) == [
        ("-a ü", 0o644, "1"),
        ("deep", 0o755, None),
        ("deep/b", 0o644, "2"),
        ("deep/empty", 0o755, None),
    ]


def test_the_same_files_make_the_same_tar_whatever_their_order_times_and_modes(tmp_path: Path) -> None:
    digests = set()
    for number, names in enumerate((["a", "b", "c" * 150], ["c" * 150, "b", "a"])):
        out = tmp_path / str(number) / "out"
        (out / "model").mkdir(parents=True)
        for name in names:
            (out / "model" / name).write_text(name)
            os.utime(out / "model" / name, (number, number))
            (out / "model" / name).chmod(0o600 + number)
        found = take(out)
        assert isinstance(found, Collected)
        digests.add(found.sha256)
    assert len(digests) == 1


@pytest.mark.parametrize("folders", [(), ("model",), ("model", "model/empty")])
def test_nothing_and_folders_without_a_file_are_no_artifact(out: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        (out / folder).mkdir()
    assert take(out) == NoArtifact()
    assert not (out.parent / "private").exists()


def test_an_empty_file_is_an_artifact(out: Path) -> None:
    (out / "model").touch()
    assert take(out) == Collected(out.parent / "private", hashlib.sha256(b"").hexdigest(), 0, "file")


def symlink(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def dangling_symlink(path: Path) -> None:
    path.symlink_to("nowhere")


def symlink_to_a_folder(path: Path) -> None:
    path.symlink_to("/etc")


def hard_link(path: Path) -> None:
    (path.parent / "other").write_text("x")
    path.hardlink_to(path.parent / "other")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def oversized(path: Path) -> None:
    path.write_bytes(b"x" * (LIMITS.max_bytes + 1))


def oversized_and_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


def sparse(path: Path) -> None:
    path.write_bytes(b"x")
    os.truncate(path, LIMITS.max_bytes)


TRICKS = {
    symlink: "symbolic link",
    dangling_symlink: "symbolic link",
    symlink_to_a_folder: "symbolic link",
    hard_link: "hard link",
    fifo: "neither",
    unix_socket: "no file",
    oversized: "larger",
    oversized_and_sparse: "larger",
    sparse: "sparse",
}


@pytest.mark.parametrize("place", ["model", "model/inside"])
@pytest.mark.parametrize("make", TRICKS)
def test_a_trick_is_refused_alone_and_inside_a_folder(out: Path, place: str, make: Callable[[Path], None]) -> None:
    (out / place).parent.mkdir(exist_ok=True)
    make(out / place)
    assert TRICKS[make] in refusal(out)


def test_a_refusal_can_be_told_without_the_names_that_the_script_has_chosen(out: Path, tmp_path: Path) -> None:
    (out / "model").mkdir()
    symlink(out / "model" / "s3cret")
    found = collect(out, tmp_path / "private", LIMITS)
    assert found == Refused("'s3cret' is a symbolic link", "'***' is a symbolic link")


@pytest.mark.parametrize("mode", [0, 0o300, 0o400], ids=["closed", "not to be listed", "not to be entered"])
@pytest.mark.parametrize("place", [".", "model", "model/inside"])
def test_what_is_closed_to_a_runner_without_root_is_refused(tmp_path: Path, place: str, mode: int) -> None:
    """It is the script's doing; it was taken for a full disk, and the script ran three times."""
    with unprivileged(tmp_path):
        closed = Path("out") / place
        closed.mkdir(parents=True)
        (closed / ("model" if place == "." else "file")).touch()
        closed.chmod(mode)
        found = collect(Path("out"), Path("private"), LIMITS)
        closed.chmod(0o700)
        assert not Path("private").exists()
    assert isinstance(found, Refused)
    assert "read" in found.reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")
def test_a_device_is_refused(out: Path) -> None:
    os.mknod(out / "model", 0o20666, os.makedev(1, 5))
    assert "neither" in refusal(out)


def test_the_limit_counts_all_files_of_a_folder_to_the_byte(out: Path) -> None:
    (out / "model").mkdir()
    (out / "model/a").write_bytes(b"x" * (LIMITS.max_bytes - 1))
    (out / "model/b").write_bytes(b"y")
    assert isinstance(take(out), Collected)
    (out.parent / "private").unlink()
    (out / "model/c").write_bytes(b"z")
    assert "larger" in refusal(out)


def test_too_many_entries_are_refused(out: Path) -> None:
    for number in range(LIMITS.max_files // 2 + 1):
        (out / f"model/{number}").mkdir(parents=True)
        (out / f"model/{number}/x").touch()
    assert "more than 20" in refusal(out)


def test_folders_nested_too_deep_are_refused(out: Path) -> None:
    (out / "model/2/3/4").mkdir(parents=True)
    (out / "model/2/3/4/x").touch()
    assert isinstance(take(out), Collected)
    (out.parent / "private").unlink()
    (out / "model/2/3/4/5").mkdir()
    assert "deeper than 4" in refusal(out)


@pytest.mark.parametrize("name", [b"new\nline", b"invalid \xff utf8", b"\x1b[31m"])
def test_names_that_are_no_text_are_refused_with_a_reason_that_is(out: Path, name: bytes) -> None:
    (out / "model").mkdir()
    Path(os.fsdecode(os.fsencode(out / "model") + b"/" + name)).touch()
    reason = refusal(out)
    assert reason.isprintable()
    assert reason.encode()


def test_a_file_that_is_mostly_there_is_not_called_sparse(out: Path) -> None:
    with (out / "model").open("wb") as file:
        file.write(os.urandom(2_000_000))
        file.seek(500_000, io.SEEK_CUR)
        file.write(b"x")
    assert isinstance(take(out), Collected)

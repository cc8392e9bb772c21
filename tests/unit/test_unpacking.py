"""Protects the host from a checkpoint on its way back: what is laid out, for whom, and what is not even begun."""

import io
import os
import stat
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from services.runner.artifact import Limits
from services.runner.checkpoint import lay_out, take
from services.runner.folder import Owner
from services.runner.unpacking import DamagedError, check, most_archive_bytes, unpack

LIMITS = Limits(max_bytes=1_000_000, max_files=10, max_depth=4)
OWNER = Owner(64321, 64321) if os.geteuid() == 0 else Owner(os.geteuid(), os.getegid())

Entry = tarfile.TarInfo
Make = Callable[[], list[Entry]]


def entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, linkname: str = "") -> Entry:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, linkname
    return made


def archive(*entries: Entry, kind: int = tarfile.PAX_FORMAT) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=kind) as tar:
        for each in entries:
            tar.addfile(each, io.BytesIO(b"x" * each.size))
    made.seek(0)
    return made


def damage(made: io.BytesIO, tmp_path: Path) -> str:
    """Check an archive that must not pass, and see that unpacking it would stop there, too."""
    with pytest.raises(DamagedError) as damaged:
        check(made, LIMITS)
    made.seek(0)
    (tmp_path / "target").mkdir()
    with pytest.raises(DamagedError):
        unpack(made, tmp_path / "target", OWNER, LIMITS)
    return str(damaged.value)


def test_what_was_taken_is_laid_out_again_for_the_runs_user(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    lay_out(tmp_path / "first", None, OWNER, LIMITS)
    folder = tmp_path / "first/checkpoint"
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/state ü").write_bytes(b"\0state")
    (folder / "a/empty").mkdir()
    (folder / "latest").write_text("a/b")
    os.utime(folder / "latest", (0, 1_700_000_000))
    (folder / "latest").chmod(0o4777)
    with (tmp_path / "tar").open("w+b") as target:
        take(tmp_path / "first", target, LIMITS)
        target.seek(0)
        check(target, LIMITS)
        target.seek(0)
        lay_out(tmp_path / "second", target, OWNER, LIMITS)
    laid = tmp_path / "second/checkpoint"
    assert (laid / "a/b/state ü").read_bytes() == b"\0state"
    assert (laid / "latest").stat().st_mtime == 1_700_000_000
    modes = {str(p.relative_to(laid)): stat.S_IMODE(p.stat().st_mode) for p in laid.rglob("*")}
    assert modes == {"a": 0o755, "a/b": 0o755, "a/b/state ü": 0o644, "a/empty": 0o755, "latest": 0o644}
    assert stat.S_IMODE(laid.stat().st_mode) == 0o700
    assert {(p.stat().st_uid, p.stat().st_gid) for p in [laid, *laid.rglob("*")]} == {(OWNER.uid, OWNER.gid)}


def test_an_archive_is_read_from_where_it_stands(tmp_path: Path) -> None:
    made = io.BytesIO(b"stamp" + archive(entry("file", size=3)).getvalue())
    made.seek(5)
    check(made, LIMITS)
    made.seek(5)
    unpack(made, tmp_path, OWNER, LIMITS)
    assert (tmp_path / "file").read_bytes() == b"xxx"


HOSTILE: dict[str, Make] = {
    "a symbolic link": lambda: [entry("link", tarfile.SYMTYPE, linkname="/etc")],
    "a file behind a symbolic link": lambda: [entry("d", tarfile.SYMTYPE, linkname="/etc"), entry("d/passwd")],
    "a file behind a file": lambda: [entry("d"), entry("d/passwd")],
    "a hard link": lambda: [entry("a"), entry("b", tarfile.LNKTYPE, linkname="a")],
    "a hard link to elsewhere": lambda: [entry("b", tarfile.LNKTYPE, linkname="/etc/shadow")],
    "a FIFO": lambda: [entry("fifo", tarfile.FIFOTYPE)],
    "a character device": lambda: [entry("null", tarfile.CHRTYPE)],
    "a block device": lambda: [entry("disk", tarfile.BLKTYPE)],
    "a contiguous file": lambda: [entry("odd", tarfile.CONTTYPE)],
    "an unknown type": lambda: [entry("odd", b"Z")],
    "an absolute path": lambda: [entry("/etc/passwd")],
    "a path to the parent": lambda: [entry("../model")],
    "a path through the parent": lambda: [entry("d", tarfile.DIRTYPE), entry("d/../../model")],
    "the folder itself": lambda: [entry(".", tarfile.DIRTYPE)],
    "a name with an empty part": lambda: [entry("d", tarfile.DIRTYPE), entry("d//file")],
    "a folder that was not made": lambda: [entry("d/file")],
    "a file twice": lambda: [entry("a", size=1), entry("a", size=2)],
    "a folder twice": lambda: [entry("d", tarfile.DIRTYPE), entry("d", tarfile.DIRTYPE)],
    "a file in the place of a folder": lambda: [entry("d", tarfile.DIRTYPE), entry("d")],
    "a name with a newline": lambda: [entry("new\nline")],
    "a name that is no text": lambda: [entry("bad-\udcff")],
    "a name that is too long": lambda: [entry("n" * 256)],
    "too many bytes": lambda: [entry("a", size=LIMITS.max_bytes), entry("b", size=1)],
    "too many entries": lambda: [entry(f"{number}") for number in range(LIMITS.max_files + 1)],
    "too deep": lambda: [entry("/".join("abcde"[: n + 1]), tarfile.DIRTYPE) for n in range(5)],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_runner_packs_is_damage(what: str, tmp_path: Path) -> None:
    made = archive(*HOSTILE[what]())
    assert damage(made, tmp_path)
    assert not list(tmp_path.glob("*/model"))
    assert not (tmp_path / "model").exists()


def test_as_much_as_is_allowed_passes(tmp_path: Path) -> None:
    chain = [entry("/".join("abcd"[: n + 1]), tarfile.DIRTYPE) for n in range(4)]
    rest = [entry(f"{number}", size=LIMITS.max_bytes // 4) for number in range(4)]
    made = archive(*chain, *rest, entry("n" * 255), entry("-"))
    check(made, LIMITS)
    made.seek(0)
    unpack(made, tmp_path, OWNER, LIMITS)
    assert len(list(tmp_path.rglob("*"))) == 10


def test_what_is_there_already_is_neither_followed_nor_overwritten(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "target/file").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        unpack(archive(entry("file", size=3)), tmp_path / "target", OWNER, LIMITS)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_sparse_file_is_damage(tmp_path: Path) -> None:
    header = entry("sparse", size=512)
    header.pax_headers = {"GNU.sparse.map": "0,1,1048575,1", "GNU.sparse.size": "1048576"}
    assert "neither" in damage(archive(header), tmp_path)


@pytest.mark.parametrize("cut", [1, 600, 1100])
def test_an_archive_that_was_cut_is_damage(cut: int, tmp_path: Path) -> None:
    whole = archive(entry("a", size=700)).getvalue()
    assert "cannot be read" in damage(io.BytesIO(whole[:cut]), tmp_path)


def test_headers_that_never_end_are_damage(tmp_path: Path) -> None:
    header = entry("a").tobuf(tarfile.USTAR_FORMAT)
    long_name = entry("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2).tobuf(tarfile.USTAR_FORMAT) + b"a".ljust(
        512, b"\0"
    )
    assert "cannot be read" in damage(io.BytesIO(long_name * 5000 + header), tmp_path)


@pytest.mark.parametrize("bytes_", [b"", b"\0" * 10240, b"no tar at all " * 100], ids=["nothing", "zeros", "text"])
def test_nothing_and_what_is_no_tar_lay_nothing_out(bytes_: bytes, tmp_path: Path) -> None:
    with suppress(DamagedError):
        unpack(io.BytesIO(bytes_), tmp_path, OWNER, LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_folder_within_limits_makes_no_archive_above_the_most(tmp_path: Path) -> None:
    limits = Limits(max_bytes=4 * 1000, max_files=4 * 32)
    lay_out(tmp_path, None, OWNER, limits)
    names = [*["n" * 252 + f"{depth:03}" for depth in range(31)], "f" * 255]
    for branch in range(4):
        here = os.open(tmp_path / "checkpoint", os.O_RDONLY)
        for name in names[:-1]:
            os.mkdir(f"{branch}{name[1:]}", dir_fd=here)
            below = os.open(f"{branch}{name[1:]}", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.write(os.open(names[-1], os.O_CREAT | os.O_WRONLY, dir_fd=here), b"x" * 1000)
        os.close(here)
    with (tmp_path / "tar").open("w+b") as target:
        assert take(tmp_path, target, limits) == 4
        assert target.tell() <= most_archive_bytes(limits)
        target.seek(0)
        check(target, limits)

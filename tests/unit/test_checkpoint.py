"""Protects checkpoints on their way out of a run's folder: when one is taken, of what, and what voids or refuses it."""

import os
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from services.runner.artifact import ChangedError, Limits, RefusedError
from services.runner.checkpoint import NOTHING, RESTLESS_LOOKS, Look, Pace, lay_out, look_at, take
from services.runner.folder import Owner
from tests.unit.test_artifact import TRICKS

LIMITS = Limits(max_bytes=4_000_000, max_files=20, max_depth=4)
OWNER = Owner(64321, 64321) if os.geteuid() == 0 else Owner(os.geteuid(), os.getegid())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    lay_out(tmp_path / "out", None, OWNER, LIMITS)
    return tmp_path / "out"


def look(number: int) -> Look:
    return frozenset({("file", 0o100644, number, number, number, 1)})


def snapshot(out: Path) -> Path:
    path = out.parent / "snapshot"
    with path.open("w+b") as target:
        take(out, target, LIMITS)
    return path


def refusal(out: Path) -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        snapshot(out)
    return refused.value


def test_a_snapshot_is_due_once_what_changed_has_been_quiet_for_a_look() -> None:
    pace = Pace()
    assert [pace.is_due(each) for each in (NOTHING, look(1), look(2), look(2))] == [False, False, False, True]


def test_what_was_kept_is_not_due_again_until_it_changes() -> None:
    pace = Pace()
    pace.keep(look(1))
    assert [pace.is_due(each) for each in (look(1), look(1), look(2), look(2))] == [False, False, False, True]


def test_a_folder_that_never_rests_is_due_after_so_many_looks_and_then_at_each_until_it_was_kept() -> None:
    pace = Pace()
    dues = [pace.is_due(look(number)) for number in range(RESTLESS_LOOKS + 1)]
    assert dues == [False] * (RESTLESS_LOOKS - 1) + [True, True]
    pace.keep(look(RESTLESS_LOOKS))
    assert not pace.is_due(look(99))


def test_a_folder_that_was_emptied_is_nothing_to_keep() -> None:
    pace = Pace()
    pace.keep(look(1))
    assert [pace.is_due(NOTHING), pace.is_due(NOTHING)] == [False, False]


def replace_a_file(folder: Path) -> None:
    (folder / "other").write_text("one")  # as long as before
    (folder / "other").rename(folder / "deep/a")


def append(folder: Path) -> None:
    with (folder / "deep/a").open("a") as file:
        file.write("more")


def remove(folder: Path) -> None:
    (folder / "deep/a").unlink()


def rename(folder: Path) -> None:
    (folder / "deep/a").rename(folder / "deep/b")


def write_with_an_old_time(folder: Path) -> None:
    about = (folder / "deep/a").stat()
    (folder / "deep/a").write_text("two")
    os.utime(folder / "deep/a", ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("change", [replace_a_file, append, remove, rename, write_with_an_old_time])
def test_every_kind_of_change_looks_different(out: Path, change: Callable[[Path], None]) -> None:
    (out / "checkpoint/deep").mkdir()
    (out / "checkpoint/deep/a").write_text("one")
    before = look_at(out, LIMITS)
    assert look_at(out, LIMITS) == before
    change(out / "checkpoint")
    assert look_at(out, LIMITS) != before


def test_a_look_follows_no_link_and_stops_at_the_limits(out: Path) -> None:
    assert look_at(out, LIMITS) == NOTHING
    (out / "checkpoint/link").symlink_to("/usr")
    assert [sight[0] for sight in look_at(out, LIMITS)] == ["link"]
    (out / "checkpoint/1/2/3/4/5").mkdir(parents=True)
    assert {sight[0] for sight in look_at(out, LIMITS)} == {"link", "1", "1/2", "1/2/3", "1/2/3/4"}
    for number in range(100):
        (out / f"checkpoint/file-{number}").touch()
    assert len(look_at(out, LIMITS)) <= LIMITS.max_files + 1


def test_a_look_at_more_than_may_be_in_folders_stops_as_well_and_what_is_seen_is_refused(out: Path) -> None:
    """102 folders of 100 files each broke every look, so that it was never said that they are too many."""
    for number in range(LIMITS.max_files // 4 + 1):
        (out / f"checkpoint/{number}").mkdir()
        for name in "abcd":
            (out / f"checkpoint/{number}/{name}").touch()
    seen = look_at(out, LIMITS)
    assert len(seen) == LIMITS.max_files + 1
    assert look_at(out, LIMITS) == seen
    assert refusal(out).what == f"more than {LIMITS.max_files} files"


def test_a_look_at_what_is_gone_or_locked_sees_nothing_and_fails_at_nothing(out: Path, tmp_path: Path) -> None:
    assert look_at(tmp_path / "nowhere", LIMITS) == NOTHING
    (out / "checkpoint").rmdir()
    assert look_at(out, LIMITS) == NOTHING


def test_a_snapshot_holds_every_file_whatever_its_name_with_its_time(out: Path) -> None:
    (out / "checkpoint/step-1").mkdir()
    (out / "checkpoint/step-1/.tmp").write_text("half")
    (out / "checkpoint/state").write_text("whole")
    os.utime(out / "checkpoint/state", (0, 1_700_000_000.7))
    (out / "model").write_text("not part of it")
    with tarfile.open(snapshot(out), "r:") as tar:
        assert sorted(tar.getnames()) == ["state", "step-1", "step-1/.tmp"]
        assert tar.getmember("state").mtime == 1_700_000_000


def test_folders_without_a_file_are_no_checkpoint(out: Path) -> None:
    (out / "checkpoint/empty").mkdir()
    with (out.parent / "snapshot").open("w+b") as target:
        assert take(out, target, LIMITS) == 0
        (out / "checkpoint/empty/file").touch()
        assert take(out, target, LIMITS) == 1


@pytest.mark.parametrize("make", TRICKS)
def test_a_trick_is_refused_and_the_reason_names_no_file(out: Path, make: Callable[[Path], None]) -> None:
    make(out / "checkpoint/secret-name")
    problem = refusal(out)
    assert TRICKS[make] in problem.what
    assert "secret-name" not in problem.what


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc"), lambda path: path.write_text("x"), os.mkfifo])
def test_a_folder_that_was_replaced_is_seen_and_refused(out: Path, make: Callable[[Path], object]) -> None:
    (out / "checkpoint").rmdir()
    make(out / "checkpoint")
    assert look_at(out, LIMITS) != NOTHING
    assert "no folder" in refusal(out).what


def test_the_limit_counts_all_files_to_the_byte(out: Path) -> None:
    (out / "checkpoint/a").write_bytes(b"x" * (LIMITS.max_bytes - 1))
    (out / "checkpoint/b").write_bytes(b"y")
    snapshot(out)
    (out / "checkpoint/c").write_bytes(b"z")
    assert "larger" in refusal(out).what


CONTENT = b"content" * 10_000
"""More than is read at once, so that a file can be cut while it is read."""


class Meddling:
    """A target whose first write changes the folder under the walk's feet."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        self.meddle = [meddle]

    def write(self, data: bytes) -> int:
        if self.meddle and data.startswith(CONTENT[:7]):
            self.meddle.pop()()
        return len(data)

    def tell(self) -> int:
        return 0


def shorten(file: Path) -> None:
    os.truncate(file, 2)


def lengthen(file: Path) -> None:
    os.truncate(file, 100_000)


def overwrite(file: Path) -> None:
    file.write_bytes(CONTENT.upper())


def unlink(file: Path) -> None:
    file.unlink()


def remove_the_next(file: Path) -> None:
    (file.parent / "b").unlink()


@pytest.mark.parametrize("meddle", [shorten, lengthen, overwrite, unlink, remove_the_next])
def test_a_file_that_changes_or_goes_away_meanwhile_voids_the_snapshot(
    out: Path, meddle: Callable[[Path], None]
) -> None:
    for name in "ab":
        (out / "checkpoint" / name).write_bytes(CONTENT)
        os.utime(out / "checkpoint" / name, (1, 1))
    with pytest.raises(ChangedError):
        take(out, Meddling(lambda: meddle(out / "checkpoint/a")), LIMITS)  # type: ignore[arg-type]


def test_a_file_that_was_replaced_before_it_was_read_is_no_hard_link(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = out / "checkpoint/a"
    file.write_text("content")
    really_open = os.open

    def open_and_replace(path: str, *arguments: int, **options: int) -> int:
        descriptor = really_open(path, *arguments, **options)
        if path == "a":
            file.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", open_and_replace)
    with pytest.raises(ChangedError):
        snapshot(out)


def swap(folder: Path, secret: Path, over: threading.Event) -> None:
    """Do as a hostile script: a link to somebody else's secret where a file was, and a folder, again and again."""
    while not over.is_set():
        for name, thing in (("file", secret), ("folder", secret.parent)):
            (folder / "link").symlink_to(thing)
            (folder / name).replace(folder / "kept")
            (folder / "link").replace(folder / name)
            (folder / name).unlink()
            (folder / "kept").replace(folder / name)


def test_whatever_is_swapped_while_it_is_taken_nothing_from_outside_gets_in(out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_text("SECRET")
    folder = out / "checkpoint"
    (folder / "file").write_text("harmless")
    (folder / "folder").mkdir()
    (folder / "folder/secret").write_text("harmless")
    over, outcomes = threading.Event(), Counter[str]()
    swapping = threading.Thread(target=swap, args=(folder, tmp_path / "elsewhere/secret", over))
    swapping.start()
    try:
        for _ in range(2000):
            with suppress(RefusedError):
                look_at(out, LIMITS)
                taken = snapshot(out).read_bytes()
                assert b"SECRET" not in taken
                outcomes["taken"] += 1
                continue
            outcomes["refused"] += 1
    finally:
        over.set()
        swapping.join()
    assert outcomes["refused"] > 0

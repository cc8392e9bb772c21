"""How much a script may keep in `out`, where it has to be measured; what a real file system does is tested as root."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.runner import quota
from services.runner.quota import Quota, excess
from services.runner.settings import RunnerSettings
from tests.unit.unprivileged import unprivileged

KIB = 1024


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def write(path: Path, kibibytes: int) -> None:
    path.write_bytes(b"x" * kibibytes * KIB)
    with path.open("rb") as file:
        os.fsync(file.fileno())  # blocks are counted once they are allocated


def test_as_much_as_may_be_is_no_excess_and_a_block_more_is(out: Path) -> None:
    write(out / "a", 64)
    write(out / "b", 64)
    assert excess(out, Quota(128 * KIB, 10)) is None
    write(out / "c", 4)
    assert excess(out, Quota(128 * KIB, 10)) == "more than 131072 bytes"


def test_files_and_folders_count_however_small(out: Path) -> None:
    for number in range(9):
        (out / str(number)).touch()
    (out / "folder").mkdir()
    assert excess(out, Quota(1 << 30, 10)) is None
    (out / "folder" / "one more").touch()
    assert excess(out, Quota(1 << 30, 10)) == "more than 10 files"


def test_what_lies_in_folders_counts_and_holes_do_not(out: Path) -> None:
    (out / "a" / "b").mkdir(parents=True)
    write(out / "a" / "b" / "file", 100)
    with (out / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert excess(out, Quota(120 * KIB, 100)) is None
    assert excess(out, Quota(99 * KIB, 100)) == "more than 101376 bytes"


def test_a_file_with_many_names_is_counted_once_in_bytes_and_each_time_in_names(out: Path) -> None:
    write(out / "0", 100)
    for number in range(1, 10):
        (out / str(number)).hardlink_to(out / "0")
    assert excess(out, Quota(150 * KIB, 10)) is None
    assert excess(out, Quota(150 * KIB, 9)) == "more than 9 files"


def test_what_a_link_points_to_is_not_looked_at(out: Path) -> None:
    write(out.parent / "elsewhere", 500)
    (out / "link").symlink_to(out.parent)
    os.mkfifo(out / "fifo")
    assert excess(out, Quota(100 * KIB, 10)) is None


def test_folders_as_deep_as_can_be_measured_and_one_deeper(out: Path) -> None:
    folder = out
    for _ in range(quota.MAX_DEPTH - 1):
        folder = folder / "d"
        folder.mkdir()
    assert excess(out, Quota(1 << 30, 1000)) is None
    (folder / "d").mkdir()
    assert excess(out, Quota(1 << 30, 1000)) == "folders nested deeper than 64"


@pytest.mark.parametrize("mode", [0, 0o300, 0o400], ids=["closed", "not to be listed", "not to be entered"])
@pytest.mark.parametrize("place", [".", "hidden"])
def test_a_folder_that_hides_what_it_holds_is_too_much(tmp_path: Path, place: str, mode: int) -> None:
    """The script may write there on and on; the runner logged that it could not measure, and killed nobody."""
    with unprivileged(tmp_path):
        hidden = Path("out") / place
        hidden.mkdir(parents=True)
        (hidden / "file").touch()
        hidden.chmod(mode)
        found = excess(Path("out"), Quota(1 << 30, 1000))
        hidden.chmod(0o700)
        assert excess(Path("out"), Quota(1 << 30, 1000)) is None
    assert found == "a folder that cannot be measured (Permission denied)"


def test_a_folder_that_is_gone_holds_nothing(out: Path) -> None:
    out.rmdir()
    assert excess(out, Quota(1, 1)) is None


def settings(**limits: int) -> RunnerSettings:
    return RunnerSettings(
        work_dir=Path("w"), objects_url="file:///o", sealing_key="k", kafka_bootstrap_servers="k:1", **limits
    )


def test_an_artifact_of_the_largest_size_fits_into_the_output_folder_or_the_runner_does_not_start() -> None:
    assert settings(max_artifact_bytes=1 << 20, max_out_bytes=1 << 20).max_out_bytes == 1 << 20
    with pytest.raises(ValidationError, match="max_out_bytes is less than max_artifact_bytes"):
        settings(max_artifact_bytes=(1 << 20) + 1, max_out_bytes=1 << 20)

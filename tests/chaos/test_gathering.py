"""Protects the look for leftovers: what a crash may leave of an install, a download or an upload is seen."""

from pathlib import Path

import pytest

from tests.chaos.gathering import left_in_the_store, left_in_work_folders


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half")
    return path


@pytest.mark.parametrize(
    "where",
    [
        "runs/run-custom-20260313-f7e2a1-1/out/model",
        "cache/0f0f.2b2b.part",
        "packages/making/0f0f/site",
        "packages/ready/0f0f.2b2b.part/site",
    ],
)
def test_a_work_folder_with_something_unfinished(tmp_path: Path, where: str) -> None:
    for kept in ("cache/0f0f", "packages/ready/0f0f/about.json", "journal.db"):
        made(tmp_path / kept)
    assert left_in_work_folders([tmp_path, tmp_path / "of-another"]) == []
    made(tmp_path / where)
    assert len(left_in_work_folders([tmp_path])) == 1


@pytest.mark.parametrize(
    "where",
    [
        "objects/dd/dddd#1",
        "uploads/0f0f",
        "uploads/0f0f#2",
        "variables/run-custom-20260313-f7e2a1",
        "checkpoints/run/1/0",
    ],
)
def test_a_store_with_something_that_belongs_to_nobody(tmp_path: Path, where: str) -> None:
    made(tmp_path / "objects/dd/dddd")
    assert left_in_the_store(tmp_path) == []
    left = made(tmp_path / where)
    assert left_in_the_store(tmp_path) == [f"object {left}"]

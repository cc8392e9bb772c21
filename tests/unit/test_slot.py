"""Where the secrets lie: a tmpfs of the runner's own, or a reason why not; and what the shim is made of."""

import ast
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.runner import shim
from services.runner.slot import close_slots, make_slot, slots_folder, why_unusable, write_shim

SHM = Path("/dev/shm")


@pytest.fixture
def slots(tmp_path: Path) -> Path:
    if not SHM.is_dir() or why_unusable(SHM / "runyard-of-a-test") is not None:
        pytest.skip("/dev/shm is no tmpfs here")
    return slots_folder(SHM, tmp_path)


def test_each_work_folder_has_slots_of_its_own_and_finds_them_again() -> None:
    assert slots_folder(SHM, Path("/a")) != slots_folder(SHM, Path("/b"))
    assert slots_folder(SHM, Path("/a")) == slots_folder(SHM, Path("/a"))
    assert slots_folder(SHM, Path("a")) == slots_folder(SHM, Path.cwd() / "a")


def test_the_folder_on_a_tmpfs_is_for_its_owner_alone_and_goes_when_it_is_empty(slots: Path) -> None:
    assert why_unusable(slots) is None
    assert not slots.exists()
    make_slot(slots / "run-1")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (slots, slots / "run-1")] == [0o700, 0o700]
    assert why_unusable(slots) is None
    close_slots(slots)
    assert (slots / "run-1").exists()
    (slots / "run-1").rmdir()
    close_slots(slots)
    assert not slots.exists()


def test_a_disk_is_no_place_for_secrets(tmp_path: Path) -> None:
    if why_unusable(tmp_path / "slots") is None:
        pytest.skip("the tests' folder is a tmpfs")
    assert why_unusable(tmp_path / "slots") == "it is not on a tmpfs"
    with pytest.raises(OSError, match="not on a tmpfs"):
        make_slot(tmp_path / "slots" / "run-1")


def test_a_folder_that_is_missing_or_a_link_is_no_place_for_secrets(slots: Path, tmp_path: Path) -> None:
    assert why_unusable(tmp_path / "none" / "slots") == "No such file or directory"
    slots.symlink_to(tmp_path)
    try:
        assert why_unusable(slots) == "Not a directory"
    finally:
        slots.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_no_place_for_secrets(slots: Path) -> None:
    slots.mkdir()
    os.chown(slots, 64_000, 64_000)
    (slots / "theirs").mkdir()
    try:
        assert why_unusable(slots) == "it belongs to somebody else"
    finally:
        (slots / "theirs").rmdir()
        slots.rmdir()


def test_the_shim_in_a_slot_needs_nothing_but_itself_and_a_little_of_the_standard_library(tmp_path: Path) -> None:
    write_shim(tmp_path)
    files = sorted((tmp_path / "shim").rglob("*.py"))
    sources = Path(str(shim.__file__)).parent
    assert {path.name for path in files} == {path.name for path in sources.glob("*.py")}
    wanted = {module for path in files for module in imported(path)}
    ours = {module for module in wanted if module.startswith("services.")}
    assert all((tmp_path / "shim" / f"{module.replace('.', '/')}.py").exists() for module in ours)
    assert wanted - ours <= set(sys.stdlib_module_names)
    assert not wanted & {"typing", "subprocess", "dataclasses", "re", "pathlib", "logging", "asyncio"}  # each costs ms


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the shim runs as a folder: its imports are absolute"
            found.add(str(node.module))
    return {module if module.startswith("services.") else module.split(".")[0] for module in found}


def test_runs_that_come_and_go_at_the_same_time_do_not_take_the_folder_from_one_another(slots: Path) -> None:
    def come_and_go(number: int) -> None:
        for _ in range(200):
            make_slot(slots / f"run-{number}")
            (slots / f"run-{number}").rmdir()
            close_slots(slots)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert not slots.exists()

"""Where the secrets lie: a tmpfs of the runner's own, or a reason why not; and what the shim is made of."""

import ast
import os
import stat
import sys
from pathlib import Path

import pytest

from services.runner import shim
from services.runner.slot import close_slots, is_tmpfs, open_slots, slots_folder, write_shim

SHM = Path("/dev/shm")


@pytest.fixture
def slots(tmp_path: Path) -> Path:
    if not is_tmpfs(SHM):
        pytest.skip("/dev/shm is no tmpfs here")
    return slots_folder(SHM, tmp_path)


def test_each_work_folder_has_slots_of_its_own_and_finds_them_again() -> None:
    assert slots_folder(SHM, Path("/a")) != slots_folder(SHM, Path("/b"))
    assert slots_folder(SHM, Path("/a")) == slots_folder(SHM, Path("/a"))
    assert slots_folder(SHM, Path("a")) == slots_folder(SHM, Path.cwd() / "a")


def test_the_folder_on_a_tmpfs_is_for_its_owner_alone_and_goes_when_it_is_empty(slots: Path) -> None:
    assert open_slots(slots) is None
    assert stat.S_IMODE(slots.stat().st_mode) == 0o700
    (slots / "run-1").mkdir()
    close_slots(slots)
    assert open_slots(slots) is None
    (slots / "run-1").rmdir()
    close_slots(slots)
    assert not slots.exists()


def test_a_disk_is_no_place_for_secrets(tmp_path: Path) -> None:
    if is_tmpfs(tmp_path):
        pytest.skip("the tests' folder is a tmpfs")
    assert open_slots(tmp_path / "slots") == "it is not on a tmpfs"


def test_a_folder_that_is_missing_or_a_link_is_no_place_for_secrets(slots: Path, tmp_path: Path) -> None:
    assert open_slots(tmp_path / "none" / "slots") == "No such file or directory"
    slots.symlink_to(tmp_path)
    try:
        assert open_slots(slots) == "it belongs to somebody else"
    finally:
        slots.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_no_place_for_secrets(slots: Path) -> None:
    slots.mkdir()
    os.chown(slots, 64_000, 64_000)
    try:
        assert open_slots(slots) == "it belongs to somebody else"
    finally:
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

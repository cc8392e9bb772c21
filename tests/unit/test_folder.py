"""The run's folder: what is laid out for whom, and that everything a script can make goes away again."""

import json
import os
import stat
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from services.runner.folder import (
    Contents,
    Orders,
    Owner,
    RunFolder,
    clear,
    environment,
    mask_of,
    prepare,
    remove,
    shim_spec,
)
from services.runner.slot import slots_folder, why_unusable

ORDERS = Orders("run-custom-20260313-f7e2a1", 2, "train.py", "wine.csv", {"SECRET": "a\nb"}, deadline_s=60)
OWNER = Owner(64321, 64321) if os.geteuid() == 0 else Owner(os.geteuid(), os.getegid())


@pytest.fixture
def contents(tmp_path: Path) -> Contents:
    (tmp_path / "cache").mkdir()
    for name in ("script", "dataset"):
        (tmp_path / "cache" / name).write_text(name)
    return Contents(code={"train.py": tmp_path / "cache/script"}, data={"wine.csv": tmp_path / "cache/dataset"})


@pytest.fixture
def folder(tmp_path: Path, contents: Contents) -> RunFolder:
    folder = RunFolder(tmp_path / "work" / "run-1")
    prepare(folder, ORDERS, contents, OWNER)
    return folder


def test_only_out_belongs_to_the_script_and_secrets_are_for_its_eyes_only(folder: RunFolder) -> None:
    of_shim = [folder.slot / "shim", *(folder.slot / "shim").rglob("*")]
    found = [folder.path, *(path for path in folder.path.rglob("*") if path not in of_shim)]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in found} == {
        "run-1": 0o700,
        "slot": 0o500,
        "spec.json": 0o400,
        "plugins": 0o755,
        "runyard_mlflow.py": 0o444,
        "runyard_mlflow-1.dist-info": 0o755,
        "METADATA": 0o444,
        "entry_points.txt": 0o444,
        "code": 0o755,
        "train.py": 0o444,
        "data": 0o755,
        "wine.csv": 0o444,
        "out": 0o700,
    }
    assert {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in of_shim} == {(True, 0o755), (False, 0o444)}
    assert {path.stat().st_uid for path in of_shim} == {os.geteuid()}
    private = [folder.out, folder.slot, folder.slot / "spec.json"]
    assert {path.stat().st_uid for path in private} == {OWNER.uid}
    assert json.loads((folder.slot / "spec.json").read_text())["environment"]["SECRET"] == "a\nb"


def test_files_of_the_cache_are_linked_and_preparing_again_starts_afresh(folder: RunFolder, contents: Contents) -> None:
    (folder.out / "left").write_text("from before")
    prepare(folder, ORDERS, contents, OWNER)
    assert list(folder.out.iterdir()) == []
    assert (folder.code / "train.py").samefile(contents.code["train.py"])


def test_a_slot_elsewhere_holds_all_that_is_secret_and_goes_with_the_folder(tmp_path: Path, contents: Contents) -> None:
    slots = slots_folder(Path("/dev/shm"), tmp_path)
    if why_unusable(slots) is not None:
        pytest.skip("no tmpfs here")
    folder = RunFolder(tmp_path / "work" / "run-1", slots)
    for _ in range(2):
        prepare(folder, ORDERS, contents, OWNER)
    assert folder.slot == slots / "run-1"
    assert sorted(path.name for path in folder.path.iterdir()) == ["code", "data", "out"]
    assert [path for path in folder.path.rglob("*") if path.is_file() and b"a\\nb" in path.read_bytes()] == []
    assert json.loads((folder.slot / "spec.json").read_text())["secret_names"] == ["SECRET"]
    clear(folder)
    assert not slots.exists()
    assert not folder.path.exists()


def test_secrets_are_not_laid_out_where_they_would_reach_a_disk(tmp_path: Path, contents: Contents) -> None:
    if why_unusable(tmp_path / "slots") is None:
        pytest.skip("the tests' folder is a tmpfs")
    with pytest.raises(OSError, match="not on a tmpfs"):
        prepare(RunFolder(tmp_path / "work" / "run-1", tmp_path / "slots"), ORDERS, contents, OWNER)
    assert list((tmp_path / "slots").iterdir()) == []


def test_the_mask_of_a_folder_covers_what_its_slot_holds_and_there_is_none_without_one(
    tmp_path: Path, contents: Contents
) -> None:
    folder = RunFolder(tmp_path / "run-1")
    prepare(folder, replace(ORDERS, variables={"KEY": "s3cret-key"}), contents, OWNER)
    mask = mask_of(folder)
    assert mask is not None
    assert mask.text("model/s3cret-key is a link") == "model/*** is a link"
    clear(folder)
    assert mask_of(folder) is None


@pytest.mark.parametrize("name", ["", ".", "..", "../out/model", "/etc/passwd", "a/b", "a\0b"])
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, contents: Contents, name: str) -> None:
    with pytest.raises(ValueError, match="not a plain file name"):
        prepare(RunFolder(tmp_path / "w"), ORDERS, Contents({name: contents.code["train.py"]}, {}), OWNER)


def test_what_is_promised_wins_over_the_scripts_variables_and_those_over_defaults() -> None:
    variables = {"HOME": "/nowhere", "RUN_ID": "forged", "MODEL_OUTPUT_PATH": "/etc/x"}
    found = environment(Orders("run-1", 1, "train.py", "a b.csv", variables, deadline_s=1))
    assert found["HOME"] == "/nowhere"
    assert found["RUN_ID"] == "run-1"
    assert found["MODEL_OUTPUT_PATH"] == "/runyard/out/model"
    assert found["DATASET_PATH"] == "/runyard/data/a b.csv"
    assert found["FAILURE_PATH"] == "/runyard/out/failure"


def test_what_is_promised_is_no_secret_even_if_a_variable_has_its_name() -> None:
    variables = {"HOME": "/nowhere", "RUN_ID": "forged"}
    spec = shim_spec(Orders("run-1", 1, "train.py", "wine.csv", variables, deadline_s=1))
    assert spec["secret_names"] == ["HOME"]


def test_only_a_run_with_packages_finds_them_on_its_path() -> None:
    told: dict[str, Any] = {"run_id": "run-1", "attempt": 1, "entry_point": "train.py", "dataset_filename": "a.csv"}
    without = Orders(variables={}, deadline_s=1, **told)
    assert environment(without)["PYTHONPATH"] == "/runyard/slot/plugins"
    with_packages = Orders(variables={"PYTHONPATH": "/tmp"}, deadline_s=1, has_packages=True, **told)
    assert environment(with_packages)["PYTHONPATH"] == "/runyard/packages/site:/tmp:/runyard/slot/plugins"


@pytest.mark.parametrize(("resume", "told"), [(False, "0"), (True, "1")])
def test_a_script_is_told_where_to_keep_checkpoints_which_attempt_it_is_and_whether_to_resume(
    resume: bool, told: str
) -> None:
    variables = {"RESUME": "forged", "ATTEMPT": "9", "CHECKPOINT_PATH": "/nowhere"}
    found = environment(Orders("run-1", 2, "train.py", "a.csv", variables, deadline_s=1, resume=resume))
    assert {name: found[name] for name in variables} == {
        "RESUME": told,
        "ATTEMPT": "2",
        "CHECKPOINT_PATH": "/runyard/out/checkpoint",
    }


def test_mlflow_finds_our_store_unless_the_script_s_variables_say_otherwise(folder: RunFolder) -> None:
    ours = environment(ORDERS)
    assert ours["MLFLOW_TRACKING_URI"] == "runyard:///tmp/mlflow"
    assert (ours["MLFLOW_ALLOW_FILE_STORE"], ours["PYTHONPATH"]) == ("true", "/runyard/slot/plugins")
    theirs = environment(replace(ORDERS, variables={"MLFLOW_TRACKING_URI": "file:///tmp/m", "PYTHONPATH": "/tmp/a"}))
    assert (theirs["MLFLOW_TRACKING_URI"], theirs["PYTHONPATH"]) == ("file:///tmp/m", "/tmp/a:/runyard/slot/plugins")
    [distribution] = metadata.distributions(path=[str(folder.slot / "plugins")])
    assert (distribution.metadata["Name"], distribution.version) == ("runyard_mlflow", "1")
    assert {(point.group, point.name, point.value) for point in distribution.entry_points} == {
        ("mlflow.tracking_store", "runyard", "runyard_mlflow:tracking_store"),
        ("mlflow.model_registry_store", "runyard", "runyard_mlflow:registry_store"),
    }


def test_a_tree_of_any_depth_goes(folder: RunFolder) -> None:
    here = os.open(folder.out, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deep", dir_fd=here)  # by descriptor: no path is long enough
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove(folder.path)
    assert not folder.path.exists()


def test_locked_folders_links_and_colliding_names_go_and_what_links_point_to_stays(folder: RunFolder) -> None:
    precious = folder.path.parent / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (folder.out / "link").symlink_to(precious)
    (folder.out / "dangling").symlink_to("nowhere")
    os.mkfifo(folder.out / "fifo")
    for number in range(3):
        (folder.path / f".removed-{number}").touch()
        (folder.out / f".removed-{number}" / "x" / "y").mkdir(parents=True)
    (folder.out / "locked" / "inner").mkdir(parents=True)
    (folder.out / "locked" / "inner").chmod(0)
    (folder.out / "locked").chmod(0)
    remove(folder.path)
    assert not folder.path.exists()
    assert (precious / "file").exists()


def test_what_is_gone_can_be_removed_again(folder: RunFolder) -> None:
    remove(folder.path)
    remove(folder.path)

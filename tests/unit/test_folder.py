"""The run's folder: what is laid out for whom, and that everything a script can make goes away again."""

import json
import os
import stat
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from services.runner.folder import Contents, Orders, Owner, RunFolder, environment, prepare, remove

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
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder.path, *folder.path.rglob("*")]}
    assert modes == {
        "run-1": 0o700,
        "slot": 0o500,
        "shim.py": 0o400,
        "spec.json": 0o400,
        "plugins": 0o500,
        "runyard_mlflow.py": 0o400,
        "runyard_mlflow-1.dist-info": 0o500,
        "METADATA": 0o400,
        "entry_points.txt": 0o400,
        "code": 0o755,
        "train.py": 0o444,
        "data": 0o755,
        "wine.csv": 0o444,
        "out": 0o700,
    }
    owners = {path.name for path in folder.path.rglob("*") if path.stat().st_uid == OWNER.uid}
    assert owners >= {"slot", "shim.py", "spec.json", "out", "plugins", "runyard_mlflow.py", "entry_points.txt"}
    assert json.loads((folder.slot / "spec.json").read_text())["environment"]["SECRET"] == "a\nb"


def test_files_of_the_cache_are_linked_and_preparing_again_starts_afresh(folder: RunFolder, contents: Contents) -> None:
    (folder.out / "left").write_text("from before")
    prepare(folder, ORDERS, contents, OWNER)
    assert list(folder.out.iterdir()) == []
    assert (folder.code / "train.py").samefile(contents.code["train.py"])


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

"""Protects scripts that use MLflow: the real one, old and new, finds our store by itself; each metric is told once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.runner import plugins
from services.runner.shim.metrics_tail import parse_metric
from tests.mlflow_packages import NEWEST, VERSIONS, install

pytestmark = pytest.mark.timeout(300)

LOGS = """
import mlflow
from mlflow import MlflowClient
with mlflow.start_run():
    mlflow.log_param("rate", 0.1)
    mlflow.set_tag("kind", "test")
    for step in range(3):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
    mlflow.log_metric("loss", float("nan"), step=3)
    mlflow.log_metrics({"val/acc": 0.5, "worst": float("inf"), "best": -float("inf")}, step=7)
    mlflow.log_metric("plain", 2)
    mlflow.log_text("kept?", "note.txt")
    with mlflow.start_run(nested=True):
        mlflow.log_metric("child", 1.5)
run = MlflowClient().search_runs(["0"], "tags.kind = 'test'")[0]
print(len(MlflowClient().get_metric_history(run.info.run_id, "loss")), run.data.params, run.info.artifact_uri)
"""
TOLD = [
    ("loss", 1.0, 0),
    ("loss", 0.5, 1),
    ("loss", 1 / 3, 2),
    ("val/acc", 0.5, 7),
    ("plain", 2.0, 0),
    ("child", 1.5, 0),
]

TRAINS = """
import mlflow, numpy
from sklearn.linear_model import LogisticRegression
mlflow.sklearn.autolog(log_models=False)
x = numpy.random.RandomState(0).rand(60, 3)
y = (x[:, 0] > 0.5).astype(int)
with mlflow.start_run():
    model = LogisticRegression().fit(x, y)
    options = {"serialization_format": "cloudpickle"}
    logged = mlflow.sklearn.log_model(model, "model", registered_model_name="wine", **options)
print((mlflow.sklearn.load_model(logged.model_uri).predict(x) == y).mean())
"""
FITTED = {
    f"training_{name}" for name in ("accuracy_score", "f1_score", "log_loss", "precision_score", "recall_score")
} | {
    "training_roc_auc",
    "training_score",
}


@pytest.fixture(scope="module", params=VERSIONS)
def packages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("mlflow")
    install(request.param, folder)
    return folder


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("beside") / "plugins"
    plugins.lay_out(folder)
    return folder


def told_by(script: str, folder: Path, *path: Path, **variables: str) -> tuple[str, list[dict[str, Any]]]:
    """Run a script as in a run; returns what it printed and what stands in METRICS_PATH, read as the shim reads it."""
    metrics = folder / "metrics.jsonl"
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "METRICS_PATH": str(metrics),
        "PYTHONPATH": ":".join(map(str, path)),
        **plugins.variables(str(folder)),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = metrics.read_bytes().splitlines() if metrics.exists() else []
    read = [parse_metric(line) for line in lines]
    assert None not in read
    return done.stdout, [metric for metric in read if metric]


def test_what_is_logged_is_told_once_and_mlflow_keeps_it_too(packages: Path, beside: Path, tmp_path: Path) -> None:
    printed, told = told_by(LOGS, tmp_path, packages, beside)
    assert [(metric["name"], metric["value"], metric["step"]) for metric in told] == TOLD
    assert printed.startswith("4 {'rate': '0.1'} file://")
    [note] = tmp_path.glob("mlflow/0/*/artifacts/note.txt")
    assert note.read_text() == "kept?"


@pytest.mark.parametrize("packages", [VERSIONS[0], NEWEST], indirect=True)
def test_autologging_tells_what_it_measures_and_models_can_be_logged_and_registered(
    packages: Path, beside: Path, tmp_path: Path
) -> None:
    printed, told = told_by(TRAINS, tmp_path, packages, beside)
    assert sorted(metric["name"] for metric in told) == sorted(FITTED)  # `log_model` logs them again; MLflow 3 does
    assert float(printed) > 0.9


def test_a_script_that_chooses_another_store_goes_its_own_way(beside: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    install(NEWEST, packages)
    _, told = told_by(LOGS, tmp_path, packages, beside, MLFLOW_TRACKING_URI=f"file://{tmp_path}/own")
    assert told == []
    assert list(tmp_path.glob("own/0/*/params/rate"))


def test_without_mlflow_nothing_of_ours_is_imported(beside: Path, tmp_path: Path) -> None:
    script = "import json, sys, sklearn, pandas\nprint(json.dumps([m for m in sys.modules if 'mlflow' in m]))"
    printed, told = told_by(script, tmp_path, beside)
    assert (json.loads(printed), told) == ([], [])


def test_processes_of_a_script_that_log_at_once_never_break_a_line(beside: Path, tmp_path: Path) -> None:
    script = """
import multiprocessing, types
from runyard_mlflow import Teller
def tell(number):
    teller = Teller()
    for step in range(500):
        metrics = [types.SimpleNamespace(key=f"m{number}" * 60, value=1.0, step=step, timestamp=0) for _ in range(3)]
        teller.tell("run", metrics)
with multiprocessing.Pool(4) as pool:
    pool.map(tell, range(4))
"""
    _, told = told_by(script, tmp_path, beside)
    assert len(told) == 4 * 500 * 3

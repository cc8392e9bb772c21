"""Protects metrics without rewriting: a script that writes JSON lines, one that uses MLflow, one that only prints."""

import asyncio
import secrets
import sys
from asyncio.subprocess import PIPE, STDOUT
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Client, System
from tests.mlflow_packages import LOCKS, NEWEST

PRINTS = """
import sys, time
for epoch in range(3):
    print(f"epoch {epoch}: loss={1 / (epoch + 1)} acc={epoch / 2}", flush=True)
print("val_loss: 0.75", file=sys.stderr)
print("loss=nan acc=1e999 loss=7")
time.sleep(600)
"""
DEFINITIONS = [
    {"name": "loss", "regex": r"\bloss=([0-9.eE+-]+|nan)"},
    {"name": "accuracy", "regex": r"acc=(\S+)"},
    {"name": "val_loss", "regex": r"val_loss: (\S+)"},
    {"name": "never", "regex": r"never=(\S+)"},
]

WRITES = """
import json, os
with open(os.environ["METRICS_PATH"], "a") as metrics:
    for step in range(3):
        print(json.dumps({"name": "loss", "value": 1 / (step + 1), "step": step}), file=metrics)
"""

# The script of somebody who has never heard of Runyard.
USES_MLFLOW = """
import mlflow, numpy
from sklearn.linear_model import LogisticRegression

mlflow.sklearn.autolog(log_models=False)
x = numpy.random.RandomState(0).rand(60, 3)
y = (x[:, 0] > 0.5).astype(int)
with mlflow.start_run():
    mlflow.log_param("rate", 0.1)
    for step in range(3):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
    mlflow.log_metrics({"a": 1, "b": float("nan")}, step=5)
    model = LogisticRegression().fit(x, y)
    mlflow.log_text("a note", "note.txt")
print(mlflow.get_tracking_uri(), mlflow.last_active_run().data.params["rate"])
"""


async def series_of(
    client: Client, model_id: str, run_id: str, points: int
) -> dict[str, list[tuple[float, int | None]]]:
    """The series of a run, once they have that many points together."""
    page = await client.eventually(
        f"/api/v1/models/{model_id}/runs/{run_id}/metrics",
        lambda found: sum(series["total_points"] for series in found["series"]) >= points,
    )
    return {
        series["name"]: [(point["value"], point["step"]) for point in series["points"]] for series in page["series"]
    }


async def defined_model(client: Client, script: str, definitions: list[dict[str, str]]) -> str:
    body = {
        "name": "m",
        "model_type": "custom",
        "dataset_id": await client.dataset(),
        "metric_definitions": definitions,
    }
    created = await client.http.post("/api/v1/models", json=body)
    assert created.status_code == 201, created.text
    model: dict[str, Any] = created.json()
    assert model["metric_definitions"] == definitions
    assert (await client.asset(model["model_id"], "train.py", script)).status_code == 201
    return str(model["model_id"])


async def test_metric_definitions_find_metrics_in_the_log_while_the_script_runs(client: Client) -> None:
    model_id = await defined_model(client, PRINTS, DEFINITIONS)
    run_id = await client.started(model_id)
    expected = {
        "loss": [(1.0, None), (0.5, None), (1 / 3, None)],
        "accuracy": [(0.0, None), (0.5, None), (1.0, None)],
        "val_loss": [(0.75, None)],
    }
    assert await series_of(client, model_id, run_id, points=7) == expected
    assert (await client.get(f"/api/v1/models/{model_id}/runs/{run_id}"))["status"] == "running"
    await client.cancel(model_id, run_id)
    page = await client.eventually(f"/api/v1/models/{model_id}/runs/{run_id}/metrics", lambda found: found["complete"])
    assert sum(series["total_points"] for series in page["series"]) == 7
    log = await client.log(model_id, run_id)
    assert "epoch 2: loss=0.3333333333333333 acc=1.0" in log.splitlines()


async def test_json_lines_and_the_log_may_tell_the_same_metric(client: Client) -> None:
    script = WRITES + "print('loss=0.125')\n"
    model_id = await defined_model(client, script, DEFINITIONS)
    run_id = await client.started(model_id)
    await client.ended(model_id, run_id)
    series = await series_of(client, model_id, run_id, points=4)
    assert sorted(series["loss"], key=lambda point: -point[0]) == [(1.0, 0), (0.5, 1), (1 / 3, 2), (0.125, None)]


@pytest.mark.own_parts  # the index of the host's pip, which a system in containers cannot always reach
@pytest.mark.timeout(400)
async def test_a_script_that_uses_mlflow_shows_its_metrics_unchanged(client: Client) -> None:
    model_id = await client.model(USES_MLFLOW)
    locked = (LOCKS / f"skinny-{NEWEST}.txt").read_text()
    assert (await client.asset(model_id, "requirements.txt", locked, "requirements")).status_code == 201
    run_id = await client.started(model_id, compute={"cpu_cores": 2, "memory_gb": 2})
    with suppress(TimeoutError):  # on a busy machine installing and importing all that takes longer than other runs may
        await client.ended(model_id, run_id)
    run = await client.ended(model_id, run_id)
    log = await client.log(model_id, run_id)
    assert run["status"] == "succeeded", log
    series = await series_of(client, model_id, run_id, points=11)
    assert series["loss"] == [(1.0, 0), (0.5, 1), (1 / 3, 2)]
    assert series["a"] == [(1.0, 5)]
    assert series["training_accuracy_score"] == [(pytest.approx(0.95, abs=0.06), 0)]
    assert len(series) == 2 + 7
    assert "runyard:///tmp/mlflow 0.1" in log


async def test_runyard_train_gives_a_new_model_its_definitions_and_says_that_they_stay(
    client: Client, system: System, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text("print('loss=0.5 acc=1')")
    (tmp_path / "data.csv").write_text("a\n")
    name = f"by-command-{secrets.token_hex(4)}"

    async def train(*metrics: str) -> tuple[int, str]:
        files = [str(tmp_path / "train.py"), "--data", str(tmp_path / "data.csv")]
        options = [word for metric in metrics for word in ("--metric", metric)]
        to = ["--model", name, "--memory-gb", "1", "--url", system.api_url, "--token", system.token()]
        code = "from services.cli.main import app; app()"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, "train", *files, *options, *to, stdout=PIPE, stderr=STDOUT
        )
        printed, _ = await process.communicate()
        return process.returncode or 0, printed.decode()

    assert (await train(r"loss=loss=(\S+)", r"acc=acc=(\d+)"))[0] == 0
    [model] = [model for model in (await client.get("/api/v1/models"))["items"] if model["name"] == name]
    run_id = model["last_run"]["run_id"]
    assert await series_of(client, model["model_id"], run_id, 2) == {"loss": [(0.5, None)], "acc": [(1.0, None)]}
    assert (await train())[0] == 0
    refused, printed = await train(r"other=loss=(\S+)")
    assert refused == 2
    assert "has other metric definitions" in printed

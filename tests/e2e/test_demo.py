"""`runyard demo`: what a newcomer types first, what it shows, and that nothing is left."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli.data_dir import DataDir
from services.cli.embedded_process import is_free
from services.runner.sandbox import Sandbox

CHECKOUT = Path(__file__).parents[2]
RUNYARD = [sys.executable, "-c", "from services.cli.main import app; app()"]


def runyard(*words: object, timeout_s: float) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    return subprocess.run(
        [*RUNYARD, *map(str, words)],
        cwd=CHECKOUT,
        env={**kept, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.own_parts
@pytest.mark.timeout(600)
def test_the_demo_trains_a_real_model_shows_every_step_and_leaves_nothing_running(tmp_path: Path) -> None:
    data_dir = tmp_path / "demo"
    demo = runyard("demo", "--data-dir", data_dir, timeout_s=550)
    shown = demo.stdout
    assert demo.returncode == 0, demo.stdout + demo.stderr
    in_order = [
        "queued     TrainingRequested",
        "starting   RunQueued",
        "running    RunStarted",
        "succeeded  RunSucceeded",
        "succeeded  ModelVersionCreated version 1",
        "held_out_accuracy",
        "version 1 scores 0.9778 on the held-out wines, as it did in training",
        "model.custom_training_started",
        f"runyard up --data-dir {DataDir.at(data_dir).path}",
    ]
    places = [shown.find(words) for words in in_order]
    assert -1 not in places, shown
    assert places == sorted(places), shown
    assert "fold 5/5: accuracy" in shown
    assert shown.count("model.custom_training_started") == 1

    for file in (*data_dir.glob("*/server.pid"), *data_dir.glob("logs/*/server.pid")):
        assert not Path(f"/proc/{file.read_text().split()[0]}").exists(), file
    assert is_free(int((data_dir / "kafka" / "port").read_text()))
    runner = re.search(r"attempt 1 on (\S+)", shown)
    assert runner is not None
    assert not containers_of(runner[1])
    verified = runyard("verify", "--data-dir", data_dir, timeout_s=60)
    assert (verified.returncode, verified.stderr) == (0, ""), verified.stdout


def containers_of(runner_id: str) -> list[str]:
    sandbox = Sandbox.connect()
    try:
        return [container.name for container in sandbox.owned(runner_id)]
    finally:
        sandbox.close()

"""Protects the examples that the docs send people to, here without a sandbox."""

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_for_checkpoints_goes_on_after_the_last_epoch_that_was_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    said = []
    for attempt, epochs in ((1, 3), (2, 5)):
        environment = {
            "DATASET_PATH": str(EXAMPLES / "wine/wine.csv"),
            "MODEL_OUTPUT_PATH": str(tmp_path / "model"),
            "METRICS_PATH": str(tmp_path / "metrics.jsonl"),
            "CHECKPOINT_PATH": str(tmp_path / "checkpoint"),
            "ATTEMPT": str(attempt),
            "EPOCHS": str(epochs),
        }
        command = [sys.executable, EXAMPLES / "resuming/train.py"]
        done = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
        said.append(done.stdout.strip())
    assert said == ["attempt 1 begins after epoch 0", "attempt 2 begins after epoch 3"]
    points = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [1, 2, 3, 4, 5]
    assert points[-1]["value"] > 0.9
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["state.joblib"]

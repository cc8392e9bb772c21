"""Train a classifier epoch by epoch, going on after the last checkpoint if an earlier attempt at this run was lost."""

import json
import os
import time
from pathlib import Path

import joblib
import pandas as pd
from sklearn.linear_model import SGDClassifier

EPOCHS, PAUSE_S = int(os.environ.get("EPOCHS", "20")), float(os.environ.get("PAUSE_S", "0"))
STATE = Path(os.environ["CHECKPOINT_PATH"]) / "state.joblib"

features = pd.read_csv(os.environ["DATASET_PATH"])
target = features.pop("cultivar")
features = (features - features.mean()) / features.std()

model, done = joblib.load(STATE) if STATE.exists() else (SGDClassifier(random_state=7), 0)
print(f"attempt {os.environ['ATTEMPT']} begins after epoch {done}")
for epoch in range(done + 1, EPOCHS + 1):
    model.partial_fit(features, target, classes=[1, 2, 3])
    with Path(os.environ["METRICS_PATH"]).open("a") as metrics:
        point = {"name": "accuracy", "value": model.score(features, target), "step": epoch}
        metrics.write(json.dumps(point) + "\n")
    joblib.dump((model, epoch), STATE.with_suffix(".new"))
    STATE.with_suffix(".new").replace(STATE)  # the old one or the new one, never half of one
    time.sleep(PAUSE_S)
joblib.dump(model, os.environ["MODEL_OUTPUT_PATH"])

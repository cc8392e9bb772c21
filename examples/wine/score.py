"""Load a trained model and score it on the wines that `train.py` held out.

It runs in Runyard's sandbox like the training itself, because loading a model executes what is in it. The model comes
as an asset of type `data`, which lies beside the dataset.
"""

import json
import os
from pathlib import Path

import joblib
import pandas as pd
from sklearn.model_selection import train_test_split

TARGET = "cultivar"
SEED = int(os.environ.get("SEED", "7"))


def main() -> None:
    """Score the model."""
    dataset = Path(os.environ["DATASET_PATH"])
    model = joblib.load(dataset.with_name("wine.joblib"))
    wines = pd.read_csv(dataset)
    _, held_out = train_test_split(wines, test_size=0.25, stratify=wines[TARGET], random_state=SEED)
    accuracy = model.score(held_out.drop(columns=TARGET), held_out[TARGET])
    print(f"{type(model).__name__} scored on {len(held_out)} held-out wines: accuracy {accuracy:.3f}")
    with Path(os.environ["METRICS_PATH"]).open("a") as metrics:
        metrics.write(json.dumps({"name": "held_out_accuracy", "value": accuracy}) + "\n")


if __name__ == "__main__":
    main()

"""Train a classifier that tells the cultivar of a wine from its chemical analysis.

Runyard gives the script DATASET_PATH, MODEL_OUTPUT_PATH and METRICS_PATH; settings come from the run's variables.
A quarter of the wines is held out: cross-validation never sees it, `score.py` scores the saved model on it.
"""

import json
import os
from pathlib import Path

import joblib
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold, train_test_split

TARGET = "cultivar"
TREES = int(os.environ.get("TREES", "100"))
MAX_DEPTH = int(os.environ.get("MAX_DEPTH", "6"))
FOLDS = int(os.environ.get("FOLDS", "5"))
SEED = int(os.environ.get("SEED", "7"))


def report(name: str, value: float, step: int | None = None) -> None:
    """Append a metric; Runyard shows it while the script runs."""
    point = {"name": name, "value": value} | ({} if step is None else {"step": step})
    with Path(os.environ["METRICS_PATH"]).open("a") as metrics:
        metrics.write(json.dumps(point) + "\n")


def classifier() -> RandomForestClassifier:
    """Make an untrained model."""
    return RandomForestClassifier(n_estimators=TREES, max_depth=MAX_DEPTH, random_state=SEED)


def main() -> None:
    """Cross-validate, train on all but the held-out wines, save the model."""
    wines = pd.read_csv(os.environ["DATASET_PATH"])
    train, held_out = train_test_split(wines, test_size=0.25, stratify=wines[TARGET], random_state=SEED)
    print(f"{len(wines)} wines: {len(train)} to train on, {len(held_out)} held out; {TREES} trees of depth {MAX_DEPTH}")

    features, target = train.drop(columns=TARGET), train[TARGET]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(features, target)
    for fold, (fit, check) in enumerate(folds, start=1):
        model = classifier().fit(features.iloc[fit], target.iloc[fit])
        predicted = model.predict(features.iloc[check])
        accuracy = accuracy_score(target.iloc[check], predicted)
        f1 = f1_score(target.iloc[check], predicted, average="macro")
        report("accuracy", accuracy, step=fold)
        report("f1_macro", f1, step=fold)
        print(f"fold {fold}/{FOLDS}: accuracy {accuracy:.3f}, macro F1 {f1:.3f}")

    model = classifier().fit(features, target)
    held_out_accuracy = model.score(held_out.drop(columns=TARGET), held_out[TARGET])
    report("held_out_accuracy", held_out_accuracy)
    print(f"held out: accuracy {held_out_accuracy:.3f}")
    joblib.dump(model, os.environ["MODEL_OUTPUT_PATH"])


if __name__ == "__main__":
    main()

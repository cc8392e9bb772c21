"""MLflow's stores inside a run: what a script logs to MLflow is kept in /tmp as MLflow does, and its metrics are told.

Laid beside every script, where MLflow finds it by its own entry points (`plugins.py`); nobody else imports it. Like the
shim it runs on Python 3.10 and imports nothing but the standard library, until MLflow asks for a store. It must never
change what MLflow does: artifacts, models and parameters are MLflow's own affair and end with the container.
"""

import json
import math
import os
import threading
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

MOST_REMEMBERED = 100_000
"""How many metrics are compared with later ones; about 10 MB."""
INPUTS = threading.RLock()
"""Held while the inputs of a run are written or read, by whatever store of this process."""


def tracking_store(store_uri: str, artifact_uri: "str | None" = None) -> Any:
    """Open MLflow's own store of files in the folder that the URI names, with each metric told beside it."""
    from mlflow.store.tracking.file_store import FileStore  # noqa: PLC0415 - MLflow is being imported when this module is

    teller = Teller()

    class TellingStore(FileStore):  # type: ignore[misc]  # where mypy runs there is no MLflow
        """A store of files that tells metrics."""

        def log_metric(self, run_id: str, metric: Any) -> None:
            super().log_metric(run_id, metric)
            teller.tell(run_id, [metric])

        def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
            super().log_batch(run_id, metrics, params, tags)
            teller.tell(run_id, metrics)

        def log_inputs(self, *args: Any, **kwargs: Any) -> None:
            """Log datasets; autologging does so in a thread, while a run with half of one cannot be read."""
            with INPUTS:
                super().log_inputs(*args, **kwargs)

        def get_run(self, run_id: str) -> Any:
            with INPUTS:
                return super().get_run(run_id)

    folder = urlsplit(store_uri).path
    return TellingStore(folder, artifact_uri or f"file://{folder}")


def registry_store(store_uri: str) -> Any:
    """Open MLflow's own model registry of files in the same folder, so that registering a model does not fail."""
    from mlflow.store.model_registry.file_store import FileStore  # noqa: PLC0415 - as above

    return FileStore(urlsplit(store_uri).path)


class Teller:
    """Appends metrics to METRICS_PATH, each once.

    `log_model` of MLflow 3 logs what a run has measured a second time, for the model: run, name, value, step and time
    are the same, which is what MLflow's own database store knows a metric by.
    """

    def __init__(self) -> None:
        self._told: set[int] = set()

    def tell(self, run_id: str, metrics: Iterable[Any]) -> None:
        """Append whole lines in one write, so that several processes may do so at once."""
        path = os.environ.get("METRICS_PATH")
        lines = b"".join(
            _line(metric) for metric in metrics if math.isfinite(metric.value) and self._is_new(run_id, metric)
        )
        if not path or not lines:
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, lines)
        finally:
            os.close(descriptor)

    def _is_new(self, run_id: str, metric: Any) -> bool:
        identity = hash((run_id, metric.key, metric.value, metric.step, metric.timestamp))
        told_before = identity in self._told
        if len(self._told) < MOST_REMEMBERED:
            self._told.add(identity)
        return not (told_before and getattr(metric, "model_id", None) is not None)


def _line(metric: Any) -> bytes:
    point = {"name": metric.key, "value": float(metric.value), "step": int(metric.step)}
    return json.dumps(point).encode() + b"\n"

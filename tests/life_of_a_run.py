"""The events of one run's life, written out by hand for tests."""

from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.cloudevents import CloudEvent, value_of
from schemas.events import (
    AttemptLost,
    CancellationRequested,
    LogsAppended,
    MetricsReported,
    ModelVersionCreated,
    RunCancelled,
    RunFact,
    RunFailed,
    RunQueued,
    RunRequeued,
    RunStarted,
    RunSucceeded,
    RunWaiting,
    TrainingRequested,
)
from schemas.ids import event_id
from schemas.parts import Artifact, Compute, LogLine, MetricPoint, PinnedAsset, PinnedDataset, TrainingSpec, Usage
from schemas.reason import Reason
from schemas.topics import OUTPUT, RUNS
from services.backbone.consumer import Received

RUN_ID = "run-custom-20260313-f7e2a1"
START = datetime(2026, 3, 13, 16, 10, tzinfo=UTC)
TENANT, MODEL, RUNNER = "acme", "mdl-7f3a19bc", "rnr-01"

SPEC = TrainingSpec(
    entry_point="train.py",
    runtime="python3.11",
    compute=Compute(cpu_cores=4, memory_gb=16),
    timeout_s=14400,
    run_label="custom-run-experiment-1",
    variable_names=("LEARNING_RATE", "EPOCHS"),
    assets=(PinnedAsset(asset_id="ast-1", asset_type="script", filename="train.py", sha256="a" * 64, size_bytes=812),),
    dataset=PinnedDataset(dataset_id="dts-1", filename="wine.csv", sha256="b" * 64, size_bytes=11157),
)
ARTIFACT = Artifact(kind="file", sha256="c" * 64, size_bytes=2048)


def at(seconds: float) -> datetime:
    """The time so many seconds into the run's life."""
    return START + timedelta(seconds=seconds)


def requested(run_id: str = RUN_ID, **changes: Any) -> TrainingRequested:
    """The run is accepted."""
    told = {"tenant_id": TENANT, "actor": "ada", "request_id": "req-1", "model_id": MODEL, "spec": SPEC}
    return TrainingRequested(run_id=run_id, **(told | changes))


def waiting(attempt: int = 1, run_id: str = RUN_ID) -> RunWaiting:
    """The run cannot start yet."""
    return RunWaiting(
        run_id=run_id, attempt=attempt, reason=Reason.WAITING_FOR_CAPACITY, message="all runners are busy"
    )


def queued(attempt: int = 1, run_id: str = RUN_ID) -> RunQueued:
    """Compute is assigned."""
    return RunQueued(run_id=run_id, attempt=attempt, runner_id=RUNNER, tenant_id=TENANT, model_id=MODEL, spec=SPEC)


def started(attempt: int = 1, run_id: str = RUN_ID) -> RunStarted:
    """The container runs."""
    return RunStarted(run_id=run_id, attempt=attempt, runner_id=RUNNER, container_id="c0ffee", started_at=at(3))


def cancellation(run_id: str = RUN_ID) -> CancellationRequested:
    """Somebody asks to stop."""
    return CancellationRequested(run_id=run_id, tenant_id=TENANT, model_id=MODEL, actor="bob", request_id="req-2")


def lost(attempt: int = 1, run_id: str = RUN_ID) -> AttemptLost:
    """The attempt could not be run to its end."""
    return AttemptLost(
        run_id=run_id, attempt=attempt, runner_id=RUNNER, reason=Reason.CONTAINER_LOST, message="the container is gone"
    )


def requeued(attempt: int = 2, run_id: str = RUN_ID) -> RunRequeued:
    """The next attempt follows."""
    return RunRequeued(run_id=run_id, attempt=attempt, reason=Reason.RUNNER_LOST, message="the runner is silent")


def succeeded(attempt: int = 1, run_id: str = RUN_ID) -> RunSucceeded:
    """The script exited 0 and wrote an artifact."""
    return RunSucceeded(
        run_id=run_id,
        attempt=attempt,
        runner_id=RUNNER,
        exit_code=0,
        started_at=at(3),
        ended_at=at(64),
        usage=Usage(peak_memory_bytes=91_750_400, cpu_s=58.25, wall_s=61.0),
        output_sequence=4,
        artifact=ARTIFACT,
    )


def failed(attempt: int = 1, run_id: str = RUN_ID) -> RunFailed:
    """The script exited 1."""
    return RunFailed(
        run_id=run_id, attempt=attempt, runner_id=RUNNER, exit_code=1, ended_at=at(9), reason=Reason.SCRIPT_ERROR
    )


def cancelled(attempt: int = 1, run_id: str = RUN_ID) -> RunCancelled:
    """The run was stopped."""
    return RunCancelled(run_id=run_id, attempt=attempt, ended_at=at(9), reason=Reason.USER_REQUEST)


def versioned(run_id: str = RUN_ID) -> ModelVersionCreated:
    """The artifact became a version."""
    return ModelVersionCreated(run_id=run_id, tenant_id=TENANT, model_id=MODEL, version=1, artifact=ARTIFACT)


def logs(*texts: str, first: int = 1, attempt: int = 1, run_id: str = RUN_ID) -> LogsAppended:
    """Lines on standard output, numbered from `first`."""
    lines = tuple(LogLine(sequence=first + i, stream="stdout", text=text, at=at(i)) for i, text in enumerate(texts))
    return LogsAppended(run_id=run_id, attempt=attempt, lines=lines)


def metrics(*values: float, first: int = 1, attempt: int = 1, run_id: str = RUN_ID) -> MetricsReported:
    """Values of `loss`, numbered from `first`."""
    points = tuple(
        MetricPoint(sequence=first + i, name="loss", value=value, step=i, at=at(i)) for i, value in enumerate(values)
    )
    return MetricsReported(run_id=run_id, attempt=attempt, points=points)


def found(sequence: int, *values: float, attempt: int = 1, run_id: str = RUN_ID) -> MetricsReported:
    """Values of `m1`, `m2`, … that metric definitions found in the line of that sequence."""
    points = tuple(
        MetricPoint(sequence=sequence, place=place, name=f"m{place}", value=value, at=at(0))
        for place, value in enumerate(values, 1)
    )
    return MetricsReported(run_id=run_id, attempt=attempt, points=points)


def whole_life(run_id: str = RUN_ID) -> list[RunFact]:
    """From the request to the version."""
    return [
        requested(run_id),
        queued(run_id=run_id),
        started(run_id=run_id),
        succeeded(run_id=run_id),
        versioned(run_id),
    ]


def told(data: Any, seconds: float = 0, sequence: int = 0) -> CloudEvent:
    """An event with its attributes; its id follows from what it says, as everywhere."""
    identity = event_id(data.run_id, getattr(data, "attempt", 0), data.type, sequence)
    return CloudEvent(identity, "/runyard/test", data.run_id, at(seconds), data)


def received(data: Any, offset: int = 0, sequence: int = 0) -> Received:
    """An event as a consumer hands it over."""
    topic = OUTPUT if isinstance(data, LogsAppended | MetricsReported) else RUNS
    return Received(topic.name, 0, offset, told(data, offset, sequence), value_of(data))


def batch(*facts: Any) -> list[Received]:
    """Events as a consumer hands them over, one after the other."""
    return [received(fact, offset) for offset, fact in enumerate(facts)]

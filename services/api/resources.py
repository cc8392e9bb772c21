"""What clients get: resources as the REST interface shows them, made from rows and runs. Pure.

Field names are the endpoint page's (`timeout_seconds`, `memory_gb`); times are RFC 3339 in UTC with `Z`.
"""

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.parts import AssetType, Compute, MetricDefinition, Runtime, Usage, UtcTime
from schemas.reason import Reason, RunStatus
from schemas.run import Run

Item = TypeVar("Item")


class Resource(BaseModel):
    """Anything that is shown; built by us, so never validated against what clients may send."""

    model_config = ConfigDict(frozen=True)


class Page(Resource, Generic[Item]):
    """A part of a list; `next_cursor` is null on its last page."""

    items: list[Item]
    next_cursor: str | None = None


class Dataset(Resource):
    """A dataset; the last four fields are null until it has content."""

    dataset_id: str
    name: str
    created_at: UtcTime
    filename: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None


class LastRun(Resource):
    """The newest run of a model."""

    run_id: str
    status: RunStatus
    reason: Reason | None = None
    version: int | None = None
    ended_at: UtcTime | None = None


class Model(Resource):
    """A model: `training` while a run is in progress, `trained` once it has a version, `draft` before."""

    model_id: str
    name: str
    model_type: Literal["custom", "auto"]
    status: Literal["draft", "training", "trained"]
    dataset_id: str | None = None
    metric_definitions: list[MetricDefinition] = Field(description="Metrics that are found in the logs of its runs.")
    created_at: UtcTime
    latest_version: int | None = None
    last_run: LastRun | None = None


class Asset(Resource):
    """An uploaded file of a model."""

    asset_id: str
    model_id: str
    asset_type: AssetType
    filename: str
    size_bytes: int
    sha256: str
    created_at: UtcTime


class RunUsage(Resource):
    """What the last attempt used; null where the engine could not tell."""

    peak_memory_bytes: int | None = None
    cpu_seconds: float | None = None
    wall_seconds: float


class CustomTrainingRun(Resource):
    """A run as a client sees it."""

    run_id: str
    model_id: str
    model_type: Literal["custom"] = "custom"
    status: RunStatus
    reason: Reason | None = Field(default=None, description="Why it waits or why it ended; null for a success.")
    message: str | None = Field(default=None, description="The reason in words.")
    attempt: int
    entry_point: str
    runtime: Runtime
    environment_vars: dict[str, str | None] = Field(description="Values are shown while the run has not ended.")
    compute: Compute
    run_label: str | None = None
    timeout_seconds: int
    grace_period_seconds: int
    cancellation_requested: bool = False
    created_at: UtcTime
    estimated_start_time: UtcTime | None = Field(default=None, description="Null when it cannot be known.")
    started_at: UtcTime | None = None
    ended_at: UtcTime | None = None
    exit_code: int | None = None
    usage: RunUsage | None = None
    version: int | None = Field(default=None, description="The version that it made, once it has succeeded.")


class Version(Resource):
    """A version of a model: what a run's script wrote to MODEL_OUTPUT_PATH."""

    version: int
    model_id: str
    run_id: str
    kind: Literal["file", "folder"] = Field(description="A folder is downloaded as a tar.")
    sha256: str
    size_bytes: int
    created_at: UtcTime


class OutputLine(Resource):
    """A line that the script printed; `dropped_before` counts lines that a limit kept back before it."""

    attempt: int
    sequence: int
    stream: Literal["stdout", "stderr"]
    text: str
    at: UtcTime
    truncated: bool = False
    dropped_before: int = 0


class Logs(Resource):
    """Lines of a run. `next_cursor` always goes on from here; `complete` says that nothing will follow it."""

    run_id: str
    items: list[OutputLine]
    next_cursor: str
    complete: bool


class Point(Resource):
    """One value of a metric."""

    attempt: int
    sequence: int
    step: int | None = None
    value: float
    at: UtcTime


class MetricSeries(Resource):
    """A metric's values in the order in which they were written; `total_points` counts those before downsampling."""

    name: str
    points: list[Point]
    total_points: int


class Metrics(Resource):
    """Series of a run by name. `next_cursor` always goes on from here; `complete` says that nothing will follow it."""

    run_id: str
    series: list[MetricSeries]
    next_cursor: str
    complete: bool


class RunHistoryEvent(Resource):
    """An event of a run as it is stored; `stale` says why it had no effect."""

    version: int
    event_id: str
    type: str
    source: str
    occurred_at: UtcTime
    stored_at: UtcTime
    stale: str | None = None
    data: dict[str, object]
    topic: str
    partition: int
    offset: int


class AuditEntry(Resource):
    """An entry of the audit log; `hash` covers it and the entry before it."""

    index: int
    action: str
    actor: str | None = None
    tenant_id: str
    model_id: str | None = None
    run_id: str | None = None
    request_id: str | None = None
    occurred_at: UtcTime
    details: dict[str, object]
    hash: str
    previous_hash: str


def show_run(run: Run, variables: dict[str, str] | None) -> CustomTrainingRun:
    """Show a run; variables that are gone are shown by name, with null."""
    spec = run.spec
    values = variables or {}
    return CustomTrainingRun(
        run_id=run.run_id,
        model_id=run.model_id,
        status=run.status,
        reason=run.reason,
        message=run.message,
        attempt=run.attempt,
        entry_point=spec.entry_point,
        runtime=spec.runtime,
        environment_vars={name: values.get(name) for name in spec.variable_names},
        compute=spec.compute,
        run_label=spec.run_label,
        timeout_seconds=spec.timeout_s,
        grace_period_seconds=spec.grace_s,
        cancellation_requested=run.cancellation_requested,
        created_at=run.requested_at,
        estimated_start_time=run.estimated_start_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
        exit_code=run.exit_code,
        usage=_show_usage(run.usage),
        version=run.version,
    )


def _show_usage(usage: Usage | None) -> RunUsage | None:
    if usage is None:
        return None
    return RunUsage(peak_memory_bytes=usage.peak_memory_bytes, cpu_seconds=usage.cpu_s, wall_seconds=usage.wall_s)

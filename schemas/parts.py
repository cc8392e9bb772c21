"""The parts that events are made of: what was asked for, what it runs on, what came out.

All frozen. Sizes are bytes unless the name says otherwise; times are aware and in UTC; durations are seconds.
"""

import operator
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

Runtime = Literal["python3.10", "python3.11", "python3.12"]
AssetType = Literal["script", "requirements", "data"]
Stream = Literal["stdout", "stderr"]

GRACE_S = 10
"""The grace period of a run that names none."""


def rfc3339(moment: datetime) -> str:
    """Write a time as RFC 3339 in UTC with `Z`, to the millisecond and without empty fractions.

    >>> rfc3339(datetime(2026, 3, 13, 16, 10, tzinfo=UTC))
    '2026-03-13T16:10:00Z'
    """
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return text.replace(".000Z", "Z")


def _aware_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a time needs an offset")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:  # pydantic would let it through: the year 1 east of Greenwich
        raise ValueError("a time is out of range") from error


UtcTime = Annotated[
    datetime,
    AfterValidator(_aware_utc),
    PlainSerializer(rfc3339, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""An aware time in UTC, RFC 3339 with `Z` on the wire."""


class Part(BaseModel):
    """A frozen piece of an event; unknown fields are refused where we produce."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="null")


class Compute(Part):
    """What one run needs of a machine. A GB is 2**30 bytes."""

    cpu_cores: int = Field(ge=1)
    memory_gb: int = Field(ge=1)
    gpu: bool = False


class PinnedObject(Part):
    """Bytes in the object store that a run will use, pinned by digest when the run was accepted."""

    filename: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class PinnedAsset(PinnedObject):
    """An asset of the model as it was when the run was accepted."""

    asset_id: str
    asset_type: AssetType


class PinnedDataset(PinnedObject):
    """The linked dataset as it was when the run was accepted."""

    dataset_id: str


class MetricDefinition(Part):
    """A metric that stands in the log: in a line that `regex` (RE2's syntax) matches, its one group is the value."""

    name: str
    regex: str


class TrainingSpec(Part):
    """All that a runner needs to know of a run. Variables by name only: the values are sealed in the object store.

    `grace_s` is the time between SIGTERM and SIGKILL.
    """

    entry_point: str
    runtime: Runtime
    compute: Compute
    timeout_s: int = Field(ge=1)
    grace_s: int = Field(default=GRACE_S, ge=0, exclude_if=lambda grace_s: grace_s == GRACE_S)
    run_label: str | None = None
    variable_names: tuple[str, ...] = ()
    assets: tuple[PinnedAsset, ...]
    dataset: PinnedDataset
    metric_definitions: tuple[MetricDefinition, ...] = Field(default=(), exclude_if=operator.not_)


class Usage(Part):
    """What an attempt used; null where the engine could not tell."""

    peak_memory_bytes: int | None = Field(default=None, ge=0)
    cpu_s: float | None = Field(default=None, ge=0)
    wall_s: float = Field(ge=0)


class Artifact(Part):
    """What the script wrote, as the runner uploaded it: a file as it is, a folder as a plain tar."""

    kind: Literal["file", "folder"]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class RunAttempt(Part):
    """One attempt of one run."""

    run_id: str
    attempt: int = Field(ge=1)


class Capacity(Part):
    """What a runner has to give, in the units of `Compute`."""

    cpu_cores: int = Field(ge=0)
    memory_gb: int = Field(ge=0)
    gpus: int = Field(default=0, ge=0)


class LogLine(Part):
    """One line of a script's output; `sequence` increases over the attempt's whole output."""

    sequence: int = Field(ge=1)
    stream: Stream
    text: str
    at: UtcTime
    truncated: bool = False


class MetricPoint(Part):
    """One value of one metric; `sequence` is shared with the log lines of the attempt.

    A point that was found in a log line has that line's sequence, and as `place` which of the model's metric
    definitions found it, from 1. A point of its own has place 0.
    """

    sequence: int = Field(ge=1)
    name: str
    value: float
    step: int | None = None
    at: UtcTime
    place: int = Field(default=0, ge=0, exclude_if=operator.not_)


class RunnerLoad(Part):
    """A runner as the scheduler sees it: what it has and what is not assigned."""

    runner_id: str
    capacity: Capacity
    free: Capacity
    runtimes: tuple[Runtime, ...]


class Occupation(Part):
    """A run that holds compute, and when it is expected to give it back."""

    runner_id: str
    compute: Compute
    expected_end_at: UtcTime


class Demand(Part):
    """A run that waits in the queue, in order."""

    compute: Compute
    runtime: Runtime
    expected_s: float = Field(ge=0)

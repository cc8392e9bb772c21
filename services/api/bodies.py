"""What clients send: request bodies, their limits and defaults, and the rules for names. Pure.

JSON types are strict and unknown fields are refused. Owns every limit of a body that the OpenAPI document shows.
"""

import operator
import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from schemas.parts import GRACE_S, Runtime
from services.backbone.patterns import MOST_CHARACTERS, compile_pattern

MAX_CPU_CORES, DEFAULT_CPU_CORES = 32, 2
MAX_MEMORY_GB, DEFAULT_MEMORY_GB = 128, 8
MAX_TIMEOUT_S, DEFAULT_TIMEOUT_S = 86_400, 7_200
MAX_GRACE_S = 600
MAX_VARIABLES = 100
MAX_VARIABLES_BYTES = 64 * 1024
MAX_NAME_CHARACTERS = 256
MAX_FILENAME_BYTES = 255
MAX_METRIC_DEFINITIONS = 40

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
ONE_LINE = r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$"
"""What `plain_text` accepts, as the OpenAPI document says it (half characters are no text there to begin with)."""
FILE_NAME = r"^[^/\\\u0000-\u001f\u007f-\u009f\u2028\u2029]{1,255}$"
"""What the document can say of `safe_filename`."""
RESERVED_NAMES = frozenset(
    {
        *("DATASET_PATH", "MODEL_OUTPUT_PATH", "METRICS_PATH", "CHECKPOINT_PATH", "FAILURE_PATH", "RUN_ID", "ATTEMPT"),
        *("RESUME", "HOME", "TMPDIR", "PATH", "LANG", "PYTHONUNBUFFERED"),
    }
)
RESERVED_PREFIXES = ("LD_", "PYTHON", "RUNYARD_", "DOCKER_")


def plain_text(text: str) -> str:
    """Accept text that is one line of valid Unicode.

    Raises:
        ValueError: it holds control characters or half a character.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise ValueError("must be one line of text without control characters")
    return text


def safe_filename(name: str) -> str:
    """Accept a name that is a plain file name on every system that a run may meet.

    Raises:
        ValueError: with the rule that it breaks.
    """
    plain_text(name)
    if not 1 <= len(name.encode()) <= MAX_FILENAME_BYTES:
        raise ValueError(f"a file name has 1 to {MAX_FILENAME_BYTES} bytes")
    if "/" in name or "\\" in name:
        raise ValueError("a file name holds no path separators")
    if name.startswith(("-", "..")) or name in (".", "..") or name != name.strip():
        raise ValueError("a file name does not begin with '-' or '..', nor begin or end with a space")
    return name


def free_name(name: str) -> str:
    """Accept the name of a variable.

    Raises:
        ValueError: it is malformed, or reserved.
    """
    if not VARIABLE_NAME.fullmatch(name):
        raise ValueError("a name has letters, digits and '_', no digit first, at most 128")
    if name in RESERVED_NAMES or name.startswith(RESERVED_PREFIXES):
        raise ValueError("this name is reserved for the run itself")
    return name


def passable_value(value: str) -> str:
    """Accept the value of a variable; what is refused is never repeated.

    Raises:
        ValueError: it cannot be passed to a process.
    """
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("a value holds no NUL and no half characters")
    return value


def bounded_variables(variables: dict[str, str]) -> dict[str, str]:
    """Accept variables that are few and short enough.

    Raises:
        ValueError: with the limit.
    """
    if len(variables) > MAX_VARIABLES:
        raise ValueError(f"at most {MAX_VARIABLES} variables; these are {len(variables)}")
    total = sum(len(name.encode()) + len(value.encode()) for name, value in variables.items())
    if total > MAX_VARIABLES_BYTES:
        raise ValueError(f"at most {MAX_VARIABLES_BYTES} bytes of names and values; these are {total}")
    return variables


def printable(name: str) -> str:
    """Accept the name of a metric, as METRICS_PATH would take it.

    Raises:
        ValueError: it holds something that cannot be seen.
    """
    if not name.isprintable():
        raise ValueError("must hold printable characters only")
    return name


def searchable(regex: str) -> str:
    """Accept a pattern that can be looked for in a log.

    Raises:
        ValueError: it is none; says why.
    """
    compile_pattern(plain_text(regex))
    return regex


SAID_OF_VARIABLES: dict[str, Any] = {
    "maxProperties": MAX_VARIABLES,
    "propertyNames": {
        "pattern": f"^{VARIABLE_NAME.pattern}$",
        "not": {"anyOf": [{"enum": sorted(RESERVED_NAMES)}, {"pattern": f"^({'|'.join(RESERVED_PREFIXES)})"}]},
    },
    "additionalProperties": {"type": "string", "pattern": r"^[^\u0000]*$"},
}
PlainText = Annotated[
    str, Field(max_length=MAX_NAME_CHARACTERS, json_schema_extra={"pattern": ONE_LINE}), AfterValidator(plain_text)
]
Name = Annotated[
    str,
    Field(min_length=1, max_length=MAX_NAME_CHARACTERS, json_schema_extra={"pattern": ONE_LINE}),
    AfterValidator(plain_text),
]
Filename = Annotated[str, Field(json_schema_extra={"pattern": FILE_NAME}), AfterValidator(safe_filename)]
Variables = Annotated[
    dict[Annotated[str, AfterValidator(free_name)], Annotated[str, AfterValidator(passable_value)]],
    Field(
        json_schema_extra=SAID_OF_VARIABLES,
        description=f"Variables for the script: at most {MAX_VARIABLES}, names and values together at most"
        f" {MAX_VARIABLES_BYTES} bytes. Names match {VARIABLE_NAME.pattern} and are none of "
        + ", ".join((*sorted(RESERVED_NAMES), *(f"{prefix}…" for prefix in RESERVED_PREFIXES)))
        + ". Values are any text without NUL; they are kept sealed and forgotten when the run ends.",
    ),
    AfterValidator(bounded_variables),
]


class Body(BaseModel):
    """A JSON body: strict types, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DatasetBody(Body):
    """A new dataset; its bytes follow by PUT …/content."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "wine"}]})

    name: Name


class MetricDefinitionBody(Body):
    """A metric that stands in the log of a script that knows nothing of metrics."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS), AfterValidator(printable)] = Field(
        json_schema_extra={"pattern": ONE_LINE}
    )
    regex: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS), AfterValidator(searchable)] = Field(
        json_schema_extra={"pattern": ONE_LINE},
        description="In RE2's syntax, with exactly one group. In each line of the log it is searched for once; what the"
        " group catches is a point of the metric if it is a finite number.",
    )


def distinct(definitions: list[MetricDefinitionBody]) -> list[MetricDefinitionBody]:
    """Accept definitions of which no two have one name.

    Raises:
        ValueError: with the place of the second one.
    """
    names = [definition.name for definition in definitions]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ValueError(f"two definitions have one name; the second is number {place + 1}")
    return definitions


class ModelBody(Body):
    """A new model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "wine quality",
                    "model_type": "custom",
                    "metric_definitions": [{"name": "loss", "regex": "loss=([0-9.eE+-]+)"}],
                }
            ]
        }
    )

    name: Name
    model_type: Literal["custom", "auto"]
    dataset_id: str | None = Field(
        default=None,
        max_length=64,
        description="The dataset that its runs train on.",
        json_schema_extra={"pattern": "^[A-Za-z0-9._-]+$"},
    )
    # Left out of a dump when there are none, so that the idempotency keys of before it was there still fit.
    metric_definitions: Annotated[
        list[MetricDefinitionBody], Field(max_length=MAX_METRIC_DEFINITIONS), AfterValidator(distinct)
    ] = Field(
        default_factory=list,
        exclude_if=operator.not_,
        description="Metrics that are found in the logs of its runs; each name once.",
    )


class ComputeBody(Body):
    """What a run needs of a machine. A GB is 2³⁰ bytes."""

    cpu_cores: int = Field(default=DEFAULT_CPU_CORES, ge=1, le=MAX_CPU_CORES)
    memory_gb: int = Field(default=DEFAULT_MEMORY_GB, ge=1, le=MAX_MEMORY_GB)
    gpu: bool = Field(default=False, description="Ask for a GPU worker; the run waits until there is one.")


class TrainBody(Body):
    """A request to train."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "entry_point": "train.py",
                    "runtime": "python3.11",
                    "environment_vars": {"LEARNING_RATE": "0.001", "EPOCHS": "50"},
                    "compute": {"cpu_cores": 4, "memory_gb": 16, "gpu": False},
                    "run_label": "custom-run-experiment-1",
                    "timeout_seconds": 14400,
                }
            ]
        }
    )

    entry_point: str = Field(min_length=1, max_length=255, description="Filename of a script asset of the model.")
    runtime: Runtime
    environment_vars: Variables = Field(default_factory=dict)
    compute: ComputeBody = Field(default_factory=ComputeBody)
    run_label: PlainText | None = None
    timeout_seconds: int = Field(default=DEFAULT_TIMEOUT_S, ge=1, le=MAX_TIMEOUT_S)
    grace_period_seconds: int = Field(
        default=GRACE_S, ge=0, le=MAX_GRACE_S, description="From SIGTERM to SIGKILL when the run is stopped."
    )

"""`runyard train`: a script and a file in, a trained version out, watched on the way.

Owns the exit code. Ctrl-C stops the watching, not the run.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.cli.api_client import Api, Json
from services.cli.connection import open_api
from services.cli.display import RunDisplay
from services.cli.errors import UsageRefused
from services.cli.follow import follow_run
from services.cli.options import DataDirOption, TokenOption, UrlOption
from services.cli.uploads import Files, ready_model

EXIT_CODE = {"succeeded": 0, "failed": 1, "cancelled": 3}
EXIT_INTERRUPTED = 130

EnvOption = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable for the script; repeatable.")
]
AssetOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--asset",
        help="Another file: .py lies beside the script, requirements*.txt is installed, others lie beside the data;"
        " repeatable.",
    ),
]
ModelOption = Annotated[
    str | None, typer.Option(help="The model's name.", show_default="the name of the script's folder")
]
CpuOption = Annotated[int | None, typer.Option(min=1, max=32, help="CPU cores for the run.", show_default="2")]
MemoryOption = Annotated[int | None, typer.Option(min=1, max=128, help="GB of memory for the run.", show_default="8")]
TimeoutOption = Annotated[
    int | None, typer.Option(min=1, max=86_400, help="Seconds after which it is cancelled.", show_default="7200")
]
GraceOption = Annotated[
    int | None, typer.Option(min=0, max=600, help="Seconds from SIGTERM to SIGKILL.", show_default="10")
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME=REGEX",
        help="A metric that stands in the log: what the regular expression's one group catches; repeatable. They belong"
        " to the model, and are given when it is made.",
    ),
]


def train(  # noqa: PLR0913 - every parameter is an option of the command line
    script: Annotated[Path, typer.Argument(help="The training script.")],
    data: Annotated[Path, typer.Option(help="The dataset; the script finds it at DATASET_PATH.")],
    data_dir: DataDirOption,
    model: ModelOption = None,
    runtime: Annotated[str, typer.Option(help="python3.10, python3.11 or python3.12.")] = "python3.11",
    cpu_cores: CpuOption = None,
    memory_gb: MemoryOption = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Ask for a GPU.")] = False,
    timeout: TimeoutOption = None,
    grace: GraceOption = None,
    env: EnvOption = None,
    label: Annotated[str | None, typer.Option(help="A label for the run.")] = None,
    asset: AssetOption = None,
    metric: MetricOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Train a model: upload the script and its data, start a run, follow it to its end.

    The model and its dataset are found again by name, so that the next call makes the next version. The script reads
    DATASET_PATH and writes its model to MODEL_OUTPUT_PATH; JSON lines in METRICS_PATH become metrics, and so do what it
    logs to MLflow and what --metric finds in its log.

    Exit codes: 0 succeeded, 1 failed, 2 refused, 3 cancelled or timed out, 4 nobody answers, 130 Ctrl-C (it goes on).

    [bold]Examples[/bold]

      runyard train examples/wine/train.py --data examples/wine/wine.csv

      runyard train train.py --data big.csv --asset layers.py -e EPOCHS=50 --memory-gb 16 --timeout 3600

      runyard train train.py --data big.csv --metric 'loss=loss: ([0-9.eE+-]+)'
    """
    compute = {"cpu_cores": cpu_cores, "memory_gb": memory_gb, "gpu": gpu or None}
    wanted = {
        "entry_point": script.name,
        "runtime": runtime,
        "environment_vars": variables_of(env or ()),
        "compute": {name: value for name, value in compute.items() if value is not None},
        "run_label": label,
        "timeout_seconds": timeout,
        "grace_period_seconds": grace,
    }
    body = {name: value for name, value in wanted.items() if value is not None}
    files = Files(script, data, asset or ())
    files.check()
    name = model or script.absolute().parent.name or "model"
    trained = Trained(name, files, definitions_of(metric or ()))
    sys.exit(asyncio.run(_train(open_api(url, token, data_dir), trained, body)))


def variables_of(words: Sequence[str]) -> dict[str, str]:
    """Read `NAME=VALUE` words; a value may hold `=`.

    >>> variables_of(["EPOCHS=50", "FORMULA=a=b"])
    {'EPOCHS': '50', 'FORMULA': 'a=b'}

    Raises:
        UsageRefused: a word has no `=`.
    """
    return dict(_split(word, "--env", "VALUE") for word in words)


def definitions_of(words: Sequence[str]) -> list[Json]:
    """Read `NAME=REGEX` words; a pattern may hold `=`.

    >>> definitions_of(["loss=loss=(.+)"])
    [{'name': 'loss', 'regex': 'loss=(.+)'}]

    Raises:
        UsageRefused: a word has no `=`.
    """
    return [{"name": name, "regex": regex} for name, regex in (_split(word, "--metric", "REGEX") for word in words)]


def _split(word: str, option: str, second: str) -> tuple[str, str]:
    name, equals, rest = word.partition("=")
    if not equals or not name:
        raise UsageRefused(f"{option} {word!r}: write NAME={second}")
    return name, rest


@dataclass(frozen=True, slots=True)
class Trained:
    """The model that is to be trained: its name, its files, and the metrics that its log is searched for."""

    name: str
    files: Files
    definitions: Sequence[Json]


async def _train(client: Api, trained: Trained, body: Json) -> int:
    console = Console(highlight=False)
    async with client as api:
        with console.status("uploading"):
            model = await ready_model(api, trained.name, trained.files, trained.definitions)
        run = await api.post(f"/models/{model['model_id']}/custom/train", body)
        console.print(f"{run['run_id']} trains {trained.name} ({model['model_id']})", markup=False, soft_wrap=True)
        try:
            with RunDisplay(console) as display:
                ended = await follow_run(api, run, display)
        except asyncio.CancelledError:
            console.print(_left_running(run["run_id"]), soft_wrap=True)
            return EXIT_INTERRUPTED
        if ended["status"] == "succeeded" and (version := await _version(api, ended)):
            place = f"{api.url}/api/v1/models/{model['model_id']}/versions/{version}/artifact"
            console.print(f"version {version}: {place}", markup=False, soft_wrap=True)
    return EXIT_CODE[ended["status"]]


async def _version(api: Api, run: Json) -> int | None:
    """Find the version that a run made; the run itself may show it a moment later."""
    async for version in api.pages(f"/models/{run['model_id']}/versions"):
        if version["run_id"] == run["run_id"]:
            return int(version["version"])
    return None


def _left_running(run_id: str) -> str:
    return (
        f"\nThe run goes on. Follow it:  runyard logs {run_id} -f\nStop it:                     runyard cancel {run_id}"
    )

"""`runyard run-local`: a script in exactly the sandbox that a run gets, on this machine, without any service.

Owns what is accepted, with the endpoint's own rules, what is shown, and the exit code. Never knows how it is done.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from schemas.events import AttemptLost
from schemas.parts import Compute, LogLine, MetricDefinition, MetricPoint
from schemas.reason import Reason
from services.api.bodies import (
    MAX_CPU_CORES,
    MAX_GRACE_S,
    MAX_MEMORY_GB,
    MAX_TIMEOUT_S,
    ModelBody,
    TrainBody,
    safe_filename,
)
from services.backbone.telemetry import configure_logs
from services.cli.api_client import Json
from services.cli.display import RunDisplay
from services.cli.errors import CliError, UsageRefused
from services.cli.train import AssetOption, EnvOption, definitions_of, variables_of
from services.cli.uploads import Files, asset_type_of
from services.runner.errors import EngineUnavailable, SettingRefused
from services.runner.local import LocalOutcome, LocalRequest, run_local
from services.runner.local_ear import End
from services.runner.setting_up import Stopped

EXIT_SUCCEEDED, EXIT_FAILED, EXIT_LOST, EXIT_TIMEOUT, EXIT_INTERRUPTED = 0, 1, 3, 124, 130
"""124 as timeout(1) has it, 130 as shells have it for SIGINT."""

CpuOption = Annotated[int | None, typer.Option(min=1, max=MAX_CPU_CORES, help="CPU cores.", show_default="2")]
MemoryOption = Annotated[int | None, typer.Option(min=1, max=MAX_MEMORY_GB, help="GB of memory.", show_default="8")]
TimeoutOption = Annotated[
    int | None,
    typer.Option("--timeout-s", "--timeout", min=1, max=MAX_TIMEOUT_S, help="Its time limit.", show_default="7200"),
]
GraceOption = Annotated[
    int | None,
    typer.Option("--grace-s", "--grace", min=0, max=MAX_GRACE_S, help="From SIGTERM to SIGKILL.", show_default="10"),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="NAME=REGEX", help="A metric that stands in the log; repeatable."),
]
OutputOption = Annotated[
    Path | None, typer.Option(help="Folder for the artifact: `model`, or `model.tar` where the script made a folder.")
]


class EngineMissing(CliError):
    """No engine answers, or it cannot have the runtime's image."""

    exit_code = 4


def run_local_command(  # noqa: PLR0913 - every parameter is an option of the command line
    script: Annotated[Path, typer.Argument(help="The training script.")],
    data: Annotated[Path, typer.Option(help="The dataset; the script finds it at DATASET_PATH.")],
    runtime: Annotated[str, typer.Option(help="python3.10, python3.11 or python3.12.")] = "python3.11",
    asset: AssetOption = None,
    env: EnvOption = None,
    cpu_cores: CpuOption = None,
    memory_gb: MemoryOption = None,
    timeout_s: TimeoutOption = None,
    grace_s: GraceOption = None,
    metric: MetricOption = None,
    output: OutputOption = None,
) -> None:
    """Run a script on this machine in exactly the sandbox that a run gets: needs a Docker Engine and nothing else.

    No network, read-only files, the same limits, variables and paths. What works here works as a run. Settings of a
    runner (RUNYARD_OCI_RUNTIME, RUNYARD_TMP_MB…) count here, too. Ctrl-C sends SIGTERM to the script, once more ends
    it at once; nothing but the artifact is left.

    Exit codes: 0 succeeded, 1 failed, 2 refused, 3 lost by no fault of the script, 4 no Docker Engine, 124 timed out,
    130 interrupted.

    [bold]Examples[/bold]

      runyard run-local examples/wine/train.py --data examples/wine/wine.csv --output trained

      runyard run-local train.py --data big.csv --asset layers.py -e EPOCHS=2 --memory-gb 4 --timeout-s 600
    """
    files = Files(script, data, asset or ())
    files.check()
    _check_output(output)
    compute = {"cpu_cores": cpu_cores, "memory_gb": memory_gb}
    wanted = {
        "entry_point": script.name,
        "runtime": runtime,
        "environment_vars": variables_of(env or ()),
        "compute": {name: value for name, value in compute.items() if value is not None},
        "timeout_seconds": timeout_s,
        "grace_period_seconds": grace_s,
    }
    body = {name: value for name, value in wanted.items() if value is not None}
    request = replace(request_of(files, body, definitions_of(metric or ())), output=output)
    configure_logs("run-local", "warning")
    sys.exit(asyncio.run(_run(request, Console(highlight=False))))


def request_of(files: Files, body: Json, definitions: Sequence[Json]) -> LocalRequest:
    """Check a request by the rules of the endpoint, so that nothing works here that a run would be refused for.

    Raises:
        UsageRefused: with every field that is wrong.
    """
    try:
        checked = TrainBody.model_validate(body)
        ModelBody.model_validate({"name": "local", "model_type": "custom", "metric_definitions": list(definitions)})
        for file in (files.script, files.data, *files.others):
            safe_filename(file.name)
    except ValidationError as error:
        wrong = [f"  {'/'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise UsageRefused("\n".join(["a run like this would be refused", *wrong])) from error
    except ValueError as error:
        raise UsageRefused(f"{file.name!r}: {error}") from error
    return LocalRequest(
        script=files.script,
        data=files.data,
        assets=[(path, asset_type_of(path.name)) for path in files.others],
        runtime=checked.runtime,
        variables=checked.environment_vars,
        compute=Compute(cpu_cores=checked.compute.cpu_cores, memory_gb=checked.compute.memory_gb),
        timeout_s=checked.timeout_seconds,
        grace_s=checked.grace_period_seconds,
        metric_definitions=[MetricDefinition.model_validate(definition) for definition in definitions],
    )


def _check_output(output: Path | None) -> None:
    """Refuse before the training what the artifact could not be moved to after it."""
    if output is None:
        return
    if output.exists() and not output.is_dir():
        raise UsageRefused(f"--output {output} is no folder")
    for artifact in (output / "model", output / "model.tar"):
        if artifact.is_dir():
            raise UsageRefused(f"{artifact} is a folder, and an artifact would be written there: name another --output")


async def _run(request: LocalRequest, console: Console) -> int:
    def say(line: str) -> None:
        console.print(f"  {line}", markup=False, soft_wrap=True)

    stop = _stop_by_signals(say)
    try:
        with RunDisplay(console) as display:
            shown = _Shown(display)
            outcome = await run_local(request, shown, stop, say)
            shown.on_end(outcome.end)
    except EngineUnavailable as error:
        raise EngineMissing(f"the Docker Engine does not answer, or cannot have the runtime: {error}") from error
    except SettingRefused as error:
        raise UsageRefused(f"a setting of this machine (RUNYARD_…) cannot be used: {error}") from error
    except (Stopped, asyncio.CancelledError):
        sys.stdout.flush()
        os._exit(EXIT_INTERRUPTED)  # all is removed; threads that still make an image must not keep the process
    if outcome.artifact is not None and request.output is not None:
        console.print(str(outcome.artifact), markup=False, soft_wrap=True)
    return exit_code_of(outcome)


def _stop_by_signals(say: Callable[[str], None]) -> asyncio.Event:
    """Let the first SIGINT or SIGTERM stop the run in order, and the second one this very task."""
    stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
            return
        say("stopping the script in order; once more ends it at once")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return stop


def exit_code_of(outcome: LocalOutcome) -> int:
    """Tell the command's exit code; it is not the script's, which is in the message."""
    end = outcome.end
    if isinstance(end, AttemptLost):
        return EXIT_LOST
    if end.type == "runyard.run.succeeded.v1":
        return EXIT_SUCCEEDED
    if end.type == "runyard.run.failed.v1":
        return EXIT_FAILED
    return EXIT_TIMEOUT if end.reason is Reason.TIMEOUT else EXIT_INTERRUPTED


class _Shown:
    """Shows a local run as any other run is shown."""

    def __init__(self, display: RunDisplay) -> None:
        self._display = display
        display.on_run({"status": "starting"})

    def on_started(self, container_id: str) -> None:
        self._display.on_run({"status": "running", "message": f"container {container_id[:12]}"})

    def on_line(self, line: LogLine) -> None:
        self._display.on_line(line.model_dump())

    def on_point(self, point: MetricPoint) -> None:
        self._display.on_point(point.model_dump())

    def on_end(self, end: End) -> None:
        """Tell the end in a run's own words."""
        status = "failed" if isinstance(end, AttemptLost) else end.type.split(".")[2]
        self._display.on_run({"status": status, "reason": end.reason, "message": end.message})

"""`runyard up`: everything on one machine, until Ctrl-C.

Owns what is said while it runs. Never does anything by itself that `system` can do.
"""

import asyncio
import shlex
import time
from typing import Annotated

import typer
from rich.console import Console

from services.cli.options import DataDirOption
from services.cli.stopping import until_stopped
from services.cli.system import RunningSystem, SystemOptions, running_system

CpuCoresOption = Annotated[int | None, typer.Option(min=1, help="CPU cores to announce.", show_default="the host's")]
MemoryOption = Annotated[int | None, typer.Option(min=1, help="GB of memory to announce.", show_default="the host's")]


def up(  # noqa: PLR0913 - every parameter is an option of the command line
    data_dir: DataDirOption,
    host: Annotated[str, typer.Option(help="Where the API listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The API's port; 0 takes a free one.")] = 8000,
    kafka_port: Annotated[int, typer.Option(min=0, max=65535, help="Kafka's port on 127.0.0.1; 0: a free one.")] = 9092,
    postgres_port: Annotated[int, typer.Option(min=0, max=65535, help="PostgreSQL's; 0: last time's, or free.")] = 0,
    cpu_cores: CpuCoresOption = None,
    memory_gb: MemoryOption = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs to announce; the Docker Engine must pass them.")] = 0,
) -> None:
    """Run a whole Runyard on this machine: PostgreSQL, Apache Kafka, the four services and one runner on local Docker.

    Everything lives in one folder and survives restarts; unfinished runs go on. Ctrl-C stops all of it.

    [bold]Examples[/bold]

      runyard up

      runyard up --data-dir .runyard/demo          what the demo left

      runyard up --cpu-cores 4 --memory-gb 16      announce more (or less) than the host has
    """
    options = SystemOptions(
        data_dir=data_dir,
        host=host,
        api_port=port,
        kafka_port=kafka_port,
        postgres_port=postgres_port,
        cpu_cores=cpu_cores,
        memory_gb=memory_gb,
        gpus=gpus,
    )
    asyncio.run(_up(options, Console(highlight=False)))


async def _up(options: SystemOptions, console: Console) -> None:
    systems: list[RunningSystem] = []

    def say(line: str) -> None:
        console.print(f"  {line}", markup=False, soft_wrap=True)

    async def work() -> None:
        began = time.monotonic()
        async with running_system(options, say) as system:
            systems.append(system)
            console.print(_greeting(system, time.monotonic() - began), soft_wrap=True)
            await system.wait()

    def kill() -> None:
        for system in systems:
            system.kill()

    if await until_stopped(work(), say, kill):
        say(f"stopped. All of it is in {options.data_dir}; start it again with: {_command(options)}")


def _greeting(system: RunningSystem, seconds: float) -> str:
    return (
        f"\n[bold green]Runyard is up[/] after {seconds:.1f} s\n\n"
        f"  REST   {system.api_url}        (documentation: {system.api_url}/docs)\n"
        f"  Kafka  {system.kafka_bootstrap_servers}               (events: topic runyard.runs)\n"
        f"  Logs   {system.data_dir.path / 'logs'}\n\n"
        f"  export RUNYARD_URL={system.api_url}\n"
        f"  export RUNYARD_TOKEN=$(runyard token --data-dir {shlex.quote(str(system.data_dir.path))})\n\n"
        "Ctrl-C stops everything.\n"
    )


def _command(options: SystemOptions) -> str:
    """Write the command that starts the same system again, with what differs from the defaults."""
    defaults = SystemOptions(options.data_dir, api_port=8000, kafka_port=9092)
    names = ("host", "api_port", "kafka_port", "postgres_port", "cpu_cores", "memory_gb", "gpus")
    words = ["runyard", "up", "--data-dir", str(options.data_dir)]
    for name in names:
        if (value := getattr(options, name)) != getattr(defaults, name):
            words += ["--" + name.removeprefix("api_").replace("_", "-"), str(value)]
    return shlex.join(words)

"""`runyard demo`: the whole system, one real model, every step through the REST API, and nothing left running.

Owns the story and what has to be true at its end. The steps themselves are in `demo_steps`.
"""

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.rule import Rule

from services.cli.api_client import Api
from services.cli.data_dir import DEMO_DATA_DIR, DataDir
from services.cli.demo_steps import (
    Story,
    ensure_image,
    leave_nothing_running,
    score_artifact,
    show_audit,
    train_model,
    upload_everything,
)
from services.cli.errors import CliError
from services.cli.stopping import until_stopped
from services.cli.system import RunningSystem, SystemOptions, can_bind, running_system
from services.cli.tokens import Claims

EXIT_INTERRUPTED = 130
HOST, API_PORT, KAFKA_PORT = "127.0.0.1", 8000, 9092


def demo(
    data_dir: Annotated[Path, typer.Option(help="The folder that keeps everything; made if missing.")] = DEMO_DATA_DIR,
) -> None:
    """Start everything, train a real model through the REST API, show every step, stop everything.

    The data folder stays, so that the second time is quick and `runyard up` can open it again. Uses port 8000 for REST
    and 9092 for Kafka, or free ones where these are taken. Exits with 0 if the model trained and scored as it should.

    [bold]Example[/bold]

      runyard demo
    """
    sys.exit(asyncio.run(_demo(data_dir, Console(highlight=False))))


async def _demo(data_dir: Path, console: Console) -> int:
    began = time.monotonic()
    systems: list[RunningSystem] = []

    def say(line: str) -> None:
        console.print(f"  {line}", markup=False, soft_wrap=True)

    def kill() -> None:
        for system in systems:
            system.kill()

    async def work() -> None:
        console.print(Rule("1. the system", align="left"))
        await ensure_image(say)
        options = SystemOptions(data_dir, HOST, _port(API_PORT), _port(KAFKA_PORT))
        async with running_system(options, say) as system:
            systems.append(system)
            async with Api(system.api_url, system.token(Claims(subject="demo"))) as api:
                try:
                    await _tell(Story(api, system, console))
                finally:
                    with suppress(CliError):
                        await leave_nothing_running(api)
            say("stopping everything in order")

    if await until_stopped(work(), say, kill):
        say("interrupted; nothing is left running")
        return EXIT_INTERRUPTED
    took_s = time.monotonic() - began
    console.print(f"\n[bold green]Done[/] in {took_s:.1f} s. Nothing is left running; open it again with:\n")
    console.print(f"  runyard up --data-dir {DataDir.at(data_dir).path}\n", markup=False, soft_wrap=True)
    return 0


async def _tell(story: Story) -> None:
    story.title("2. a dataset, a model and a script")
    model = await upload_everything(story)
    story.title("3. the run, as it happens: events from Kafka, lines from the logs")
    trained = await train_model(story, model)
    story.title("4. the version, scored in a sandbox on wines that it never saw")
    await score_artifact(story, trained)
    story.title("5. the audit log")
    await show_audit(story, trained)


def _port(usual: int) -> int:
    return usual if can_bind(HOST, usual) else 0

"""`runyard runs`, `logs` and `cancel`: looking at runs and stopping them.

Owns how a run is found by its id alone. Never starts one.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.api_client import Api, Json
from services.cli.connection import open_api
from services.cli.display import STYLE, line_text, status_text
from services.cli.errors import UsageRefused
from services.cli.follow import follow_stream, path_of
from services.cli.options import DataDirOption, TokenOption, UrlOption

PIPE_WIDTH = 200
"""Where no terminal says how wide it is, nothing shall be cut off."""

RunArgument = Annotated[str, typer.Argument(help="The run's id, as `runyard runs` lists it.")]


def runs(
    data_dir: DataDirOption,
    model: Annotated[str | None, typer.Option(help="Only of this model, by id or name.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many of each model.")] = 20,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """List runs, newest first, with how they ended.

    [bold]Examples[/bold]

      runyard runs

      runyard runs --model wine --limit 5
    """
    asyncio.run(_runs(open_api(url, token, data_dir), model, limit))


def logs(  # noqa: PLR0913 - every parameter is an option of the command line
    run_id: RunArgument,
    data_dir: DataDirOption,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    tail: Annotated[int | None, typer.Option(min=1, max=10_000, help="Only the last lines.")] = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Print what a run's script printed.

    [bold]Examples[/bold]

      runyard logs run-custom-20260313-f7e2a1 -f

      runyard logs run-custom-20260313-f7e2a1 --tail 20
    """
    if follow and tail:
        raise UsageRefused("--tail and --follow do not go together: --follow prints everything from the beginning")
    asyncio.run(_logs(open_api(url, token, data_dir), run_id, follow, tail))


def cancel(run_id: RunArgument, data_dir: DataDirOption, url: UrlOption = None, token: TokenOption = None) -> None:
    """Ask a run to stop: its script gets SIGTERM and ten seconds to end. Asking again changes nothing.

    [bold]Example[/bold]

      runyard cancel run-custom-20260313-f7e2a1
    """
    asyncio.run(_cancel(open_api(url, token, data_dir), run_id))


async def _runs(client: Api, wanted: str | None, limit: int) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("run", "model", "status", "reason", "version", "created", "took", "label"):
        table.add_column(column, no_wrap=True)
    async with client as api:
        found = False
        async for model in api.pages("/models", limit=200):
            if wanted not in (None, model["model_id"], model["name"]) or not model.get("last_run"):
                continue
            page = await api.get(f"/models/{model['model_id']}/runs", limit=limit)
            for run in page["items"]:
                found = True
                table.add_row(*_row(model["name"], run))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(table if found else "no runs")


def _row(model: str, run: Json) -> list[Text]:
    took = ""
    if run["started_at"] and run["ended_at"]:
        seconds = datetime.fromisoformat(run["ended_at"]) - datetime.fromisoformat(run["started_at"])
        took = f"{seconds.total_seconds():.1f} s"
    created = f"{datetime.fromisoformat(run['created_at']).astimezone():%m-%d %H:%M:%S}"
    words = (run["reason"] or "", str(run["version"] or ""), created, took, run["run_label"] or "")
    return [Text(run["run_id"]), Text(model), Text(run["status"], STYLE[run["status"]]), *map(Text, words)]


async def _logs(client: Api, run_id: str, follow: bool, tail: int | None) -> None:
    console = Console(highlight=False)

    def show(line: Json) -> None:
        console.print(line_text(line), soft_wrap=True)

    async with client as api:
        run = await find_run(api, run_id)
        if follow:
            await follow_stream(api, f"{path_of(run)}/logs", show)
            console.print(status_text(await api.get(path_of(run))))
        elif tail:
            for line in (await api.get(f"{path_of(run)}/logs", tail=tail))["items"]:
                show(line)
        else:
            async for line in _all_lines(api, run):
                show(line)


async def _all_lines(api: Api, run: Json) -> AsyncIterator[Json]:
    after = None
    while True:
        page = await api.get(f"{path_of(run)}/logs", after=after)
        for line in page["items"]:
            yield line
        if not page["items"]:
            return
        after = page["next_cursor"]


async def _cancel(client: Api, run_id: str) -> None:
    async with client as api:
        run = await find_run(api, run_id)
        await api.post(f"{path_of(run)}/cancel")
    Console(highlight=False).print(f"{run_id} was asked to stop; see `runyard logs {run_id} -f`", soft_wrap=True)


async def find_run(api: Api, run_id: str) -> Json:
    """Find a run by its id: models' last runs first, since most questions are about one of these.

    Raises:
        UsageRefused: no model of the tenant has such a run.
    """
    models = [model async for model in api.pages("/models", limit=200) if model.get("last_run")]
    for model in models:
        if model["last_run"]["run_id"] == run_id:
            return await api.get(f"/models/{model['model_id']}/runs/{run_id}")
    for model in models:
        async for run in api.pages(f"/models/{model['model_id']}/runs", limit=200):
            if run["run_id"] == run_id:
                return run
    raise UsageRefused(f"there is no run {run_id}: `runyard runs` lists them")

"""`runyard dead-letters list`, `show` and `retry`: looking at what could not be handled, and giving it another chance.

Owns how a letter is shown: what is in it was written by strangers, so nothing of it reaches the terminal unescaped, and
never more than fits. `letters` reads and publishes.
"""

import asyncio
import base64
import json
import logging
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.backbone.settings import ServiceSettings
from services.cli.data_dir import DataDir
from services.cli.errors import CliError, UsageRefused
from services.cli.letters import Letter, Letters, find
from services.cli.options import DataDirOption

SHOWN_CHARACTERS = 4_000
LISTED_CHARACTERS = 120
PIPE_WIDTH = 200
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

KafkaOption = Annotated[
    str | None,
    typer.Option(
        "--kafka-bootstrap-servers",
        envvar="RUNYARD_KAFKA_BOOTSTRAP_SERVERS",
        show_default="the data folder's system",
        help="Where Kafka is; RUNYARD_KAFKA_… say how to log in.",
    ),
]
SinceOption = Annotated[
    str | None, typer.Option(help="Only what was set aside since: 30m, 2h, 3d, or a time like 2026-03-13T16:10:00Z.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines: a JSON object per line.")]
LetterArgument = Annotated[str, typer.Argument(help="A letter's id or the beginning of it, or its partition/offset.")]
LettersArgument = Annotated[list[str], typer.Argument(help="Ids, beginnings of ids, or partition/offset.")]

app = typer.Typer(help="Look at messages that could not be handled, and try them again.", no_args_is_help=True)


@app.command("list")
def list_letters(  # noqa: PLR0913 - every parameter is an option of the command line
    data_dir: DataDirOption,
    topic: Annotated[str | None, typer.Option(help="Only of this topic.")] = None,
    consumer: Annotated[str | None, typer.Option(help="Only what this consumer refused, such as api.runs.")] = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 20,
    as_json: JsonOption = False,
    kafka: KafkaOption = None,
) -> None:
    """List dead letters, newest first: who refused what, where it stood, why, and whether it was retried.

    [bold]Examples[/bold]

      runyard dead-letters list

      runyard dead-letters list --topic runyard.runs --since 2h --json
    """
    topic_of = Letters(_settings(kafka, data_dir))
    letters = asyncio.run(topic_of.read(_moment(since)))
    wanted = [one for one in letters if topic in (None, one.data.topic) and consumer in (None, one.data.consumer)]
    shown = wanted[::-1][:limit]
    if as_json:
        for letter in shown:
            typer.echo(json.dumps(summary(letter)))
    else:
        _console().print(_table(shown) if shown else "no dead letters")
    for note in _notes(len(wanted) - len(shown), topic_of.skipped):
        typer.echo(note, err=True)


@app.command()
def show(
    letter: LetterArgument, data_dir: DataDirOption, as_json: JsonOption = False, kafka: KafkaOption = None
) -> None:
    """Show one dead letter with the headers and the beginning of the value that it holds.

    [bold]Example[/bold]

      runyard dead-letters show 0/17
    """
    found = find(asyncio.run(Letters(_settings(kafka, data_dir)).read()), letter)
    if as_json:
        typer.echo(json.dumps(summary(found) | found.data.model_dump(mode="json", exclude={"type"})))
    else:
        for line in described(found):
            typer.echo(line)


@app.command()
def retry(
    names: LettersArgument,
    data_dir: DataDirOption,
    again: Annotated[bool, typer.Option("--again", help="Also what was retried before.")] = False,
    kafka: KafkaOption = None,
) -> None:
    """Publish refused messages again: the same bytes, key and headers, to the partition where they stood.

    Every consumer of the topic reads them; who handled the first one absorbs the second. Mend the cause before.

    [bold]Example[/bold]

      runyard dead-letters retry 5c85eb67 0/17
    """
    asyncio.run(_retry(Letters(_settings(kafka, data_dir)), names, again))


async def _retry(topic: Letters, names: list[str], again: bool) -> None:
    """Retry each message once, however many consumers refused it; all are looked up before the first is published."""
    letters = await topic.read()
    chosen = {letter.place: letter for letter in (find(letters, name) for name in names)}
    before = [letter for letter in chosen.values() if letter.retry is not None]
    if before and not again:
        told = ", ".join(f"{letter.letter_id} ({_retried(letter)})" for letter in before)
        raise UsageRefused(f"retried before: {told}. Say --again to publish it once more")
    failed = 0
    for letter in chosen.values():
        try:
            offset = await topic.retry(letter)
        except CliError as error:
            failed += 1
            typer.echo(f"not retried: {error}", err=True)
            continue
        typer.echo(
            f"{_place(letter)} was published again and stands at {letter.data.topic}/{letter.data.partition}/{offset}"
        )
    if failed:
        raise CliError(f"{failed} of {len(chosen)} messages were not retried")


def summary(letter: Letter) -> dict[str, Any]:
    """Describe a letter for machines, without what it holds."""
    data, retry = letter.data, letter.retry
    return {
        "letter_id": letter.letter_id,
        "at": letter.at,
        "time": letter.time.isoformat().replace("+00:00", "Z"),
        "consumer": data.consumer,
        "topic": data.topic,
        "partition": data.partition,
        "offset": data.offset,
        "reason": data.reason,
        "value_size_bytes": data.value_size_bytes,
        "whole": letter.whole,
        "retried_at": retry.at.isoformat().replace("+00:00", "Z") if retry else None,
        "new_offset": retry.new_offset if retry else None,
    }


def described(letter: Letter) -> list[str]:
    """Describe a letter for people, line by line."""
    data = letter.data
    lines = [
        f"letter    {letter.letter_id} at {letter.at}, {letter.time:%Y-%m-%d %H:%M:%S} UTC",
        f"message   {_place(letter)}",
        f"refused   by {data.consumer}: {printable(data.reason)}",
        f"retried   {_retried(letter)}" if letter.retry else "retried   no",
        f"key       {_shown(data.key_base64)}",
    ]
    lines += [f"header    {printable(name)}: {_shown(raw)}" for name, raw in data.headers_base64]
    size = "none" if data.value_size_bytes is None else f"{data.value_size_bytes} bytes, sha256 {data.value_sha256}"
    lines.append(f"value     {size}")
    if not letter.whole:
        lines.append("          the letter holds only a part of the message; a retry reads it again where it stood")
    if data.value_base64:
        lines += ["", _shown(data.value_base64)]
    return lines


def printable(text: str) -> str:
    r"""Escape what a terminal could take for an order, and cut what is too long.

    >>> printable("\x1b[2J")
    '\\x1b[2J'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:SHOWN_CHARACTERS])
    return shown if len(text) <= SHOWN_CHARACTERS else f"{shown}… ({len(text)} characters)"


def _shown(raw: str | None) -> str:
    return "null" if raw is None else printable(base64.b64decode(raw).decode(errors="backslashreplace"))


def _place(letter: Letter) -> str:
    return "/".join(map(str, letter.place))


def _retried(letter: Letter) -> str:
    retry = letter.retry
    return "" if retry is None else f"{retry.at:%Y-%m-%d %H:%M:%S} UTC, now at offset {retry.new_offset}"


def _table(letters: list[Letter]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("letter", "at", "set aside", "by", "message", "retried"):
        table.add_column(column, no_wrap=True)
    table.add_column("reason", overflow="ellipsis", no_wrap=True)
    for letter in letters:
        when, retried = f"{letter.time:%m-%d %H:%M:%S}", f"{letter.retry.at:%m-%d %H:%M}" if letter.retry else ""
        words = (letter.letter_id[:8], letter.at, when, letter.data.consumer, _place(letter), retried)
        table.add_row(*map(Text, words), Text(printable(letter.data.reason)[:LISTED_CHARACTERS]))
    return table


def _notes(more: int, skipped: int) -> list[str]:
    notes = [f"{more} older ones are not shown: --limit, --since"] if more > 0 else []
    return [*notes, f"{skipped} records on the topic are no dead letters"] if skipped else notes


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def _settings(kafka: str | None, folder: Path) -> ServiceSettings:
    """Say how Kafka is reached: as told, else as the data folder's system has it."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what goes wrong is told in our own words
    if kafka is not None:
        return ServiceSettings(kafka_bootstrap_servers=kafka)
    data_dir = DataDir.at(folder)
    data_dir.secrets()  # refuses a folder that holds no system
    try:
        port = int((data_dir.kafka / "port").read_text())
    except (OSError, ValueError) as error:
        raise UsageRefused(f"{data_dir.path} has no Kafka yet: start the system with `runyard up`") from error
    return ServiceSettings(kafka_bootstrap_servers=f"127.0.0.1:{port}")


def _moment(since: str | None) -> datetime | None:
    """Read a duration until now, or a time.

    Raises:
        UsageRefused: it is neither.
    """
    if since is None:
        return None
    if duration := re.fullmatch(r"(\d{1,6})([smhd])", since):
        return datetime.now(UTC) - timedelta(**{UNITS[duration[2]]: int(duration[1])})
    try:
        moment = datetime.fromisoformat(since)
    except ValueError as error:
        raise UsageRefused(f"--since {since!r} is neither like 30m, 2h or 3d nor a time") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

"""How a run looks on a terminal: lines as they come, and below them a live panel with its state and metrics.

Where there is no terminal the same is printed line by line. Owns words and colours; never asks the API anything.
"""

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from services.cli.api_client import Json
from services.cli.sparkline import metrics_table

STYLE = {
    "queued": "yellow",
    "starting": "yellow",
    "running": "cyan",
    "succeeded": "bold green",
    "failed": "bold red",
    "cancelled": "bold magenta",
}


class RunDisplay:
    """Shows one run; a `Watcher`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spinner = Spinner("dots")
        self._began = time.monotonic()
        self._state: tuple[str, str] | None = None
        self.series: dict[str, list[float]] = {}
        self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if self.series:
            self._console.print(metrics_table(self.series))

    def on_run(self, run: Json) -> None:
        """Tell each change of status or reason."""
        state = (run["status"], run.get("message") or run.get("reason") or "")
        if state != self._state:
            self._state = state
            self._console.print(status_text(run))

    def on_line(self, line: Json) -> None:
        """Print a line of the script's output."""
        self._console.print(line_text(line), soft_wrap=True)

    def on_point(self, point: Json) -> None:
        """Keep a metric's value for the panel and the table."""
        self.series.setdefault(point["name"], []).append(point["value"])

    def _panel(self) -> RenderableType:
        status, words = self._state or ("queued", "")
        self._spinner.update(text=Text(f"{status}  {time.monotonic() - self._began:.0f} s  {words}", STYLE[status]))
        return Group(metrics_table(self.series), self._spinner) if self.series else self._spinner


def status_text(run: Json) -> Text:
    """Write a run's state in one line."""
    text = Text("● ", STYLE[run["status"]]).append(run["status"])
    why = ": ".join(word for word in (run.get("reason"), run.get("message")) if word)
    if why:
        text.append(f"  {why}", "dim")
    if run.get("version"):
        text.append(f"  version {run['version']}", "default")
    return text


def line_text(line: Json) -> Text:
    """Write a line of output as it was printed, whatever is in it, with what a limit kept back before it."""
    text = Text()
    if line.get("dropped_before"):
        text.append(f"… {line['dropped_before']} lines were not kept …\n", "dim")
    text.append(line["text"], "yellow" if line["stream"] == "stderr" else "")
    if line.get("truncated"):
        text.append(" …", "dim")
    return text

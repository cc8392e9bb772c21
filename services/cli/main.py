"""The `runyard` command: its commands, assembled. Each lives in a file of its own.

Owns how failures reach the user: in words, with the exit code of their kind; `--debug` shows the traceback.
"""

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from services.cli.dead_letters import app as dead_letters
from services.cli.demo import demo
from services.cli.errors import CliError
from services.cli.operations import migrate, replay, verify
from services.cli.run_local import run_local_command
from services.cli.runs import cancel, logs, runs
from services.cli.tokens import token
from services.cli.train import train
from services.cli.up import up


class PlainFailures(TyperGroup):
    """A group that tells expected failures in plain words."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (CliError, ExceptionGroup) as failure:
            error = expected_failure(failure)
            if error is None or ctx.params.get("debug"):
                raise
            Console(stderr=True, highlight=False).print("[bold red]Error:[/]", Text(str(error)), soft_wrap=True)
            sys.exit(error.exit_code)


def expected_failure(failure: Exception) -> CliError | None:
    """Find the failure that the user can understand, be it alone or the first of several that happened side by side."""
    if isinstance(failure, ExceptionGroup):
        expected = failure.subgroup(CliError)
        return expected_failure(expected.exceptions[0]) if expected else None
    return failure if isinstance(failure, CliError) else None


app = typer.Typer(
    cls=PlainFailures,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First time here? [bold]runyard demo[/] trains a real model and shows every step.",
)


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train custom models: one REST call in, a sandboxed run, a model version and a complete history out."""


for use in (demo, up, train, runs, logs, cancel, token):
    app.command()(use)
app.command("run-local")(run_local_command)
for operate in (migrate, replay, verify):
    app.command(rich_help_panel="Operations")(operate)
app.add_typer(dead_letters, name="dead-letters", rich_help_panel="Operations")

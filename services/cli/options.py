"""Options that several commands take, written once: the data folder, and how to reach the API."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.data_dir import DEFAULT_DATA_DIR

DataDirOption = Annotated[
    Path,
    typer.Option(
        envvar="RUNYARD_DATA_DIR",
        default_factory=lambda: DEFAULT_DATA_DIR,
        show_default=str(DEFAULT_DATA_DIR),
        help="The folder of the system that `runyard up` runs.",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(envvar="RUNYARD_URL", show_default="the data folder's system", help="Where the API is."),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        envvar="RUNYARD_TOKEN",
        show_default="one for the data folder's system",
        help="A bearer token; see `runyard token`.",
    ),
]

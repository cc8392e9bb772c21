"""From a command's options to a client of the API, with a token of the local system when none was given."""

from pathlib import Path

from services.cli.api_client import Api
from services.cli.data_dir import DataDir
from services.cli.errors import UsageRefused
from services.cli.tokens import mint

DEFAULT_URL = "http://127.0.0.1:8000"


def open_api(url: str | None, token: str | None, data_dir: Path) -> Api:
    """Make a client; without a token or a URL, they are those of the system of the data folder.

    Raises:
        UsageRefused: there is neither a token nor a data folder to mint one from.
    """
    if token is None:
        try:
            token = mint(DataDir.at(data_dir))
        except UsageRefused as error:
            raise UsageRefused(
                f"no token: pass --token or RUNYARD_TOKEN. (None could be minted, since {error})"
            ) from error
    return Api(url or DataDir.at(data_dir).last_url() or DEFAULT_URL, token)

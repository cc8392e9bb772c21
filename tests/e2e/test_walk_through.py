"""Protects the README: what it tells a newcomer to type does what it says, word for word."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import System

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
[COMMANDS] = re.findall(r"^In another one.*?```sh\n(.*?)```", README, re.MULTILINE | re.DOTALL)
[COMMAND_LINE] = re.findall(r"^Or let the command line do all that: `(.*)`\.$", README, re.MULTILINE)
ADDRESS = "http://127.0.0.1:8000"
"""Where `make up` answers; the system under test answers elsewhere."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that has what the commands need of a checkout, and takes what they leave in it."""
    for name in (".venv", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def typed(commands: str, folder: Path, system: System) -> str:
    assert commands.count(ADDRESS) <= 1
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands.replace(ADDRESS, system.api_url)],
        cwd=folder,
        env=kept | {"RUNYARD_DATA_DIR": str(system.data_dir.path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_walk_through_trains_a_model_and_downloads_it(checkout: Path, system: System) -> None:
    shown = typed(COMMANDS, checkout, system)
    assert "fold 5/5: accuracy" in shown
    assert '"status":"succeeded"' in shown
    assert '"held_out_accuracy"' in shown
    assert '"model.custom_training_started"' in shown
    assert (checkout / "model.joblib").stat().st_size > 10_000


def test_the_command_line_does_all_that(checkout: Path, system: System) -> None:
    shown = typed(f"export PATH=$PWD/.venv/bin:$PATH\n{COMMAND_LINE}", checkout, system)
    assert "fold 5/5: accuracy" in shown
    assert re.search(r"^version \d+: http", shown, re.MULTILINE), shown

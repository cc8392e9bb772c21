"""Protects the switch behind every crash point: off it does nothing, armed it kills exactly once, without a word."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from services.backbone.crash_points import ENVIRONMENT

PASSES = "from services.backbone.crash_points import crash_point; crash_point('here'); print('alive')"


def passes(folder: Path | None) -> subprocess.CompletedProcess[str]:
    """Let a process of its own pass the point `here`."""
    environment = {name: value for name, value in os.environ.items() if name != ENVIRONMENT}
    if folder is not None:
        environment[ENVIRONMENT] = str(folder)
    return subprocess.run([sys.executable, "-c", PASSES], env=environment, capture_output=True, text=True, check=False)


def test_a_point_does_nothing_where_nobody_tests_crashes(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    assert passes(None).stdout == "alive\n"
    assert (tmp_path / "here").exists()


def test_a_point_that_is_not_armed_lets_the_process_pass(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    assert passes(tmp_path).stdout == "alive\n"
    assert passes(tmp_path / "no such folder").stdout == "alive\n"


def test_an_armed_point_kills_once_over_restarts(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    killed = passes(tmp_path)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "")
    assert passes(tmp_path).stdout == "alive\n"

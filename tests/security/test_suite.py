"""`make security` itself: where nothing can be played, nothing is called well."""

import os
import subprocess
import sys


def test_without_an_engine_the_suite_fails_and_says_why() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tests.security.suite", "--alone"],
        env={**os.environ, "DOCKER_HOST": "tcp://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 1
    assert "nothing can be played" in told.stderr
    assert "all is well" not in told.stdout

"""The command as a user types it: its own process, its exit codes, its words, and nothing left when it is gone."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.cli.embedded_process import free_port, is_free

CHECKOUT = Path(__file__).parents[2]
RUNYARD = [sys.executable, "-c", "from services.cli.main import app; app()"]
READY_S, STOPPED_S = 90, 45


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    return {**kept, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}


def runyard(*words: object) -> subprocess.CompletedProcess[str]:
    command = [*RUNYARD, *map(str, words)]
    return subprocess.run(
        command, cwd=CHECKOUT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def until(condition: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def processes_of(data_dir: Path) -> list[int]:
    """The parts of a system by their pid files, as far as they live."""
    files = [*data_dir.glob("*/server.pid"), *data_dir.glob("logs/*/server.pid")]
    pids = [int(file.read_text().split()[0]) for file in files]
    return [pid for pid in pids if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Up:
    """A `runyard up` of its own, on free ports."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.ports = (free_port(), free_port())
        self.output = data_dir.with_suffix(".out")
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [
                    *RUNYARD,
                    "up",
                    "--data-dir",
                    data_dir,
                    "--port",
                    str(self.ports[0]),
                    "--kafka-port",
                    str(self.ports[1]),
                ],
                cwd=CHECKOUT,
                env=environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        assert until(lambda: "Runyard is up" in self.output.read_text() or self.process.poll() is not None, READY_S)
        assert self.process.poll() is None, self.output.read_text()

    def assert_nothing_is_left(self) -> None:
        assert until(lambda: not processes_of(self.data_dir), STOPPED_S), processes_of(self.data_dir)
        assert all(is_free(port) for port in self.ports)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Up]]:
    """Starts systems on one folder; whatever the test left running is killed."""
    started: list[Up] = []

    def begin() -> Up:
        started.append(Up(tmp_path / "data"))
        return started[-1]

    yield begin
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()


@pytest.mark.timeout(300)
def test_a_killed_up_leaves_nothing_and_the_next_one_opens_its_folder_again(start: Callable[[], Up]) -> None:
    first = start()
    first.wait_until_ready()
    assert len(processes_of(first.data_dir)) == 6
    second = runyard("up", "--data-dir", first.data_dir, "--port", 0, "--kafka-port", 0)
    assert (second.returncode, "in use by process" in second.stderr) == (1, True)
    verified = runyard("verify", "--data-dir", first.data_dir)
    assert (verified.returncode, verified.stderr) == (0, "")
    url = f"http://127.0.0.1:{first.ports[0]}"
    listed = runyard("runs", "--data-dir", first.data_dir, "--url", url)
    assert (listed.returncode, listed.stdout) == (0, "no runs\n")
    first.process.kill()
    first.process.wait()
    first.assert_nothing_is_left()

    again = start()
    again.wait_until_ready()
    again.process.send_signal(signal.SIGINT)
    assert again.process.wait(STOPPED_S) == 0
    again.assert_nothing_is_left()
    assert "stopped. All of it is in" in again.output.read_text()
    assert runyard("verify", "--data-dir", again.data_dir).stdout.endswith("the ledger holds together\n")


def test_a_second_signal_kills_at_once(start: Callable[[], Up]) -> None:
    up = start()
    up.wait_until_ready()
    up.process.send_signal(signal.SIGTERM)
    assert until(lambda: "once more kills it" in up.output.read_text(), 5)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(5) == 130
    up.assert_nothing_is_left()


def test_a_port_that_is_taken_is_named_with_its_option(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = runyard("up", "--data-dir", tmp_path, "--port", 0, "--kafka-port", port)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"Error: 127.0.0.1:{port} is taken by another program: stop it, or choose a port with --kafka-port\n"
    )


def test_without_a_system_a_command_says_how_to_start_one(tmp_path: Path) -> None:
    refused = runyard("runs", "--url", f"http://127.0.0.1:{free_port()}", "--token", "x", "--data-dir", tmp_path)
    assert refused.returncode == 4
    assert "runyard up" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_without_a_token_and_a_data_folder_a_command_says_what_is_missing(tmp_path: Path) -> None:
    refused = runyard("runs", "--data-dir", tmp_path)
    assert refused.returncode == 2
    assert "RUNYARD_TOKEN" in refused.stderr


def test_a_script_that_is_not_there_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    refused = runyard("train", tmp_path / "none.py", "--data", tmp_path / "none.csv", "--token", "x")
    assert refused.returncode == 2
    assert "is no file" in refused.stderr


@pytest.mark.parametrize(
    "command", ["up", "demo", "train", "runs", "logs", "cancel", "token", "migrate", "replay", "verify"]
)
def test_every_command_teaches_itself_with_an_example(command: str) -> None:
    told = runyard(command, "--help")
    assert told.returncode == 0
    assert re.search(rf"runyard {command}", told.stdout), told.stdout

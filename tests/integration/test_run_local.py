"""`runyard run-local` as a user types it: the same sandbox, the same words, and nothing left when it is gone."""

import asyncio
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import docker
import pytest
import pytest_asyncio

from schemas.events import AttemptLost, RunSucceeded
from schemas.parts import Compute, LogLine, MetricPoint
from schemas.reason import Reason
from services.cli.embedded_process import free_port
from services.runner import sandbox
from services.runner.attempt import Attempt
from services.runner.engine import PART as ENGINE
from services.runner.local import LocalRequest, local_runner
from services.runner.local_home import PREFIX
from services.runner.sandbox import RUN_LABEL
from tests.chaos.broker_proxy import LOOPBACK, BrokerProxy

RUNYARD = [sys.executable, "-c", "from services.cli.main import app; app()"]
WITHIN_S = 60


class Bench:
    """A folder for scripts, and the command with its own folder for temporary files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        (folder / "data.csv").write_text("a,b\n1,2\n")

    def command(self, script: str, *words: object) -> list[str]:
        (self.folder / "train.py").write_text(script)
        files = [str(self.folder / "train.py"), "--data", str(self.folder / "data.csv")]
        return [
            *RUNYARD,
            "run-local",
            *files,
            "--memory-gb",
            "1",
            "--cpu-cores",
            "1",
            "--grace-s",
            "2",
            *map(str, words),
        ]

    def environment(self, **changes: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
        kept |= {"COLUMNS": "200", "PYTHONUNBUFFERED": "1", "TMPDIR": str(self.temporary)}
        return {**kept, **changes}

    def run(self, script: str, *words: object, **changes: str) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(script, *words), self.environment(**changes)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WITHIN_S, check=False)

    def start(self, script: str, *words: object) -> "subprocess.Popen[str]":
        command, environment = self.command(script, *words), self.environment()
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def left(self) -> list[str]:
        """What is left: folders, and containers whose files lie in them."""
        folders = [path.name for path in self.temporary.glob(f"{PREFIX}*")]
        client = docker.from_env()
        try:
            found = client.api.containers(all=True, filters={"label": RUN_LABEL})
        finally:
            client.close()
        containers = [c["Names"][0] for c in found if any(_below(m, self.temporary) for m in c["Mounts"])]
        return folders + containers


def _below(mount: dict[str, str], folder: Path) -> bool:
    return mount.get("Source", "").startswith(f"{folder}/")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    pytest.fail(f"it ended before it said {text!r}: {said}")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


TRAINS = """
import json, os, layers
print("data:", open(os.environ["DATASET_PATH"]).readline().strip(), layers.NAME, os.environ["EPOCHS"])
with open(os.environ["METRICS_PATH"], "a") as metrics:
    metrics.write(json.dumps({"name": "loss", "value": 0.25}) + "\\n")
open(os.environ["MODEL_OUTPUT_PATH"], "w").write("weights")
"""


def test_a_script_trains_and_its_artifact_is_where_it_should_be(bench: Bench) -> None:
    (bench.folder / "layers.py").write_text("NAME = 'layers'\n")
    output = bench.folder / "trained"
    done = bench.run(TRAINS, "--asset", bench.folder / "layers.py", "-e", "EPOCHS=2", "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data: a,b layers 2" in done.stdout
    assert "loss" in done.stdout
    assert "succeeded" in done.stdout
    assert [(path.name, path.read_text()) for path in output.iterdir()] == [("model", "weights")]
    assert bench.left() == []


def test_a_folder_is_put_there_as_the_tar_that_a_version_would_be(bench: Bench) -> None:
    script = "import os\nos.mkdir(os.environ['MODEL_OUTPUT_PATH'])\n"
    script += "open(os.environ['MODEL_OUTPUT_PATH'] + '/weights', 'w').write('w')\n"
    output = bench.folder / "trained"
    assert bench.run(script, "--output", output).returncode == 0
    with tarfile.open(output / "model.tar") as tar:
        assert tar.getnames() == ["weights"]


def test_a_failure_is_told_in_a_runs_own_words(bench: Bench) -> None:
    done = bench.run("import sys\nprint('about to fail', file=sys.stderr)\nsys.exit(7)")
    assert done.returncode == 1
    assert "script_error: exit code 7: about to fail" in done.stdout
    assert bench.left() == []


def test_a_script_over_its_time_limit_is_a_timeout_as_that_of_a_run(bench: Bench) -> None:
    done = bench.run("import time\nprint('begun')\ntime.sleep(60)", "--timeout-s", 1)
    assert done.returncode == 124
    assert "timeout: stopped at its time limit" in done.stdout
    assert bench.left() == []


def test_metrics_are_found_in_its_log_as_in_a_runs(bench: Bench) -> None:
    done = bench.run("print('epoch 1 loss=0.125')", "--metric", "loss=loss=([0-9.]+)")
    assert done.returncode == 0
    assert "0.125" in done.stdout.replace("loss=0.125", "")


def test_without_an_artifact_it_succeeds_and_says_so(bench: Bench) -> None:
    done = bench.run("print('nothing to keep')")
    assert done.returncode == 0
    assert "no_artifact" in done.stdout


PATIENT = """
import signal, sys, time
def stop(*_):
    print("saving")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready")
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_reaches_the_script_as_sigterm_and_cleans_up(bench: Bench, number: signal.Signals) -> None:
    process = bench.start(PATIENT)
    read_until(process, "ready")
    process.send_signal(number)
    said, _ = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 130, said
    assert "saving" in said
    assert "user_request: stopped on request" in said
    assert bench.left() == []


def test_a_second_interruption_waits_for_nobody(bench: Bench) -> None:
    process = bench.start("import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('ready')\ntime.sleep(60)")
    read_until(process, "ready")
    process.send_signal(signal.SIGINT)
    read_until(process, "once more")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WITHIN_S)
    assert process.returncode == 130
    assert bench.left() == []


def test_what_a_killed_one_has_left_is_swept_by_the_next(bench: Bench) -> None:
    process = bench.start("import time\nprint('ready')\ntime.sleep(600)")
    read_until(process, "ready")
    process.kill()
    process.communicate(timeout=WITHIN_S)
    assert len(bench.left()) == 2
    assert bench.run("print('the next')").returncode == 0
    until(lambda: bench.left() == [])


def test_what_cannot_be_swept_is_told_and_hinders_nobody(bench: Bench) -> None:
    home = bench.temporary / f"{PREFIX}broken"
    (home / "work").mkdir(parents=True)
    (home / "lock").touch()
    (home / "work" / "journal.db").write_bytes(b"no journal" * 1000)
    done = bench.run("print('the next')")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sweep_failed" in done.stdout + done.stderr
    assert bench.left() == [home.name]


def test_two_at_once_do_not_meet(bench: Bench) -> None:
    first = bench.start(PATIENT)
    read_until(first, "ready")
    assert bench.run("print('beside it')").returncode == 0
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=WITHIN_S)
    assert bench.left() == []


def test_the_sandbox_is_that_of_a_run(bench: Bench) -> None:
    done = bench.run("import os, socket\nprint(os.listdir('/sys/class/net'), os.getuid() != 0)\nopen('/x', 'w')")
    assert done.returncode == 1
    assert "['lo'] True" in done.stdout
    assert "Read-only file system" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--runtime", "python2.7"), "runtime: Input should be 'python3.10', 'python3.11' or 'python3.12'"),
        (("-e", "LD_PRELOAD=x"), "reserved"),
        (("-e", "NOTHING"), "write NAME=VALUE"),
        (("--metric", "loss=("), "metric_definitions"),
        (("--asset", "/nowhere/layers.py"), "/nowhere/layers.py is no file"),
    ],
)
def test_what_a_run_would_be_refused_for_is_refused_here(bench: Bench, words: tuple[str, ...], said: str) -> None:
    done = bench.run("print('never')", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert bench.left() == []


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("RUNYARD_TMP_MB", "0", "RunnerSettings: tmp_mb: Input should be greater than or equal to 1"),
        ("RUNYARD_PACKAGE_TIMEOUT_S", "-1", "PackageSettings: timeout_s: Input should be greater than 0"),
        ("RUNYARD_PACKAGE_INDEX_URL", "gopher://user:secret@index", "index"),
        ("RUNYARD_SECCOMP_PROFILE", "/nowhere/profile.json", "/nowhere/profile.json"),
    ],
)
def test_a_setting_that_cannot_be_used_is_told_and_leaves_nothing(
    bench: Bench, setting: str, value: str, said: str
) -> None:
    done = bench.run("print('never')", **{setting: value})
    assert done.returncode == 2
    assert "a setting of this machine (RUNYARD_…) cannot be used" in done.stderr
    assert said in done.stderr
    assert "secret" not in done.stderr
    assert bench.left() == []


@pytest.mark.parametrize("artifact", ["model", "model.tar"])
def test_a_folder_where_the_artifact_would_be_is_told_before_the_training(bench: Bench, artifact: str) -> None:
    (bench.folder / "out" / artifact).mkdir(parents=True)
    done = bench.run("print('never')", "--output", bench.folder / "out")
    assert done.returncode == 2
    assert f"{bench.folder / 'out' / artifact} is a folder" in done.stderr


def test_an_output_that_is_no_folder_is_told_before_the_training(bench: Bench) -> None:
    done = bench.run("print('never')", "--output", bench.folder / "data.csv")
    assert done.returncode == 2
    assert "is no folder" in done.stderr


def test_a_machine_without_an_engine_is_told_so(bench: Bench) -> None:
    done = bench.run("print('never')", DOCKER_HOST="tcp://127.0.0.1:1")
    assert done.returncode == 4
    assert "the Docker Engine does not answer" in done.stderr
    assert bench.left() == []


def test_the_help_tells_the_exit_codes(bench: Bench) -> None:
    done = subprocess.run(
        [*RUNYARD, "run-local", "--help"], env=bench.environment(), capture_output=True, text=True, check=True
    )
    assert "124 timed out" in done.stdout
    assert "--timeout-s" in done.stdout


class StopsAtALine:
    """A listener that tells a run to stop as soon as it hears a line."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()

    def on_started(self, container_id: str) -> None:
        raise AssertionError("nothing starts")

    def on_line(self, line: LogLine) -> None:
        self.stop.set()

    def on_point(self, point: MetricPoint) -> None:
        raise AssertionError("nothing is measured")


@pytest.mark.parametrize(("stops", "reason"), [(True, Reason.USER_REQUEST), (False, Reason.REQUIREMENTS_FAILED)])
async def test_a_stop_that_comes_while_a_failure_is_told_counts_before_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, stops: bool, reason: Reason
) -> None:
    """The first cause that is journaled wins: the failure is not, before all of it was told."""
    monkeypatch.setattr("tempfile.tempdir", str(bench.temporary))
    script, requirements = bench.folder / "train.py", bench.folder / "requirements.txt"
    script.write_text("print('never')")
    requirements.write_text("--index-url https://elsewhere.example")
    listener = StopsAtALine()
    request = LocalRequest(script=script, data=bench.folder / "data.csv", assets=[(requirements, "requirements")])
    async with local_runner() as runner:
        outcome = await runner.run(request, listener, listener.stop if stops else asyncio.Event())
    assert listener.stop.is_set()
    assert outcome.end.reason is reason


class Hears:
    """A listener."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_started(self, container_id: str) -> None:
        assert container_id

    def on_line(self, line: LogLine) -> None:
        self.lines.append(line.text)

    def on_point(self, point: MetricPoint) -> None:
        raise AssertionError("nothing is measured")


class ClosesBehind(asyncio.Event):
    """A gate that lets one through and then stands closed until it is opened again."""

    def __init__(self) -> None:
        super().__init__()
        self.found_closed = asyncio.Event()

    async def wait(self) -> Literal[True]:
        if not self.is_set():
            self.found_closed.set()
        await super().wait()
        self.clear()
        return True


@pytest.fixture
def says_hello(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> LocalRequest:
    monkeypatch.setattr("tempfile.tempdir", str(bench.temporary))
    script = bench.folder / "train.py"
    script.write_text("print('hello')")
    return LocalRequest(script=script, data=bench.folder / "data.csv", compute=Compute(cpu_cores=1, memory_gb=1))


@pytest.mark.parametrize("vanishes", [False, True])
async def test_what_was_set_up_while_the_runner_was_cut_off_waits_before_it_starts(
    says_hello: LocalRequest, *, vanishes: bool
) -> None:
    """Setting up may take minutes: that nothing unread forbids the start is asked once more right before it."""
    async with local_runner() as runner:
        await runner.prepare(says_hello.runtime, print)
        gate, heard = ClosesBehind(), Hears()
        gate.set()
        runner.around = replace(runner.around, may_start=gate)
        running = asyncio.create_task(runner.run(says_hello, heard, asyncio.Event()))
        async with asyncio.timeout(WITHIN_S):
            await gate.found_closed.wait()
        (container,) = await runner.around.engine.ask(lambda engine: engine.owned(runner.around.runner_id))
        assert container.status == "created"
        assert heard.lines == []
        if vanishes:
            await runner.around.engine.ask(lambda engine: engine.remove(container.name))
        gate.set()
        outcome = await running
    assert isinstance(outcome.end, AttemptLost if vanishes else RunSucceeded)
    assert outcome.end.reason is (Reason.CONTAINER_LOST if vanishes else Reason.NO_ARTIFACT)
    assert heard.lines == ([] if vanishes else ["hello"])


@pytest_asyncio.fixture
async def link(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BrokerProxy]:
    """What stands between the runner and its engine; an engine that does not answer is not waited for by default."""
    port = free_port()
    proxy = BrokerProxy(
        port, Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
    )
    await proxy.start()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://{LOOPBACK}:{port}")
    for module in ("attempt", "setting_up"):
        monkeypatch.setattr(f"services.runner.{module}.PATIENCE_S", 0.0)
    yield proxy
    await proxy.stop()


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_engine_that_does_not_answer_when_a_container_may_run_is_waited_for(
    says_hello: LocalRequest, link: BrokerProxy, *, restarted: bool
) -> None:
    """Who gave the attempt up while it is being started, or may have been, would let another one run beside it."""
    async with local_runner() as runner:
        await runner.prepare(says_hello.runtime, print)
        gate, engine, journal = ClosesBehind(), runner.around.engine, runner.around.journal
        gate.set()
        queued = await runner._queue(says_hello)
        journal.accept(queued, None)
        (entry,) = journal.unfinished()
        heard = runner._ear.listeners[queued.run_id] = Hears()
        living = asyncio.create_task(Attempt(entry, queued, replace(runner.around, may_start=gate)).run())
        async with asyncio.timeout(WITHIN_S):
            await gate.found_closed.wait()
            await link.cut()
            if restarted:
                living.cancel()
                await asyncio.gather(living, return_exceptions=True)
                living = asyncio.create_task(Attempt(entry, queued, runner.around).run())
            gate.set()
            while engine.health.works(ENGINE):  # noqa: ASYNC110 - health has no event
                await asyncio.sleep(0.02)
            await link.mend()
            await living
        end = runner._ear.ends[queued.run_id]
    assert isinstance(end, RunSucceeded), end
    assert heard.lines == ["hello"]


async def test_an_engine_whose_clock_is_an_hour_behind_ends_no_training(
    says_hello: LocalRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one in a machine of its own may be, or a laptop's that slept: a time limit is a duration."""
    moment = sandbox._moment
    monkeypatch.setattr(sandbox, "_moment", lambda text: (at := moment(text)) and at - timedelta(hours=1))
    request = replace(says_hello, timeout_s=60)
    request.script.write_text("import time\ntime.sleep(1)\nprint('hello')")
    heard = Hears()
    async with local_runner() as runner:
        await runner.prepare(request.runtime, print)
        outcome = await runner.run(request, heard, asyncio.Event())
    assert isinstance(outcome.end, RunSucceeded), outcome
    assert heard.lines == ["hello"]

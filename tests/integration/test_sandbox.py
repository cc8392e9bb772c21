"""The sandbox against a real engine: what a script can do, what it cannot, and what is known about it afterwards."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from services.runner.artifact import Collected, Limits, collect
from services.runner.errors import EngineRefused, EngineUnavailable
from services.runner.frames import Dropped, End, Log, Metric, Started, Timeout
from services.runner.sandbox import Sandbox
from services.runner.sandbox_images import ensure
from tests.integration.cell import MIB, Cell, a_cell

CANARY = "canary-4f1d"


@pytest.fixture(scope="module")
def image() -> str:
    return ensure("python3.11")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox.connect(followers=4)
    yield sandbox
    sandbox.close()


@pytest.fixture
def cell(sandbox: Sandbox, image: str, tmp_path: Path) -> Iterator[Cell]:
    with a_cell(sandbox, image, tmp_path) as cell:
        yield cell


def test_a_script_trains_with_its_dataset_and_leaves_log_metrics_and_an_artifact(cell: Cell, tmp_path: Path) -> None:
    cell.start(
        "import json, os, sys\n"
        "print(open(os.environ['DATASET_PATH']).readline().strip(), os.environ['SECRET'], os.getcwd(), sys.path[0])\n"
        "print('oh', file=sys.stderr)\n"
        "with open(os.environ['METRICS_PATH'], 'a') as file:\n"
        "    file.write(json.dumps({'name': 'loss', 'value': 0.5, 'step': 1}) + '\\n')\n"
        "os.mkdir(os.environ['MODEL_OUTPUT_PATH'])\n"
        "open(os.environ['MODEL_OUTPUT_PATH'] + '/weights', 'w').write('w')\n",
        variables={"SECRET": CANARY},
    )
    frames = cell.frames()
    logs = {(frame.stream, frame.text) for frame in frames if isinstance(frame, Log)}
    assert logs == {("stdout", "a,b *** /runyard/code /runyard/code"), ("stderr", "oh")}
    assert [(m.name, m.value, m.step) for m in frames if isinstance(m, Metric)] == [("loss", 0.5, 1)]
    assert isinstance(frames[0], Started)
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
    end = frames[-1]
    assert isinstance(end, End)
    assert (end.exit_code, end.signal, end.oom_kills, end.error) == (0, None, 0, None)
    assert end.peak_memory_bytes is not None
    assert 0 < end.peak_memory_bytes < 512 * MIB
    assert end.cpu_seconds is not None
    assert 0 < end.cpu_seconds < 60
    assert cell.ended().exit_code == 0
    collected = collect(cell.spec.folder.out, tmp_path / "artifact", Limits(max_bytes=MIB))
    assert isinstance(collected, Collected)
    assert collected.kind == "folder"


def test_the_scripts_variables_are_not_in_the_containers_inspection(cell: Cell) -> None:
    cell.start("pass", variables={"SECRET": CANARY})
    with closing(docker.APIClient()) as client:
        assert CANARY not in json.dumps(client.inspect_container(cell.spec.name))


def test_a_failing_script_hands_on_its_exit_code_and_its_traceback(cell: Cell) -> None:
    told = cell.run("import sys\nprint('bye')\nsys.exit(7)")
    assert (told.lines, told.end.exit_code) == (["bye"], 7)
    assert cell.ended().exit_code == 7


def test_sigterm_reaches_the_script_and_its_own_exit_is_what_counts(cell: Cell) -> None:
    cell.start("import signal, sys\nsignal.signal(15, lambda *_: sys.exit(3))\nprint('ready')\nsignal.pause()")
    cell.until(lambda frame: isinstance(frame, Log))
    cell.sandbox.terminate(cell.spec.name)
    end = cell.frames()[-1]
    assert isinstance(end, End)
    assert (end.terminated, end.timed_out, end.exit_code) == (True, False, 3)


def test_the_deadline_ends_a_script_that_ignores_sigterm_without_anybodys_help(cell: Cell) -> None:
    script = "import signal\nsignal.signal(15, signal.SIG_IGN)\nprint('ready')\nwhile True: signal.pause()"
    cell.start(script, deadline_s=2, grace_s=0.5)
    frames = cell.frames()
    end = frames[-1]
    assert isinstance(end, End)
    assert any(isinstance(frame, Timeout) for frame in frames)
    assert (end.timed_out, end.exit_code, end.signal) == (True, None, 9)
    assert cell.ended().exit_code == 137


def test_daemons_that_hold_the_pipes_open_die_with_the_script(cell: Cell) -> None:
    told = cell.run(
        "import os, signal, time\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        signal.signal(15, signal.SIG_IGN)\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(600)\n"
        "        os._exit(0)\n"
        "print('done')\n",
        deadline_s=600,
    )
    assert (told.lines, told.end.exit_code, told.end.timed_out) == (["done"], 0, False)


def test_memory_above_the_limit_kills_the_script_and_is_counted(cell: Cell) -> None:
    cell.spec = replace(cell.spec, memory_bytes=96 * MIB)
    told = cell.run("print('eating')\nhoard = [b'x' * 1_000_000 for _ in range(500)]\nprint('full')")
    end = told.end
    assert told.lines == ["eating"]
    assert (end.signal, end.exit_code) == (9, None)
    assert end.oom_kills > 0
    assert end.peak_memory_bytes is not None
    assert end.peak_memory_bytes > 80 * MIB


def test_a_flood_stops_at_the_quota_and_the_end_says_so(cell: Cell) -> None:
    cell.start("while True: print('y' * 200)", max_output_bytes=200_000)
    frames = cell.frames()
    end, dropped = frames[-1], frames[-2]
    assert isinstance(end, End)
    assert isinstance(dropped, Dropped)
    assert end.output_quota_exceeded
    assert end.signal == 15
    assert dropped.lines > 0
    assert 400 < sum(isinstance(frame, Log) for frame in frames) < 1000


def test_the_script_has_no_rights_no_network_and_nothing_to_write_but_its_own(cell: Cell) -> None:
    cell.spec = replace(cell.spec, pids_limit=40)
    told = cell.run(PROBE)
    found = json.loads(told.lines[0])
    assert told.end.exit_code == 0
    assert found["uid"] == [cell.spec.owner.uid] * 3
    assert found["status"]["CapEff"] == found["status"]["CapBnd"] == found["status"]["CapPrm"] == "0" * 16
    assert (found["status"]["NoNewPrivs"], found["status"]["Seccomp"]) == ("1", "2")
    assert found["interfaces"] == ["lo"]
    assert found["written"] == ["/dev/shm/x", "/runyard/out/x", "/tmp/x"]
    assert found["executed"] == 5
    assert set(found["secrets"].values()) == {"PermissionError"}
    assert found["own_slot_readable"]
    assert found["oom_score_adj"] == "1000"
    assert " ".join(found["environment"]) == (
        "ATTEMPT CHECKPOINT_PATH DATASET_PATH FAILURE_PATH GIT_PYTHON_REFRESH HOME LANG METRICS_PATH"
        " MLFLOW_ALLOW_FILE_STORE MLFLOW_DISABLE_TELEMETRY MLFLOW_TRACKING_URI MODEL_OUTPUT_PATH PATH"
        " PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONUNBUFFERED RESUME RUN_ID TMPDIR USER"
    )
    assert found["core_limit"] == [0, 0]
    assert 20 < found["forks"] < 40


PROBE = r"""
import json, os, resource, subprocess, time
def attempts(action, targets):
    found = {}
    for target in targets:
        try:
            action(target)
            found[target] = "allowed"
        except OSError as problem:
            found[target] = type(problem).__name__
    return found
def write(path):
    with open(path, "w") as file: file.write("x")
written = attempts(write, ["/x", "/etc/x", "/dev/x", "/dev/shm/x", "/opt/python/x", "/proc/sys/kernel/hostname",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/runyard/x", "/runyard/slot/x",
    "/runyard/slot/spec.json", "/runyard/code/x", "/runyard/code/train.py", "/runyard/data/wine data.csv",
    "/runyard/out/x", "/tmp/x"])
with open("/tmp/tool", "w") as file: file.write("#!/bin/sh\nexit 5\n")
os.chmod("/tmp/tool", 0o755)
secrets = attempts(lambda path: open(path, "rb").read(1), ["/proc/1/environ", "/proc/1/mem", "/proc/1/maps"])
secrets |= attempts(lambda path: open(path, "w"), ["/proc/1/fd/1", "/proc/1/fd/2"])
forks = []
try:
    while len(forks) < 200:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        forks.append(pid)
except BlockingIOError:
    pass
for pid in forks:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
print(json.dumps({
    "uid": list(os.getresuid()),
    "status": dict(line.strip().split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line),
    "interfaces": os.listdir("/sys/class/net"),
    "written": sorted(path for path, how in written.items() if how == "allowed"),
    "executed": subprocess.run(["/tmp/tool"]).returncode,
    "secrets": secrets,
    "own_slot_readable": bool(open("/runyard/slot/spec.json").read(1)),
    "oom_score_adj": open("/proc/self/oom_score_adj").read().strip(),
    "environment": sorted(os.environ),
    "core_limit": list(resource.getrlimit(resource.RLIMIT_CORE)),
    "forks": len(forks),
}))
"""


def test_following_again_gives_the_same_sequence_and_skips_what_was_seen(cell: Cell) -> None:
    cell.run("for number in range(300): print(number, 'é' * number)")
    first = cell.frames()
    assert cell.frames() == first
    assert cell.frames(after=150) == first[150:]


def test_a_lost_answer_to_create_is_repaired_by_adopting_the_container_of_that_name(cell: Cell) -> None:
    cell.prepare("print('once')")
    made = cell.sandbox.create(cell.spec)
    assert cell.sandbox.is_as_asked(cell.spec)
    assert cell.sandbox.create(cell.spec) == made
    assert [(c.run_id, c.attempt, c.status) for c in cell.sandbox.owned(cell.spec.runner_id)] == [
        (cell.spec.run_id, 1, "created")
    ]
    for call in (cell.sandbox.create, cell.sandbox.is_as_asked):
        with pytest.raises(EngineRefused, match="not this attempt's"):
            call(replace(cell.spec, runner_id="another"))


def test_a_container_that_has_run_is_not_started_again(cell: Cell) -> None:
    cell.run("print('once')")
    cell.ended()
    cell.sandbox.start(cell.spec.name)
    assert sum(isinstance(frame, Log) for frame in cell.frames()) == 1
    assert cell.ended().status == "exited"


def test_a_killed_container_has_no_end_frame_and_is_known_by_inspection(cell: Cell) -> None:
    cell.start("import time\nprint('ready')\ntime.sleep(60)")
    cell.until(lambda frame: isinstance(frame, Log))
    cell.sandbox.kill(cell.spec.name)
    state = cell.ended()
    assert (state.exit_code, state.oom_killed) == (137, False)
    assert state.finished_at is not None
    assert not any(isinstance(frame, End) for frame in cell.frames())


def test_signals_and_removals_of_what_is_gone_are_harmless(cell: Cell) -> None:
    cell.run("pass")
    cell.ended()
    for _ in range(2):
        cell.sandbox.terminate(cell.spec.name)
        cell.sandbox.kill(cell.spec.name)
        cell.sandbox.remove(cell.spec.name)
    assert cell.sandbox.inspect(cell.spec.name) is None


def test_a_missing_image_is_a_refusal_and_a_missing_engine_is_not(cell: Cell) -> None:
    cell.prepare("pass")
    with pytest.raises(EngineRefused):
        cell.sandbox.create(replace(cell.spec, image="sha256:" + "0" * 64))
    with pytest.raises(EngineUnavailable):
        Sandbox.connect(base_url="tcp://127.0.0.1:1")


def test_orders_that_cannot_be_read_still_end_with_a_reason(cell: Cell) -> None:
    cell.prepare("pass")
    spec_file = cell.spec.folder.slot / "spec.json"
    spec_file.chmod(0o600)
    spec_file.write_text("{")
    cell.sandbox.create(cell.spec)
    cell.sandbox.start(cell.spec.name)
    (end,) = cell.frames()
    assert isinstance(end, End)
    assert end.error is not None
    assert end.error.startswith("JSONDecodeError")
    assert cell.ended().exit_code == 125

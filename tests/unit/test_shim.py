"""The shim as a process of this machine: what it tells of scripts that behave and of scripts that do not.

What needs a container (daemons, OOM, secrets of PID 1) is in tests/integration/test_sandbox.py.
"""

import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.runner.frames import Dropped, End, Log, Started, Timeout
from services.runner.sandbox_interpreter import find_interpreter
from services.runner.shim.lines import LineSplitter, safe_text
from services.runner.shim.metrics_tail import parse_metric
from tests.unit.shim_scene import Slot, finish, read_until


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    return Slot(tmp_path)


def test_output_metrics_and_usage_come_in_order_with_one_sequence(slot: Slot) -> None:
    outcome = slot.run(
        "import os\n"
        "print('hello')\n"
        "with open(os.environ['METRICS_PATH'], 'a') as file: file.write('{\"name\": \"loss\", \"value\": 1}')\n"
    )
    assert isinstance(outcome.frames[0], Started)
    assert (outcome.lines, outcome.metrics, outcome.exit_code) == (["hello"], [("loss", 1.0, None)], 0)
    assert (outcome.end.exit_code, outcome.end.signal, outcome.end.error) == (0, None, None)
    assert outcome.end.started_at is not None
    assert outcome.end.ended_at is not None
    assert outcome.end.started_at <= outcome.end.ended_at


@pytest.mark.parametrize(
    ("script", "exit_code", "signal_number", "of_shim"),
    [
        ("raise SystemExit(7)", 7, None, 7),
        ("raise ValueError", 1, None, 1),
        ("import os; os.kill(os.getpid(), 11)", None, 11, 139),
        ("import os; os._exit(255)", 255, None, 255),
    ],
)
def test_the_end_is_the_scripts_own(
    slot: Slot, script: str, exit_code: int | None, signal_number: int | None, of_shim: int
) -> None:
    outcome = slot.run(script)
    assert (outcome.end.exit_code, outcome.end.signal, outcome.exit_code) == (exit_code, signal_number, of_shim)


def test_a_missing_entry_point_ends_as_python_ends(slot: Slot) -> None:
    outcome = slot.run("", argv=[sys.executable, "-u", str(slot.folder / "nothing.py")])
    assert outcome.end.exit_code == 2
    assert "can't open file" in outcome.lines[0]


def test_variables_arrive_byte_for_byte_and_nothing_else_does(slot: Slot) -> None:
    variables = {"A": "1\n2", "Ünïcode": "日本\u2028", "EMPTY": "", "DASH": "--help", "EQUALS": "a=b", "LC_ALL": "C"}
    outcome = slot.run("import os\nprint(sorted(os.environb.items()))", environment=variables)
    assert eval(outcome.lines[0]) == sorted((k.encode(), v.encode()) for k, v in variables.items())  # noqa: S307


def test_sigterm_goes_to_the_scripts_whole_group(slot: Slot) -> None:
    script = (
        "import os, signal, sys, time\n"
        "child = os.fork()\n"
        "def stop(*_):\n"
        "    os.write(1, b'stopped child\\n' if child == 0 else b'stopped parent\\n')  # print is not reentrant\n"
        "    child and os.wait()\n"
        "    sys.exit(4)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "os.write(1, b'ready\\n')\n"
        "while True: time.sleep(10)\n"
    )
    with slot.start(script, grace_s=20) as process:
        head = b""
        while head.count(b"ready") < 2:
            head += read_until(process, b"ready")
        process.send_signal(signal.SIGTERM)
        outcome = finish(process, head)
    assert sorted(outcome.lines) == ["ready", "ready", "stopped child", "stopped parent"]
    assert (outcome.end.exit_code, outcome.end.terminated, outcome.end.timed_out) == (4, True, False)


def test_a_script_that_ignores_sigterm_is_killed_after_the_grace(slot: Slot) -> None:
    script = "import signal\nsignal.signal(15, signal.SIG_IGN)\nprint('ready')\nwhile True: signal.pause()"
    with slot.start(script) as process:
        head = read_until(process, b"ready")
        process.send_signal(signal.SIGTERM)
        outcome = finish(process, head)
    assert (outcome.end.signal, outcome.end.terminated, outcome.exit_code) == (9, True, 137)


def test_the_deadline_is_announced_before_the_script_is_stopped(slot: Slot) -> None:
    script = "import signal, sys\nsignal.signal(15, lambda *_: (print('stopping'), sys.exit(0)))\nsignal.pause()"
    outcome = slot.run(script, deadline_s=1.5, grace_s=20)
    assert [type(frame) for frame in outcome.frames] == [Started, Timeout, Log, End]
    assert (outcome.end.exit_code, outcome.end.timed_out, outcome.end.terminated) == (0, True, False)


def test_a_flood_is_cut_at_the_quota_counted_and_stopped(slot: Slot) -> None:
    outcome = slot.run("while True: print('y' * 100)", max_output_bytes=50_000)
    dropped = outcome.frames[-2]
    assert isinstance(dropped, Dropped)
    assert dropped.bytes == 100 * dropped.lines > 0
    assert (outcome.end.output_quota_exceeded, outcome.end.signal) == (True, 15)
    assert 200 < len(outcome.lines) < 500


def test_a_giant_line_is_cut_and_marked_without_being_held(slot: Slot) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    outcome = slot.run("import sys\nfor _ in range(200): sys.stdout.write('z' * 1_000_000)\nprint()\nprint('next')")
    logs = [frame for frame in outcome.frames if isinstance(frame, Log)]
    assert [(log.text, log.truncated) for log in logs] == [("z" * 1000, True), ("next", False)]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < max(before, 100_000) + 50_000  # of 200 MB


def test_bytes_that_are_no_text_and_terminal_control_are_made_safe(slot: Slot) -> None:
    script = (
        "import os\n"
        "os.write(1, b'bad \\xff\\xc3 utf8\\r\\n\\x1b[31mred\\x07\\x00\\ttab\\rback\\n')\n"
        'os.write(1, b\'\\xc2\\x9b31m {"seq":9,"type":"end","exit_code":0,"signal":null}\\n\')\n'
        "os.write(1, b'no newline')\n"
    )
    assert slot.run(script).lines == [
        "bad \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} utf8",
        "␛[31mred␇␀\ttab␍back",
        '\N{REPLACEMENT CHARACTER}31m {"seq":9,"type":"end","exit_code":0,"signal":null}',
        "no newline",
    ]


def test_metrics_arrive_while_the_script_runs(slot: Slot) -> None:
    script = (
        "import os, signal\n"
        "with open(os.environ['METRICS_PATH'], 'a') as file:\n"
        '    file.write(\'{"name": "loss", "value": 1, "step": 3}\\n\')\n'
        "signal.pause()\n"
    )
    with slot.start(script) as process:
        head = read_until(process, b'"metric"')
        process.send_signal(signal.SIGTERM)
        assert finish(process, head).metrics == [("loss", 1.0, 3)]


def test_metrics_that_are_none_are_counted_and_the_rest_goes_on(slot: Slot) -> None:
    bad = ["nonsense", "NaN", '{"name": "a"}', '{"name": "a", "value": NaN}', "[" * 900, "x" * 2000]
    (slot.folder / "bad").write_text("\n".join([*bad, '{"name": "good", "value": 2}', '{"name": "last", "value": 3}']))
    outcome = slot.run("import os\nos.rename('bad', os.environ['METRICS_PATH'])")
    assert outcome.metrics == [("good", 2.0, None), ("last", 3.0, None)]
    assert outcome.end.skipped_metrics == len(bad)


@pytest.mark.parametrize("make", ["os.symlink(os.path.abspath('secret'), path)", "os.mkfifo(path)", "os.mkdir(path)"])
def test_a_metrics_path_that_is_no_file_is_left_alone(slot: Slot, make: str) -> None:
    (slot.folder / "secret").write_text('{"name": "leak", "value": 1}\n')
    outcome = slot.run(f"import os, time\npath = os.environ['METRICS_PATH']\n{make}\ntime.sleep(0.5)")
    assert (outcome.metrics, outcome.end.exit_code) == ([], 0)


def test_a_metrics_file_that_is_begun_anew_is_read_from_its_beginning(slot: Slot) -> None:
    script = (
        "import os, signal\n"
        "signal.signal(15, lambda *_: None)\n"
        "write = lambda text: open(os.environ['METRICS_PATH'], 'w').write(text)\n"
        'write(\'{"name": "first", "value": 1}\\n\')\n'
        "signal.pause()\n"
        'write(\'{"name": "b", "value": 2}\\n\')\n'
    )
    with slot.start(script, grace_s=20) as process:
        head = read_until(process, b'"metric"')
        process.send_signal(signal.SIGTERM)
        assert finish(process, head).metrics == [("first", 1.0, None), ("b", 2.0, None)]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"argv": []}'])
def test_orders_that_make_no_sense_still_have_an_end(slot: Slot, text: str) -> None:
    slot.write("pass")
    (slot.folder / "spec.json").write_text(text)
    with subprocess.Popen([sys.executable, "-I", str(slot.folder / "shim")], stdout=subprocess.PIPE) as process:
        outcome = finish(process)
    assert outcome.end.error
    assert (outcome.end.exit_code, outcome.exit_code) == (None, 125)


def test_an_interpreter_that_cannot_be_started_is_an_error_not_an_exit_code(slot: Slot) -> None:
    outcome = slot.run("pass", argv=["/nowhere/python"])
    assert outcome.end.error is not None
    assert "/nowhere/python" in outcome.end.error


LATE = """
import runpy, sys, time
clock, born = time.monotonic, [time.monotonic() - 60]
time.monotonic = lambda: born.pop() if born else clock()
runpy.run_path(sys.argv[1], run_name="__main__")
"""
"""Runs the shim as if it had been born a minute ago."""


def test_the_time_limit_is_the_scripts_whatever_the_shim_needed_before(slot: Slot) -> None:
    """On a busy machine a run of 2 s was stopped after 1.93 s: the clock had started with the shim."""
    slot.write("import time; time.sleep(60)", deadline_s=0.3)
    command = [sys.executable, "-c", LATE, str(slot.folder / "shim")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        outcome = finish(process)

    assert outcome.end.timed_out
    assert outcome.end.wall_seconds >= 0.3


def test_a_reader_that_stops_reading_does_not_stop_the_deadline(slot: Slot) -> None:
    os.mkfifo(slot.folder / "pid")
    script = "import os\nopen('pid', 'w').write(str(os.getpid()))\nwhile True: print('y' * 500)"
    with slot.start(script, deadline_s=1, max_output_bytes=10**9) as process:
        descriptor = os.pidfd_open(int((slot.folder / "pid").read_text()))
        assert select.select([descriptor], [], [], 20)[0], "the script outlived its deadline"
        os.close(descriptor)
        outcome = finish(process)
    assert outcome.end.timed_out
    assert outcome.lines[-1] == "y" * 500


@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_the_shim_runs_on_every_runtime(slot: Slot, version: str) -> None:
    found = find_interpreter(version)
    if found is None:
        pytest.skip(f"no Python {version} on this machine")
    python = str(found.executable)
    slot.write("import sys\nprint('%d.%d' % sys.version_info[:2])", argv=[python, "train.py"])
    command = [python, "-I", "-S", "-B", str(slot.folder / "shim")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert finish(process).lines == [version]


def test_lines_are_the_same_however_the_bytes_come() -> None:
    data = b"one\n\ntwo and a half\n" + b"x" * 25 + b"\nlast"
    whole = LineSplitter(10)
    expected = [(b"one", False), (b"", False), (b"two and a ", True), (b"x" * 10, True), (b"last", False)]
    assert [*whole.feed(data), *whole.finish()] == expected
    for size in (1, 3, 7, 11):
        parts = LineSplitter(10)
        found = [line for start in range(0, len(data), size) for line in parts.feed(data[start : start + size])]
        assert [*found, *parts.finish()] == expected


def test_a_cut_line_loses_no_half_character() -> None:
    assert safe_text("日本".encode()[:5], True) == "日"


@pytest.mark.parametrize(
    ("line", "metric"),
    [
        ('{"name": "a", "value": 1}', {"name": "a", "value": 1.0, "step": None}),
        ('{"name": "a", "value": -2.5e3, "step": 0, "more": 1}', {"name": "a", "value": -2500.0, "step": 0}),
        ('{"name": "a", "value": 1, "step": 4.0}', {"name": "a", "value": 1.0, "step": 4}),
        ('{"name": "a", "value": 1, "step": 4.5}', None),
        ('{"name": "a", "value": 1, "step": "4"}', None),
        ('{"name": "a", "value": 1, "step": true}', None),
        ('{"name": "a", "value": 1, "step": 9223372036854775808}', None),
        ('{"name": "a", "value": 1, "step": Infinity}', None),
        ('{"name": "a", "value": "1"}', None),
        ('{"name": "a", "value": true}', None),
        ('{"name": "a", "value": null}', None),
        ('{"name": "a", "value": -Infinity}', None),
        ('{"name": "a", "value": 1' + "0" * 400 + "}", None),
        ('{"name": "", "value": 1}', None),
        ('{"name": 5, "value": 1}', None),
        ('{"name": "a\\u0000", "value": 1}', None),
        ('{"name": "\\ud800", "value": 1}', None),
        ('{"name": "' + "a" * 257 + '", "value": 1}', None),
        ('["a", 1]', None),
        ("5", None),
        ('"name"', None),
    ],
)
def test_a_metric_is_a_name_with_a_finite_value(line: str, metric: dict[str, object] | None) -> None:
    assert parse_metric(line.encode()) == metric

"""A script that attacks the shim, its PID 1, as the same user: the deadline holds, and the end is told as it was."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.runner.frames import Log, Timeout
from services.runner.sandbox import Sandbox
from services.runner.sandbox_images import ensure
from tests.integration.cell import Cell, a_cell

CALLS = r"""
import ctypes, errno, json, os, resource, signal, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"
KILL, TGKILL, QUEUE, TGQUEUE = (62, 234, 129, 297) if X86 else (129, 131, 138, 240)
PTRACE, READV, WRITEV, PIDFD_SEND, PIDFD_GETFD = (101, 310, 311, 424, 438) if X86 else (117, 270, 271, 424, 438)
def call(*arguments):
    ctypes.set_errno(0)
    done = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    return "done" if done >= 0 else errno.errorcode[ctypes.get_errno()]
def about(number, code):
    return struct.pack("<iiiiii", number, 0, code, 0, 0, 0).ljust(128, b"\0")
"""
EVERY_SIGNAL = """
for number in range(1, 65):
    if number != signal.SIGCHLD:  # exec keeps what is ignored: an ignored SIGCHLD would lose children
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
for number in range(65):
    call(KILL, 1, number)
    call(TGKILL, 1, 1, number)
    call(PIDFD_SEND, os.pidfd_open(1), number, None, 0)
    for code in (-1, -2, -3, -60):
        call(QUEUE, 1, number, about(number, code))
        call(TGQUEUE, 1, 1, number, about(number, code))
    for code in (0, -6, 128):  # to say SI_USER, SI_TKILL or SI_KERNEL is the kernel's own
        assert call(QUEUE, 1, number, about(number, code)) in ("EPERM", "EINVAL"), (number, code)
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox.connect(followers=4)
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def image() -> str:
    return ensure("python3.11")


@pytest.fixture
def cell(sandbox: Sandbox, image: str, tmp_path: Path) -> Iterator[Cell]:
    with a_cell(sandbox, image, tmp_path) as cell:
        yield cell


# -- signals


@pytest.mark.parametrize("code", [0, 5])
def test_every_signal_to_pid_1_by_every_call_changes_nothing_about_the_end(cell: Cell, code: int) -> None:
    told = cell.run(CALLS + EVERY_SIGNAL + f"time.sleep(0.7)\nprint('well')\nsys.exit({code})")
    assert told.lines == ["well"]
    assert (told.end.exit_code, told.end.terminated, told.end.timed_out) == (code, False, False)


def test_a_sender_cannot_be_hidden_by_leaving_the_kernel_no_room_to_note_it(cell: Cell) -> None:
    told = cell.run(
        CALLS + "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "queued = 0\n"
        "while call(QUEUE, os.getpid(), 40, about(40, -1)) == 'done': queued += 1\n"
        "for _ in range(30):\n"
        "    call(TGKILL, 1, 1, 15), call(QUEUE, 1, 15, about(15, -1)), call(KILL, 1, 15)\n"
        "    time.sleep(0.03)\n"
        "print('well', queued > 100)\n"
    )
    assert told.lines == ["well True"]
    assert (told.end.exit_code, told.end.terminated) == (0, False)


def test_a_stop_from_outside_reaches_the_script_at_once(cell: Cell) -> None:
    cell.start(
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (print(time.time(), flush=True), sys.exit(3)))\n"
        "print('ready')\nwhile True: time.sleep(60)\n"
    )
    cell.until(lambda frame: isinstance(frame, Log))
    cell.sandbox.terminate(cell.spec.name)
    sent = time.time()
    *_, end = frames = cell.frames()
    [_, received] = [frame.text for frame in frames if isinstance(frame, Log)]
    assert float(received) - sent < 0.3
    assert (end.exit_code, end.terminated) == (3, True)


def test_a_storm_of_stop_signals_does_not_move_the_deadline(cell: Cell) -> None:
    told = cell.run(
        CALLS + "signal.signal(15, signal.SIG_IGN)\n"
        "while True: call(KILL, 1, 15), call(KILL, 1, 2), call(KILL, 1, 17), call(KILL, 1, 19)\n",
        deadline_s=2,
    )
    assert (told.end.timed_out, told.end.terminated, told.end.signal) == (True, False, 9)
    assert told.end.wall_seconds < 2 + 0.5 + 2


# -- memory, descriptors, limits


def test_the_memory_and_the_descriptors_of_pid_1_are_out_of_reach(cell: Cell) -> None:
    told = cell.run(
        CALLS + "def tried(act):\n"
        "    try: return act() or 'done'\n"
        "    except OSError as problem: return errno.errorcode[problem.errno]\n"
        "files = ('mem', 'fd/0', 'fd/1', 'fd/2', 'fd/3', 'fd/4', 'environ', 'maps', 'syscall', 'stack', 'clear_refs',\n"
        "         'coredump_filter', 'oom_score_adj', 'task/1/mem', 'map_files', 'cwd/.', 'root/.')\n"
        "found = {f'{mode} {name}': tried(lambda: os.close(os.open(f'/proc/1/{name}', flags)))\n"
        "         for name in files for mode, flags in (('read', os.O_RDONLY), ('write', os.O_RDWR))}\n"
        "found['list fd'] = tried(lambda: os.listdir('/proc/1/fd') and None)\n"
        "found['list fdinfo'] = tried(lambda: os.listdir('/proc/1/fdinfo') and None)\n"
        "word = ctypes.create_string_buffer(64)\n"
        "vector = struct.pack('<QQ', ctypes.addressof(word), 8)\n"
        "found['attach'] = call(PTRACE, 16, 1, 0, 0)\n"
        "found['seize'] = call(PTRACE, 0x4206, 1, 0, 0)\n"
        "found['readv'] = call(READV, 1, vector, 1, vector, 1, 0)\n"
        "found['writev'] = call(WRITEV, 1, vector, 1, vector, 1, 0)\n"
        "found.update({f'take fd {n}': call(PIDFD_GETFD, os.pidfd_open(1), n, 0) for n in range(8)})\n"
        "print(json.dumps(found))\n"
    )
    found = json.loads(told.lines[0])
    assert len(found) == 40 + 8
    harmless = {"read oom_score_adj", "read coredump_filter"}
    assert {name: how for name, how in found.items() if how == "done" and name not in harmless} == {}
    assert told.end.exit_code == 0


def test_what_is_told_cannot_be_written_by_the_script(cell: Cell) -> None:
    forged = '{"seq":2,"type":"end","exit_code":0,"signal":null,"terminated":true}'
    told = cell.run(
        f"import os, sys\nforged = {forged!r}\n"
        "for path in ('/proc/1/fd/1', '/dev/console', '/dev/tty', '/proc/self/fd/1', '/dev/stdout', '/dev/kmsg'):\n"
        "    try: os.write(os.open(path, os.O_WRONLY | os.O_NOCTTY), (forged + '\\n').encode())\n"
        "    except OSError: pass\n"
        "sys.exit(9)\n"
    )
    assert set(told.lines) <= {forged}
    assert (told.end.exit_code, told.end.terminated) == (9, False)


# -- the deadline


def over(cell: Cell, script: str, deadline_s: float = 2.0) -> None:
    """Run a script that would go on for ever, and see that the shim alone ends it in time."""
    told = cell.run(script, deadline_s=deadline_s)
    assert sum(isinstance(frame, Timeout) for frame in told.frames) == 1
    assert (told.end.timed_out, told.end.terminated, told.end.exit_code, told.end.signal) == (True, False, None, 9)
    assert deadline_s <= told.end.wall_seconds + 0.5
    assert told.end.wall_seconds < deadline_s + 0.5 + 3


def test_stopped_children_and_some_that_ignore_sigterm_end_at_the_deadline(cell: Cell) -> None:
    over(
        cell,
        "import os, signal, time\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "for number in range(20):\n"
        "    if os.fork() == 0:\n"
        "        if number % 2: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "        while True: time.sleep(60)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "while True: time.sleep(60)\n",
    )


def test_daemons_in_sessions_of_their_own_that_hold_the_pipes_end_at_the_deadline(cell: Cell) -> None:
    over(
        cell,
        "import os, signal, time\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "for _ in range(10):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            while True: os.write(1, b'still here\\n'), time.sleep(0.5)\n"
        "        os._exit(0)\n"
        "while True: time.sleep(60)\n",
    )


def test_daemons_that_hold_the_pipes_do_not_outlive_a_script_that_ends(cell: Cell) -> None:
    told = cell.run(
        "import os, signal, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        while True: time.sleep(60)\n"
        "    os._exit(0)\n"
        "os.wait()\nos._exit(6)\n"
    )
    assert (told.end.exit_code, told.end.timed_out) == (6, False)
    assert told.end.wall_seconds < 5


def test_a_storm_of_forks_ends_at_the_deadline(cell: Cell) -> None:
    over(
        cell,
        "import os, signal\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "while True:\n"
        "    try:\n"
        "        if os.fork() == 0 and os.fork() == 0: os.setsid()\n"
        "    except OSError: pass\n",
    )


def test_processes_that_want_all_cores_while_the_shim_has_one_do_not_move_the_deadline(cell: Cell) -> None:
    over(
        cell,
        "import os, signal\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "try: os.sched_setaffinity(1, {min(os.sched_getaffinity(0))})\n"
        "except OSError: pass\n"
        "for _ in range(30):\n"
        "    if os.fork() == 0: break\n"
        "while True: pass\n",
    )

"""Starts the script's process, with nothing of the shim's but the ends of two pipes.

By fork and exec: the subprocess module would cost every start more than the rest of the shim. Owns what the script's
process is before it is the script; says by an exception why there is none.
"""

import ctypes
import os
import resource
from contextlib import suppress

from services.runner.shim.orders import Orders
from services.runner.shim.stop_signals import become_ordinary

PR_SET_DUMPABLE = 4  # linux/prctl.h
MOST_BYTES = 4096
MOST_DESCRIPTORS = 4096


def launch(orders: Orders, out: int, err: int) -> int:
    """Start the script; `out` and `err` are its ends of the pipes, which are closed here.

    Raises:
        OSError: it could not be started, with the reason.
    """
    argv = [word.encode() for word in orders.argv]
    environment = {name.encode(): value.encode() for name, value in orders.environment.items()}
    answer, question = os.pipe()
    script = os.fork()
    if script == 0:
        _exec(orders.cwd, argv, environment, (out, err, question))
    for descriptor in (out, err, question):
        os.close(descriptor)
    problem = os.read(answer, MOST_BYTES)  # nothing: exec has closed the other end
    os.close(answer)
    if problem:
        os.waitpid(script, 0)
        raise OSError(problem.decode(errors="replace"))
    return script


def _exec(cwd: str, argv: list[bytes], environment: dict[bytes, bytes], ends: tuple[int, int, int]) -> None:
    out, err, question = ends
    try:
        _become_the_script(cwd)
        for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        os.closerange(3, question)
        os.closerange(question + 1, MOST_DESCRIPTORS)
        os.execve(argv[0], argv, environment)  # noqa: S606
    except BaseException as problem:  # noqa: BLE001 - a second shim must not go on here
        os.write(question, f"{type(problem).__name__}: {problem}".encode(errors="replace"))
    finally:
        os._exit(127)


def _become_the_script(cwd: str) -> None:
    """A session of its own, and without memory the script goes before the shim."""
    set_dumpable(1)  # else the kernel gives the file below to root; exec does the same a moment later
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - pathlib costs 10 ms
        file.write("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setsid()
    os.chdir(cwd)
    become_ordinary()


def set_dumpable(value: int) -> None:
    """Say whether other processes of the same user may look into this one's memory and descriptors (prctl(2))."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, value, 0, 0, 0)

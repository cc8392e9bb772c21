"""What a hostile case is: data. Three kinds: a script of its own, a probe among others in one container, a check here.

An `Attack` gets a container and has an end, as a run has. A `Probe` is a few lines that are tried in a process of their
own inside a container that they share, where their outcome is what counts and not the run's end. A `Check` is a
function of this process, for what stands before the sandbox or after it. Nothing here runs anything.
"""

import errno
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Literal

from schemas.parts import LogLine, MetricPoint
from schemas.reason import Reason
from services.runner.local_ear import End

if TYPE_CHECKING:
    from tests.security.stage import Stage

PRELUDE = """\
import ctypes, errno, fcntl, json, mmap, os, resource, signal, socket, stat, struct, subprocess, sys, threading, time
OUT, MODEL, METRICS = "/runyard/out", os.environ["MODEL_OUTPUT_PATH"], os.environ["METRICS_PATH"]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def syscall(number, *arguments):
    # every argument as a machine word, as the kernel takes them
    words = [a if isinstance(a, (bytes, ctypes._SimpleCData, ctypes.Array, type(None))) else ctypes.c_long(a)
             for a in arguments]
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number), *words)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer
"""
"""What every script of the suite begins with; one line of imports keeps the catalogue readable."""

Kind = Literal["escape", "wrong end", "sentinel changed", "left behind", "neighbour harmed", "suite broke"]

FINE = (None, Reason.NO_ARTIFACT)
"""The script ended well by itself, with an artifact or without."""
FAILED = (Reason.SCRIPT_ERROR,)


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong with how a case went."""

    case: str
    kind: Kind
    text: str


@dataclass(frozen=True)
class Seen:
    """What is known of a run of the suite when it is over; `inspected` is what the engine told of its container."""

    end: End
    lines: Sequence[LogLine]
    points: Sequence[MetricPoint]
    artifact: Path | None
    inspected: str
    seconds: float

    @property
    def texts(self) -> list[str]:
        """The lines as they would be shown."""
        return [line.text for line in self.lines]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One script in a container of its own.

    Attributes:
        reasons: how it may end; None is a success with an artifact. The status follows from the reason.
        message: a regular expression that the end's message contains.
        prints: lines that must be there, each as a regular expression for the whole line.
        never: texts that may stand nowhere: in no line, no message, no artifact, no inspection.
        judge: what no field can say; returns what is wrong.
        heavy: it takes what it can get, so a neighbour runs beside it and must not suffer.
        within_s: it must be over by then, however it ends.
        fast: part of `make test`.
    """

    name: str
    script: str
    reasons: Sequence[Reason | None] = FINE
    message: str = ""
    prints: Sequence[str] = ()
    never: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    assets: Mapping[str, str] = field(default_factory=dict)
    timeout_s: int = 30
    within_s: float = 60.0
    judge: Callable[[Seen], list[str]] | None = None
    heavy: bool = False
    fast: bool = False

    @property
    def text(self) -> str:
        """The script as it is run."""
        return PRELUDE + dedent(self.script)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A few lines that must come to nothing, or to what is harmless.

    Attributes:
        code: the body of a function; what it returns is its value, what it raises its outcome.
        outcomes: the names of errors, exceptions or signals that are right; a value is written `value …` with its repr.
    """

    name: str
    code: str
    outcomes: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something that is done here, against the parts that stand before and after the sandbox.

    Returns what is wrong, or None.
    """

    name: str
    run: "Callable[[Stage], Awaitable[str | None]]"
    fast: bool = True


@dataclass(frozen=True, kw_only=True)
class Family:
    """Cases that try the same wall."""

    name: str
    attacks: Sequence[Attack] = ()
    probes: Sequence[Probe] = ()
    checks: Sequence[Check] = ()

    @property
    def size(self) -> int:
        """How many cases it has."""
        return len(self.attacks) + len(self.probes) + len(self.checks)


def errors(*names: str) -> frozenset[str]:
    """Name the errors that are right, and refuse names that no error has."""
    unknown = [name for name in names if name not in errno.errorcode.values()]
    if unknown:
        raise ValueError(f"no error is called {unknown}")
    return frozenset(names)


def value(found: object) -> frozenset[str]:
    """Name the one value that is right."""
    return frozenset({f"value {found!r}"})


BLOCKED = errors("EPERM", "ENOSYS") | {"signal SIGSYS"}
"""The call does not reach the kernel's code: the filter or a missing capability stops it."""
UNREACHABLE = errors("ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "ECONNREFUSED", "EPERM", "EACCES", "ENODEV")
"""Nobody is there: ECONNREFUSED is the container's own loopback, where nothing listens."""
NO_FILE = errors("ENOENT", "ENOTDIR", "EACCES", "EPERM", "ENXIO", "ENODEV")
READ_ONLY = errors("EROFS", "EACCES", "EPERM", "ENOENT")


def named(name: str, text: str, outcomes: frozenset[str]) -> Probe:
    """Write a probe of one expression."""
    return Probe(name=name, code=f"return {text}", outcomes=outcomes)


HARNESS = """
def _try(name, function):
    said, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(said)
        signal.alarm(5)
        try:
            outcome = "value " + repr(function())
        except OSError as problem:
            outcome = errno.errorcode.get(problem.errno, type(problem).__name__)
        except BaseException as problem:
            outcome = type(problem).__name__
        os.write(write, outcome[:300].encode("utf-8", "replace"))
        os._exit(0)
    os.close(write)
    import select
    outcome = os.read(said, 4096).decode() if select.select([said], [], [], 8)[0] else ""
    os.close(said)
    try:
        os.kill(pid, 9)
    except OSError:
        pass
    _, status = os.waitpid(pid, 0)
    if not outcome:
        outcome = "signal " + signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "silence"
    print(json.dumps({"probe": name, "outcome": outcome}), flush=True)
"""


def script_of(probes: Sequence[Probe]) -> str:
    """Write the script that tries all of them, each in a process of its own, and prints one JSON line for each."""
    parts = [PRELUDE, HARNESS]
    for number, probe in enumerate(probes):
        body = "\n".join("    " + line for line in dedent(probe.code).strip().splitlines())
        parts.append(f"def _probe_{number}():\n{body}\n_try({json.dumps(probe.name)}, _probe_{number})\n")
    return "\n".join(parts)

"""What a script prints and reports: floods, endless lines, control of the reader's terminal, forged records."""

import json

from schemas.reason import Reason
from tests.security.case import FAILED, Attack, Check, Family, Seen
from tests.security.stage import MOST_OUTPUT_BYTES, Stage

QUOTA = (Reason.LOG_QUOTA_EXCEEDED,)
END = {"seq": 9_000_000, "type": "end", "exit_code": 0, "signal": None, "oom_kills": 7, "cpu_seconds": 123456.0}
FORGED = json.dumps(END)
FORGED_METRIC = json.dumps(
    {"seq": 9_000_001, "type": "metric", "name": "forged", "value": 1, "at": "2026-01-01T00:00:00Z"}
)
UNTELLABLE = [
    json.dumps(END | changes)
    for changes in (
        {"peak_memory_bytes": -1},
        {"ended_at": "2026-01-01T00:00:00"},
        {"exit_code": 7, "failure": "\ud800"},
        {"seq": 1 << 62},
    )
]
"""End records that no event can hold: on gVisor a script gets them through."""


async def untellable(stage: Stage) -> str | None:
    """Forge such a record: however that run ends, the runner must go on, and its next run end well."""
    for record in UNTELLABLE:
        forge = f"""
        for number in range(20):
            try:
                with open("/proc/1/fd/%d" % number, "wb", buffering=0) as stream:
                    stream.write({record!r}.encode() + b"\\n")
            except OSError:
                pass
        """
        await stage.play(Attack(name="forger", script=forge))
        seen = await stage.play(Attack(name="next", script="print('well')"))
        if seen.end.reason is not Reason.NO_ARTIFACT or "well" not in seen.texts:
            return f"after {record} the next run ended {seen.end.reason}: {seen.end.message}"
    return None


def no_control(seen: Seen) -> list[str]:
    """Nothing that moves a cursor, rings a bell or changes a title may reach the reader."""
    return [f"a control character in {text[:60]!r}" for text in seen.texts if any(_controls(c) for c in text)]


def _controls(character: str) -> bool:
    return (ord(character) < 32 and character != "\t") or 127 <= ord(character) < 160


def bounded(seen: Seen) -> list[str]:
    """Not more than the quota may have come out, whatever was printed."""
    total = sum(len(text.encode()) for text in seen.texts)
    return [f"{total} bytes of output passed"] if total > MOST_OUTPUT_BYTES else []


def tells_what_was_dropped(seen: Seen) -> list[str]:
    """The log says by itself that lines are missing."""
    return bounded(seen) + ([] if any("dropped here" in text for text in seen.texts) else ["nothing tells of the drop"])


def not_believed(seen: Seen) -> list[str]:
    """No number of a forged record was taken for true, and the forgery is a line like any other."""
    usage = seen.end.usage if hasattr(seen.end, "usage") else None
    wrong = ["the forged CPU time was believed"] if usage and (usage.cpu_s or 0) > 1000 else []
    return wrong + (["a forged metric was believed"] if any(p.name == "forged" for p in seen.points) else [])


def short_lines(seen: Seen) -> list[str]:
    """Long lines are cut, and say so."""
    long = [len(line.text) for line in seen.lines if len(line.text.encode()) > 16 << 10]
    unmarked = [line.sequence for line in seen.lines if len(line.text) >= 16 << 10 and not line.truncated]
    return [f"lines of {long} characters"] * bool(long) + [f"lines {unmarked} are not marked as cut"] * bool(unmarked)


def only_true_metrics(seen: Seen) -> list[str]:
    """Of a file full of nonsense only what is a name with a finite value was taken."""
    found = [(point.name, point.value) for point in seen.points]
    return [] if found == [("good", 1.0), ("good", 2.0)] else [f"metrics {found}"]


LOGS = Family(
    name="logs",
    checks=(Check(name="end records that nobody can tell on, on the shim's own output", run=untellable),),
    attacks=(
        Attack(
            name="10 GB of lines",
            script="""
            block, left = b"a line of a flood without end\\n" * 40_000, 10 << 30
            while left > 0:
                left -= os.write(1, block)
            """,
            reasons=QUOTA,
            judge=tells_what_was_dropped,
            heavy=True,
            fast=True,
        ),
        Attack(
            name="one line of 1 GB",
            script="""
            for _ in range(1 << 10):
                view = memoryview(b"x" * (1 << 20))
                while view:
                    view = view[os.write(1, view):]
            print("\\nthe end")
            """,
            prints=("the end",),
            judge=lambda seen: short_lines(seen) + bounded(seen),
            timeout_s=120,
            within_s=120,
        ),
        Attack(
            name="a flood on both streams from many processes",
            script="""
            for _ in range(10):
                if os.fork() == 0:
                    break
            while True:
                os.write(1, b"out\\n" * 1000)
                os.write(2, b"err\\n" * 1000)
            """,
            reasons=QUOTA,
            judge=tells_what_was_dropped,
            heavy=True,
        ),
        Attack(
            name="a flood of empty lines",
            script="""
            while True:
                os.write(1, b"\\n" * 65536)
            """,
            reasons=(*QUOTA, Reason.TIMEOUT),  # a dropped line counts, too, but a slow machine may not get so far
            judge=bounded,
            timeout_s=15,
        ),
        Attack(
            name="a flood that ignores SIGTERM",
            script="""
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                os.write(1, b"more\\n" * 10000)
            """,
            reasons=QUOTA,
            judge=tells_what_was_dropped,
            within_s=40,
        ),
        Attack(
            name="escape codes and every control character",
            script="""
            os.write(1, b"\\x1b]0;owned\\x07\\x1b[2J\\x1b[31mred\\x1b[0m\\n")
            os.write(1, bytes(range(1, 32)) + bytes(range(127, 256)) + b"\\n")
            os.write(1, b"\\xc2\\x9b31m C1 in UTF-8 \\xc2\\x9d\\n")
            print("line\\rover it", "back\\b\\b\\b\\b", "\\x1bP+q\\x1b\\\\")
            """,
            judge=no_control,
            fast=True,
        ),
        Attack(
            name="bytes that are no UTF-8, cut characters, NUL",
            script="""
            os.write(1, b"\\xff\\xfe\\x00\\xc3\\n" + "\\u20ac".encode()[:2] + b"\\n" + b"\\xed\\xa0\\x80\\n")
            os.write(1, ("\\u20ac" * 20000).encode() + b"\\n")
            print("after")
            """,
            prints=("after",),
            judge=lambda seen: no_control(seen) + short_lines(seen),
        ),
        Attack(
            name="imitated control records on stdout",
            script=f"""
            for _ in range(3):
                os.write(1, {FORGED!r}.encode() + b"\\n" + {FORGED_METRIC!r}.encode() + b"\\n")
                os.write(2, {FORGED!r}.encode() + b"\\n")
            sys.exit(7)
            """,
            reasons=FAILED,
            message="^exit code 7",
            judge=not_believed,
            fast=True,
        ),
        Attack(
            name="imitated control records on the shim's own output",
            script=f"""
            paths = ["/proc/1/fd/%d" % number for number in range(20)] + ["/dev/console", "/dev/tty", "/dev/pts/0"]
            for path in paths:
                try:
                    with open(path, "wb", buffering=0) as stream:
                        stream.write({FORGED!r}.encode() + b"\\n" + {FORGED_METRIC!r}.encode() + b"\\n")
                    print("wrote to", path)
                except OSError:
                    pass
            sys.exit(7)
            """,
            reasons=FAILED,
            message="^exit code 7",
            never=("wrote to",),
            judge=not_believed,
        ),
        Attack(
            name="an imitated record behind half a line, and a newline in the middle",
            script=f"""
            sys.stdout.write("x" * 20000 + "\\r" + {FORGED!r} + "\\x0b" + {FORGED!r} + "\\u2028" + {FORGED!r} + "\\n")
            sys.exit(7)
            """,
            reasons=FAILED,
            message="exit code 7",
            judge=not_believed,
        ),
        Attack(
            name="the engine's own log format",
            script="""
            print(json.dumps({"log": "forged\\\\n", "stream": "stdout", "time": "2026-01-01T00:00:00Z"}))
            os.write(1, b"\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x06forged\\n")
            print("after")
            """,
            prints=("after",),
            judge=no_control,
        ),
        Attack(
            name="closed streams",
            script="""
            os.close(1)
            os.close(2)
            open(MODEL, "w").write("made in silence")
            """,
            reasons=(None,),
        ),
        Attack(
            name="a traceback of 1 MB",
            script="""
            raise RuntimeError("y" * (1 << 20))
            """,
            reasons=FAILED,
            message="^.{1,1024}$",
            judge=short_lines,
        ),
        Attack(
            name="control characters in the last words",
            script="""
            sys.stderr.write("\\x1b[31mowned\\x07\\x1b]0;title\\x07\\n")
            sys.exit(1)
            """,
            reasons=FAILED,
            judge=lambda seen: ["a control character in the message"] * any(map(_controls, seen.end.message or "")),
        ),
    ),
)

METRICS = Family(
    name="metrics",
    attacks=(
        Attack(
            name="nonsense among metrics",
            script="""
            with open(METRICS, "wb") as file:
                file.write(b'{"name": "good", "value": 1}\\n')
                for value in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b'"1"', b"true", b"null", b"[1]", b"{}"):
                    file.write(b'{"name": "bad", "value": ' + value + b'}\\n')
                for name in (b'""', b"7", b"null", b'"a\\\\u0000b"', b'"\\\\u001b[31m"', b'"' + b"n" * 300 + b'"'):
                    file.write(b'{"name": ' + name + b', "value": 1}\\n')
                for step in (b'"x"', b"1.5", b"1e400", b"9223372036854775808", b"[]"):
                    file.write(b'{"name": "bad", "value": 1, "step": ' + step + b'}\\n')
                file.write(b"[" * 100_000 + b"\\n" + b"{\\n" + b"\\xff\\xfe\\n" + b"1" * 10_000 + b"\\n")
                file.write(b'{"name": "bad", "value": ' + b"9" * 400 + b'}\\n')
                file.write(b'{"name": "good", "value": 2}\\n')
            """,
            judge=only_true_metrics,
            fast=True,
        ),
        Attack(
            name="a metrics file without end",
            script="""
            line = (json.dumps({"name": "loss", "value": 0.5}) + "\\n").encode() * 1000
            with open(METRICS, "ab", buffering=0) as file:
                for _ in range(30_000):
                    file.write(line)
            time.sleep(60)
            """,
            reasons=(*QUOTA, *FAILED, Reason.TIMEOUT),
            timeout_s=20,
            within_s=50,
        ),
        Attack(
            name="metrics that are a link to a file of the host",
            script="""
            os.symlink("/etc/passwd", METRICS)
            time.sleep(0.6)
            """,
            judge=lambda seen: ["metrics came out of it"] * bool(seen.points),
        ),
        Attack(
            name="metrics that are a FIFO, then a folder, then a socket",
            script="""
            os.mkfifo(METRICS)
            time.sleep(0.4)
            os.unlink(METRICS)
            os.mkdir(METRICS)
            time.sleep(0.4)
            os.rmdir(METRICS)
            socket.socket(socket.AF_UNIX).bind(METRICS)
            time.sleep(0.4)
            print("the shim goes on")
            """,
            prints=("the shim goes on",),
        ),
        Attack(
            name="metrics that are swapped while they are read",
            script="""
            until = time.monotonic() + 2
            while time.monotonic() < until:
                os.symlink("/etc/passwd", OUT + "/link")
                os.rename(OUT + "/link", METRICS)
                with open(OUT + "/file", "w") as file:
                    file.write('{"name": "good", "value": 1}\\n')
                os.rename(OUT + "/file", METRICS)
            print("done")
            """,
            prints=("done",),
            judge=lambda seen: ["something else was read"] * any(point.name != "good" for point in seen.points),
        ),
        Attack(
            name="a sparse metrics file of 1 TB",
            script="""
            with open(METRICS, "wb") as file:
                try:
                    file.truncate(1 << 40)
                except OSError:
                    file.truncate(8 << 30)
            time.sleep(0.5)
            """,
            reasons=(*FAILED, Reason.NO_ARTIFACT),
            within_s=40,
        ),
    ),
)

"""Signals and exit codes: every way to end is told as it was, and none of them can be made up."""

import signal

from schemas.reason import Reason
from tests.security.case import FAILED, Attack, Family, Seen

HARMLESS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
HANDLED = {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT}
"""The interpreter ignores the first two, and makes an exception of the third."""
FAST_CODES = {0, 1, 2, 125, 137, 143, 255}


def ends_with(code: int) -> Attack:
    """A script that exits with a code; the message and the event say it."""

    def judge(seen: Seen) -> list[str]:
        told = getattr(seen.end, "exit_code", None)
        return [] if told == code else [f"exit code {told} was told"]

    if code == 0:
        return Attack(name="exit code 0", script="os._exit(0)", reasons=(Reason.NO_ARTIFACT,), judge=judge, fast=True)
    return Attack(
        name=f"exit code {code}",
        script=f"os._exit({code})",
        reasons=FAILED,
        message=f"^exit code {code}$",
        judge=judge,
        fast=code in FAST_CODES,
    )


def dies_of(number: signal.Signals) -> Attack:
    """A script that sends itself a signal."""
    script = f"signal.signal({int(number)}, signal.SIG_DFL) if {int(number)} not in (9, 19) else None\n"
    script += f"os.kill(os.getpid(), {int(number)})\ntime.sleep(0.1)\nos._exit(7)"
    if number in HARMLESS:
        return Attack(name=f"{number.name} to itself", script=script, reasons=FAILED, message="^exit code 7")
    if number in STOPPING and number is signal.SIGSTOP:
        return Attack(name=f"{number.name} to itself", script=script, reasons=(Reason.TIMEOUT,), timeout_s=1)
    if number in STOPPING:  # a process group without a terminal is not stopped by it (POSIX: orphaned process groups)
        return Attack(name=f"{number.name} to itself", script=script, reasons=(Reason.TIMEOUT, *FAILED), timeout_s=1)
    return Attack(name=f"{number.name} to itself", script=script, reasons=FAILED, message=f"^killed by {number.name}")


def real_time() -> Attack:
    """A signal without a name of its own."""
    script = f"os.kill(os.getpid(), {int(signal.SIGRTMIN) + 5})\ntime.sleep(1)"
    return Attack(name="a real-time signal to itself", script=script, reasons=FAILED, message="^killed by signal 39")


EVERYBODY = """
for number in range(1, 65):
    if number not in (9, 19, 17):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
"""

FORGERIES = (
    Attack(
        name="SIGTERM to the shim does not make an end of somebody else's",
        script=EVERYBODY + "os.kill(1, signal.SIGTERM)\ntime.sleep(2)\nprint('nobody stopped me')",
        prints=("nobody stopped me",),
        within_s=15,
        fast=True,
    ),
    Attack(
        name="SIGINT to the shim does not, either",
        script=EVERYBODY + "os.kill(1, signal.SIGINT)\ntime.sleep(2)\nprint('nobody stopped me')",
        prints=("nobody stopped me",),
        within_s=15,
    ),
    Attack(
        name="SIGTERM to the shim before a failure is a failure",
        script=EVERYBODY + "os.kill(1, signal.SIGTERM)\ntime.sleep(0.3)\nos._exit(5)",
        reasons=FAILED,
        message="^exit code 5",
    ),
    Attack(
        name="SIGTERM by a queued signal with a forged sender",
        script=EVERYBODY
        + """
information = ctypes.create_string_buffer(struct.pack("iiiiii", 15, 0, -1, 0, 0, 0), 128)
try:
    syscall(129, 1, 15, information)
except OSError as problem:
    print(errno.errorcode[problem.errno])
time.sleep(2)
print('nobody stopped me')
""",
        prints=("nobody stopped me",),
        within_s=15,
    ),
    Attack(
        name="every signal to the shim, by kill, tgkill and pidfd",
        script=EVERYBODY
        + """
for number in range(1, 65):
    for call in (lambda: os.kill(1, number), lambda: syscall(234, 1, 1, number),
                 lambda: syscall(424, os.pidfd_open(1), number, None, 0)):
        try:
            call()
        except OSError:
            pass
time.sleep(2)
sys.exit(11)
""",
        reasons=FAILED,
        message="^exit code 11",
        within_s=20,
        fast=True,
    ),
    Attack(
        name="every signal to everybody",
        script=EVERYBODY
        + """
for number in range(1, 65):
    try:
        os.kill(-1, number)
    except OSError:
        pass
time.sleep(1)
sys.exit(12)
""",
        reasons=FAILED,
        message="^(exit code 12|killed by)",
        within_s=20,
    ),
    Attack(
        name="a storm of SIGCHLD and SIGTERM at the shim until the deadline",
        script=EVERYBODY
        + """
while True:
    os.kill(1, signal.SIGCHLD)
    os.kill(1, signal.SIGTERM)
    os.kill(1, signal.SIGINT)
""",
        reasons=(Reason.TIMEOUT,),
        timeout_s=3,
        within_s=20,
    ),
    Attack(
        name="a shim that is stopped keeps the deadline",
        script=EVERYBODY + "os.kill(1, signal.SIGSTOP)\nos.kill(1, signal.SIGTSTP)\nwhile True:\n    time.sleep(1)",
        reasons=(Reason.TIMEOUT,),
        timeout_s=2,
        within_s=15,
        fast=True,
    ),
    Attack(
        name="a script that exits 0 after its deadline",
        script="signal.signal(15, lambda *_: os._exit(0))\nopen(MODEL, 'w').write('x')\nwhile True:\n    time.sleep(1)",
        reasons=(Reason.TIMEOUT,),
        judge=lambda seen: ["its artifact was taken"] * (seen.artifact is not None),
        timeout_s=1,
    ),
    Attack(
        name="a grandchild that exits in the script's place",
        script="if os.fork() == 0:\n    os._exit(0)\ntime.sleep(0.2)\nos._exit(6)",
        reasons=FAILED,
        message="^exit code 6",
    ),
    Attack(
        name="a script that is an orphan's child by exec",
        script="os.execv('/bin/sh', ['sh', '-c', 'exit 21'])",
        reasons=FAILED,
        message="^exit code 21",
    ),
    Attack(
        name="exit code 137 is no proof of a kill",
        script="os._exit(137)",
        reasons=FAILED,
        message="^exit code 137",
    ),
)

SIGNALS = Family(
    name="signals",
    attacks=(
        *(dies_of(s) for s in signal.Signals if s < 32 and s not in HANDLED),
        *(dies_of(s) for s in sorted(HANDLED)),
        real_time(),
        *FORGERIES,
    ),
)
EXIT_CODES = Family(name="exit codes", attacks=tuple(ends_with(code) for code in range(256)))

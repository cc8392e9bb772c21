"""Who asks the script to stop: only somebody outside of the container.

The script has the shim's user id and may send it every signal. SIGTERM and SIGINT are therefore never handled but held,
and taken with what the kernel says about them: of a sender that is outside of PID 1's namespace it says SI_USER and
process 0, which a process inside cannot claim (rt_sigqueueinfo(2) refuses SI_USER). The kernel says the same when it
had no room to note the sender (__send_signal_locked in kernel/signal.c). It makes room for kill(2) always, and for the
rest up to the *receiver's* RLIMIT_SIGPENDING, counted over the user's processes: so those of the script get half of
the shim's.
"""

import os
import resource
import signal
from contextlib import suppress

HELD = (signal.SIGTERM, signal.SIGINT)
SI_USER = 0  # asm-generic/siginfo.h
AT_ONCE = 64
"""How many are taken in one call, lest a flood of them keep the shim from its work."""
PENDING = 4096


def hold() -> None:
    """Let stop signals wait until they are asked for."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def stop_was_asked() -> bool:
    """Take the stop signals that wait; return whether one of them counts."""
    for _ in range(AT_ONCE):
        found = signal.sigtimedwait(HELD, 0)
        if found is None:
            return False
        if os.getpid() != 1 or (found.si_code == SI_USER and found.si_pid == 0):
            return True
    return False


def become_ordinary() -> None:
    """Give a child the signals of a process that nobody has touched, and no room to fill the shim's."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and that outlives exec
        signal.signal(number, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    half = PENDING if most == resource.RLIM_INFINITY else most // 2
    with suppress(OSError, ValueError):  # gVisor has no such limit, and loses no sender
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (half, half))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)

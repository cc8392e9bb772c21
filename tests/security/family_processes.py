"""Fork bombs, processor hogs and daemons: processes without end, and processes that mean to outlive their run."""

from schemas.reason import Reason
from tests.security.case import FAILED, FINE, Attack, Family, Probe, errors

TIMED_OUT = (Reason.TIMEOUT,)

FORK = Family(
    name="fork",
    attacks=(
        Attack(
            name="a fork bomb",
            script="""
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
            """,
            reasons=TIMED_OUT,
            timeout_s=5,
            within_s=20,
            heavy=True,
            fast=True,
        ),
        Attack(
            name="a bomb of threads",
            script="""
            made = 0
            try:
                while made < 5000:
                    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                    made += 1
            except RuntimeError:
                print("refused after few", made < 600)
            os._exit(0)
            """,
            prints=("refused after few True",),
        ),
        Attack(
            name="a bomb of programs",
            script="""
            while True:
                try:
                    subprocess.Popen([sys.executable, __file__])
                except OSError:
                    pass
            """,
            reasons=TIMED_OUT,
            timeout_s=5,
            within_s=20,
            heavy=True,
        ),
        Attack(
            name="a storm of orphans that fork and leave",
            script="""
            if os.fork() == 0:
                while True:
                    try:
                        if os.fork():
                            os._exit(0)
                        os.setsid()
                    except OSError:
                        pass
            time.sleep(2)
            print("enough")
            """,
            prints=("enough",),
            within_s=20,
            heavy=True,
        ),
        Attack(
            name="a storm of zombies",
            script="""
            for _ in range(3000):
                try:
                    if os.fork() == 0:
                        os._exit(0)
                except OSError:
                    break
            print("zombies are bounded", len(os.listdir("/proc")) < 700)
            """,
            prints=("zombies are bounded True",),
        ),
        Attack(
            name="forks by vfork and clone in all their ways",
            script="""
            made = 0
            for number in range(700):
                pid = libc.syscall(56, 17, 0, 0, 0, 0) if number % 2 else libc.fork()
                if pid == 0:
                    time.sleep(60)
                    os._exit(0)
                made += pid > 0
            print("bounded", made < 600)
            """,
            prints=("bounded True",),
        ),
        Attack(
            name="a fork bomb at the very end",
            script="""
            import atexit
            def bomb():
                for _ in range(200):
                    try:
                        if os.fork() == 0:
                            while True:
                                try:
                                    os.fork()
                                except OSError:
                                    pass
                    except OSError:
                        pass
            atexit.register(bomb)
            """,
            reasons=(*FINE, *TIMED_OUT),  # its own bomb may keep it from ending before the deadline
            timeout_s=5,
            within_s=20,
        ),
        Attack(
            name="processes that all ignore SIGTERM at the deadline",
            script="""
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for _ in range(30):
                if os.fork() == 0:
                    break
            while True:
                time.sleep(1)
            """,
            reasons=TIMED_OUT,
            timeout_s=2,
            within_s=15,
        ),
    ),
)

CPU = Family(
    name="cpu",
    attacks=(
        Attack(
            name="every process burns",
            script="""
            for _ in range(15):
                if os.fork() == 0:
                    break
            while True:
                pass
            """,
            reasons=TIMED_OUT,
            timeout_s=6,
            within_s=20,
            heavy=True,
            fast=True,
        ),
        Attack(
            name="a storm of system calls",
            script="""
            for _ in range(7):
                if os.fork() == 0:
                    break
            while True:
                os.getppid()
                os.stat("/proc/self/status")
            """,
            reasons=TIMED_OUT,
            timeout_s=6,
            within_s=20,
            heavy=True,
        ),
        Attack(
            name="a storm of signals between its processes",
            script="""
            signal.signal(signal.SIGUSR1, lambda *_: None)
            other = os.fork() or os.getppid()
            while True:
                os.kill(other, signal.SIGUSR1)
            """,
            reasons=TIMED_OUT,
            timeout_s=4,
            within_s=20,
        ),
        Attack(
            name="a script that stops itself until the deadline",
            script="os.kill(os.getpid(), signal.SIGSTOP)",
            reasons=TIMED_OUT,
            timeout_s=2,
            within_s=15,
        ),
        Attack(
            name="a script that ignores SIGTERM at the deadline",
            script="""
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                pass
            """,
            reasons=TIMED_OUT,
            timeout_s=2,
            within_s=15,
        ),
    ),
    probes=(
        Probe(name="a better nice value", code="return os.nice(-5)", outcomes=errors("EPERM", "EACCES")),
        Probe(
            name="real-time scheduling",
            code="return os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))",
            outcomes=errors("EPERM", "ENOSYS"),
        ),
        Probe(
            name="another process's scheduling",
            code="return os.setpriority(os.PRIO_PROCESS, 1, 19)",
            outcomes=errors("EPERM"),  # by the profile: the shim is of the same user, so the kernel would let it
        ),
        Probe(
            name="a higher limit than it has",
            code="return resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))",
            outcomes=errors("EPERM") | {"ValueError"},
        ),
        Probe(
            name="first in line for input and output",
            code="return syscall(251, 1, 0, (1 << 13) | 0)",  # ioprio_set, real-time class
            outcomes=errors("EPERM", "ENOSYS"),
        ),
    ),
)

DAEMONS = Family(
    name="daemons",
    attacks=(
        Attack(
            name="a daemon that holds the pipes open",
            script="""
            if os.fork() == 0:
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
                if os.fork() == 0:
                    time.sleep(600)
                os._exit(0)
            print("done")
            """,
            prints=("done",),
            within_s=15,
            fast=True,
        ),
        Attack(
            name="a daemon that closed everything",
            script="""
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.closerange(0, 1000)
                    time.sleep(600)
                os._exit(0)
            print("done")
            """,
            prints=("done",),
            within_s=15,
        ),
        Attack(
            name="a daemon that goes on writing its artifact",
            script="""
            open(MODEL, "w").write("first")
            if os.fork() == 0:
                os.setsid()
                while True:
                    with open(MODEL, "a") as model:
                        model.write("more" * 1000)
                    time.sleep(0.001)
            time.sleep(0.2)
            """,
            reasons=(None,),
            within_s=15,
        ),
        Attack(
            name="a daemon that swaps its artifact for a link",
            script="""
            open(MODEL, "w").write("first")
            if os.fork() == 0:
                os.setsid()
                os.symlink("/etc/shadow", OUT + "/link")
                while True:
                    for name in ("/link", "/file"):
                        try:
                            os.rename(OUT + name, MODEL)
                            os.symlink("/etc/shadow", OUT + "/link")
                        except OSError:
                            pass
            time.sleep(0.2)
            """,
            reasons=(Reason.ARTIFACT_REFUSED,),
            never=("root:",),
            within_s=15,
        ),
        Attack(
            name="a daemon that is born again whenever it is killed",
            script="""
            def live():
                while True:
                    pid = os.fork()
                    if pid:
                        os.waitpid(pid, 0)
                    else:
                        os.setsid()
                        signal.pause()
            for _ in range(5):
                if os.fork() == 0:
                    live()
            print("done")
            """,
            prints=("done",),
            within_s=15,
        ),
        Attack(
            name="a daemon that stops the script's parent and waits",
            script="""
            if os.fork() == 0:
                os.setsid()
                for _ in range(100):
                    os.kill(os.getppid(), signal.SIGSTOP)
                    time.sleep(0.01)
                os._exit(0)
            time.sleep(0.3)
            print("not reached while stopped")
            """,
            reasons=(*FINE, *TIMED_OUT),
            timeout_s=3,
            within_s=20,
        ),
        Attack(
            name="children that end after the script has failed",
            script="""
            for _ in range(20):
                if os.fork() == 0:
                    time.sleep(600)
                    os._exit(0)
            sys.exit(3)
            """,
            reasons=FAILED,
            message="^exit code 3",
            within_s=15,
        ),
    ),
)

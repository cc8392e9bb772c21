"""A neighbour's data and signals, and the four covert channels: network, IPC, shared files, signals.

Two runs that know of each other try to meet. What they share in any case, time itself and the processor's caches, the
page cache among them, is not promised to be silent (docs/security.md).
"""

import asyncio
from collections.abc import Awaitable, Callable

from schemas.reason import Reason
from tests.security.case import Attack, Check, Family, Seen
from tests.security.stage import Recorder, Stage

Meeting = Callable[[Stage], Awaitable[str | None]]

SECRET = "neighbours-secret-5d2c"


def meeting(victim: str, spy: str, *, prints: str) -> Meeting:
    """Let a victim run, and a spy beside it: the spy must print just this, and the victim must end well by itself."""

    async def run(stage: Stage) -> str | None:
        recorder = Recorder(stage.client)
        first = Attack(
            name="victim",
            script=f"secret = os.environ['SECRET']\n{victim}\nprint('unharmed')",
            variables={"SECRET": SECRET},
        )
        living = asyncio.create_task(stage.play(first, recorder))
        printed = asyncio.create_task(recorder.printed.wait())
        await asyncio.wait((living, printed), return_when=asyncio.FIRST_COMPLETED)
        printed.cancel()
        seen = await stage.play(Attack(name="spy", script=spy, variables=about(stage, recorder)))
        ended = await living
        if prints not in seen.texts:
            return f"the spy said {seen.texts[-3:]} and ended {seen.end.reason}: {seen.end.message}"
        return _unharmed(ended)

    return run


def about(stage: Stage, recorder: Recorder) -> dict[str, str]:
    """Tell a spy all that a spy could know of a victim."""
    found = stage.client.inspect_container(recorder.container_id)
    mounts = {mount["Destination"]: mount["Source"] for mount in found["Mounts"]}
    return {
        "VICTIM_PID": str(found["State"]["Pid"]),
        "VICTIM_ID": found["Id"],
        "VICTIM_OUT": mounts["/runyard/out"],
        "VICTIM_SLOT": mounts["/runyard/slot"],
        "VICTIM_UID": found["Config"]["User"].split(":")[0],
    }


def _unharmed(seen: Seen) -> str | None:
    well = seen.end.reason is Reason.NO_ARTIFACT and "unharmed" in seen.texts
    return None if well else f"the victim ended {seen.end.reason}: {seen.end.message}; {seen.texts[-3:]}"


WAIT = "print('ready', flush=True)\ntime.sleep(3)\n"

READING = (
    (
        "its folder, by the host's own path",
        "open(OUT + '/private', 'w').write(secret)\n" + WAIT,
        "print([p for p in (os.environ['VICTIM_OUT'], os.environ['VICTIM_SLOT']) if os.path.exists(p)])",
    ),
    (
        "its processes, by their numbers on the host",
        WAIT,
        """
found = []
for pid in (int(os.environ["VICTIM_PID"]), *range(2, 4000)):
    try:
        if b"train.py" in open(f"/proc/{pid}/cmdline", "rb").read() and pid != os.getpid():
            found.append(pid)
    except OSError:
        pass
print(found)
""",
    ),
    (
        "its environment, of any process that can be seen",
        WAIT,
        """
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        found += [pid] * (b"neighbours-secret" in open(f"/proc/{pid}/environ", "rb").read())
    except OSError:
        pass
print(found)
""",
    ),
    (
        "its /tmp and its shared memory",
        "for place in ('/tmp', '/dev/shm'):\n    open(place + '/private', 'w').write(secret)\n" + WAIT,
        "print([p for p in ('/tmp', '/dev/shm') for n in os.listdir(p)])",
    ),
    (
        "its control group's numbers",
        WAIT,
        """
found = []
for folder, names, _ in os.walk("/sys/fs/cgroup"):
    found += [n for n in names if os.environ["VICTIM_ID"][:12] in n or "docker" in n]
print(found)
""",
    ),
    (
        "memory of its own that somebody used before",
        "hoard = bytearray(secret.encode() * 1_000_000)\n" + WAIT,
        """
block = mmap.mmap(-1, 256 << 20)
print([n for n in range(0, 256 << 20, 16 << 20) if b"neighbours-secret" in block[n : n + (16 << 20)]])
""",
    ),
)

SENDING = (
    (
        "network: its loopback",
        "listener = socket.create_server(('127.0.0.1', 5555))\nlistener.settimeout(3)\nprint('ready', flush=True)\n"
        "try:\n    listener.accept()\n    print('met')\n    sys.exit(1)\nexcept TimeoutError:\n    pass\n",
        "s = socket.socket()\ns.settimeout(1)\nprint([5555] if s.connect_ex(('127.0.0.1', 5555)) == 0 else [])",
    ),
    (
        "network: an abstract socket",
        "listener = socket.socket(socket.AF_UNIX)\nlistener.bind('\\0meeting')\nlistener.listen()\n" + WAIT,
        "s = socket.socket(socket.AF_UNIX)\nprint(['met'] if s.connect_ex('\\0meeting') == 0 else [])",
    ),
    (
        "IPC: System V shared memory and queues",
        "print('made', libc.shmget(4242, 4096, 0o1666), libc.msgget(4242, 0o1666), libc.semget(4242, 1, 0o1666))\n"
        + WAIT,
        "print([n for n in (libc.shmget(4242, 4096, 0), libc.msgget(4242, 0), libc.semget(4242, 1, 0)) if n >= 0])",
    ),
    (
        "IPC: a queue and a semaphore of POSIX",
        "libc.mq_open(b'/meeting', 0o102, 0o666, None)\nopen('/dev/shm/sem.meeting', 'wb').write(b'x' * 32)\n" + WAIT,
        "print([n for n in (libc.mq_open(b'/meeting', 0),) if n >= 0] + os.listdir('/dev/shm'))",
    ),
    (
        "IPC: the kernel's keys",
        "try:\n    syscall(248, b'user', b'meeting', b'x', 1, -4)\nexcept OSError:\n    pass\n" + WAIT,
        """
try:
    print([syscall(249, b"user", b"meeting", None, -4)])
except OSError:
    print([])
""",
    ),
    (
        "shared files: locks on what both have mounted",
        """
held = []
for folder in ("/runyard/data", "/runyard/code", "/runyard/slot", "/opt/python/bin", "/etc"):
    for name in os.listdir(folder)[:50]:
        try:
            held.append(open(os.path.join(folder, name), "rb"))
            fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass
"""
        + WAIT,
        """
found = []
for folder in ("/runyard/data", "/runyard/code", "/runyard/slot", "/opt/python/bin", "/etc"):
    for name in os.listdir(folder)[:50]:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(os.path.join(folder, name))
        except OSError:
            pass
print(found)
""",
    ),
    (
        "shared files: who opens what both have mounted, by inotify",
        """
print('ready', flush=True)
until = time.monotonic() + 3
while time.monotonic() < until:
    for path in ("/runyard/data/data.csv", "/opt/python/bin/python3", "/etc/passwd"):
        open(path, "rb").read(1)
    time.sleep(0.05)
""",
        """
watching = libc.inotify_init1(os.O_NONBLOCK)
for path in (b"/runyard/data/data.csv", b"/opt/python/bin/python3", b"/etc/passwd"):
    libc.inotify_add_watch(watching, path, 0x20 | 0x1)
time.sleep(1)
try:
    print([len(os.read(watching, 65536))])
except OSError:
    print([])
""",
    ),
    (
        "shared files: times and sizes of what both have mounted",
        "print('ready', flush=True)\nfor _ in range(30):\n    open('/etc/passwd').read()\n    time.sleep(0.1)\n",
        """
def about():
    return [os.stat(p).st_atime_ns for p in ("/runyard/data/data.csv", "/opt/python/bin/python3", "/etc/passwd")]
first = about()
time.sleep(1)
print([] if about() == first else ["changed"])
""",
    ),
    (
        "signals: to every number of a process",
        "for n in (signal.SIGUSR1, signal.SIGRTMIN):\n    signal.signal(n, lambda *_: os._exit(99))\n" + WAIT,
        """
sent = []
for pid in (int(os.environ["VICTIM_PID"]), *range(os.getpid() + 1, 5000)):
    for number in (signal.SIGUSR1, signal.SIGRTMIN):
        try:
            os.kill(pid, number)
            sent.append(pid)
        except OSError:
            pass
print(sent)
""",
    ),
    (
        "signals: to everybody of the same user",
        WAIT,
        "signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n"
        "try:\n    os.kill(-1, signal.SIGUSR1)\nexcept ProcessLookupError:\n    pass\nprint([])",
    ),
)


async def other_users(stage: Stage) -> str | None:
    """Runs that go on at the same time are of different users."""
    recorders = [Recorder(stage.client), Recorder(stage.client)]
    attack = Attack(name="a user of its own", script="print(os.getuid(), flush=True)\ntime.sleep(1.5)")
    seen = await asyncio.gather(*(stage.play(attack, recorder) for recorder in recorders))
    users = {text for one in seen for text in one.texts}
    return None if len(users) == 2 else f"both were of user {users}"


async def new_boxes(stage: Stage) -> str | None:
    """A slot that was used before shows nothing of whoever had it."""
    wrote = "for p in ('/tmp', '/dev/shm', OUT):\n    open(p + '/left-behind', 'w').write('x')"
    await stage.play(Attack(name="first", script=wrote))
    look = "print([p for p in ('/tmp', '/dev/shm', OUT) if 'left-behind' in os.listdir(p)])"
    seen = await stage.play(Attack(name="second", script=look))
    return None if "[]" in seen.texts else f"it found {seen.texts}"


FAST = ("its environment, of any process that can be seen", "IPC: System V shared memory and queues")

NEIGHBOURS = Family(
    name="neighbours",
    checks=(
        *(
            Check(name=f"reading {name}", run=meeting(victim, spy, prints="[]"), fast=name in FAST)
            for name, victim, spy in READING
        ),
        *(
            Check(name=f"covert channel, {name}", run=meeting(victim, spy, prints="[]"), fast=name in FAST)
            for name, victim, spy in SENDING
        ),
        Check(name="two runs at once have two users", run=other_users, fast=False),
        Check(name="a used box shows no old state", run=new_boxes, fast=False),
    ),
)

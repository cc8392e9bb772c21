"""The seccomp profile call by call, as the kernel applies it; and that honest scripts do not notice it."""

import contextlib
import platform
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.runner.frames import End, FrameDecoder, Log
from services.runner.sandbox import Sandbox
from services.runner.sandbox_walls import SandboxSpec
from tests.security.controls import REQUESTS
from tests.security.sandbox_scene import a_spec, probe

pytestmark = pytest.mark.timeout(90)

EPERM, ENOSYS = 1, 38
# What is asked: number on x86-64, number on aarch64 (None: it has no such call), arguments. They are such that the
# kernel itself would find something else to complain of, or nothing.
REFUSED: dict[str, tuple[int | None, int | None, tuple[Any, ...]]] = {
    "io_uring_setup": (425, 425, (1, 0)),
    "io_uring_enter": (426, 426, (-1, 0, 0, 0, 0, 0)),
    "io_uring_register": (427, 427, (-1, 0, 0, 0)),
    "io_setup": (206, 0, (1, 0)),
    "io_submit": (209, 2, (0, 1, 0)),
    "io_getevents": (208, 4, (0, 1, 1, 0, 0)),
    "io_pgetevents": (333, 292, (0, 1, 1, 0, 0, 0)),
    "io_cancel": (210, 3, (0, 0, 0)),
    "io_destroy": (207, 1, (0,)),
    "keyctl": (250, 219, (0, -2, 0)),
    "add_key": (248, 217, (0, 0, 0, 0, 0)),
    "request_key": (249, 218, (0, 0, 0, 0)),
    "userfaultfd": (323, 282, (1,)),
    "bpf": (321, 280, (0, 0, 0)),
    "perf_event_open": (298, 241, (0, 0, -1, -1, 0)),
    "ptrace, itself by its parent": (101, 117, (0, 0, 0, 0)),
    "process_vm_readv": (310, 270, (0, 0, 0, 0, 0, 0)),
    "process_vm_writev": (311, 271, (0, 0, 0, 0, 0, 0)),
    "process_madvise": (440, 440, (-1, 0, 0, 0, 0)),
    "process_mrelease": (448, 448, (-1, 0)),
    "kcmp": (312, 272, (1, 1, 0, 0, 0)),
    "pidfd_getfd": (438, 438, (-1, 0, 0)),
    "mount": (165, 40, (0, b"/nowhere", 0, 0, 0)),
    "umount2": (166, 39, (b"/nowhere", 0)),
    "pivot_root": (155, 41, (b"/nowhere", b"/nowhere")),
    "move_mount": (429, 429, (-1, b"", -1, b"", 0)),
    "open_tree": (428, 428, (-1, b"/nowhere", 0)),
    "fsopen": (430, 430, (b"nosuch", 0)),
    "fsconfig": (431, 431, (-1, 0, 0, 0, 0)),
    "fsmount": (432, 432, (-1, 0, 0)),
    "fspick": (433, 433, (-1, b"/nowhere", 0)),
    "mount_setattr": (442, 442, (-1, b"", 0, 0, 0)),
    "statmount": (457, 457, (0, 0, 0, 0)),
    "listmount": (458, 458, (0, 0, 0, 0)),
    "unshare a user namespace": (272, 97, (0x10000000,)),
    "unshare nothing": (272, 97, (0,)),
    "setns": (308, 268, (-1, 0)),
    "clone with a user namespace": (56, 220, (0x10000011, 0, 0, 0, 0)),
    "clone with a network namespace": (56, 220, (0x40000011, 0, 0, 0, 0)),
    "clone with a mount namespace": (56, 220, (0x00020011, 0, 0, 0, 0)),
    "name_to_handle_at": (303, 264, (-100, b"/nowhere", 0, 0, 0)),
    "open_by_handle_at": (304, 265, (-1, 0, 0)),
    "chroot": (161, 51, (b"/nowhere",)),
    "socket AF_NETLINK": (41, 198, (16, 3, 0)),
    "socket AF_PACKET": (41, 198, (17, 3, 0)),
    "socket AF_ALG": (41, 198, (38, 5, 0)),
    "socket AF_VSOCK": (41, 198, (40, 1, 0)),
    "socket AF_XDP": (41, 198, (44, 3, 0)),
    "socket AF_KEY": (41, 198, (15, 3, 2)),
    "socket AF_BLUETOOTH": (41, 198, (31, 1, 0)),
    "socket AF_CAN": (41, 198, (29, 3, 1)),
    "socket AF_TIPC": (41, 198, (30, 1, 0)),
    "socket SCTP": (41, 198, (2, 1, 132)),
    "socket raw ICMP": (41, 198, (2, 3, 1)),
    "socket ping": (41, 198, (2, 2, 1)),
    "socketpair AF_TIPC": (53, 199, (30, 1, 0, 0)),
    "prlimit64 of PID 1": (302, 261, (1, 0, 0, 0)),
    "prlimit64 of nobody": (302, 261, (0x7FFFFFF0, 0, 0, 0)),
    "sched_setscheduler of PID 1": (144, 119, (1, 99, 0)),
    "sched_setparam of PID 1": (142, 118, (1, 0)),
    "sched_setattr of PID 1": (314, 274, (1, 0, 0)),
    "setpriority of PID 1": (141, 140, (0, 1, 19)),
    "setpriority of the user": (141, 140, (2, 0, 19)),
    "ioprio_set of PID 1": (251, 30, (1, 1, 0)),
    "ioctl TIOCSTI": (16, 29, (-1, 0x5412, 0)),
    "ioctl TIOCSTI with more bits": (16, 29, (-1, 0x100005412, 0)),
    "ioctl TIOCLINUX": (16, 29, (-1, 0x541C, 0)),
    "personality without randomised addresses": (135, 92, (0x0040000,)),
    "modify_ldt": (154, None, (0, 0, 0)),
    "memfd_secret": (447, 447, (0xFF,)),
    "fanotify_init": (300, 262, (0xFFFFFFFF, 0)),
    "fanotify_mark": (301, 263, (-1, 0, 0, -100, 0)),
    "kexec_load": (246, 104, (0, 0, 0, 0xFFFFFFFF)),
    "init_module": (175, 105, (0, 0, 0)),
    "syslog": (103, 116, (10, 0, 0)),
    "quotactl": (179, 60, (0xFFFFFFFF, 0, 0, 0)),
}
NEWER = {"statmount", "listmount"}
"""What an engine's libseccomp may not know by name; runc then answers as if the kernel did not know the number."""
FOREIGN = ("an x32 call", "a 32-bit call")
NOT_THERE = {"clone3": (435, 435, (0, 0))}
KERNELS_OWN = {
    *("bpf", "perf_event_open", "chroot", "open_by_handle_at", "fsopen", "kexec_load", "init_module", "syslog"),
    *("fanotify_init", "fsmount", "fspick", "move_mount", "pivot_root"),
    *("socket AF_PACKET", "socket AF_KEY", "socket AF_CAN", "socket raw ICMP", "socket AF_XDP"),
    *("unshare a user namespace", "clone with a network namespace", "clone with a mount namespace"),
}
"""What the kernel may refuse by itself with the same word, since the user has no capabilities."""

PROBE = r"""
import ctypes, json, mmap, os, platform, sys
column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
found = {}
for name, call in CALLS.items():
    if call[column] is None:
        continue
    arguments = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in call[2]]
    child = os.fork()  # what is let through may do anything
    if child == 0:
        ctypes.set_errno(0)
        answer = libc.syscall(ctypes.c_long(call[column]), *arguments)
        os._exit(ctypes.get_errno() if answer == -1 else 0)
    found[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
if column == 0:
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    interrupt = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    x32 = lambda: libc.syscall(ctypes.c_long(0x40000000 | 39))
    for name, call in (("an x32 call", x32), ("a 32-bit call", interrupt)):
        child = os.fork()
        if child == 0:
            call()
            os._exit(0)
        found[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def spec(image: str, runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxSpec]:
    if runtime == "runsc":
        pytest.skip("gVisor is its own kernel: by default it applies no profile, and implements few of these calls")
    with a_spec(Path(tmp_path_factory.mktemp("seccomp")), image, runtime) as spec:
        yield spec


def answers(spec: SandboxSpec, differences: dict[str, Any] | None = None) -> dict[str, int]:
    found: dict[str, int] = probe(spec, f"CALLS = {REFUSED | NOT_THERE!r}\n{PROBE}", differences)
    return found


@pytest.fixture(scope="module")
def found(spec: SandboxSpec) -> dict[str, int]:
    """The errno of each call in a sandbox."""
    return answers(spec)


@pytest.fixture(scope="module")
def unconfined(spec: SandboxSpec) -> dict[str, int]:
    """The same without the profile."""
    return answers(spec, REQUESTS["security options"])


@pytest.mark.parametrize("call", sorted(REFUSED))
def test_a_call_is_refused(call: str, found: dict[str, int]) -> None:
    assert found.get(call, EPERM) in ((EPERM, ENOSYS) if call in NEWER else (EPERM,))


@pytest.mark.parametrize("call", FOREIGN)
def test_a_call_of_another_architecture_kills_who_makes_it(
    call: str, found: dict[str, int], unconfined: dict[str, int]
) -> None:
    if call not in found:
        pytest.skip("this machine is no x86-64")
    assert found[call] == -signal.SIGSYS
    assert unconfined[call] != -signal.SIGSYS


@pytest.mark.parametrize("call", sorted(NEWER))
def test_a_newer_call_is_there_without_the_profile(call: str, unconfined: dict[str, int]) -> None:
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 8):
        pytest.skip("this kernel does not have it")
    assert unconfined[call] != ENOSYS


def test_clone3_does_not_exist_so_that_libraries_take_clone(found: dict[str, int]) -> None:
    assert found["clone3"] == ENOSYS


@pytest.mark.parametrize("call", sorted(set(REFUSED) - KERNELS_OWN))
def test_it_is_the_profile_that_refuses_and_not_the_kernel(call: str, unconfined: dict[str, int]) -> None:
    assert unconfined.get(call, 0) != EPERM


HONEST = r"""
import asyncio, ctypes, errno, fcntl, mmap, multiprocessing, os, resource, select, socket, subprocess, tempfile, termios
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import shared_memory

def threads():
    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(lambda n: n * n, range(100))) == 328350

def double(number):
    return 2 * number

def pools():
    for way in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(way).Pool(2) as pool:
            assert pool.map(double, range(5)) == [0, 2, 4, 6, 8], way
    return True

def child():
    return subprocess.run(["/bin/sh", "-c", "exit 7"]).returncode == 7

def memory():
    block = shared_memory.SharedMemory(create=True, size=4096)
    block.close(); block.unlink()
    os.close(os.memfd_create("x"))
    with mmap.mmap(-1, 1 << 20) as area:
        area.write(b"x")
    return True

def sockets():
    for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, tempfile.mktemp())):
        with socket.socket(family) as server:
            server.bind(address); server.listen()
            with socket.socket(family) as client:
                client.connect(server.getsockname())
    for family, kind in ((socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_INET6, socket.SOCK_STREAM)):
        socket.socket(family, kind).close()
    left, right = socket.socketpair()
    left.close(); right.close()
    return True

def events():
    os.close(os.eventfd(0)) if hasattr(os, "eventfd") else None
    select.epoll().close()
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as problem:
        assert problem.errno == errno.ENOSYS  # gVisor has none yet, and says so
    return ctypes.CDLL(None).inotify_init() > 0

async def program():
    process = await asyncio.create_subprocess_exec("/bin/true")
    return await process.wait() == 0

def loop():
    return asyncio.run(program())

def own_limits():
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
    os.nice(1)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    return resource.getrlimit(resource.RLIMIT_NOFILE) == (100, 200)

def terminal():
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\0" * 8)
    return os.isatty(slave)

def learns():
    import numpy, pandas
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score
    frame = pandas.DataFrame(numpy.random.default_rng(1).normal(size=(200, 4)), columns=list("abcd"))
    forest = RandomForestClassifier(n_estimators=10, n_jobs=2, random_state=1)
    scores = cross_val_score(forest, frame, frame.a + frame.b > 0, cv=2, n_jobs=2)  # processes, by loky
    numpy.linalg.svd(numpy.ones((300, 300)))  # BLAS's own threads
    return scores.mean() > 0.8

if __name__ == "__main__":
    for what in (threads, pools, child, memory, sockets, events, loop, terminal, learns, own_limits):
        print(what.__name__, what(), flush=True)
"""


def test_honest_scripts_do_not_notice(image: str, runtime: str, tmp_path: Path) -> None:
    with a_spec(tmp_path, image, runtime, HONEST) as narrow, contextlib.closing(Sandbox.connect()) as sandbox:
        spec = replace(narrow, pids_limit=512, memory_bytes=1 << 30)  # as much as a run has by default, and less memory
        sandbox.create(spec)
        sandbox.start(spec.name)
        decoder = FrameDecoder()
        frames = [frame for chunk in sandbox.follow(spec.name) for frame in decoder.feed(chunk)]
    said = [frame.text for frame in frames if isinstance(frame, Log)]
    assert isinstance(frames[-1], End)
    assert frames[-1].exit_code == 0, "\n".join(said)
    found = [line.removesuffix(" True") for line in said if line.endswith(" True")]
    assert " ".join(found) == "threads pools child memory sockets events loop terminal learns own_limits", said

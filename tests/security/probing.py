"""What a script can find out about its sandbox, what it must find, and which control each finding rests on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.runner.sandbox_walls import SandboxSpec

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
_HOST = {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in NAMESPACES}

PROBE = (
    f"HOST = {_HOST!r}\n"
    + r"""
import json, os, resource, stat

def first(*paths):
    for path in paths:
        try:
            with open(path) as file:
                return file.read().split()
        except OSError:
            continue

def volume(path):
    try:
        about = os.statvfs(path)
    except OSError:
        return None
    flags = [name for name in ("RDONLY", "NOSUID", "NODEV", "NOEXEC") if about.f_flag & getattr(os, "ST_" + name)]
    return about.f_blocks * about.f_frsize, about.f_files, " ".join(flags)

status = dict(line.strip().split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
kinds = ("NOFILE", "FSIZE", "CORE", "NPROC")
limits = {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in kinds}
hidden = ["/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/sched_debug"]
folders = ["/runyard/" + name for name in ("slot", "code", "data", "out")]
C = "/sys/fs/cgroup/"
print(json.dumps({
    "interfaces": os.listdir("/sys/class/net"),
    "shared with the host": [name for name in HOST if os.readlink("/proc/self/ns/" + name) == HOST[name]],
    "first process": os.getpid(),
    "user": [*os.getresuid(), *os.getresgid()],
    "other groups": sorted(set(os.getgroups()) - {os.getgid()}),
    "capabilities": [status["CapInh"], status["CapPrm"], status["CapEff"], status["CapBnd"], status["CapAmb"]],
    "filter and no new privileges": [status["Seccomp"], status["NoNewPrivs"]],
    "devices": sorted(set(os.listdir("/dev")) - {"core"}),
    "root": volume("/")[2].split()[:1],
    "folders": [(volume(path) or ["", "", ""])[2].split()[:1] for path in folders],
    "more of the host": os.path.exists("/host"),
    "/tmp": volume("/tmp"),
    "/dev/shm": volume("/dev/shm")[0],
    "CPU": first(C + "cpu.max") or first(C + "cpu/cpu.cfs_quota_us") + first(C + "cpu/cpu.cfs_period_us"),
    "memory": first(C + "memory.max", C + "memory/memory.limit_in_bytes"),
    "swap": first(C + "memory.swap.max", C + "memory/memory.memsw.limit_in_bytes"),
    "processes": first(C + "pids.max", C + "pids/pids.max"),
    "limits": limits,
    "OOM score": first("/proc/self/oom_score_adj"),
    "terminal": os.isatty(0),
    "not hidden": [path for path in hidden if os.path.exists(path) and not stat.S_ISCHR(os.stat(path).st_mode)],
    "kernel parameters": volume("/proc/sys")[2].split()[:1],
}))
"""
)

DEVICES = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers").exists()  # cgroup v2


def _always(value: Any) -> Callable[[SandboxSpec], Any]:
    return lambda _: value


def _limits(spec: SandboxSpec) -> dict[str, list[int]]:
    limits = {"NOFILE": 4096, "FSIZE": 32 << 20, "CORE": 0, "NPROC": 64}
    return {name: [limit, limit] for name, limit in limits.items()}


FACTS: dict[str, Callable[[SandboxSpec], Any]] = {
    "interfaces": _always(["lo"]),
    "shared with the host": _always([]),
    "first process": _always(1),
    "user": lambda spec: [*[spec.owner.uid] * 3, *[spec.owner.gid] * 3],
    "other groups": _always([]),
    "capabilities": _always(["0000000000000000"] * 5),
    "filter and no new privileges": _always(["2", "1"]),
    "devices": _always(DEVICES.split()),
    "root": _always(["RDONLY"]),
    "folders": _always([["RDONLY"], ["RDONLY"], ["RDONLY"], []]),
    "more of the host": _always(False),
    "/tmp": _always([64 << 20, 100_000, "NOSUID NODEV"]),
    "/dev/shm": _always(256 << 20),
    "CPU": _always(["100000", "100000"]),
    "memory": _always([str(512 << 20)]),
    "swap": _always(["0"] if UNIFIED else [str(512 << 20)]),
    "processes": _always(["64"]),
    "limits": _limits,
    "OOM score": _always(["0"]),
    "terminal": _always(False),
    "not hidden": _always([]),
    "kernel parameters": _always(["RDONLY"]),
}

SEEN = {
    "network": "interfaces",
    "IPC namespace": "shared with the host",
    "PID namespace": "shared with the host",
    "UTS namespace": "shared with the host",
    "cgroup namespace": "shared with the host",
    "user": "user",
    "groups": "other groups",
    "privileges": "capabilities",
    "dropped capabilities": "capabilities",
    "added capabilities": "capabilities",
    "security options": "filter and no new privileges",
    "devices": "devices",
    "read-only root": "root",
    "bind mounts": "folders",
    "other binds": "more of the host",
    "scratch space": "/tmp",
    "shared memory": "/dev/shm",
    "CPU period": "CPU",
    "CPU quota": "CPU",
    "memory": "memory",
    "memory with swap": "swap",
    "processes": "processes",
    "ulimits": "limits",
    "OOM score": "OOM score",
    "terminal": "terminal",
    "masked paths": "not hidden",
    "read-only paths": "kernel parameters",
}
"""Which finding changes when a control is taken out; the others show in the inspection alone."""

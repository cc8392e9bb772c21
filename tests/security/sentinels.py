"""The host's sentinels: what must be the same before and after every case, and what must be gone.

Taken by one function, compared by another. What other processes of this machine change by themselves (interfaces and
mounts of the engine's other containers) is left out by name.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from services.cli.embedded_kafka import cache_folder

FILES = [
    "/etc/passwd",
    "/etc/shadow",
    "/etc/group",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/crontab",
    "/etc/ld.so.preload",
    "/etc/sudoers",
    "/etc/profile",
    "/etc/docker/daemon.json",
    "/root/.bashrc",
    "/root/.ssh/authorized_keys",
    "/bin/sh",
    "/usr/bin/env",
    "/usr/bin/runc",
    "/usr/sbin/runc",
    "/var/run/docker.sock",
]
KERNEL = [
    "kernel/core_pattern",
    "kernel/core_uses_pid",
    "kernel/modprobe",
    "kernel/hotplug",
    "kernel/sysrq",
    "kernel/randomize_va_space",
    "kernel/hostname",
    "kernel/domainname",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/kptr_restrict",
    "kernel/dmesg_restrict",
    "kernel/pid_max",
    "kernel/threads-max",
    "kernel/tainted",
    "kernel/unprivileged_bpf_disabled",
    "kernel/perf_event_paranoid",
    "kernel/yama/ptrace_scope",
    "kernel/shmmax",
    "vm/overcommit_memory",
    "vm/overcommit_ratio",
    "vm/swappiness",
    "vm/mmap_min_addr",
    "vm/panic_on_oom",
    "fs/suid_dumpable",
    "fs/protected_symlinks",
    "fs/protected_hardlinks",
    "fs/file-max",
    "fs/mqueue/queues_max",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/all/accept_redirects",
    "user/max_user_namespaces",
    "net/core/bpf_jit_enable",
]
SYSTEM = ("/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/swaps")
SMALL_BYTES = 1 << 20
"""Up to here a file's content is digested; above, when it was written tells enough: nobody but root can set that."""
COMING_AND_GOING = ("veth", "br-")
MOUNTED_BY_OTHERS = ("/var/lib/docker", "/run/docker", "/var/run/docker", "/tmp/", "/var/tmp/", "/work/")


def take(planted: Path) -> dict[str, str]:
    """Take every sentinel: name → how it is. `planted` is the folder where the suite laid out files of its own."""
    return {
        **{f"file {path}": _about(Path(path)) for path in FILES},
        **{f"file {path}": _about(path) for path in sorted(planted.rglob("*"))},
        **{f"kernel {name}": _content(Path("/proc/sys") / name) for name in KERNEL},
        **{f"system {path}": _content(Path(path)) for path in SYSTEM},
        **{f"control group {path}": _content(path) for path in _control_groups()},
        **{f"mount {point}": str(times) for point, times in _mounts().items()},
        "interfaces": " ".join(n for n in _names("/sys/class/net") if not n.startswith(COMING_AND_GOING)),
    }


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Tell what differs.

    >>> changes({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})
    ["b: '2' became '3'", "c: None became '4'"]
    """
    names = sorted(before.keys() | after.keys())
    return [f"{n}: {before.get(n)!r} became {after.get(n)!r}" for n in names if before.get(n) != after.get(n)]


def plant(folder: Path, other_uid: int) -> None:
    """Lay out files that a script must neither read nor change: readable by all, by root, by another user."""
    folder.mkdir(parents=True)
    for name, mode, owner in (("for-all", 0o644, 0), ("for-root", 0o600, 0), ("of-another", 0o600, other_uid)):
        path = folder / name
        path.write_text(f"host secret {name}\n")
        path.chmod(mode)
        if os.geteuid() == 0:
            os.chown(path, owner, owner)
    folder.chmod(0o755)


def processes_of(first_uid: int, last_uid: int) -> list[str]:
    """List the living processes of some user ids, by pid and command."""
    found = []
    for pid in filter(str.isdigit, _names("/proc")):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended just now
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        if first_uid <= int(fields["Uid"].split()[0]) <= last_uid and not fields["State"].startswith("Z"):
            found.append(f"{pid} {command[:80]}")
    return found


def shared_memory_of(first_uid: int, last_uid: int) -> list[str]:
    """List what some user ids have left in the host's own shared memory, queues and semaphores."""
    left = [str(path) for path in Path("/dev/shm").iterdir() if first_uid <= path.lstat().st_uid <= last_uid]
    for table, column in (("shm", 7), ("msg", 7), ("sem", 4)):
        rows = Path(f"/proc/sysvipc/{table}").read_text().splitlines()[1:]
        left += [f"{table} {row}" for row in rows if first_uid <= int(row.split()[column]) <= last_uid]
    return left


def mounts_below(folder: Path) -> list[str]:
    """List what is mounted somewhere below a folder."""
    return [point for point in _mount_points() if point.startswith(f"{folder}/")]


def _names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def _about(path: Path) -> str:
    try:
        about = path.lstat()
        small = path.is_file() and about.st_size < SMALL_BYTES
        kind = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if small else f"written at {about.st_mtime_ns}"
    except OSError as problem:
        return type(problem).__name__
    return f"{kind} {about.st_mode:o} {about.st_uid}:{about.st_gid} {about.st_size}"


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as problem:
        return type(problem).__name__


def _control_groups() -> Iterator[Path]:
    for name in ("release_agent", "notify_on_release", "cgroup.subtree_control"):
        yield from sorted(Path("/sys/fs/cgroup").glob(f"*/{name}"))
        yield from sorted(Path("/sys/fs/cgroup").glob(name))


def _mount_points() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _mounts() -> Counter[str]:
    others = (*MOUNTED_BY_OTHERS, f"{cache_folder()}/")  # the tests' private engines live in the cache
    return Counter(point for point in _mount_points() if not point.startswith(others))

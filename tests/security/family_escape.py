"""Escape probes call by call: what no training needs must not reach the kernel's code. Numbers are those of x86-64."""

from collections.abc import Iterator

from tests.security.case import BLOCKED, FAILED, NO_FILE, READ_ONLY, Attack, Family, Probe, errors, named, value

NEW_NAMESPACES = {
    "mounts": 0x00020000,
    "control groups": 0x02000000,
    "host names": 0x04000000,
    "IPC": 0x08000000,
    "users": 0x10000000,
    "processes": 0x20000000,
    "networks": 0x40000000,
    "time": 0x00000080,
}

CALLS: dict[str, tuple[int, str]] = {
    "mount": (165, "b'none', b'/tmp', b'tmpfs', 0, None"),
    "mount --bind": (165, "b'/etc', b'/tmp', None, 4096, None"),
    "remount of the root as writable": (165, "None, b'/', None, 32, None"),
    "umount2": (166, "b'/proc', 2"),
    "pivot_root": (155, "b'/tmp', b'/tmp'"),
    "chroot": (161, "b'/tmp'"),
    "open_tree": (428, "-100, b'/', 1"),
    "move_mount": (429, "-100, b'/tmp', -100, b'/tmp', 0"),
    "fsopen": (430, "b'tmpfs', 0"),
    "fsconfig": (431, "0, 6, None, None, 0"),
    "fsmount": (432, "0, 0, 0"),
    "fspick": (433, "-100, b'/', 0"),
    "mount_setattr": (442, "-100, b'/', 0, None, 0"),
    "swapon": (167, "b'/tmp/x', 0"),
    "swapoff": (168, "b'/tmp/x'"),
    "setns": (308, "os.open('/proc/self/ns/net', 0), 0"),
    "ptrace of PID 1": (101, "16, 1, 0, 0"),
    "process_vm_readv of PID 1": (310, "1, None, 0, None, 0, 0"),
    "process_vm_writev to PID 1": (311, "1, None, 0, None, 0, 0"),
    "kcmp": (312, "os.getpid(), 1, 0, 0, 0"),
    "pidfd_getfd": (438, "0, 1, 0"),
    "process_madvise": (440, "0, None, 0, 4, 0"),
    "add_key": (248, "b'user', b'k', b'v', 1, -4"),
    "request_key": (249, "b'user', b'k', None, -4"),
    "keyctl": (250, "0, -4, 0"),
    "bpf": (321, "0, None, 0"),
    "perf_event_open": (298, "b'\\0' * 128, 0, -1, -1, 0"),
    "userfaultfd": (323, "1"),
    "io_uring_setup": (425, "4, ctypes.create_string_buffer(120)"),
    "io_uring_enter": (426, "0, 0, 0, 0, None, 0"),
    "io_uring_register": (427, "0, 0, None, 0"),
    "open_by_handle_at": (304, "-100, ctypes.create_string_buffer(136), 0"),
    "fanotify_init": (300, "0, 0"),
    "init_module": (175, "b'x', 1, b''"),
    "finit_module": (313, "0, b'', 0"),
    "delete_module": (176, "b'ext4', 0"),
    "kexec_load": (246, "0, 0, None, 0"),
    "kexec_file_load": (320, "0, 0, 0, None, 0"),
    "reboot": (169, "0xfee1dead, 672274793, 0, None"),
    "sethostname": (170, "b'owned', 5"),
    "setdomainname": (171, "b'owned', 5"),
    "settimeofday": (164, "struct.pack('ll', 1, 0), None"),
    "clock_settime": (227, "0, struct.pack('ll', 1, 0)"),
    "clock_adjtime": (305, "0, ctypes.create_string_buffer(struct.pack('I', 1), 208)"),
    "acct": (163, "b'/tmp/x'"),
    "quotactl": (179, "0x800001 << 8, b'/dev/vda', 0, None"),
    "quotactl_fd": (443, "0, 0, 0, None"),
    "iopl": (172, "3"),
    "ioperm": (173, "0x70, 1, 1"),
    "syslog": (103, "3, ctypes.create_string_buffer(64), 64"),
    "lookup_dcookie": (212, "0, ctypes.create_string_buffer(64), 64"),
    "move_pages of PID 1": (279, "1, 0, None, None, None, 0"),
    "migrate_pages of PID 1": (256, "1, 0, None, None"),
    "vhangup": (153, ""),
    "memfd_secret": (447, "0"),
    "uselib": (134, "b'/tmp/x'"),
    "nfsservctl": (180, "0, None, None"),
    "_sysctl": (156, "None"),
    "modify_ldt": (154, "1, b'\\0' * 16, 16"),
    "setuid(0)": (105, "0"),
    "setresuid(0, 0, 0)": (117, "0, 0, 0"),
    "setgid(0)": (106, "0"),
    "setgroups": (116, "1, struct.pack('I', 0)"),
    "capset": (126, "struct.pack('Ii', 0x20080522, 0), b'\\xff' * 24"),
}
SOME_ERROR = {
    "kcmp": errors("ESRCH"),
    "pidfd_getfd": errors("EBADF"),
    "process_madvise": errors("EBADF", "EINVAL"),
    "memfd_secret": errors("ENOSYS"),
    "modify_ldt": errors("EINVAL"),
    "setns": errors("EINVAL"),
}
"""Where the kernel's own word is as good as the filter's: the call was made, and has no power over anybody."""


def calls() -> Iterator[Probe]:
    """Every call that is not for trainings."""
    for name, (number, arguments) in CALLS.items():
        allowed = BLOCKED | SOME_ERROR.get(name, frozenset())
        yield Probe(name=name, code=f"return syscall({number}, {arguments})", outcomes=allowed)
    for name, flag in NEW_NAMESPACES.items():
        yield Probe(name=f"unshare of {name}", code=f"return syscall(272, {flag})", outcomes=BLOCKED)
        if name != "time":  # clone(2) has no flag for it
            code = (
                f"pid = syscall(56, {flag} | 17, None, None, None, 0)\nif pid == 0:\n    os._exit(0)\nreturn 'cloned'"
            )
            yield Probe(name=f"clone into new {name}", code=code, outcomes=BLOCKED)
    yield Probe(
        name="clone3 into new users",
        code="return syscall(435, ctypes.create_string_buffer(struct.pack('QQQQQ', 0x10000000, 0, 0, 0, 17), 64), 64)",
        outcomes=BLOCKED,
    )
    yield named("x32 calls", "syscall(0x40000000 + 39)", BLOCKED)
    yield Probe(
        name="an address space without randomness",
        code="syscall(135, 0x0040000)\nreturn 'made predictable'",  # personality(ADDR_NO_RANDOMIZE)
        outcomes=BLOCKED,
    )
    yield Probe(
        name="typing for whoever watches, by TIOCSTI",
        code="fcntl.ioctl(0, 0x5412, b'x')\nreturn 'typed'",
        outcomes=BLOCKED | errors("ENOTTY", "EIO", "EINVAL"),
    )


WRITES = [
    "/proc/sysrq-trigger",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/fs/suid_dumpable",
    "/proc/mtrr",
    "/sys/kernel/uevent_helper",
    "/sys/power/state",
    "/sys/class/net/lo/mtu",
    "/sys/module/apparmor/parameters/enabled",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/firmware/efi/efivars/x",
    "/sys/kernel/debug/x",
    "/sys/kernel/security/apparmor/.load",
    "/sys/fs/cgroup/release_agent",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/fs/cgroup/memory/release_agent",
    "/sys/fs/cgroup/rdma/release_agent",
    "/sys/fs/cgroup/pids/pids.max",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "/sys/fs/cgroup/devices/devices.allow",
    "/sys/fs/cgroup/memory/tasks",
    "/sys/fs/cgroup/pids.max",
    "/sys/fs/cgroup/cpu.max",
    "/proc/1/mem",
    "/proc/1/oom_score_adj",
    "/proc/1/fd/1",
    "/proc/1/comm",
    "/proc/1/clear_refs",
    "/proc/1/coredump_filter",
    "/proc/1/setgroups",
    "/proc/1/timerslack_ns",
    "/proc/acpi/wakeup",
    "/proc/bus/pci/00/00.0",
    "/proc/irq/default_smp_affinity",
    "/proc/scsi/scsi",
    "/dev/mem",
    "/dev/kmem",
    "/dev/port",
    "/dev/kmsg",
    "/dev/vda",
    "/dev/sda",
    "/dev/loop-control",
    "/dev/fuse",
    "/dev/kvm",
    "/dev/vhost-net",
    "/dev/vsock",
    "/dev/mapper/control",
    "/dev/rtc",
    "/dev/watchdog",
    "/dev/userfaultfd",
]
READS = [
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/keys",
    "/proc/key-users",
    "/proc/interrupts",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/kpageflags",
    "/proc/kpagecount",
    "/proc/1/environ",
    "/proc/1/maps",
    "/proc/1/pagemap",
    "/proc/1/root/etc/shadow",
    "/proc/1/auxv",
    "/proc/1/cwd/x",
    "/proc/1/exe",
    "/proc/1/stack",
    "/proc/1/syscall",
    "/proc/1/map_files/x",
    "/proc/1/fd/0",
    "/etc/shadow",
    "/root/.bashrc",
    "/sys/kernel/debug/tracing/trace",
    "/sys/firmware/dmi/tables/DMI",
    "/sys/kernel/tracing/trace",
    "/proc/asound/cards",
    "/proc/latency_stats",
    "/proc/slabinfo",
    "/proc/vmallocinfo",
]


def files() -> Iterator[Probe]:
    """Every file by which a container was ever left."""
    unwritable = READ_ONLY | NO_FILE | errors("EINVAL", "EISDIR", "EIO", "EBUSY")
    for path in WRITES:
        code = f"file = os.open({path!r}, os.O_WRONLY)\nreturn os.write(file, b'0')"
        yield Probe(name=f"writing to {path}", code=code, outcomes=unwritable)
    for path in READS:
        code = f"return open({path!r}, 'rb').read(16)"
        empty = value(b"")  # the engine lays /dev/null over some
        yield Probe(name=f"reading {path}", code=code, outcomes=NO_FILE | errors("EINVAL", "ESRCH") | empty)


OTHERS = (
    Probe(
        name="its own interpreter, by /proc/self/exe",  # CVE-2019-5736
        code="return os.open('/proc/self/exe', os.O_WRONLY)",
        outcomes=errors("ETXTBSY", "EACCES", "EROFS", "EPERM"),
    ),
    Probe(
        name="descriptors that somebody left open",  # CVE-2024-21626
        code="""
        paths = ["/proc/self/fd/" + number for number in os.listdir("/proc/self/fd")]
        links = [os.readlink(path) for path in paths if os.path.lexists(path)]
        return sorted(t for t in links if not t.startswith(("pipe:", "/dev/null", "/proc/", "/runyard/code/")))
        """,
        outcomes=value([]),
    ),
    Probe(
        name="its working folder, climbed out of",
        code="""
        found = []
        for number in range(3, 20):
            try:
                found.append(os.listdir(f"/proc/self/fd/{number}/../../../../../../../root"))
            except OSError:
                pass
        return found
        """,
        outcomes=value([]),
    ),
    Probe(
        name="programs that run as root",
        code="""
        found = []
        for top in ("/bin", "/sbin", "/usr", "/opt", "/lib"):
            for folder, _, names in os.walk(top):
                for name in names:
                    about = os.lstat(os.path.join(folder, name))
                    if stat.S_ISREG(about.st_mode) and about.st_mode & 0o6000:
                        if subprocess.run(["/usr/bin/id", "-u"], capture_output=True, text=True).stdout.strip() == "0":
                            found.append(name)
        return found
        """,
        outcomes=value([]),
    ),
    Probe(
        name="root, by a program that runs as root",
        code="""
        for program in ("/bin/su", "/usr/bin/su", "/usr/bin/newgrp", "/usr/bin/chsh", "/usr/bin/passwd", "/bin/mount"):
            try:
                words = [program, "-c", "id -u"] if program.endswith("su") else [program]
                done = subprocess.run(words, input="", capture_output=True, text=True, timeout=3)
                if done.stdout.strip() == "0":
                    return program
            except (OSError, subprocess.TimeoutExpired):
                pass
        return None
        """,
        outcomes=value(None),
    ),
    Probe(
        name="a program of its own with the set-user-id bit",
        code="""
        with open("/tmp/own", "wb") as file:
            file.write(open("/bin/true", "rb").read())
        os.chmod("/tmp/own", 0o6755)
        return subprocess.run(["/tmp/own"]).returncode, os.geteuid() != 0
        """,
        outcomes=value((0, True)) | errors("EPERM", "EACCES"),
    ),
    named("no new privileges", "'NoNewPrivs:\\t1' in open('/proc/self/status').read()", value(True)),
    named("a filter on its calls", "'Seccomp:\\t2' in open('/proc/self/status').read()", value(True)),
    Probe(
        name="capabilities, of any set",
        code="""
        lines = [line for line in open("/proc/self/status") if line.startswith("Cap")]
        return {line.split()[1].strip("0") for line in lines}
        """,
        outcomes=value({""}),
    ),
    Probe(
        name="an ambient capability",
        code="return libc.prctl(47, 2, 21, 0, 0) == 0 or errno.errorcode[ctypes.get_errno()]",
        outcomes=value("EPERM"),
    ),
    named("root's user or group", "0 in (*os.getresuid(), *os.getresgid(), *os.getgroups())", value(False)),
    named("no process but its own", "max(map(int, filter(str.isdigit, os.listdir('/proc')))) < 5000", value(True)),
    named("PID 1 is the shim", "b'shim' in open('/proc/1/cmdline', 'rb').read()", value(True)),
    Probe(
        name="the host by its PID 1's root",
        code="return os.path.exists('/proc/1/root' + os.environ['HOST_FOLDER'])",
        outcomes=value(False) | errors("EACCES"),
    ),
    Probe(
        name="the host's folders by their names",
        code="return [p for p in (os.environ['HOST_FOLDER'], '/var/lib/docker', '/work') if os.path.exists(p)]",
        outcomes=value([]),
    ),
    Probe(
        name="mounts that tell where the host keeps things, in a place to write",
        code="""
        rows = [line.split() for line in open("/proc/self/mountinfo")]
        writable = {row[4] for row in rows if "rw" in row[5].split(",")}
        return sorted(p for p in writable if not p.startswith(("/proc", "/dev", "/tmp", "/runyard/out", "/sys")))
        """,
        outcomes=value([]),
    ),
    Probe(
        name="a core dump into a program of the host",
        code="""
        piped = open("/proc/sys/kernel/core_pattern").read().startswith("|")
        return not piped or resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        """,
        outcomes=value(True),
    ),
)

ESCAPE = Family(
    name="escape",
    probes=(*calls(), *files(), *OTHERS),
    attacks=(
        Attack(
            name="a shim that is traced, stopped, renamed and starved",
            script="""
            for number in (signal.SIGSTOP, signal.SIGKILL, signal.SIGSEGV, signal.SIGHUP, signal.SIGQUIT):
                try:
                    os.kill(1, number)
                except OSError:
                    pass
            for name in ("mem", "comm", "oom_score_adj", "timerslack_ns", "fd/1"):
                try:
                    with open("/proc/1/" + name, "w") as file:
                        file.write("0")
                except OSError:
                    pass
            print("still here")
            sys.exit(9)
            """,
            prints=("still here",),
            reasons=FAILED,
            message="^exit code 9",
            fast=True,
        ),
    ),
)

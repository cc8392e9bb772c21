"""Disk by size, by number, by holes, by depth and by names; and every place that must be read-only."""

from schemas.reason import Reason
from tests.security.case import FAILED, READ_ONLY, Attack, Family, Probe, errors

FULL = ("(ENOSPC|EDQUOT|EFBIG).*",)
ENDED = (Reason.NO_ARTIFACT, None, *FAILED)

ATTACKS = (
    Attack(
        name="the output folder until it is full",
        script="""
        written, number = 0, 0
        try:
            while written < 1 << 30:
                with open(f"{OUT}/large-{number}", "wb", buffering=0) as file:
                    for _ in range(64):
                        written += file.write(b"x" * (4 << 20))
                number += 1
            print("all was taken")
        except OSError as problem:
            print(errno.errorcode[problem.errno], written >> 20, "MiB")
        """,
        prints=FULL,
        timeout_s=60,
        within_s=90,
        heavy=True,
    ),
    Attack(
        name="the output folder by fallocate",
        script="""
        taken = 0
        try:
            for number in range(8):
                file = os.open(f"{OUT}/{number}", os.O_CREAT | os.O_WRONLY)
                os.posix_fallocate(file, 0, 256 << 20)
                taken += 256
            print("all was taken")
        except OSError as problem:
            print(errno.errorcode[problem.errno], taken, "MiB")
        """,
        prints=FULL,
    ),
    Attack(
        name="the output folder by the number of files",
        script="""
        made = 0
        try:
            for folder in range(40):
                os.mkdir(f"{OUT}/{folder}")
                for number in range(1000):
                    os.close(os.open(f"{OUT}/{folder}/{number}", os.O_CREAT | os.O_WRONLY))
                    made += 1
            print("all was taken")
        except OSError as problem:
            print(errno.errorcode[problem.errno], made, "files")
        """,
        prints=FULL,
        timeout_s=60,
        within_s=120,
    ),
    Attack(
        name="/tmp by the number of files",
        script="""
        made = 0
        try:
            while made < 300_000:
                os.close(os.open(f"/tmp/{made}", os.O_CREAT | os.O_WRONLY))
                made += 1
            print("all was taken")
        except OSError as problem:
            print(errno.errorcode[problem.errno], made, "files")
        """,
        prints=FULL,
        timeout_s=60,
        within_s=90,
    ),
    Attack(
        name="a sparse file of 1 TB",
        script="""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            with open(OUT + "/sparse", "wb") as file:
                file.truncate(1 << 40)
            print("all was taken")
        except OSError as problem:
            print(errno.errorcode[problem.errno])
        """,
        prints=FULL,
        fast=True,
    ),
    Attack(
        name="a folder of depth 3,000",
        script="""
        os.chdir(OUT)
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
        open("bottom", "w").write("x")
        print("done")
        """,
        prints=("done",),
        fast=True,
    ),
    Attack(
        name="a model of depth 3,000",
        script="""
        os.mkdir(MODEL)
        os.chdir(MODEL)
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
        open("bottom", "w").write("x")
        """,
        reasons=(Reason.ARTIFACT_REFUSED,),
        message="nested",
    ),
    Attack(
        name="20,000 names in one folder, the longest there are",
        script="""
        os.mkdir(OUT + "/many")
        try:
            for number in range(20_000):
                os.close(os.open(f"{OUT}/many/{number:05d}" + "n" * 250, os.O_CREAT | os.O_WRONLY))
        except OSError as problem:
            print(errno.errorcode[problem.errno])
        print("done")
        """,
        prints=("done",),
        timeout_s=60,
    ),
    Attack(
        name="names with newlines, dashes, invalid UTF-8 and escape codes",
        script="""
        for name in (b"-rf", b"--", b"a\\nb", b"\\xff\\xfe", b"\\x1b[2J", b" ", b"...", b"*", b"$(id)", b";id"):
            os.mkdir(OUT.encode() + b"/" + name)
            open(OUT.encode() + b"/" + name + b"/" + name, "w").write("x")
        print("done")
        """,
        prints=("done",),
        fast=True,
    ),
    Attack(
        name="folders and files without any permission",
        script="""
        for number in range(50):
            os.makedirs(f"{OUT}/closed/{number}/inner/inner")
            os.mkfifo(f"{OUT}/closed/{number}/fifo")
            os.symlink("/", f"{OUT}/closed/{number}/root")
            os.chmod(f"{OUT}/closed/{number}/inner", 0)
            os.chmod(f"{OUT}/closed/{number}", 0)
        os.chmod(OUT + "/closed", 0)
        os.chmod(OUT, 0)
        print("done")
        """,
        prints=("done",),
        reasons=(Reason.NO_ARTIFACT, Reason.ARTIFACT_REFUSED),
        fast=True,
    ),
    Attack(
        name="a core dump",
        script="""
        os.chdir(OUT)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hoard = b"x" * (64 << 20)
        os.abort()
        """,
        reasons=FAILED,
        message="SIGABRT",
    ),
    Attack(
        name="files that are deleted and held open",
        script="""
        hoard, written = [], 0
        try:
            while written < 1 << 30:
                file = open(f"{OUT}/held", "wb", buffering=0)
                os.unlink(f"{OUT}/held")
                hoard.append(file)
                for _ in range(64):
                    written += file.write(b"x" * (4 << 20))
            print("all was taken")
        except OSError as problem:
            print(errno.errorcode[problem.errno], written >> 20, "MiB")
        """,
        prints=FULL,
        timeout_s=60,
        within_s=90,
    ),
    Attack(
        name="reading and writing without pause",
        script="""
        until = time.monotonic() + 6
        while time.monotonic() < until:
            with open(OUT + "/churn", "wb", buffering=0) as file:
                file.write(b"x" * (8 << 20))
                os.fsync(file.fileno())
            with open(OUT + "/churn", "rb", buffering=0) as file:
                file.read()
        print("done")
        """,
        prints=("done",),
        heavy=True,
    ),
)

READ_ONLY_PLACES = [
    "/x",
    "/etc/x",
    "/etc/passwd",
    "/usr/x",
    "/var/x",
    "/var/tmp/x",
    "/run/x",
    "/home/x",
    "/root/x",
    "/opt/python/x",
    "/opt/python/bin/python3",
    "/dev/x",
    "/runyard/x",
    "/runyard/slot/x",
    "/runyard/slot/shim.py",
    "/runyard/code/x",
    "/runyard/code/train.py",
    "/runyard/data/x",
    "/runyard/data/data.csv",
    "/lib/x",
    "/boot/x",
    "/mnt/x",
    "/srv/x",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/hostname",
    "/.dockerenv",
]

PROBES = (
    *(
        Probe(
            name=f"writing to {path}",
            code=f"return os.open({path!r}, os.O_WRONLY | os.O_CREAT, 0o600)",
            outcomes=READ_ONLY | errors("ENOTDIR", "ENXIO"),
        )
        for path in READ_ONLY_PLACES
    ),
    Probe(
        name="a data file of its own, made writable",
        code="os.chmod('/runyard/data/data.csv', 0o666)\nreturn 'changed'",
        outcomes=READ_ONLY,
    ),
    Probe(
        name="a hard link to its dataset",
        code="os.link('/runyard/data/data.csv', OUT + '/linked')\nreturn 'linked'",
        outcomes=errors("EXDEV", "EPERM", "EROFS"),
    ),
    Probe(
        name="its dataset's times",
        code="os.utime('/runyard/data/data.csv', (1, 1))\nreturn 'changed'",
        outcomes=READ_ONLY,
    ),
    Probe(
        name="another owner for its own file",
        code="open(OUT + '/own', 'w').close()\nos.chown(OUT + '/own', 0, 0)\nreturn 'given'",
        outcomes=errors("EPERM", "EINVAL"),
    ),
    Probe(
        name="an attribute that forbids removal",
        code="""
        file = os.open(OUT + "/immutable", os.O_CREAT | os.O_RDONLY)
        fcntl.ioctl(file, 0x40086602, struct.pack("l", 0x10))  # FS_IOC_SETFLAGS, FS_IMMUTABLE_FL
        return "immutable"
        """,
        outcomes=errors("EPERM", "ENOTTY", "ENOTSUP", "EACCES"),
    ),
    Probe(
        name="a file larger than a file may be",
        code="""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        file = os.open(OUT + "/beyond", os.O_CREAT | os.O_WRONLY)
        return os.pwrite(file, b"x", 1 << 41)
        """,
        outcomes=errors("EFBIG", "EINVAL", "ENOSPC"),
    ),
    Probe(
        name="device nodes in its own folder",
        code="os.mknod(OUT + '/null', 0o666 | stat.S_IFCHR, os.makedev(1, 3))\nreturn 'made'",
        outcomes=errors("EPERM", "EACCES"),
    ),
    Probe(
        name="a disk as a device node in /tmp",
        code="os.mknod('/tmp/disk', 0o666 | stat.S_IFBLK, os.makedev(254, 0))\nreturn 'made'",
        outcomes=errors("EPERM", "EACCES"),
    ),
)

DISK = Family(name="disk", attacks=ATTACKS, probes=PROBES)

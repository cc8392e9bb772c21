"""What a script leaves at MODEL_OUTPUT_PATH: everything that must not become a version, and what may."""

import asyncio
import hashlib
import os
import tarfile
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from schemas.reason import Reason
from services.runner.artifact import Collected, Limits, NoArtifact, Refused, collect
from tests.security.case import Attack, Check, Family, Probe, Seen, errors
from tests.security.stage import Stage

SWAPS = 2_000
SECRET = b"host secret that no artifact may hold\n"
REFUSED = (Reason.ARTIFACT_REFUSED,)


def refused(name: str, script: str, message: str, *, fast: bool = False) -> Attack:
    """An artifact that is refused, in words."""
    return Attack(name=name, script=script, reasons=REFUSED, message=message, never=("root:",), fast=fast)


def taken(name: str, script: str, content: bytes) -> Attack:
    """An artifact that is taken as it is, byte for byte, and never looked into."""

    def judge(seen: Seen) -> list[str]:
        if seen.artifact is None:
            return ["there is no artifact"]
        found = seen.artifact.read_bytes()
        return [] if found == content else [f"the artifact is {found[:80]!r}"]

    return Attack(name=name, script=script, reasons=(None,), judge=judge)


def folder_of(*names: str) -> Callable[[Seen], list[str]]:
    """The artifact is a tar of just these members, all of them plain."""

    def judge(seen: Seen) -> list[str]:
        if seen.artifact is None:
            return ["there is no artifact"]
        with tarfile.open(seen.artifact) as tar:
            members = tar.getmembers()
        found = tuple(member.name for member in members)
        wrong = [] if found == names else [f"the members are {found}"]
        special = [m.name for m in members if not (m.isreg() or m.isdir()) or m.mode not in (0o644, 0o755) or m.uid]
        return wrong + ([f"not plain: {special}"] if special else [])

    return judge


IN = 'os.mkdir(MODEL)\nopen(MODEL + "/weights", "w").write("w")\n'

LINKS = (
    refused("a link to a file of the host", 'os.symlink("/etc/passwd", MODEL)', "symbolic link", fast=True),
    refused("a link to a folder of the host", 'os.symlink("/etc", MODEL)', "symbolic link"),
    refused("a link to nothing", 'os.symlink("/nowhere/at/all", MODEL)', "symbolic link"),
    refused("a link to itself", "os.symlink(MODEL, MODEL)", "symbolic link"),
    refused("a link to its own orders", 'os.symlink("/runyard/slot/spec.json", MODEL)', "symbolic link"),
    refused("a link to the runner's root", 'os.symlink("/proc/self/root/etc/shadow", MODEL)', "symbolic link"),
    refused("a link among good files", IN + 'os.symlink("/etc/shadow", MODEL + "/x")', "symbolic link", fast=True),
    refused("a link that climbs", IN + 'os.symlink("../" * 40 + "etc/shadow", MODEL + "/x")', "symbolic link"),
    refused("a folder that is a link", IN + 'os.symlink("/proc", MODEL + "/sub")', "symbolic link"),
    refused("a hard link to its own file", 'open(OUT + "/o", "w")\nos.link(OUT + "/o", MODEL)', "hard link", fast=True),
    refused("two names of one file", IN + 'os.link(MODEL + "/weights", MODEL + "/again")', "hard link"),
)

SPECIAL = (
    refused("a FIFO", "os.mkfifo(MODEL)", "neither", fast=True),
    refused("a FIFO among good files", IN + 'os.mkfifo(MODEL + "/pipe")', "neither"),
    refused("a socket", "socket.socket(socket.AF_UNIX).bind(MODEL)", "no file|neither", fast=True),
    refused("a socket among good files", IN + 'socket.socket(socket.AF_UNIX).bind(MODEL + "/s")', "no file|neither"),
    refused("a file larger than it may be", 'open(MODEL, "wb").write(b"x" * (33 << 20))', "larger"),
    refused(
        "files that are too large together",
        'os.mkdir(MODEL)\nfor n in range(5):\n    open(f"{MODEL}/{n}", "wb").write(b"x" * (7 << 20))',
        "larger",
    ),
    refused("holes up to 8 GB", 'open(MODEL, "wb").truncate(8 << 30)', "larger|sparse", fast=True),
    refused("holes below the limit", 'open(MODEL, "wb").truncate(30 << 20)', "sparse"),
    refused(
        "more files than there may be",
        'os.mkdir(MODEL)\nfor n in range(10_001):\n    open(f"{MODEL}/{n}", "w").close()',
        "more than 10000",
    ),
    refused(
        "deeper than it may be",
        'os.makedirs(MODEL + "/d" * 40)\nopen(MODEL + "/d" * 40 + "/x", "w").close()',
        "nested",
    ),
    refused("a name with a newline", IN + 'open(MODEL + "/a\\nb", "w").close()', "not text", fast=True),
    refused("a name with an escape code", IN + 'open(MODEL + "/\\x1b[2J", "w").close()', "not text"),
    refused("a name that is no UTF-8", IN + 'open(MODEL.encode() + b"/\\xff", "w").close()', "not text"),
    refused("a disk's image of only holes in a folder", IN + 'open(MODEL + "/h", "wb").truncate(20 << 20)', "sparse"),
)

TAKEN = (
    taken("an empty file", 'open(MODEL, "w").close()', b""),
    taken(
        "a pickle that runs a command",
        'import pickle\nclass P:\n    def __reduce__(self): return (os.system, ("touch /tmp/owned",))\n'
        'open(MODEL, "wb").write(pickle.dumps(P(), protocol=0))',
        b"cposix\nsystem\np0\n(Vtouch /tmp/owned\np1\ntp2\nRp3\n.",
    ),
    taken("a script with a shebang", 'open(MODEL, "w").write("#!/bin/sh\\nid\\n")', b"#!/bin/sh\nid\n"),
    Attack(name="an empty folder", script="os.mkdir(MODEL)", reasons=(Reason.NO_ARTIFACT,)),
    Attack(
        name="names like options and set-user-id bits",
        script='os.mkdir(MODEL)\nfor n in ("-rf", "--", "a b", "*"):\n    open(f"{MODEL}/{n}", "w").close()\n'
        '    os.chmod(f"{MODEL}/{n}", 0o6777)',
        reasons=(None,),
        judge=folder_of("*", "--", "-rf", "a b"),
        fast=True,
    ),
    Attack(
        name="files that nobody may read",
        script='open(MODEL, "w").write("x")\nos.chmod(MODEL, 0)',
        reasons=(None, *REFUSED),  # root may read them; a runner that is not root cannot
    ),
    Attack(
        name="an artifact that a failing script has left",
        script='open(MODEL, "w").write("x")\nsys.exit(1)',
        reasons=(Reason.SCRIPT_ERROR,),
        judge=lambda seen: ["it was taken"] * (seen.artifact is not None),
    ),
)


def _begins_with(seen: Seen, content: bytes) -> bool:
    return seen.artifact is not None and seen.artifact.read_bytes().startswith(content)


ARCHIVES = Family(
    name="archives",
    attacks=(
        Attack(
            name="a tar that climbs, as an artifact",
            script="""
            import tarfile
            with tarfile.open(MODEL, "w") as tar:
                for name in ("../../etc/cron.d/owned", "/etc/cron.d/owned"):
                    tar.addfile(tarfile.TarInfo(name))
            """,
            reasons=(None,),
            judge=lambda seen: ["it was looked into"] * (not _begins_with(seen, b"../../etc/cron.d/owned\0")),
        ),
        Attack(
            name="a zip bomb, as an artifact",
            script="""
            import zipfile
            with zipfile.ZipFile(MODEL, "w", zipfile.ZIP_DEFLATED) as bomb:
                for number in range(20):
                    bomb.writestr(str(number), b"\\0" * (16 << 20))
            """,
            reasons=(None,),
            judge=lambda seen: ["it was unpacked"] * (seen.artifact is None or seen.artifact.stat().st_size > 1 << 20),
        ),
        Attack(
            name="a tar with links and devices, unpacked inside",
            script="""
            import io, tarfile
            with tarfile.open("/tmp/evil.tar", "w") as tar:
                for name, kind, target in (("up", tarfile.SYMTYPE, "/"), ("up/etc/owned", tarfile.REGTYPE, ""),
                                           ("../../owned", tarfile.REGTYPE, ""), ("/etc/owned", tarfile.REGTYPE, ""),
                                           ("disk", tarfile.BLKTYPE, ""), ("hard", tarfile.LNKTYPE, "/etc/passwd")):
                    member = tarfile.TarInfo(name)
                    member.type, member.linkname = kind, target
                    tar.addfile(member)
            for member in tarfile.open("/tmp/evil.tar"):
                try:
                    tarfile.open("/tmp/evil.tar").extract(member, OUT + "/unpacked")
                except (OSError, KeyError, tarfile.TarError):
                    pass
            print("outside:", [p for p in ("/etc/owned", "/owned", "/runyard/owned") if os.path.exists(p)])
            """,
            prints=(r"outside: \[\]",),
        ),
        Attack(
            name="a bomb of gzip, unpacked inside",
            script="""
            import gzip, shutil
            with gzip.open("/tmp/bomb.gz", "wb") as bomb:
                for _ in range(256):
                    bomb.write(b"\\0" * (1 << 20))
            try:
                with gzip.open("/tmp/bomb.gz") as source, open("/tmp/unpacked", "wb") as target:
                    shutil.copyfileobj(source, target)
            except OSError as problem:
                print(errno.errorcode[problem.errno])
            """,
            prints=("ENOSPC",),
        ),
        Attack(
            name="a folder named like an archive, with members that climb by name",
            script="""
            os.mkdir(MODEL)
            for name in ("..x", "...", "a..", "C:x", "con", "~", "x.tar"):
                open(f"{MODEL}/{name}", "w").close()
            """,
            reasons=(None,),
            judge=folder_of("...", "..x", "C:x", "a..", "con", "x.tar", "~"),
        ),
    ),
)


def swap_file_for_link(out: Path, secret: Path) -> None:
    """Put a link to the host's file in the artifact's place, and the file back."""
    (out / "link").symlink_to(secret)
    (out / "link").rename(out / "model")
    (out / "file").write_bytes(b"good")
    (out / "file").rename(out / "model")


def swap_inner_file(out: Path, secret: Path) -> None:
    """The same, one folder down."""
    swap_file_for_link(out / "model", secret)


def swap_folder_for_link(out: Path, secret: Path) -> None:
    """Put a link to the host's folder in the place of a folder of the artifact, and the folder back."""
    inner = out / "model" / "inner"
    inner.rename(out / "aside")
    inner.symlink_to(secret.parent)
    inner.unlink()
    (out / "aside").rename(inner)


def swap_for_fifo(out: Path, secret: Path) -> None:
    """Put a FIFO there, which would hold whoever opens it."""
    os.mkfifo(out / "fifo")
    (out / "fifo").rename(out / "model")
    (out / "file").write_bytes(b"good")
    (out / "file").rename(out / "model")


def swap_size(out: Path, secret: Path) -> None:
    """Let it grow and shrink while it is read."""
    with (out / "model").open("r+b") as file:
        file.truncate(1 << 20)
        file.truncate(4)


def swap_inner_size(out: Path, secret: Path) -> None:
    """The same, one folder down, where a tar is written."""
    swap_size(out / "model", secret)


FOLDERS = (swap_inner_file, swap_folder_for_link, swap_inner_size)


def race(swap: Callable[[Path, Path], None]) -> Callable[[Stage], object]:
    """Collect an artifact again and again while somebody swaps it: the host's secret must never come along."""

    def run() -> str | None:
        with tempfile.TemporaryDirectory(prefix="runyard-hostile-") as folder:
            out, secret = Path(folder, "out"), Path(folder, "host", "model")
            secret.parent.mkdir()
            secret.write_bytes(SECRET)
            (out / "model" / "inner" if swap in FOLDERS else out).mkdir(parents=True)
            target = out / "model" / ("inner/weights" if swap in FOLDERS else "")
            target.write_bytes(b"good")
            if swap in FOLDERS:
                (out / "model" / "model").write_bytes(b"good")
            return _race(swap, out, secret)

    async def check(stage: Stage) -> str | None:
        return await asyncio.to_thread(run)

    return check


def _race(swap: Callable[[Path, Path], None], out: Path, secret: Path) -> str | None:
    over, broke = threading.Event(), list[BaseException]()

    def keep_swapping() -> None:
        try:
            while not over.is_set():
                swap(out, secret)
        except OSError as problem:
            broke.append(problem)

    swapping = threading.Thread(target=keep_swapping)
    swapping.start()
    try:
        collected = 0
        for number in range(SWAPS):
            content = _collected(out)
            collected += content is not None
            if content is not None and SECRET in content:
                return f"the host's file came along at try {number}"
    finally:
        over.set()
        swapping.join()
    if broke:
        return f"the swapping broke: {broke[0]!r}"
    return None if collected else f"none of {SWAPS} tries collected anything, so none was a race"


def _collected(out: Path) -> bytes | None:
    """Collect once; None where nothing was, or was taken.

    Raises:
        AssertionError: what was collected is not what its digest says.
    """
    private = out.parent / "private"
    try:
        found = collect(out, private, Limits(max_bytes=1 << 22))
    except FileNotFoundError:
        private.unlink(missing_ok=True)
        return None  # in the moment of the swap nothing is there; processes that could do so are dead in a real run
    if isinstance(found, Refused | NoArtifact):
        return None
    content = private.read_bytes()
    private.unlink()
    assert isinstance(found, Collected)
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    return content


RACES = (
    swap_file_for_link,
    swap_inner_file,
    swap_folder_for_link,
    swap_inner_size,
    swap_for_fifo,
    swap_size,
)

ARTIFACT = Family(
    name="artifact",
    attacks=(*LINKS, *SPECIAL, *TAKEN),
    probes=(
        Probe(
            name="a character device as the artifact",
            code="os.mknod(MODEL, 0o666 | stat.S_IFCHR, os.makedev(1, 8))\nreturn 'made'",
            outcomes=errors("EPERM", "EACCES"),
        ),
        Probe(
            name="a hard link to the interpreter",
            code="os.link('/opt/python/bin/python3', OUT + '/python')\nreturn 'linked'",
            outcomes=errors("EXDEV", "EPERM", "EROFS"),
        ),
        Probe(
            name="a hard link to its orders",
            code="os.link('/runyard/slot/spec.json', OUT + '/spec')\nreturn 'linked'",
            outcomes=errors("EXDEV", "EPERM", "EROFS", "ENOENT"),
        ),
        Probe(
            name="another folder in the place of the output folder",
            code="os.rename('/runyard/out', '/runyard/out2')\nreturn 'moved'",
            outcomes=errors("EBUSY", "EROFS", "EACCES", "EPERM", "EXDEV"),
        ),
    ),
    checks=tuple(
        Check(
            name=f"{SWAPS} races: {swap.__name__.replace('_', ' ')}",
            run=race(swap),
            fast=swap is swap_size,
        )  # type: ignore[arg-type]
        for swap in RACES
    ),
)

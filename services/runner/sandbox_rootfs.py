"""A minimal Debian root as a tar file, the floor of runtime images where no image registry can be reached.

Owns the choice of the mirror (always one that apt itself is configured with) and the cached tar in the cache folder.
Must never name a host of its own, speak to Docker, or know anything about Python interpreters.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], None]

PACKAGES = ("libgomp1", "libstdc++6")  # what wheels with compiled code need; the interpreter's own libraries are copied
LEFT_OUT = (
    "./dev/*", "./etc/hostname", "./etc/resolv.conf", "./usr/share/info/*", "./usr/share/locale/*", "./usr/share/man/*",
    "./var/cache/apt/*", "./var/cache/debconf/*", "./var/lib/apt/lists/*", "./var/log/*",
)  # fmt: skip
DEBOOTSTRAP_TIMEOUT_S = 900
ETC = Path("/etc")


class CannotBuildError(Exception):
    """This host cannot make what was asked for; the text says why and what to do about it."""


@dataclass(frozen=True)
class Mirror:
    """One package archive of apt's configuration: its address, and how apt was told to trust it."""

    url: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    keyring: str | None = None
    trusted: bool = False


def parse_one_line(text: str) -> list[Mirror]:
    """Read the `deb [options] url suite components…` lines of a `.list` file (sources.list(5)).

    >>> parse_one_line("deb [trusted=yes] http://mirror.test/debian bookworm main")[0].url
    'http://mirror.test/debian'
    """
    found = re.finditer(r"^[ \t]*deb[ \t]+(?:\[([^\]]*)\][ \t]*)?(\S+)[ \t]+(\S+)([^#\n]*)", text, re.MULTILINE)
    return [_mirror(m[2], m[3], m[4], dict(o.split("=", 1) for o in (m[1] or "").split() if "=" in o)) for m in found]


def parse_deb822(text: str) -> list[Mirror]:
    """Read the stanzas of a `.sources` file (deb822 format, sources.list(5)); disabled ones are left out."""
    mirrors = []
    without_comments = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
    for stanza in re.split(r"\n[ \t]*\n", without_comments):
        pairs = re.findall(r"^(\S+?):[ \t]*(.*(?:\n[ \t]+.*)*)", stanza, re.MULTILINE)
        fields = {name.lower(): " ".join(value.split()) for name, value in pairs}
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
            uris, suites, parts = (fields.get(name, "") for name in ("uris", "suites", "components"))
            mirrors += [_mirror(uri, suites, parts, fields) for uri in uris.split()]
    return mirrors


def _mirror(url: str, suites: str, components: str, options: dict[str, str]) -> Mirror:
    keyring = options.get("signed-by", "").split(",")[0]
    return Mirror(
        url=url,
        suites=tuple(suites.split()),
        components=tuple(components.split()),
        keyring=keyring if keyring.startswith("/") and " " not in keyring else None,
        trusted=options.get("trusted") == "yes",
    )


def choose_mirror(mirrors: list[Mirror], codename: str) -> Mirror | None:
    """Take the first archive that serves the distribution itself, not its updates and not somebody's extra archive."""
    return next((m for m in mirrors if codename in m.suites and "main" in m.components), None)


def cannot_make_root(cache: Path) -> str | None:
    """Say why the Debian root can neither be found in the cache nor made here, or None."""
    codename = _codename()
    if codename is None:
        return "only on Debian and Ubuntu can an image be made from the host's own interpreter"
    if os.geteuid() != 0:
        return "making it from the host's own interpreter needs root: build it once as root"
    if _cached_tar(cache, codename).exists():
        return None
    if shutil.which("debootstrap") is None and shutil.which("apt-get") is None:
        return "debootstrap is absent and there is no apt-get to install it with: install debootstrap"
    if choose_mirror(_apt_mirrors(), codename) is None:
        return f"apt's sources name no archive for {codename} main: add one"
    return None


def debian_root(cache: Path, say: Say) -> Path:
    """Return the cached tar of the minimal root, making it first when it is absent. Processes wait for one another."""
    reason = cannot_make_root(cache)
    codename = _codename()
    if reason is not None or codename is None:
        raise CannotBuildError(reason)
    tar = _cached_tar(cache, codename)
    with locked(tar.with_suffix(".lock")):
        if not tar.exists():
            began = time.monotonic()
            say(f"Debian root ({codename}): debootstrap, once for all runtimes")
            _make_root(tar, codename)
            say(f"Debian root ({codename}): {tar.stat().st_size >> 20} MB in {time.monotonic() - began:.0f} s")
    return tar


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel lets go of it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder that goes away afterwards; whoever holds its lock sweeps away what a killed build left."""
    _sweep(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _sweep(folder)


def _sweep(folder: Path) -> None:
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed([m for m in mounted if m.startswith(f"{folder.resolve()}/")]):
        checked(["umount", mount], 30)  # a killed debootstrap leaves /proc mounted in its root
    if folder.exists():
        shutil.rmtree(folder)


def checked(command: list[str], timeout_s: float, env: dict[str, str] | None = None) -> str:
    """Run a command and return its output; raise CannotBuildError with its last lines when it fails or hangs."""
    try:
        done = subprocess.run(
            command, env=env, timeout=timeout_s, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise CannotBuildError(f"{Path(command[0]).name} ended with {done.returncode}:\n{tail}")
    return done.stdout


def _make_root(tar: Path, codename: str) -> None:
    mirror = choose_mirror(_apt_mirrors(), codename)
    if mirror is None:
        raise CannotBuildError(f"apt's sources name no archive for {codename} main")
    if shutil.which("debootstrap") is None:
        checked(["apt-get", "update", "-q"], 300)
        checked(["apt-get", "install", "-qy", "--no-install-recommends", "debootstrap"], 300)
    trust = ["--no-check-gpg"] if mirror.trusted else [f"--keyring={mirror.keyring}"] if mirror.keyring else []
    with work_folder(tar.with_suffix(".build")) as folder:
        root = folder / "root"
        wanted = ["--variant=minbase", f"--include={','.join(PACKAGES)}", *trust]
        checked(["debootstrap", *wanted, codename, str(root), _address(mirror.url)], DEBOOTSTRAP_TIMEOUT_S, _proxied())
        unfinished = folder / "root.tar"
        left_out = [f"--exclude={pattern}" for pattern in LEFT_OUT]
        checked(["tar", "-C", str(root), "--numeric-owner", *left_out, "-cf", str(unfinished), "."], 300)
        unfinished.replace(tar)


def _cached_tar(cache: Path, codename: str) -> Path:
    recipe = hashlib.sha256(repr((PACKAGES, LEFT_OUT)).encode()).hexdigest()
    return cache / f"debian-{codename}-{recipe[:12]}.tar"


def _codename() -> str | None:
    release = ETC / "os-release"
    found = re.search(r'^VERSION_CODENAME="?([\w.-]+)', release.read_text() if release.exists() else "", re.MULTILINE)
    return found[1] if found and (ETC / "apt").is_dir() else None


def _apt_mirrors() -> list[Mirror]:
    apt = ETC / "apt"
    lists = [apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list"))]
    one_line = [m for path in lists if path.exists() for m in parse_one_line(path.read_text())]
    return one_line + [
        m for path in sorted(apt.glob("sources.list.d/*.sources")) for m in parse_deb822(path.read_text())
    ]


def _address(url: str) -> str:
    """Resolve apt's `mirror+file:` indirection, which debootstrap does not know, to the first mirror of that file."""
    if not url.startswith("mirror+file:"):
        return url
    lines = Path(re.sub("^/+", "/", url.removeprefix("mirror+file:"))).read_text().split()
    return next(line for line in lines if "://" in line)


def _proxied() -> dict[str, str]:
    """Give debootstrap the proxies that apt is configured with; those of the environment are the default."""
    found = checked(
        ["apt-config", "shell", "http_proxy", "Acquire::http::Proxy", "https_proxy", "Acquire::https::Proxy"], 10
    )
    return dict(os.environ) | dict(re.findall(r"^(\w+)='([^']+)'", found, re.MULTILINE))

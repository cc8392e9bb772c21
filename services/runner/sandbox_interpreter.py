"""The host's own interpreters: where they are, and a copy of one that works at /opt/python of another root.

Owns the finding of `uv` and of interpreters, and the making of the tree with its packages and bytecode.
Must never speak to Docker nor change anything of the interpreter that it copies from.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.runner.sandbox_rootfs import CannotBuildError, checked

HOME = Path("/opt/python")
LEFT_BEHIND = shutil.ignore_patterns(
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "tkinter", "ensurepip",
    "lib2to3", "config-3*", "_tkinter*", "_test*", "*.a",
)  # fmt: skip
VERSION_MANAGERS = ("~/.pyenv/versions", "~/.asdf/installs/python", "~/.local/share/mise/installs/python")
PROBE = """
import json, os, sys, sysconfig
print(json.dumps(["%d.%d" % sys.version_info[:2],
    os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable), sysconfig.get_path("stdlib")]))
"""


@dataclass(frozen=True)
class Interpreter:
    """One interpreter of the host: `version` is like 3.11, `stdlib` is the folder of its standard library."""

    version: str
    executable: Path
    stdlib: Path


def find_uv() -> Path | None:
    """Find uv on PATH, beside the running interpreter, or where this checkout's bootstrap puts it."""
    checkout = Path(__file__).parents[2] / ".tools" / "uv" / "bin" / "uv"
    places = [shutil.which("uv"), Path(sys.executable).with_name("uv"), checkout]
    return next((Path(place) for place in places if place and Path(place).is_file()), None)


def find_interpreter(version: str) -> Interpreter | None:
    """Find an interpreter of this minor version that really starts: a version manager's shim may only say it does."""
    return next((found for path in _candidates(version) if (found := _probe(path)) and found.version == version), None)


def copy_interpreter(source: Interpreter, target: Path, requirements: Path) -> None:
    """Make the tree that goes to /opt/python: interpreter, standard library, packages, bytecode.

    Args:
        source: What to copy.
        target: The folder to make; it must not exist.
        requirements: Pinned and hashed requirements to install into it.

    Raises:
        CannotBuildError: uv is absent or one of the steps failed.
    """
    name = f"python{source.version}"
    library = target / "lib" / name
    shutil.copytree(source.stdlib, library, ignore=LEFT_BEHIND, ignore_dangling_symlinks=True)
    (target / "bin").mkdir()
    shutil.copy(source.executable, target / "bin" / name)
    for link in ("python3", "python"):
        (target / "bin" / link).symlink_to(name)
    _install(source, library / "site-packages", requirements)
    (library / "dist-packages").symlink_to("site-packages")  # Debian's own interpreters look there
    _compile(source, target)
    # The umask of whoever builds must not decide whether the run's user can read it.
    checked(["chmod", "-R", "u+rwX,go+rX,go-w", str(target)], 60)


def add_libraries(source: Interpreter, root: Path) -> None:
    """Copy the shared libraries which the interpreter in `root` needs and the root lacks, and index them.

    Copying follows what the loader says on this host, so that no list of package names has to know every release.
    """
    extensions = (source.stdlib / "lib-dynload").glob("*.so")
    wanted = [str(p) for p in extensions if not p.name.startswith(("_tkinter", "_test"))]
    output = checked(["ldd", str(source.executable), *wanted], 60)
    needed = {
        Path(found[1]).name: Path(found[2]) for found in re.finditer(r"^\s*(\S+) => (/\S+)", output, re.MULTILINE)
    }
    present = {path.name for path in (root / "usr" / "lib").rglob("lib*.so*")}
    libraries = root / HOME.relative_to("/") / "lib"
    for name in needed.keys() - present:
        shutil.copy(needed[name], libraries / name)
        (libraries / name).chmod(0o755)
    (root / "etc/ld.so.conf.d/00-runyard.conf").write_text(f"{HOME}/lib\n")
    checked(["ldconfig", "-r", str(root)], 60)


def _candidates(version: str) -> Iterator[Path]:
    folders = [Path(os.environ[name]) / "versions" for name in ("PYENV_ROOT",) if name in os.environ]
    folders += [Path(place).expanduser() for place in VERSION_MANAGERS]
    for folder in folders:
        yield from sorted(folder.glob(f"{version}.*/bin/python{version}"), reverse=True)
    uv = find_uv()
    if uv is not None:
        answer = _output([str(uv), "python", "find", "--no-project", "--system", "--offline", version])
        yield from [Path(answer)] if answer else []
    yield from (Path(folder, f"python{version}") for folder in ("/usr/local/bin", "/usr/bin"))


def _probe(path: Path) -> Interpreter | None:
    answer = _output([str(path), "-I", "-c", PROBE])
    if not answer:
        return None
    version, executable, stdlib = json.loads(answer)
    return Interpreter(version, Path(executable), Path(stdlib))


def _output(command: list[str]) -> str:
    """Return what a question to the host is answered with; nothing when it fails, since the next one is asked then."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=15, check=False, text=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _install(source: Interpreter, target: Path, requirements: Path) -> None:
    uv = find_uv()
    if uv is None:
        raise CannotBuildError("uv is neither on PATH nor in .tools: install it, then try again")
    # Copied, not linked: what follows sets modes, and a hard link would set them in uv's cache, too.
    options = ["--require-hashes", "--only-binary", ":all:", "--link-mode", "copy"]
    where = ["--python", str(source.executable), "--target", str(target)]
    checked([str(uv), "pip", "install", "-q", *options, *where, "-r", str(requirements)], 600)


def _compile(source: Interpreter, target: Path) -> None:
    """Compile all bytecode but that of the packages' own tests; not bound to times, which a tar file rounds."""
    options = ["-q", "-j", "0", "-x", "/tests?/", "--invalidation-mode", "unchecked-hash"]
    paths = ["-s", str(target), "-p", str(HOME), str(target / "lib" / f"python{source.version}")]
    checked([str(source.executable), "-I", "-m", "compileall", *options, *paths], 600)

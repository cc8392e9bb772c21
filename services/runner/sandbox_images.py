"""The runtime images: what a run's container is made from, one per Python version, built when first needed.

Owns their names, labels and the choice of how to build them: on a registry's slim image where one can be reached, else
from the host's own interpreter on a minimal Debian root. Images are tagged by the content of their recipe, so a changed
recipe builds a new one and never changes an image that a run may be using.
Must never run a run's script, nor tag an image before its packages were imported from it as a stranger's user id.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

import docker
import requests
from docker import DockerClient
from docker.errors import DockerException, ImageNotFound

from services.runner.sandbox_interpreter import add_libraries, copy_interpreter, find_interpreter, find_uv
from services.runner.sandbox_rootfs import (
    CannotBuildError,
    Say,
    cannot_make_root,
    checked,
    debian_root,
    locked,
    work_folder,
)

RUNTIMES = ("python3.10", "python3.11", "python3.12")
PYTHON = "/opt/python/bin/python3"  # the interpreter's one path, in every runtime and however it was built
REPOSITORY = "runyard/runtime"
LABEL = "runyard.runtime"
RECIPE_REVISION = 1  # raise it when the steps below change what is inside an image
RECIPES = Path(__file__).parents[2] / "deploy" / "runtimes"
PROBE_TIMEOUT_S = 8
ENGINE_TIMEOUT_S = 600
ENVIRONMENT = {"PATH": "/opt/python/bin:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
PROOF = "import sys, numpy, pandas, sklearn; print('%d.%d' % sys.version_info[:2])"


@dataclass(frozen=True)
class Workshop:
    """Where images are built: the engine, the cache folder, the slim image's name, and who is told of the progress."""

    engine: DockerClient
    cache: Path
    base: str
    say: Say


@contextmanager
def workshop(say: Say = lambda line: None) -> Iterator[Workshop]:
    """Open the engine and the cache folder that the environment names (RUNYARD_CACHE_DIR, RUNYARD_RUNTIME_BASE)."""
    cache = Path(os.environ.get("RUNYARD_CACHE_DIR") or "~/.cache/runyard").expanduser()
    with closing(docker.from_env(timeout=ENGINE_TIMEOUT_S)) as engine:
        yield Workshop(engine, cache, os.environ.get("RUNYARD_RUNTIME_BASE", "python:{version}-slim"), say)


def ensure(runtime: str, shop: Workshop | None = None) -> str:
    """Return the id of the runtime's image, building it first when this engine does not have it.

    Raises:
        CannotBuildError: the runtime is unknown, or this host cannot make it; the text says why.
        DockerException: the engine cannot be reached or broke off.
    """
    if shop is None:
        with workshop() as own:
            return ensure(runtime, own)
    if runtime not in RUNTIMES:
        raise CannotBuildError(f"{runtime} is not one of {', '.join(RUNTIMES)}")
    tag = _tag(runtime, shop)
    if (existing := _image_id(shop, tag)) is not None:
        return existing
    with locked(_cache_path(shop, tag, "lock")):
        return _image_id(shop, tag) or _build(runtime, tag, shop)


def cannot(runtime: str, shop: Workshop | None = None) -> str | None:
    """Say why this host neither has nor can make the runtime's image, or None when it has it or can make it."""
    if shop is None:
        with workshop() as own:
            return cannot(runtime, own)
    if runtime not in RUNTIMES:
        return f"{runtime} is not one of {', '.join(RUNTIMES)}"
    if _image_id(shop, _tag(runtime, shop)) is not None:
        return None
    reason = _cannot_from_host(runtime, shop)
    if reason is None or _base_is_reachable(runtime, shop):
        return None
    return f"{reason}; and the image {_base(runtime, shop)} cannot be reached"


def available(shop: Workshop | None = None) -> list[str]:
    """List the runtimes that this host has or can make; `cannot` has the reason for each of the others."""
    if shop is None:
        with workshop() as own:
            return available(own)
    return [runtime for runtime in RUNTIMES if cannot(runtime, shop) is None]


def image_tag(runtime: str, recipe: list[bytes]) -> str:
    """Name the image of a runtime by what it is made from.

    >>> image_tag("python3.11", [b"numpy==2.4.6"]).rpartition("-")[0]
    'runyard/runtime:python3.11'
    """
    digest = hashlib.sha256()
    for part in (str(RECIPE_REVISION).encode(), repr(ENVIRONMENT).encode(), *recipe):
        digest.update(len(part).to_bytes(8, "big") + part)
    return f"{REPOSITORY}:{runtime}-{digest.hexdigest()[:12]}"


def _tag(runtime: str, shop: Workshop) -> str:
    recipe = [(RECIPES / name).read_bytes() for name in ("Dockerfile", _requirements(runtime))]
    return image_tag(runtime, [*recipe, shop.base.encode()])


def _cache_path(shop: Workshop, tag: str, kind: str) -> Path:
    return shop.cache / f"{tag.rpartition(':')[2]}.{kind}"


def _requirements(runtime: str) -> str:
    return f"requirements-{runtime}.txt"


def _version(runtime: str) -> str:
    return runtime.removeprefix("python")


def _base(runtime: str, shop: Workshop) -> str:
    return shop.base.format(version=_version(runtime))


def _image_id(shop: Workshop, name: str) -> str | None:
    try:
        return str(shop.engine.images.get(name).id)
    except ImageNotFound:
        return None


def _build(runtime: str, tag: str, shop: Workshop) -> str:
    began = time.monotonic()
    image = _build_on_slim(runtime, shop) or _build_from_host(runtime, tag, shop)
    try:
        _prove(image, runtime, shop)
    except DockerException as error:
        shop.engine.api.remove_image(image, force=True)
        raise CannotBuildError(f"{runtime}: the new image does not work: {error}") from error
    repository, _, name = tag.partition(":")
    shop.engine.api.tag(image, repository, name)
    shop.say(f"{runtime}: {tag} is ready after {time.monotonic() - began:.0f} s")
    return image


def _prove(image: str, runtime: str, shop: Workshop) -> None:
    """Import the packages as a run would: nobody's user id, no network, read-only root."""
    printed = shop.engine.containers.run(
        image, [PYTHON, "-c", PROOF], user="12345", network_mode="none", read_only=True, remove=True
    )
    if printed.decode().strip() != _version(runtime):
        raise DockerException(f"it runs Python {printed.decode().strip()}")


def _base_is_reachable(runtime: str, shop: Workshop) -> bool:
    """Ask for the slim image itself: the engine has it, or a registry answers within the probe's bound."""
    if _image_id(shop, _base(runtime, shop)) is not None:
        return True
    try:
        with closing(docker.from_env(timeout=PROBE_TIMEOUT_S)) as impatient:
            impatient.images.get_registry_data(_base(runtime, shop))
    except (DockerException, requests.RequestException):
        return False
    return True


def _build_on_slim(runtime: str, shop: Workshop) -> str | None:
    """Build the Dockerfile; None when no registry answers or the build fails, so that the host's way is tried."""
    base = _base(runtime, shop)
    if not _base_is_reachable(runtime, shop):
        shop.say(f"{runtime}: no registry has answered for {base}; building from this host's own interpreter")
        return None
    shop.say(f"{runtime}: building on {base}")
    try:
        image, _ = shop.engine.images.build(
            path=str(RECIPES),
            buildargs={"BASE": base, "REQUIREMENTS": _requirements(runtime)},
            labels={LABEL: runtime},
            rm=True,
            forcerm=True,
        )
    except (DockerException, requests.RequestException) as error:
        shop.say(f"{runtime}: that failed ({error}); building from this host's own interpreter")
        return None
    return str(image.id)


def _cannot_from_host(runtime: str, shop: Workshop) -> str | None:
    if find_interpreter(_version(runtime)) is None:
        return f"this host has no Python {_version(runtime)} (`uv python install {_version(runtime)}` adds one)"
    if find_uv() is None:
        return "uv is neither on PATH nor in .tools: install it"
    return cannot_make_root(shop.cache)


def _build_from_host(runtime: str, tag: str, shop: Workshop) -> str:
    reason, source = _cannot_from_host(runtime, shop), find_interpreter(_version(runtime))
    if reason is not None or source is None:
        raise CannotBuildError(f"{runtime}: {reason}")
    with work_folder(_cache_path(shop, tag, "build")) as folder, ThreadPoolExecutor(1) as beside:
        root, python = folder / "root", folder / "python"
        debian = beside.submit(debian_root, shop.cache, shop.say)
        began = time.monotonic()
        shop.say(f"{runtime}: copying {source.executable} and installing its packages")
        copy_interpreter(source, python, RECIPES / _requirements(runtime))
        shop.say(f"{runtime}: interpreter, packages and bytecode in {time.monotonic() - began:.0f} s")
        root.mkdir()
        checked(["tar", "-C", str(root), "-xpf", str(debian.result())], 300)
        python.rename(root / "opt/python")
        add_libraries(source, root)
        return _import_tree(root, runtime, shop)


def _import_tree(root: Path, runtime: str, shop: Workshop) -> str:
    """Stream the tree into the engine as an image of one layer."""
    began = time.monotonic()
    command = ["tar", "-C", str(root), "--numeric-owner", "-c", "."]
    settings = [f"ENV {name}={value}" for name, value in ENVIRONMENT.items()]
    changes = [*settings, f"LABEL {LABEL}={runtime}", f'CMD ["{PYTHON}"]']
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
        chunks = iter(partial(cast("IO[bytes]", tar.stdout).read, 1 << 20), b"")
        answer = shop.engine.api.import_image_from_stream(chunks, changes=changes)
    if tar.returncode != 0 or (image := re.search(r"sha256:[0-9a-f]{64}", answer)) is None:
        raise CannotBuildError(f"{runtime}: the engine did not take the image: {answer.strip()}")
    shop.say(f"{runtime}: imported in {time.monotonic() - began:.0f} s")
    return image[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 1 when a runtime that was asked for cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m services.runner.sandbox_images", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build the images of these runtimes, side by side, unless they exist")
    build.add_argument("runtimes", nargs="+", choices=RUNTIMES, metavar="runtime", help=", ".join(RUNTIMES))
    commands.add_parser("list", help="say of every runtime whether this host has it, can make it, or why it cannot")
    asked = parser.parse_args(arguments)
    with workshop(_say) as shop:
        return _list(shop) if asked.command == "list" else _build_all(asked.runtimes, shop)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _build_all(runtimes: list[str], shop: Workshop) -> int:
    failures = 0
    with ThreadPoolExecutor(2) as pool:
        pending = {runtime: pool.submit(ensure, runtime, shop) for runtime in dict.fromkeys(runtimes)}
        for runtime, image in pending.items():
            try:
                shop.say(f"{runtime}: {image.result()}")
            except CannotBuildError as error:
                shop.say(f"{runtime}: cannot be built: {error}")
                failures += 1
    return min(failures, 1)


def _list(shop: Workshop) -> int:
    for runtime in RUNTIMES:
        image, reason = _image_id(shop, _tag(runtime, shop)), cannot(runtime, shop)
        shop.say(f"{runtime}: {image or reason or 'not built yet, can be made'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The images that compose.yaml runs: the official ones where a registry answers, else stand-ins made on this host.

Owns the choice, the tags (by content, so that a second build is quick and an image in use never changes) and the
building. compose.yaml is the same for both kinds: a stand-in honours the same variables, commands, users and folders.
What goes into a stand-in is the business of `recipes`.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import docker
import requests
from docker import DockerClient
from docker.errors import BuildError, DockerException, ImageNotFound
from docker.utils.build import exclude_paths

from deploy.images.recipes import RECIPES, ROOT, Recipe, recipes
from services.runner.sandbox_rootfs import CannotBuildError, Say, debian_root, locked, work_folder

VARIABLES = {"KAFKA_IMAGE": "kafka", "POSTGRES_IMAGE": "postgres", "PYTHON_IMAGE": "python"}
"""The variables of compose.yaml that name an image of somebody else's, and what stands in for each."""
SERVICE_VARIABLE = "RUNYARD_IMAGE"
SERVICE_DOCKERFILE = "deploy/Dockerfile"
LABEL = "runyard.image"
PROBE_TIMEOUT_S = 8
ENGINE_TIMEOUT_S = 600


@dataclass(frozen=True)
class Workshop:
    """Where images are made: the engine, the cache folder, and who is told of the progress."""

    engine: DockerClient
    cache: Path
    say: Say


@contextmanager
def workshop(say: Say) -> Iterator[Workshop]:
    """Open the engine and the cache folder (RUNYARD_CACHE_DIR)."""
    cache = Path(os.environ.get("RUNYARD_CACHE_DIR") or "~/.cache/runyard").expanduser()
    with closing(docker.from_env(timeout=ENGINE_TIMEOUT_S)) as engine:
        yield Workshop(engine, cache, say)


def ensure_all(shop: Workshop) -> dict[str, str]:
    """Make sure of every image that compose.yaml runs; returns its variables: name → image.

    Raises:
        CannotBuildError: the text says which image cannot be made here, and why.
    """
    with ThreadPoolExecutor(len(VARIABLES)) as side_by_side:
        found = dict(zip(VARIABLES, side_by_side.map(lambda name: ensure(name, shop), VARIABLES), strict=True))
    return found | {SERVICE_VARIABLE: ensure_service(found["PYTHON_IMAGE"], shop)}


def ensure(variable: str, shop: Workshop) -> str:
    """Make sure of one image of VARIABLES: the one that the environment names, else the official one, else a stand-in.

    Raises:
        CannotBuildError: it cannot be had, nor made here.
    """
    chosen = os.environ.get(variable)
    official = chosen or default_image(variable)
    if _is_here(official, shop) or _pulled(official, shop):
        shop.say(f"{official}: is here")
        return official
    if chosen:
        raise CannotBuildError(f"{variable} names {chosen}, which this engine neither has nor can pull")
    recipe = recipes()[VARIABLES[variable]]
    tag = stand_in_tag(recipe)
    with locked(_beside(shop, tag, "lock")):
        if not _is_here(tag, shop):
            shop.say(f"{official}: no registry has answered; making {tag}")
            _build_stand_in(recipe, tag, shop)
    return tag


def ensure_service(python_image: str, shop: Workshop) -> str:
    """Make sure of the image of the four services, from deploy/Dockerfile on the given base."""
    chosen = os.environ.get(SERVICE_VARIABLE)
    if chosen:
        return chosen
    tag = f"runyard/service:{_service_digest(python_image)}"
    with locked(_beside(shop, tag, "lock")):
        if not _is_here(tag, shop):
            network = "none" if python_image.startswith("runyard/") else "default"
            base = {"PYTHON_IMAGE": python_image}
            _build(tag, shop, path=str(ROOT), dockerfile=SERVICE_DOCKERFILE, buildargs=base, network_mode=network)
    return tag


def default_image(variable: str) -> str:
    """Read which image compose.yaml runs unless a variable says otherwise."""
    found = re.search(rf"\$\{{{variable}:-([^}}]+)\}}", (ROOT / "compose.yaml").read_text())
    if found is None:
        raise CannotBuildError(f"compose.yaml has no default for {variable}")
    return found[1]


def stand_in_tag(recipe: Recipe) -> str:
    """Name a stand-in by what is in it."""
    files = sorted(path for path in (RECIPES / recipe.name).rglob("*") if path.is_file())
    own = [path.read_bytes() for path in (*files, RECIPES / "recipes.py")]
    return f"runyard/{recipe.name}:{recipe.version}-{_digest([*own, *(text.encode() for text in recipe.depends_on)])}"


def _build_stand_in(recipe: Recipe, tag: str, shop: Workshop) -> None:
    base = _debian(shop)
    with work_folder(_beside(shop, tag, "build")) as context, tempfile.TemporaryFile(dir=shop.cache) as tar:
        for source in (RECIPES / recipe.name).iterdir():
            (shutil.copytree if source.is_dir() else shutil.copy)(source, context / source.name)
        recipe.fill(context, shop.cache, shop.say)
        _pack(context, tar)
        _build(tag, shop, fileobj=tar, custom_context=True, buildargs={"BASE": base}, network_mode="none")


def _pack(context: Path, tar: IO[bytes]) -> None:
    """Write a build context; a link at its top stands for what it points to."""
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for part in sorted(context.iterdir()):
            archive.add(part.resolve(), arcname=part.name)
    tar.seek(0)


def _build(tag: str, shop: Workshop, **arguments: Any) -> None:
    began = time.monotonic()
    try:
        shop.engine.images.build(tag=tag, rm=True, forcerm=True, labels={LABEL: tag.partition(":")[0]}, **arguments)
    except BuildError as error:
        tail = "".join(line.get("stream", "") for line in list(error.build_log)[-15:])
        raise CannotBuildError(f"{tag} cannot be built: {error}\n{tail}") from error
    except (DockerException, requests.RequestException) as error:
        raise CannotBuildError(f"{tag} cannot be built: {error}") from error
    shop.say(f"{tag}: made in {time.monotonic() - began:.0f} s")


def _debian(shop: Workshop) -> str:
    """Make sure of the image of the minimal Debian root that every stand-in is built on."""
    root = debian_root(shop.cache, shop.say)
    tag = f"runyard/debian:{root.stem.removeprefix('debian-')}"
    with locked(_beside(shop, tag, "lock")):
        if not _is_here(tag, shop):
            repository, _, name = tag.partition(":")
            shop.engine.api.import_image_from_file(str(root), repository=repository, tag=name)
    return tag


def _is_here(image: str, shop: Workshop) -> bool:
    try:
        shop.engine.images.get(image)
    except ImageNotFound:
        return False
    return True


def _pulled(image: str, shop: Workshop) -> bool:
    """Pull an image if a registry answers for it within the probe's bound."""
    try:
        with closing(docker.from_env(timeout=PROBE_TIMEOUT_S)) as impatient:
            impatient.images.get_registry_data(image)
        shop.say(f"{image}: pulling")
        shop.engine.images.pull(image)
    except (DockerException, requests.RequestException):
        return False
    return True


def _service_digest(python_image: str) -> str:
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    names = sorted(exclude_paths(str(ROOT), patterns, dockerfile=SERVICE_DOCKERFILE))
    parts = [python_image.encode()]
    for name in names:
        if (ROOT / name).is_file():
            parts += [name.encode(), (ROOT / name).read_bytes()]
    return _digest(parts)


def _digest(parts: list[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:12]


def _beside(shop: Workshop, tag: str, kind: str) -> Path:
    return shop.cache / f"{tag.replace('/', '-').replace(':', '-')}.{kind}"


def say(line: str) -> None:
    """Tell of the progress on standard error, so that standard output has the result only."""
    sys.stderr.write(f"[images] {line}\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """Make sure of the images and print them as lines for `.env`; the exit code is 1 when one cannot be had."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.images.build",
        description="Make sure of the images that compose.yaml runs: pulled where a registry answers, else made on this"
        " host (which then has to be Debian or Ubuntu, as root). Prints KAFKA_IMAGE=… and its like, for `.env`.",
    )
    parser.parse_args(arguments)
    try:
        with workshop(say) as shop:
            images = ensure_all(shop)
    except (CannotBuildError, DockerException) as error:
        say(f"cannot: {error}")
        return 1
    sys.stdout.write("".join(f"{variable}={image}\n" for variable, image in images.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What one install may take, against the real engine: too much time, too much disk, too much network ends it."""

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.backbone.health import Health
from services.runner.engine import Engine
from services.runner.folder import Owner, RunFolder
from services.runner.package_cache import NotKept, seal
from services.runner.package_index import package_index
from services.runner.package_install import Install, InstallSpec
from services.runner.package_outcome import InstallLimits
from services.runner.requirements import Policy, RequirementsFailed, package_set
from services.runner.sandbox_images import ensure
from tests.integration import hostile_backend
from tests.integration.package_index_scene import Index, sdist, serving, wheel

MIB = 1 << 20
LIMITS = InstallLimits(
    timeout_s=60, max_bytes=256 * MIB, memory_bytes=512 * MIB, builds_allowed=False, oci_runtime=None
)
SMALL = {"yardsmall-1.0-py3-none-any.whl": wheel("yardsmall", "1.0", "WORD = 'small'\n")}
BOMB = {"yardbomb-1.0-py3-none-any.whl": wheel("yardbomb", "1.0", "#" * (128 * MIB))}


@pytest.fixture(scope="module")
def image() -> str:
    return ensure("python3.11")


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine(Health())
    yield engine
    engine.close()


@pytest.fixture
def index() -> Iterator[Index]:
    with serving({**SMALL, **BOMB}) as index:
        yield index


def an_install(image: str, engine: Engine, index: Index, place: Path, limits: InstallLimits, line: str) -> Install:
    wanted = package_set(image, {"requirements.txt": line.encode()}, Policy(), (index.url,))
    assert wanted is not None
    spec = InstallSpec(
        key=wanted.key,
        runner_id=f"test-{secrets.token_hex(4)}",
        image=image,
        folder=RunFolder(place / "making"),
        owner=Owner(63_999, 63_999),
        cpu_cores=1,
        memory_bytes=limits.memory_bytes,
    )
    return Install(wanted, package_index(index.url, "", None, ""), limits, spec, engine)


async def left(install: Install) -> list[str]:
    return await install.engine.ask(lambda sandbox: sandbox.installs(install.spec.runner_id))


async def test_an_install_within_its_limits_leaves_packages_and_no_container(
    image: str, engine: Engine, index: Index, tmp_path: Path
) -> None:
    install = an_install(image, engine, index, tmp_path, LIMITS, "yardsmall")
    site = await install.run()
    assert (site / "yardsmall.py").read_text() == "WORD = 'small'\n"
    assert (site / "yardsmall.py").stat().st_uid == 63_999
    assert await left(install) == []


async def test_a_wheel_that_unpacks_to_more_than_allowed_is_ended(
    image: str, engine: Engine, index: Index, tmp_path: Path
) -> None:
    limits = dataclasses.replace(LIMITS, max_bytes=32 * MIB)
    install = an_install(image, engine, index, tmp_path, limits, "yardbomb")
    with pytest.raises((RequirementsFailed, NotKept), match="more than 33554432 bytes"):
        seal(
            await install.run(), limits.max_bytes
        )  # whoever sees it first: the one who looks now and then, or this one
    assert await left(install) == []


@pytest.mark.parametrize("builds_allowed", [False, True])
async def test_what_a_wheel_names_by_url_is_built_only_where_builds_are_allowed(
    image: str, engine: Engine, tmp_path: Path, builds_allowed: bool
) -> None:
    source = sdist("yardhostile", "1.0", backend=Path(hostile_backend.__file__).read_text())
    files = {"yardhostile-1.0.tar.gz": source}
    with serving(files) as index:
        url = index.url.replace("/simple", "/files/yardhostile-1.0.tar.gz")
        files["yardlink-1.0-py3-none-any.whl"] = wheel("yardlink", "1.0", "", f"yardhostile @ {url}")
        limits = dataclasses.replace(LIMITS, builds_allowed=builds_allowed)
        install = an_install(image, engine, index, tmp_path, limits, "yardlink")
        if builds_allowed:
            assert (await install.run() / "yardhostile.py").exists()
        else:
            with pytest.raises(RequirementsFailed, match="was to be built from source, which is not allowed here"):
                await install.run()
            assert not (tmp_path / "making" / "out" / "site").exists()


async def test_more_bytes_from_the_network_than_allowed_end_it(
    image: str, engine: Engine, index: Index, tmp_path: Path
) -> None:
    install = an_install(image, engine, index, tmp_path, dataclasses.replace(LIMITS, max_bytes=1000), "yardsmall")
    with pytest.raises(RequirementsFailed, match="more than 1000 bytes"):
        await install.run()
    assert await left(install) == []


async def test_an_index_that_never_ends_its_answer_is_left_at_the_time_limit(
    image: str, engine: Engine, index: Index, tmp_path: Path
) -> None:
    index.gate.clear()
    install = an_install(image, engine, index, tmp_path, dataclasses.replace(LIMITS, timeout_s=4), "yardsmall")
    began = asyncio.get_running_loop().time()
    with pytest.raises(RequirementsFailed, match="not within 4 s"):
        await install.run()
    assert asyncio.get_running_loop().time() - began < 30
    assert await left(install) == []


async def test_nothing_of_the_index_stands_in_the_container_s_configuration(
    image: str, engine: Engine, index: Index, tmp_path: Path
) -> None:
    index.gate.clear()
    install = an_install(image, engine, index, tmp_path, LIMITS, "yardsmall")
    working = asyncio.create_task(install.run())
    async with asyncio.timeout(30):
        while "/files/yardsmall-1.0-py3-none-any.whl" not in index.asked:  # noqa: ASYNC110 - the index is a thread
            await asyncio.sleep(0.05)
    found = await engine.ask(lambda sandbox: sandbox._inspect(install.spec.name))
    assert found is not None
    assert index.url not in str(found)
    assert found["HostConfig"]["NetworkMode"] == "none"
    assert found["NetworkSettings"]["Networks"].keys() <= {"none"}
    assert [mount["Destination"] for mount in found["Mounts"] if mount["RW"]] == ["/runyard/out"]
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert await left(install) == []

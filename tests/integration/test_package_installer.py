"""The installer with the real pip, the real proxy and an index of ours, outside of a container: who is at fault."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.runner import package_installer
from services.runner.package_index import destination
from services.runner.package_install import listening, pack_pip
from services.runner.package_installer import INDEX_VARIABLE, INSTALLED, REFUSED, UNREACHABLE, is_transient
from services.runner.package_proxy import PackageProxy, ProxyLimits
from tests.integration.package_index_scene import Index, sdist, serving, sha256, wheel

GOOD = wheel("yardgood", "1.0", "WORD = 'good'\n", "yardneeded>=1")
NEEDED = wheel("yardneeded", "1.2", "WORD = 'needed'\n")
FILES = {
    "yardgood-1.0-py3-none-any.whl": GOOD,
    "yardneeded-1.2-py3-none-any.whl": NEEDED,
    "yardsource-1.0.tar.gz": sdist("yardsource", "1.0", backend="raise SystemExit('a stranger was here')\n"),
}


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    with serving(FILES) as index:
        yield index


@dataclass
class Installed:
    """How an install went."""

    code: int
    said: str
    site: Path
    proxy: PackageProxy


@asynccontextmanager
async def proxied(place: Path, url: str) -> AsyncIterator[PackageProxy]:
    proxy = PackageProxy(frozenset({destination(url)}), ProxyLimits(max_bytes=1 << 20))
    with listening(place, "index.sock") as ear:
        async with proxy.serving(ear):
            yield proxy


async def install(place: Path, url: str, requirements: str, allowed: str | None = None) -> Installed:
    """Run the installer as a container's shim would."""
    script = place / "package_installer.py"
    script.write_text(Path(package_installer.__file__).read_text())
    pack_pip(place / "pip.zip")
    (place / "requirements.txt").write_text(requirements)
    (place / "out").mkdir()
    orders = {
        "ca_file": None,
        "socket": f"{place}/index.sock",
        "pip": f"{place}/pip.zip/pip",
        "files": [f"{place}/requirements.txt"],
        "target": f"{place}/out/site",
        "scratch": f"{place}/out/scratch",
        "log": f"{place}/out/pip.log",
        "builds_allowed": False,
        "pauses_s": [0],
    }
    (place / "orders.json").write_text(json.dumps(orders))
    async with proxied(place, allowed or url) as proxy:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(script),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, INDEX_VARIABLE: url},
        )
        said, _ = await process.communicate()
    assert process.returncode is not None
    return Installed(process.returncode, said.decode(), place / "out" / "site", proxy)


async def test_packages_come_with_what_they_need_through_the_proxy(tmp_path: Path, index: Index) -> None:
    hashes = f"yardgood==1.0 --hash=sha256:{sha256(GOOD)}\nyardneeded==1.2 --hash=sha256:{sha256(NEEDED)}\n"
    done = await install(tmp_path, index.url, hashes)
    assert (done.code, done.proxy.refused) == (INSTALLED, []), done.said
    assert (done.site / "yardgood.py").read_text() == "WORD = 'good'\n"
    assert (done.site / "yardneeded.py").exists()


async def test_a_wrong_hash_is_pip_s_refusal(tmp_path: Path, index: Index) -> None:
    done = await install(tmp_path, index.url, f"yardneeded==1.2 --hash=sha256:{'0' * 64}\n")
    assert done.code == REFUSED
    assert "DO NOT MATCH THE HASHES" in done.said
    assert sha256(NEEDED) in done.said
    assert not done.site.exists()


async def test_an_unknown_package_is_pip_s_refusal(tmp_path: Path, index: Index) -> None:
    done = await install(tmp_path, index.url, "yardnowhere\n")
    assert done.code == REFUSED
    assert "No matching distribution found for yardnowhere" in done.said


async def test_a_package_without_a_wheel_is_refused_and_its_setup_does_not_run(tmp_path: Path, index: Index) -> None:
    done = await install(tmp_path, index.url, "yardsource\n")
    assert done.code == REFUSED
    assert "No matching distribution found for yardsource" in done.said
    assert "stranger" not in done.said


async def test_an_index_that_is_ill_is_tried_again_and_not_held_against_the_requirements(tmp_path: Path) -> None:
    with serving(FILES) as index:
        index.answer = 503
        done = await install(tmp_path, index.url, "yardneeded\n")
        assert done.code == UNREACHABLE, done.said
        assert "trying again" in done.said


async def test_an_index_that_is_away_is_not_held_against_the_requirements(tmp_path: Path) -> None:
    with serving(FILES) as index:
        url = index.url
    done = await install(tmp_path, url, "yardneeded\n")
    assert done.code == UNREACHABLE, done.said
    assert list(done.proxy.unreachable) == [destination(url)]


async def test_a_host_that_is_not_allowed_is_not_reached_and_is_named(tmp_path: Path, index: Index) -> None:
    asked = len(index.asked)
    done = await install(tmp_path, index.url, "yardneeded\n", allowed="http://another.example/simple")
    assert done.code != INSTALLED
    assert len(index.asked) == asked
    assert f"GET {index.url}/yardneeded/ is not the package index" in done.proxy.refused


@pytest.mark.parametrize(
    ("said", "transient"),
    [
        ("Could not fetch URL https://x/six/: 404 Client Error: Not Found for url: https://x/six/ - skipping", False),
        ("Could not fetch URL https://x/six/: 403 Client Error: Forbidden for url - skipping", False),
        ("Could not fetch URL https://x/six/: 429 Client Error: Too Many Requests - skipping", True),
        ("Could not fetch URL https://x/six/: 503 Server Error: Service Unavailable - skipping", True),
        ("Could not fetch URL https://x/six/: connection error: no route - skipping", True),
        ("ERROR: HTTP error 500 while getting https://x/six.whl", True),
        ("ERROR: HTTP error 404 while getting https://x/six.whl", False),
        ("error: incomplete-download", True),
        ("ERROR: No matching distribution found for six==99", False),
        ("", False),
    ],
)
def test_pip_s_log_tells_an_index_s_fault_from_an_owner_s(said: str, transient: bool) -> None:
    assert is_transient(said) is transient

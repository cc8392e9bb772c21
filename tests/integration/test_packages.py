"""Requirements assets in a real runner with the real engine: installed once, there without a network, told if not."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from schemas.events import RunCancelled, RunFailed, RunSucceeded
from schemas.reason import Reason
from services.backbone.settings import ServiceSettings
from tests.integration import hostile_backend
from tests.integration.package_index_scene import Index, sdist, serving, sha256, wheel
from tests.integration.runner_scene import PATIENCE_S, Scene, a_scene

USES = """
import os, socket, sys
import yardgood, yardneeded
print(yardgood.WORD, yardneeded.WORD, yardgood.__file__)
try:
    open("/runyard/packages/site/yardgood.py", "a")
except OSError:
    print("read-only", bool(os.statvfs("/runyard/packages").f_flag & os.ST_RDONLY))
try:
    socket.create_connection(("127.0.0.1", int(os.environ["INDEX_PORT"])), 5)
except OSError:
    print("no network")
open(os.environ["MODEL_OUTPUT_PATH"], "w").write("model")
"""
SAID = ["good needed /runyard/packages/site/yardgood.py", "read-only True", "no network"]

GOOD = wheel("yardgood", "1.0", "WORD = 'good'\n", "yardneeded>=1")
NEEDED = wheel("yardneeded", "1.2", "WORD = 'needed'\n")
SOURCE = sdist("yardsource", "1.0", backend="raise SystemExit('a stranger was here')\n")
FILES = {
    "yardgood-1.0-py3-none-any.whl": GOOD,
    "yardneeded-1.2-py3-none-any.whl": NEEDED,
    "yardsource-1.0.tar.gz": SOURCE,
}
NEEDED_FILE = "/files/yardneeded-1.2-py3-none-any.whl"


@pytest.fixture
def index() -> Iterator[Index]:
    with serving(FILES) as index:
        yield index


@pytest_asyncio.fixture
async def scene(kafka_settings: ServiceSettings, tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_scene(kafka_settings, tmp_path) as scene:
        yield scene


def installs(scene: Scene) -> list[str]:
    return [name for name in scene.containers() if name.startswith("install-")]


def sets(scene: Scene) -> list[str]:
    return [path.name for path in (scene.folder / "work" / "packages" / "ready").iterdir()]


async def until_no_install_is_left(scene: Scene) -> None:
    making = scene.folder / "work" / "packages" / "making"
    async with asyncio.timeout(PATIENCE_S):
        while installs(scene) or (making.exists() and list(making.iterdir())):  # noqa: ASYNC110 - a folder has no event
            await asyncio.sleep(0.1)


async def until_asked(index: Index, path: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while path not in index.asked:  # noqa: ASYNC110 - the index is a thread
            await asyncio.sleep(0.05)


def port_of(index: Index) -> dict[str, str]:
    return {"INDEX_PORT": index.url.split(":")[2].split("/")[0]}


async def test_a_package_is_installed_once_and_there_without_a_network(scene: Scene, index: Index) -> None:
    needs = {"requirements.txt": f"yardgood==1.0 --hash=sha256:{sha256(GOOD)}\n"}
    needs["requirements-more.txt"] = f"# what it needs\nyardneeded==1.2 --hash=sha256:{sha256(NEEDED)}\n"
    async with scene.runner(RUNYARD_PACKAGE_INDEX_URL=index.url):
        for _ in range(2):
            queued = await scene.queue(USES, requirements=needs, variables=port_of(index))
            await scene.dispatch(queued)
            end = await scene.until_ended(queued)
            assert isinstance(end, RunSucceeded), end
            await scene.until(lambda queued=queued: len(scene.lines(queued)) >= 3)  # type: ignore[misc]
            assert scene.lines(queued) == SAID
        await scene.until_nothing_is_left()
    assert index.asked.count(NEEDED_FILE) == 1
    assert len(sets(scene)) == 1
    assert (scene.folder / "runner.log").read_text().count("packages_found") == 1


async def test_two_runs_that_need_the_same_at_once_install_it_once(scene: Scene, index: Index) -> None:
    index.gate.clear()
    async with scene.runner(RUNYARD_PACKAGE_INDEX_URL=index.url):
        runs = [
            await scene.queue(USES, requirements={"requirements.txt": "yardgood"}, variables=port_of(index))
            for _ in range(2)
        ]
        for queued in runs:
            await scene.dispatch(queued)
        await until_asked(index, "/files/yardgood-1.0-py3-none-any.whl")
        await scene.until(lambda: len(scene.heartbeats()[-1].accepted) == 2)
        assert len(installs(scene)) == 1
        index.gate.set()
        for queued in runs:
            assert isinstance(await scene.until_ended(queued), RunSucceeded)
        await scene.until_nothing_is_left()
    assert index.asked.count(NEEDED_FILE) == 1


REFUSED = {
    f"yardneeded==1.2 --hash=sha256:{'0' * 64}": "DO NOT MATCH THE HASHES",
    "yardnowhere==1.0": "No matching distribution found for yardnowhere==1.0",
    "yardsource==1.0": "No matching distribution found for yardsource==1.0",  # it has no wheel
    "--no-index": "requirements.txt, line 2: the package index is the operator's choice",
}


async def test_what_cannot_be_installed_fails_the_run_in_pip_s_own_words(scene: Scene, index: Index) -> None:
    files = [{"requirements.txt": f"# ours\n{line}\n"} for line in REFUSED]
    runs = [await scene.queue("print('never')", requirements=needs) for needs in files]
    async with scene.runner(RUNYARD_PACKAGE_INDEX_URL=index.url):
        for queued in runs:
            await scene.dispatch(queued)
        for queued, word in zip(runs, REFUSED.values(), strict=True):
            end = await scene.until_ended(queued)
            assert isinstance(end, RunFailed), end
            assert (end.reason, end.exit_code, end.started_at) == (Reason.REQUIREMENTS_FAILED, None, None)
            assert word in (end.message or "")
            await scene.until(lambda queued=queued, end=end: len(scene.lines(queued)) >= end.output_sequence)  # type: ignore[misc]
            assert word in "\n".join(scene.lines(queued))
            assert "never" not in scene.lines(queued)
        await scene.until_nothing_is_left()
    assert sets(scene) == []


async def test_a_cancellation_ends_the_install_at_once(scene: Scene, index: Index) -> None:
    index.gate.clear()
    queued = await scene.queue("print('never')", requirements={"requirements.txt": "yardneeded"})
    async with scene.runner(RUNYARD_PACKAGE_INDEX_URL=index.url):
        await scene.dispatch(queued)
        await until_asked(index, NEEDED_FILE)
        began = asyncio.get_running_loop().time()
        await scene.dispatch(scene.revocation(queued))
        end = await scene.until_ended(queued)
        assert asyncio.get_running_loop().time() - began < 10
        assert isinstance(end, RunCancelled)
        assert end.reason is Reason.USER_REQUEST
        await until_no_install_is_left(scene)
        await scene.until_nothing_is_left()
    assert sets(scene) == []


async def test_a_runner_that_is_killed_in_an_install_leaves_nothing_and_the_next_one_goes_on(
    scene: Scene, index: Index
) -> None:
    index.gate.clear()
    queued = await scene.queue(USES, requirements={"requirements.txt": "yardgood"}, variables=port_of(index))
    async with scene.runner(RUNYARD_PACKAGE_INDEX_URL=index.url) as process:
        await scene.dispatch(queued)
        await until_asked(index, "/files/yardgood-1.0-py3-none-any.whl")
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    assert len(installs(scene)) == 1
    assert sets(scene) == []
    index.gate.set()
    async with scene.runner(RUNYARD_PACKAGE_INDEX_URL=index.url):
        end = await scene.until_ended(queued)
        assert isinstance(end, RunSucceeded), end
        await until_no_install_is_left(scene)
        await scene.until_nothing_is_left()
    assert len(sets(scene)) == 1


async def test_what_a_killed_runner_s_install_left_goes_though_nobody_needs_it_any_more(
    scene: Scene, index: Index
) -> None:
    index.gate.clear()
    queued = await scene.queue("print('never')", requirements={"requirements.txt": "yardneeded"})
    async with scene.runner(RUNYARD_PACKAGE_INDEX_URL=index.url) as process:
        await scene.dispatch(queued)
        await until_asked(index, NEEDED_FILE)
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    await scene.dispatch(scene.revocation(queued))
    async with scene.runner(RUNYARD_PACKAGE_INDEX_URL=index.url):
        assert isinstance(await scene.until_ended(queued), RunCancelled)
        await until_no_install_is_left(scene)
        await scene.until_nothing_is_left()


async def test_an_index_that_is_away_is_a_lost_attempt(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/simple"
    queued = await scene.queue("print('never')", requirements={"requirements.txt": "yardneeded"})
    async with scene.runner(RUNYARD_PACKAGE_INDEX_URL=url):
        await scene.dispatch(queued)
        lost = await scene.until_ended(queued)
        assert lost.reason is Reason.FETCH_FAILED, lost
        await scene.until_nothing_is_left()


async def test_a_stranger_s_build_script_reaches_nothing_but_the_index(scene: Scene) -> None:
    with socket.create_server(("0.0.0.0", 0)) as neighbour:  # noqa: S104 - that it is not reached is the point
        neighbour.setblocking(False)
        source = Path(hostile_backend.__file__).read_text()
        backend = source.replace("NEIGHBOUR = 0", f"NEIGHBOUR = {neighbour.getsockname()[1]}")
        with serving({"yardhostile-1.0.tar.gz": sdist("yardhostile", "1.0", backend=backend)}) as index:
            queued = await scene.queue(
                "import yardhostile\nfor found in yardhostile.FOUND.items(): print(*found)",
                requirements={"requirements.txt": "yardhostile"},
            )
            async with scene.runner(RUNYARD_PACKAGE_INDEX_URL=index.url, RUNYARD_PACKAGE_BUILDS_ALLOWED="true"):
                await scene.dispatch(queued)
                end = await scene.until_ended(queued)
                assert isinstance(end, RunSucceeded), (end, scene.lines(queued))
                await scene.until(lambda: len(scene.lines(queued)) >= 5)
                await scene.until_nothing_is_left()
        with pytest.raises(BlockingIOError):
            neighbour.accept()
    assert scene.lines(queued) == [
        "directly ['OSError', 'ConnectionRefusedError', 'gaierror']",
        "proxied ['403', '403', '403', '403', '403']",
        "root False",
        "writable []",
        "variables []",
    ]


async def test_a_real_package_of_the_host_s_own_index_trains_a_model(scene: Scene) -> None:
    script = (
        "import tabulate\nprint(tabulate.tabulate([[1, 2]], tablefmt='plain'), tabulate.__file__.split('tabulate')[0])"
    )
    queued = await scene.queue(script, requirements={"requirements.txt": "tabulate==0.9.0\n"})
    async with scene.runner():
        await scene.dispatch(queued)
        end = await scene.until_ended(queued)
        assert isinstance(end, RunSucceeded), (end, scene.lines(queued))
        await scene.until_line(queued, "1  2 /runyard/packages/site/")
        await scene.until_nothing_is_left()

"""One install: pip in a container of its own, walled like a run, whose only way out is the proxy to the index.

Owns the container from its folder to its removal. A run's script never runs here; where builds are allowed, strangers'
build scripts do, so what it leaves is hostile. It keeps nothing, and `package_outcome` judges how it ended.
"""

import asyncio
import json
import os
import shutil
import socket
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pip
import structlog

from services.runner import folder, package_installer
from services.runner.definitions import Meter
from services.runner.engine import Engine
from services.runner.errors import EngineRefused, EngineUnavailable
from services.runner.folder import MOUNTED_AT, Contents, Orders
from services.runner.following import Following
from services.runner.frames import End, Frame, Log
from services.runner.outcome import Lost
from services.runner.package_cache import has_room, size_of
from services.runner.package_index import PackageIndex
from services.runner.package_installer import INDEX_VARIABLE, ORDERS
from services.runner.package_outcome import InstallEvidence, InstallLimits, judge
from services.runner.package_proxy import PackageProxy, ProxyLimits
from services.runner.requirements import PackageSet
from services.runner.sandbox import ContainerState, Sandbox, is_over
from services.runner.sandbox_walls import INSTALL_LABEL, RUNNER_LABEL, SandboxSpec
from services.runner.supplies import GivenUp

SOCKET, CERTIFICATES, PIP, FILES = "index.sock", "certificates.pem", "pip.zip", "requirements"
PAUSES_S = (2, 10)
"""Between the tries of an install whose index does not answer."""
GRACE_S, MARGIN_S, LOOK_EVERY_S, IDLE_S = 1.0, 5.0, 2.0, 5.0
PATIENCE_S, CLEAN_UP_PATIENCE_S = 60.0, 10.0
LAST_LINES = 40
OUTPUT_BYTES, LINE_BYTES, PIDS, SCRATCH_BYTES = 4 << 20, 2 << 10, 128, 64 << 20

log = structlog.get_logger()

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class InstallSpec(SandboxSpec):
    """The container of an install: a run's walls, another name and another label, so that no sweep takes it for one."""

    run_id: str = ""
    attempt: int = 0
    key: str

    @property
    def name(self) -> str:
        """Its name; exclusive, so that a set is installed by one container at a time."""
        return container_name(self.runner_id, self.key)

    @property
    def labels(self) -> dict[str, str]:
        """How it is found again."""
        return {INSTALL_LABEL: self.key, RUNNER_LABEL: self.runner_id}


@dataclass
class Install:
    """One install of one set. `run` may be called once, and be cancelled at any time."""

    wanted: PackageSet
    index: PackageIndex
    limits: InstallLimits
    spec: InstallSpec
    engine: Engine

    def __post_init__(self) -> None:
        self._proxy = PackageProxy(self.index.destinations, ProxyLimits(self.limits.max_bytes))
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._end: End | None = None
        self._seen = 0
        self._too_large = False

    async def run(self) -> Path:
        """Install, and return the folder with the packages; its container is gone by then.

        Raises:
            RequirementsFailed: that is for the script's owner to mend.
            GivenUp: it could not be tried to its end.
            EngineRefused: the engine does not take such a container.
            EngineUnavailable: the engine did not answer for too long.
        """
        await self._ask(lambda engine: engine.remove(self.spec.name))  # a crash may have left it
        await asyncio.to_thread(self._lay_out)
        try:
            with listening(self.spec.folder.data, SOCKET) as ear:
                async with self._proxy.serving(ear):
                    await self._ask(lambda engine: engine.create(self.spec))
                    await self._ask(lambda engine: engine.start(self.spec.name))
                    state = await self._until_over()
        except BaseException:
            await self._remove_quietly()
            raise
        await self._ask(lambda engine: engine.remove(self.spec.name))  # else something may still write there
        verdict = judge(self._evidence(state))
        if isinstance(verdict, Lost):
            raise GivenUp(verdict)
        if verdict is not None:
            raise verdict
        return self.spec.folder.out / "site"

    def _lay_out(self) -> None:
        place, limits = self.spec.folder, self.limits
        orders = Orders(
            run_id=self.spec.name,
            attempt=0,
            entry_point=Path(package_installer.__file__).name,
            dataset_filename=SOCKET,
            variables={INDEX_VARIABLE: self.index.url},
            deadline_s=limits.timeout_s,
            grace_s=GRACE_S,
            max_line_bytes=LINE_BYTES,
            max_output_bytes=OUTPUT_BYTES,
        )
        folder.prepare(place, orders, Contents({}, {}), self.spec.owner)
        (place.code / FILES).mkdir()
        for name, text in self.wanted.files.items():
            (place.code / FILES / name).write_text(text, encoding="utf-8")
        shutil.copyfile(package_installer.__file__, place.code / orders.entry_point)
        pack_pip(place.code / PIP)
        if self.index.ca_file is not None:
            shutil.copyfile(self.index.ca_file, place.data / CERTIFICATES)
        (place.code / ORDERS).write_text(json.dumps(self._orders()), encoding="utf-8")
        for path in (place.code, *place.code.rglob("*"), place.data, *place.data.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o444)

    def _orders(self) -> dict[str, object]:
        return {
            "ca_file": f"{MOUNTED_AT}/data/{CERTIFICATES}" if self.index.ca_file else None,
            "socket": f"{MOUNTED_AT}/data/{SOCKET}",
            "pip": f"{MOUNTED_AT}/code/{PIP}/pip",
            "files": [f"{MOUNTED_AT}/code/{FILES}/{name}" for name in self.wanted.files],
            "target": f"{MOUNTED_AT}/out/site",
            "scratch": f"{MOUNTED_AT}/out/scratch",
            "log": f"{MOUNTED_AT}/out/pip.log",
            "builds_allowed": self.limits.builds_allowed,
            "pauses_s": PAUSES_S,
        }

    async def _until_over(self) -> ContainerState | None:
        guard = asyncio.create_task(self._guard())
        try:
            while True:
                state = await self._state()
                if state is None or await self._followed() or is_over(state):
                    return await self._state()
                await asyncio.sleep(GRACE_S)  # the stream broke: it is read again from its beginning
        finally:
            guard.cancel()
            await asyncio.gather(guard, return_exceptions=True)

    async def _followed(self) -> bool:
        """Take in what the container says; True when that was its last word."""
        try:
            following = Following(await self._ask(lambda engine: engine.follow(self.spec.name)), Meter((), 0))
        except EngineRefused:  # it was removed just now
            return False
        try:
            while self._end is None and (frames := await following.next(IDLE_S)) is not None:
                for frame in frames:
                    self._take(frame)
                if not frames and is_over(await self._state()):
                    break  # the stream hangs
        finally:
            following.close()
        return self._end is not None

    def _take(self, frame: Frame) -> None:
        if frame.seq <= self._seen:
            return
        self._seen = frame.seq
        if isinstance(frame, End):
            self._end = frame
        elif isinstance(frame, Log) and frame.text.strip():
            self._lines.append(frame.text)

    async def _guard(self) -> None:
        """Kill the container when it takes too much of the disk or the network, or outlives its deadline."""
        clock, enough = asyncio.get_running_loop().time, self.limits.max_bytes
        until = clock() + self.limits.timeout_s + GRACE_S + MARGIN_S
        while clock() < until and not self._too_large:
            await asyncio.sleep(LOOK_EVERY_S)
            taken = await asyncio.to_thread(size_of, self.spec.folder.out, enough)
            self._too_large = self._proxy.exhausted or taken > enough
        await self.engine.ask(lambda engine: engine.kill(self.spec.name))

    def _evidence(self, state: ContainerState | None) -> InstallEvidence:
        proxy = self._proxy
        return InstallEvidence(
            end=self._end,
            limits=self.limits,
            oom_killed=state is not None and state.oom_killed,
            too_large=self._too_large or proxy.exhausted,
            disk_short=not has_room(self.spec.folder.path, self.limits.max_bytes),
            refused=tuple(proxy.refused),
            unreachable=tuple(f"{to.host}:{to.port}: {why}" for to, why in proxy.unreachable.items()),
            lines=tuple(self._lines),
        )

    async def _state(self) -> ContainerState | None:
        return await self._ask(lambda engine: engine.inspect(self.spec.name))

    async def _ask(self, call: Callable[[Sandbox], Result]) -> Result:
        return await self.engine.ask(call, PATIENCE_S)

    async def _remove_quietly(self) -> None:
        """Remove the container; what cannot be removed now is swept later."""
        try:
            await self.engine.ask(lambda engine: engine.remove(self.spec.name), CLEAN_UP_PATIENCE_S)
        except (EngineUnavailable, EngineRefused) as problem:
            log.warning("clean_up_failed", container=self.spec.name, error=str(problem))


def container_name(runner_id: str, key: str) -> str:
    """Name the container that installs a set; runners on one engine do not get in each other's way."""
    return f"install-{runner_id}-{key[:16]}"


@contextmanager
def listening(place: Path, name: str) -> Iterator[socket.socket]:
    """Bind a Unix socket that everybody may connect to who can reach the folder.

    The name is bound below the folder's descriptor: a socket's own path may have 108 characters only (unix(7)).
    """
    handle = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as ear:
            ear.bind(f"/proc/self/fd/{handle}/{name}")
            (place / name).chmod(0o666)
            yield ear
    finally:
        os.close(handle)


def pack_pip(target: Path) -> None:
    """Write this runner's own pip as one file that any Python runs, so that images need none."""
    source = Path(pip.__file__).parent
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                archive.write(path, path.relative_to(source.parent))

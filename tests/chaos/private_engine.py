"""A Docker Engine of the tests' own, which may be killed: other folders, other socket, no network, no firewall rules.

Owns one dockerd with its containerd, found by pid and by folder only. Its images stay in the cache folder between
runs; containers, shims, mounts and sockets go when it stops. Needs root.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import docker
import docker.errors
import requests.exceptions

from services.cli.embedded_kafka import cache_folder
from services.cli.embedded_process import ServerFailed, ServerProcess
from services.runner import sandbox_images

START_TIMEOUT_S = 60.0
POLL_S = 0.05
SLOTS = 4
FLAGS = (
    *("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--userland-proxy=false"),
    *("--live-restore=false", "--shutdown-timeout=3", "--log-level=warn"),
)


def possible() -> bool:
    """Whether this host can run a second engine."""
    return os.geteuid() == 0 and shutil.which("dockerd", path=_path()) is not None


class PrivateEngine:
    """One private engine, with more flags if need be; take it with `start`, let it go with `stop`."""

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self._flags = (*FLAGS, *flags)
        self._lock: IO[str] | None = None
        self.root = Path()
        self.folder = Path()
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        """Where the engine answers, as `DOCKER_HOST` has it."""
        return f"unix://{self.folder / 'docker.sock'}"

    @property
    def pid(self) -> int | None:
        """The daemon's process id while it runs."""
        return self._process.pid if self._process is not None else None

    def client(self, timeout_s: int = 30) -> docker.DockerClient:
        """Connect to it."""
        return docker.DockerClient(base_url=self.url, version="auto", timeout=timeout_s)

    async def start(self) -> None:
        """Take a data root of the cache for as long as this lives, and start the daemon on it, with nothing running.

        Raises:
            ServerFailed: the daemon does not answer.
        """
        self._take_root()
        await self._clean()
        await self.start_again()
        await asyncio.to_thread(self._remove_containers)

    async def start_again(self) -> None:
        """Start the daemon after it was killed or stopped."""
        self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        (self.folder / "dockerd.pid").unlink(missing_ok=True)
        self._process = self._process or ServerProcess("dockerd", self.folder, signal.SIGTERM)
        paths = [f"--data-root={self.root / 'data'}", f"--exec-root={self.folder / 'x'}"]
        address = [f"--pidfile={self.folder / 'dockerd.pid'}", f"--host={self.url}"]
        await self._process.spawn(["dockerd", *paths, *address, *self._flags], environment={"PATH": _path()})
        await self._wait_until_it_answers()

    def kill(self) -> None:
        """Kill the daemon and its containerd at once; shims and containers live on until the next start."""
        if self._process is not None:
            self._process.kill()
        pid_path = self.folder / "x" / "containerd" / "containerd.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(pid_path.read_text())
            if str(self.folder) in _command_line(pid):
                os.kill(pid, signal.SIGKILL)
        pid_path.unlink(missing_ok=True)  # a dead one that nobody has reaped passes for alive, and is waited for

    async def end(self) -> None:
        """End the daemon in good order, as an upgrade would: its containers end with it."""
        if self._process is not None:
            await self._process.stop()

    async def load(self, runtime: str) -> None:
        """Make sure that it has a runtime's image: out of the host's own engine if that has it, else built."""
        await asyncio.to_thread(self._load, runtime)

    async def stop(self) -> None:
        """Stop everything and leave nothing behind but the images."""
        with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException):
            await asyncio.to_thread(self._remove_containers)
        await self.end()
        await self._clean()
        if self._lock is not None:
            self._lock.close()

    def _take_root(self) -> None:
        for slot in range(SLOTS):
            root = cache_folder() / f"private-engine-{slot}"
            root.mkdir(mode=0o711, parents=True, exist_ok=True)
            lock = (root / "lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
            self._lock, self.root, self.folder = lock, root, Path(tempfile.gettempdir()) / f"ry-{name}"
            return
        raise ServerFailed("all private engines are taken")

    async def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await asyncio.to_thread(self._answers):
                    self._process.check_alive()
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            self.kill()
            raise ServerFailed(f"dockerd did not answer:\n{self._process.log_tail()}") from None

    def _answers(self) -> bool:
        if not listens(self.url):
            return False
        try:
            with contextlib.closing(self.client(5)) as client:
                return bool(client.ping())
        except (docker.errors.DockerException, requests.exceptions.RequestException):
            return False

    def _remove_containers(self) -> None:
        if not listens(self.url):
            return
        with contextlib.closing(self.client()) as client:
            for container in client.containers.list(all=True, ignore_removed=True):
                with contextlib.suppress(docker.errors.APIError):
                    container.remove(force=True, v=True)

    def _load(self, runtime: str) -> None:
        with contextlib.closing(self.client(600)) as own, sandbox_images.workshop() as shop:
            tag = sandbox_images._tag(runtime, shop)
            if own.images.list(filters={"reference": tag}):
                return
            if not shop.engine.images.list(filters={"reference": tag}):
                sandbox_images.ensure(runtime, shop)
            own.images.load(cast("bytes", shop.engine.images.get(tag).save(named=True)))  # a stream is taken, too
            for image in own.images.list(filters={"label": f"{sandbox_images.LABEL}={runtime}"}):
                if tag not in image.tags:
                    own.images.remove(str(image.id), force=True)

    async def _clean(self) -> None:
        """End what still runs in these folders and unmount what is mounted there; remove the folder of sockets."""
        for _ in range(3):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(POLL_S)
        for mount in reversed(self.mounts()):
            await asyncio.to_thread(subprocess.run, ["umount", "-l", mount], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[int]:
        """Find daemons and shims of this engine, and what runs below the shims."""
        parents: dict[int, int] = {}
        own = set()
        for entry in Path("/proc").glob("[0-9]*"):
            pid = int(entry.name)
            with contextlib.suppress(OSError, IndexError, ValueError):
                parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if f"{self.folder}/" in _command_line(pid):
                    own.add(pid)
        while below := {pid for pid, parent in parents.items() if parent in own} - own:
            own |= below
        return sorted(own - {os.getpid()})

    def mounts(self) -> list[str]:
        """List what is mounted below its folders."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith((f"{self.folder}/", f"{self.root}/"))]


def listens(url: str | None) -> bool:
    """Whether somebody listens at an engine's socket; the SDK would leave its own socket open where nobody does."""
    if url is None:
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(url.removeprefix("unix://"))
        except OSError:
            return False
    return True


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""

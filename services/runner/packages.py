"""Sets of installed packages for runs: found in the cache, else installed once, however many runs wait for the same.

Owns who waits for which install, and what goes away with the last one who does. A crash leaves a container and a folder
at most, which the next process removes; a set stands in the cache only when it is whole.
"""

import asyncio
import errno
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from schemas.parts import PinnedAsset, TrainingSpec
from schemas.reason import Reason
from services.backbone.crash_points import crash_point
from services.runner.cache import Cache
from services.runner.engine import Engine
from services.runner.errors import EngineRefused
from services.runner.folder import Owner, RunFolder
from services.runner.outcome import Lost
from services.runner.package_cache import NotKept, PackageCache, remove
from services.runner.package_index import PackageIndex
from services.runner.package_install import PIDS, SCRATCH_BYTES, Install, InstallSpec, container_name
from services.runner.package_outcome import InstallLimits
from services.runner.requirements import MOST_BYTES, PackageSet, Policy, RequirementsFailed, package_set
from services.runner.supplies import GivenUp, patiently

CPU_CORES = 1.0
TOLD = "requirements-failed.json"

log = structlog.get_logger()


@dataclass
class Packages:
    """The packages of one runner's runs.

    Attributes:
        making: where installs work; what is there at start is of a process that is gone.
        objects: where the requirements assets come from.
        first_owner: whom the first of several installs at once runs as; the next ones count up, if we are root.
        find_index: asks for the configured index; called once, in a thread.
    """

    runner_id: str
    making: Path
    cache: PackageCache
    objects: Cache
    engine: Engine
    limits: InstallLimits
    first_owner: Owner
    find_index: Callable[[], PackageIndex]
    _index: PackageIndex | None = None
    _installs: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _waiting: Counter[asyncio.Task[None]] = field(default_factory=Counter)
    _locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    _numbers: set[int] = field(default_factory=set)

    async def wanted(self, image: str, spec: TrainingSpec, tenant_id: str) -> PackageSet | None:
        """Tell which set a tenant's run on this image needs; None when it has no requirements.

        Two tenants never share one: locks on a file that both have mounted would be a channel between them.

        Raises:
            RequirementsFailed: a line of an asset is not allowed.
            GivenUp: an asset cannot be had.
        """
        assets = [asset for asset in spec.assets if asset.asset_type == "requirements"]
        if not assets:
            return None
        for asset in assets:
            if asset.size_bytes > MOST_BYTES:
                raise RequirementsFailed(f"{asset.filename}: it is larger than {MOST_BYTES} bytes")
        if sum(asset.size_bytes for asset in assets) > MOST_BYTES:
            raise RequirementsFailed(f"the requirements are together larger than {MOST_BYTES} bytes")
        index = await self._configured()
        contents = await patiently(lambda: self._read(assets))
        policy = Policy(self.limits.builds_allowed, index.destinations)
        return await asyncio.to_thread(package_set, image, contents, policy, (*index.identity, tenant_id))

    async def ensure(self, wanted: PackageSet) -> None:
        """Have a set installed; whoever calls holds it. May be cancelled: the last one to go takes the install along.

        Raises:
            RequirementsFailed: it cannot be installed, by the fault of its requirements.
            GivenUp, EngineRefused, EngineUnavailable: it cannot be installed here and now.
        """
        if self.cache.find(wanted.key) is not None:
            log.info("packages_found", key=wanted.key)
            return
        install = self._installs.get(wanted.key)
        if install is None or install.done() or install.cancelling():
            install = self._installs[wanted.key] = asyncio.create_task(self._install(wanted))
        self._waiting[install] += 1
        try:
            await asyncio.shield(install)
        finally:
            self._waiting[install] -= 1
            if not self._waiting[install]:
                await self._leave(wanted.key, install)

    async def sweep(self) -> None:
        """Remove containers and folders of installs that nobody waits for; for the beginning, and now and then."""
        containers = await self.engine.ask(lambda engine: engine.installs(self.runner_id))
        leftovers = await asyncio.to_thread(lambda: list(self.making.iterdir()) if self.making.exists() else [])
        alive = {key for key, install in self._installs.items() if not install.done()}
        names = {container_name(self.runner_id, key) for key in alive}
        for name in containers:
            if name not in names:
                log.info("install_swept", container=name)
                await self._remove_container(name)
        for path in leftovers:
            if path.name not in alive:
                await self._remove(path)
        await self._shrink()

    async def _configured(self) -> PackageIndex:
        if self._index is None:
            try:
                self._index = await asyncio.to_thread(self.find_index)
            except ValueError as problem:
                raise GivenUp(
                    Lost(Reason.FETCH_FAILED, f"the package index is configured wrongly: {problem}")
                ) from None
        return self._index

    async def _read(self, assets: list[PinnedAsset]) -> dict[str, bytes]:
        async with self.objects.hold(assets) as paths:
            return await asyncio.to_thread(lambda: {each.filename: paths[each.sha256].read_bytes() for each in assets})

    async def _leave(self, key: str, install: asyncio.Task[None]) -> None:
        """Nobody waits for an install any more: end it, unless it is over."""
        del self._waiting[install]
        if not install.done():
            install.cancel()
            await asyncio.wait([install])
        if self._installs.get(key) is install:
            del self._installs[key]

    async def _install(self, wanted: PackageSet) -> None:
        """Install a set, once whoever was asked to before has cleaned up, and put it into the cache."""
        async with self._locks.setdefault(wanted.key, asyncio.Lock()):
            began, number = time.monotonic(), next(number for number in count() if number not in self._numbers)
            self._numbers.add(number)
            spec = self._spec(wanted, number)
            log.info("installing_packages", key=wanted.key, container=spec.name)
            try:
                site = await Install(wanted, await self._configured(), self.limits, spec, self.engine).run()
                crash_point("before_packages_kept")
                await asyncio.to_thread(self.cache.keep, wanted.key, site, self.limits.max_bytes)
                crash_point("after_packages_kept")
            except NotKept as problem:
                raise RequirementsFailed(f"the requirements could not be installed: {problem}") from problem
            except OSError as problem:
                raise GivenUp(_local(problem)) from problem
            finally:
                await self._remove(spec.folder.path)
                self._numbers.discard(number)
            log.info("packages_installed", key=wanted.key, seconds=round(time.monotonic() - began, 1))
        await self._shrink()

    def _spec(self, wanted: PackageSet, number: int) -> InstallSpec:
        owner, offset = self.first_owner, number if os.geteuid() == 0 else 0
        return InstallSpec(
            key=wanted.key,
            runner_id=self.runner_id,
            image=wanted.image,
            folder=RunFolder(self.making / wanted.key),
            owner=Owner(owner.uid + offset, owner.gid + offset),
            cpu_cores=CPU_CORES,
            memory_bytes=self.limits.memory_bytes,
            pids_limit=PIDS,
            scratch_bytes=SCRATCH_BYTES,
            file_size_bytes=self.limits.max_bytes,
            seccomp_profile=self.limits.seccomp_profile,
            oci_runtime=self.limits.oci_runtime,
        )

    async def _shrink(self) -> None:
        for path in self.cache.excess():
            log.info("packages_dropped", key=path.name.partition(".")[0])
            await self._remove(path)

    async def _remove(self, path: Path) -> None:
        """Remove a folder; what cannot be removed now is swept later."""
        try:
            await asyncio.to_thread(remove, path)
        except OSError as problem:
            log.warning("clean_up_failed", folder=path.name, error=str(problem))

    async def _remove_container(self, name: str) -> None:
        try:
            await self.engine.ask(lambda engine: engine.remove(name))
        except EngineRefused as problem:
            log.warning("sweep_failed", container=name, error=problem.reason)


def _local(problem: OSError) -> Lost:
    """Tell a disk that is full from what else this host may lack."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return Lost(Reason.DISK_FULL, "the runner's disk is full")
    return Lost(Reason.FETCH_FAILED, f"packages cannot be installed here: {problem}")


@dataclass(frozen=True, slots=True)
class Told:
    """A failed install as the run's log tells it; written down first, so that after a crash the very same is told."""

    message: str
    lines: tuple[str, ...]
    at: datetime


class RequirementsTold(Exception):
    """An attempt's requirements cannot be installed; what will be told about it is written down."""

    def __init__(self, told: Told) -> None:
        super().__init__(told.message)
        self.told = told


def told_before(run: Path) -> Told | None:
    """Read what an earlier process was about to tell of this attempt's requirements."""
    try:
        found = json.loads((run / TOLD).read_text())
    except FileNotFoundError:
        return None
    return Told(found["message"], tuple(found["lines"]), datetime.fromisoformat(found["at"]))


def write_told(run: Path, failed: RequirementsFailed, now: datetime) -> Told:
    """Write down what will be told of this attempt's requirements, once."""
    told = Told(failed.message, failed.lines, now)
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = run / f"{TOLD}.part"
    part.write_text(json.dumps({"message": told.message, "lines": told.lines, "at": now.isoformat()}))
    part.rename(run / TOLD)
    return told

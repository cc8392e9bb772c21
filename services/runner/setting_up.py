"""From an accepted attempt to a running container: fetch, install, lay out the folder, create, start.

Each step can be repeated: the folder is laid out afresh while no container has it, the container is found by its name.
A stop order ends the waiting at once, and nothing starts after it.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

import structlog

from schemas.events import RunQueued
from schemas.reason import Reason
from services.backbone.crash_points import crash_point
from services.runner import checkpoint, folder, quota
from services.runner.checkpoint_store import CheckpointStore
from services.runner.engine import Engine
from services.runner.errors import EngineRefused
from services.runner.folder import Orders, Owner, RunFolder
from services.runner.journal import Entry, Journal
from services.runner.outcome import Lost
from services.runner.output import Publishing
from services.runner.packages import Packages, RequirementsTold, told_before, write_told
from services.runner.quota import Quota
from services.runner.requirements import PackageSet, RequirementsFailed
from services.runner.sandbox import ContainerState, Sandbox
from services.runner.sandbox_runtimes import image_of
from services.runner.sandbox_walls import SandboxSpec
from services.runner.supplies import GivenUp, Supplies

PATIENCE_S = 60.0
"""How long the engine may be silent before the attempt is given to another runner."""

UNUSED_UIDS, UIDS_OF_A_RUNNER = 0x7000_0000, 4096
"""Where nobody gives out user ids (systemd, "Users, Groups, UIDs and GIDs"), up to the engine's last, 2^31-1."""

log = structlog.get_logger()

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What every run on this runner gets, beside its own compute."""

    checkpoint_every_s: float
    max_artifact_bytes: int
    max_output_bytes: int
    max_line_bytes: int
    max_lines_per_s: int
    max_bytes_per_s: int
    tmp_bytes: int
    pids_limit: int
    oci_runtime: str | None
    seccomp_profile: str
    quota: Quota
    loop_quota: bool
    first_owner: Owner
    owner_per_seat: bool


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What attempts work with.

    Attributes:
        slots_folder: where the runs' secrets lie; None where there is no tmpfs: in the runs' folders.
        may_start: set while nothing unread can forbid a start.
        may_tell: set once it is sure that Kafka's cluster is the one that the journal speaks of.
        same_cluster: raises BrokerReplaced if it is not so any more.
    """

    runner_id: str
    runs_folder: Path
    slots_folder: Path | None
    limits: RunLimits
    journal: Journal
    engine: Engine
    supplies: Supplies
    packages: Packages
    checkpoints: CheckpointStore
    publisher: Publishing
    changed: Callable[[], None] = field(repr=False)
    may_start: asyncio.Event = field(repr=False)
    may_tell: asyncio.Event = field(repr=False)
    same_cluster: Callable[[], Awaitable[None]] = field(repr=False)


class Stopped(Exception):
    """The attempt was stopped before its container ran."""


class SettingUp:
    """How one attempt's container comes to be."""

    def __init__(self, entry: Entry, queued: RunQueued, around: Surroundings, stopping: asyncio.Event) -> None:
        self.name = f"run-{entry.ref.run_id}-{entry.ref.attempt}"
        self.folder = RunFolder(around.runs_folder / self.name, around.slots_folder)
        self._entry = entry
        self._queued = queued
        self._around = around
        self._stopping = stopping

    async def find(self, patience_s: float | None) -> ContainerState | None:
        """Look for the attempt's container; None for `patience_s` waits for the engine's answer for ever."""
        return await self._around.engine.ask(lambda engine: engine.inspect(self.name), patience_s)

    def has_begun(self) -> bool:
        """Whether anything was laid out, so that an earlier process may have started the container."""
        return self.folder.path.exists()

    async def start(self) -> ContainerState | None:
        """Create the container if need be and start it; None when the attempt was stopped before.

        Once it may run, the engine's answer is waited for as long as it takes: nobody else may start the run meanwhile.

        Raises:
            GivenUp: what it needs cannot be had.
            RequirementsTold: its requirements cannot be installed.
            EngineRefused: the engine does not take such a container.
            EngineUnavailable: the engine did not answer for too long.
        """
        try:
            await self._unless_stopped(self._around.may_start.wait())
            image = await self._unless_stopped(self._image())
            if await self._is_created(image):
                await self._mount_again()
            else:
                await self._lay_out(image)
            crash_point("before_container_create")
            await self._ask(lambda engine: engine.create(self._sandbox_spec(image)))
            crash_point("after_container_create")
            await self._unless_stopped(self._around.may_start.wait())  # setting up may have outlasted what was read
        except Stopped:
            return None
        crash_point("before_container_start")
        await self._around.engine.ask(lambda engine: engine.start(self.name))
        crash_point("after_container_start")
        state = await self.find(None)
        if state is None:
            raise GivenUp(Lost(Reason.CONTAINER_LOST, "the container went away before it started"))
        return state

    async def _is_created(self, image: str) -> bool:
        """Whether the container is there.

        One that has not started is made again, with all that it mounts, if it lost its slot (a reboot) or is not as it
        would be asked for now (another release, other settings).
        """
        state = await self._ask(lambda engine: engine.inspect(self.name))
        if state is None:
            return False
        if state.status != "created":
            return True
        spec = self._sandbox_spec(image)
        if await self._ask(lambda engine: engine.is_as_asked(spec)) and self.folder.slot.exists():
            return True
        await self._ask(lambda engine: engine.remove(self.name))
        return False

    async def _lay_out(self, image: str) -> None:
        spec = self._queued.spec
        variables = await self._unless_stopped(self._around.supplies.variables(self._entry.ref.run_id, spec))
        await self._unless_stopped(self._around.supplies.fetch(spec))
        async with AsyncExitStack() as held:
            kept = await self._unless_stopped(
                held.enter_async_context(self._around.checkpoints.before(self._entry.ref))
            )
            packages = await held.enter_async_context(self._installed(image))
            contents = await held.enter_async_context(self._around.supplies.files(spec))
            orders = self._orders(variables, has_packages=packages is not None, resume=kept is not None)
            try:
                await asyncio.to_thread(folder.prepare, self.folder, orders, contents, self._owner())
            except ValueError as error:
                raise EngineRefused(str(error)) from error
            if packages is not None:
                self._around.packages.cache.use(self.folder.path, packages.key)
            await self._bound_out()
            await self._lay_out_checkpoint(kept)

    @asynccontextmanager
    async def _installed(self, image: str) -> AsyncIterator[PackageSet | None]:
        """Have the run's requirements installed, and keep them until the end of the block; None when it has none."""
        packages = self._around.packages
        if (told := told_before(self.folder.path)) is not None:
            raise RequirementsTold(told)
        try:
            wanted = await self._unless_stopped(packages.wanted(image, self._queued.spec, self._queued.tenant_id))
            with packages.cache.hold(wanted.key) if wanted else nullcontext():
                if wanted is not None:
                    await self._unless_stopped(packages.ensure(wanted))
                yield wanted
        except RequirementsFailed as failed:
            raise RequirementsTold(write_told(self.folder.path, failed, datetime.now(UTC))) from failed

    async def _bound_out(self) -> None:
        """Give the output folder a size, where this host can: a run that cannot have it is not started."""
        if self._around.limits.loop_quota:
            try:
                await asyncio.to_thread(quota.attach, self.folder.out, self._around.limits.quota)
            except OSError as error:
                log.warning("output_quota_failed", run_id=self._entry.ref.run_id, why=str(error))
                lost = Lost(Reason.DISK_FULL, "no file system can be made for the output folder")
                raise GivenUp(lost) from error
        crash_point("after_out_attached")

    async def _mount_again(self) -> None:
        """Bring back what a container was made with, in case that the host was restarted meanwhile."""
        try:
            await asyncio.to_thread(quota.attach_again, self.folder.out)
        except OSError as error:
            raise GivenUp(Lost(Reason.DISK_FULL, f"the output folder cannot be mounted: {error}")) from error

    async def _lay_out_checkpoint(self, kept: BinaryIO | None) -> None:
        limits = self._around.checkpoints.limits
        try:
            await asyncio.to_thread(checkpoint.lay_out, self.folder.out, kept, self._owner(), limits)
        except OSError as error:
            lost = Lost(Reason.DISK_FULL, f"the checkpoint could not be laid out: {error.strerror}")
            raise GivenUp(lost) from error
        if kept is not None:
            crash_point("after_checkpoint_restored")

    async def _image(self) -> str:
        engine = self._around.engine
        return await engine.ask(lambda _: image_of(self._queued.spec.runtime), PATIENCE_S)

    async def _ask(self, call: Callable[[Sandbox], Result]) -> Result:
        return await self._around.engine.ask(call, PATIENCE_S)

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    async def _unless_stopped(self, work: Awaitable[Result]) -> Result:
        """Wait for something, but no longer than until the stop order; then it is abandoned, and cleans up."""
        working = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
            self._check()
            return await working
        finally:
            working.cancel()
            stopped.cancel()
            await asyncio.gather(working, stopped, return_exceptions=True)

    def _orders(self, variables: dict[str, str], *, has_packages: bool, resume: bool) -> Orders:
        spec, limits = self._queued.spec, self._around.limits
        return Orders(
            run_id=self._entry.ref.run_id,
            attempt=self._entry.ref.attempt,
            entry_point=spec.entry_point,
            dataset_filename=spec.dataset.filename,
            variables=variables,
            deadline_s=float(spec.timeout_s),
            grace_s=float(spec.grace_s),
            max_line_bytes=limits.max_line_bytes,
            max_output_bytes=limits.max_output_bytes,
            max_lines_per_s=limits.max_lines_per_s,
            max_bytes_per_s=limits.max_bytes_per_s,
            has_packages=has_packages,
            resume=resume,
        )

    def _sandbox_spec(self, image: str) -> SandboxSpec:
        compute, limits = self._queued.spec.compute, self._around.limits
        return SandboxSpec(
            run_id=self._entry.ref.run_id,
            attempt=self._entry.ref.attempt,
            runner_id=self._around.runner_id,
            image=image,
            folder=self.folder,
            owner=self._owner(),
            cpu_cores=compute.cpu_cores,
            memory_bytes=compute.memory_gb << 30,
            gpu=compute.gpu,
            pids_limit=limits.pids_limit,
            scratch_bytes=limits.tmp_bytes,
            packages=self._around.packages.cache.used_by(self.folder.path),
            oci_runtime=limits.oci_runtime,
            seccomp_profile=limits.seccomp_profile,
            own_user=limits.owner_per_seat,
        )

    def _owner(self) -> Owner:
        """As root each concurrent attempt gets a user id of its own: nobody else's until nothing of it is left."""
        first, limits = self._around.limits.first_owner, self._around.limits
        offset = self._entry.seat if limits.owner_per_seat else 0
        return Owner(first.uid + offset, first.gid + offset)


def first_uid_of(runner_id: str) -> int:
    """Tell where a runner's own block of user ids begins, so that two runners on one host do not share any.

    >>> first_uid_of("rnr-00000000") in range(0x7000_0000, 0x8000_0000, 4096)
    True
    """
    number = int.from_bytes(hashlib.sha256(runner_id.encode()).digest()[:2])
    return UNUSED_UIDS + number * UIDS_OF_A_RUNNER

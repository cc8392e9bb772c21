"""From an accepted attempt to a running container: fetch, lay out the folder, create, start.

Each step can be repeated: the folder is laid out afresh while no container has it, the container is found by its name.
A stop order ends the waiting at once, and nothing starts after it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from schemas.events import RunQueued
from services.backbone.crash_points import crash_point
from services.runner import folder
from services.runner.engine import Engine
from services.runner.errors import EngineRefused
from services.runner.folder import Orders, Owner, RunFolder
from services.runner.journal import Entry, Journal
from services.runner.output import Publishing
from services.runner.sandbox import ContainerState, Sandbox, SandboxSpec
from services.runner.sandbox_runtimes import image_of
from services.runner.supplies import Supplies

PATIENCE_S = 60.0
"""How long the engine may be silent before the attempt is given to another runner."""

log = structlog.get_logger()

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What every run on this runner gets, beside its own compute."""

    grace_s: float
    max_artifact_bytes: int
    max_output_bytes: int
    max_line_bytes: int
    tmp_bytes: int
    pids_limit: int
    oci_runtime: str | None
    first_owner: Owner
    owner_per_slot: bool


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What attempts work with.

    Attributes:
        may_start: set while nothing unread can forbid a start.
        may_tell: set once it is sure that Kafka's cluster is the one that the journal speaks of.
        same_cluster: raises BrokerReplaced if it is not so any more.
    """

    runner_id: str
    runs_folder: Path
    limits: RunLimits
    journal: Journal
    engine: Engine
    supplies: Supplies
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
        self.folder = RunFolder(around.runs_folder / self.name)
        self._entry = entry
        self._queued = queued
        self._around = around
        self._stopping = stopping

    async def find(self, patience_s: float | None) -> ContainerState | None:
        """Look for the attempt's container; None for `patience_s` waits for the engine's answer for ever."""
        return await self._around.engine.ask(lambda engine: engine.inspect(self.name), patience_s)

    async def start(self) -> ContainerState | None:
        """Create the container if need be and start it; None when the attempt was stopped before.

        Raises:
            GivenUp: what it needs cannot be had.
            EngineRefused: the engine does not take such a container.
            EngineUnavailable: the engine did not answer for too long.
        """
        try:
            await self._unless_stopped(self._around.may_start.wait())
            if await self._ask(lambda engine: engine.inspect(self.name)) is None:
                await self._create()
            self._check()
        except Stopped:
            return None
        crash_point("before_container_start")
        await self._ask(lambda engine: engine.start(self.name))
        crash_point("after_container_start")
        state = await self._ask(lambda engine: engine.inspect(self.name))
        if state is None:
            raise EngineRefused("the container went away")
        return state

    async def _create(self) -> None:
        spec = self._queued.spec
        variables = await self._unless_stopped(self._around.supplies.variables(self._entry.ref.run_id, spec))
        image = await self._unless_stopped(self._image())
        await self._unless_stopped(self._around.supplies.fetch(spec))
        async with self._around.supplies.files(spec) as contents:
            lay_out = partial(folder.prepare, self.folder, self._orders(variables), contents, self._owner())
            try:
                await asyncio.to_thread(lay_out)
            except ValueError as error:
                raise EngineRefused(str(error)) from error
        crash_point("before_container_create")
        await self._ask(lambda engine: engine.create(self._sandbox_spec(image)))
        crash_point("after_container_create")

    async def _image(self) -> str:
        engine = self._around.engine
        return await engine.ask(lambda _: image_of(self._queued.spec.runtime), PATIENCE_S)

    async def _ask(self, call: Callable[[Sandbox], Result]) -> Result:
        return await self._around.engine.ask(call, PATIENCE_S)

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    async def _unless_stopped(self, work: Awaitable[Result]) -> Result:
        """Wait for something, but no longer than until the stop order; then it is abandoned."""
        working = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
            self._check()
            return await working
        finally:
            working.cancel()
            stopped.cancel()

    def _orders(self, variables: dict[str, str]) -> Orders:
        spec, limits = self._queued.spec, self._around.limits
        return Orders(
            run_id=self._entry.ref.run_id,
            attempt=self._entry.ref.attempt,
            entry_point=spec.entry_point,
            dataset_filename=spec.dataset.filename,
            variables=variables,
            deadline_s=float(spec.timeout_s),
            grace_s=limits.grace_s,
            max_line_bytes=limits.max_line_bytes,
            max_output_bytes=limits.max_output_bytes,
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
            oci_runtime=limits.oci_runtime,
        )

    def _owner(self) -> Owner:
        """As root each concurrent attempt gets a user id of its own."""
        first, limits = self._around.limits.first_owner, self._around.limits
        offset = self._entry.slot if limits.owner_per_slot else 0
        return Owner(first.uid + offset, first.gid + offset)

"""Runs scripts here and now in exactly the sandbox that a run gets, without Kafka, PostgreSQL or any service.

It is the runner's own wiring with one part replaced: what would be published is told to a listener. So there is no
second sandbox to keep alike. Owns a folder for as long as it is open, and sweeps what one that was killed left behind;
must never know how a container is made or how an end is decided.
"""

import asyncio
import base64
import json
import secrets
import shutil
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from schemas import ids
from schemas.events import RunQueued, RunSucceeded
from schemas.parts import (
    GRACE_S,
    AssetType,
    Compute,
    MetricDefinition,
    PinnedAsset,
    PinnedDataset,
    RunAttempt,
    Runtime,
    TrainingSpec,
)
from services.backbone.objects import content_key
from services.backbone.sealing import seal
from services.runner import folder
from services.runner.attempt import Attempt
from services.runner.errors import SettingRefused
from services.runner.local_ear import Ear, End, Listener
from services.runner.local_home import abandoned_homes, new_home
from services.runner.main import wire
from services.runner.outcome import Cause
from services.runner.sandbox_rootfs import Say
from services.runner.sandbox_runtimes import image_of
from services.runner.setting_up import Stopped, Surroundings
from services.runner.settings import RunnerSettings
from services.runner.sweep import Sweep

SWEEP_PATIENCE_S = 60.0
KILL_PATIENCE_S, KILL_EVERY_S = 10.0, 0.2

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class LocalRequest:
    """What to run: files of this machine, with the endpoint's defaults.

    `output` is the folder for the artifact: `model` as it was written, or `model.tar` of a folder, as a version has it.
    """

    script: Path
    data: Path
    assets: Sequence[tuple[Path, AssetType]] = ()
    runtime: Runtime = "python3.11"
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    compute: Compute = field(default_factory=lambda: Compute(cpu_cores=2, memory_gb=8))
    timeout_s: int = 7200
    grace_s: int = GRACE_S
    metric_definitions: Sequence[MetricDefinition] = ()
    output: Path | None = None


@dataclass(frozen=True)
class LocalOutcome:
    """How it ended, in the event that a run's subscribers would get; `AttemptLost` is an end, too: nobody tries again.

    The artifact is in the output folder, or for want of one with the runner until that is closed.
    """

    end: End
    artifact: Path | None


async def run_local(request: LocalRequest, listener: Listener, stop: asyncio.Event, say: Say) -> LocalOutcome:
    """Run one script as `LocalRunner.run` does, on a runner of its own.

    Raises:
        EngineUnavailable: no engine answers, or the runtime's image cannot be made.
        SettingRefused: a setting of this machine cannot be used.
        Stopped: it was told to stop while that image was being made.
    """
    async with local_runner() as runner:
        preparing = asyncio.create_task(runner.prepare(request.runtime, say))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((preparing, stopped), return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                raise Stopped
            await preparing
        finally:
            preparing.cancel()
            stopped.cancel()
        return await runner.run(request, listener, stop)


@asynccontextmanager
async def local_runner(**settings: Any) -> AsyncIterator["LocalRunner"]:
    """Open a runner for the length of a block; afterwards neither container nor folder of it is left.

    Args:
        settings: fields of `RunnerSettings` that differ from the environment's (`RUNYARD_…`) and the defaults.

    Raises:
        EngineUnavailable: no engine answers.
        SettingRefused: a setting cannot be used.
    """
    with new_home() as home:
        swept = True  # nothing can be there yet
        try:
            with closing(LocalRunner.wired(home, settings)) as runner:
                await runner.around.engine.ask_once(lambda engine: engine.ping())
                await sweep_abandoned()
                swept = False
                try:
                    yield runner
                finally:
                    swept = await runner.sweep()
        finally:
            if swept:  # else the next one finds what is left, by the folder
                await asyncio.to_thread(folder.remove, home)


async def sweep_abandoned() -> None:
    """Remove containers and folders of those that were killed before they could do it themselves."""
    for home in abandoned_homes():
        try:
            with closing(LocalRunner.wired(home, {})) as runner:
                swept = await runner.sweep()
            if swept:
                await asyncio.to_thread(folder.remove, home)
        except (OSError, sqlite3.Error, SettingRefused) as problem:  # nobody else's run shall fail by it
            log.warning("sweep_failed", home=str(home), error=str(problem))


@dataclass
class LocalRunner:
    """A runner without services; any number of scripts may run at once, each as a user of its own where we are root."""

    around: Surroundings
    home: Path
    _ear: Ear

    @classmethod
    def wired(cls, home: Path, settings: Mapping[str, Any]) -> "LocalRunner":
        """Take the runner's wiring in a folder, with an ear in the place of Kafka.

        Raises:
            SettingRefused: a setting cannot be used.
        """
        key = "local:" + base64.b64encode(secrets.token_bytes(32)).decode()
        places = {"work_dir": home / "work", "objects_url": (home / "objects").as_uri(), "sealing_key": key}
        try:
            wired = wire(RunnerSettings(**{**settings, **places})).roster.around
        except ValidationError as problem:  # its own words would show values, and some are secret
            wrong = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in problem.errors()]
            raise SettingRefused(f"{problem.title}: {'; '.join(wrong)}") from None
        except (ValueError, FileNotFoundError) as problem:
            raise SettingRefused(str(problem)) from problem
        ear = Ear(wired.journal)
        around = replace(wired, publisher=ear, changed=ear.deliver, same_cluster=_nobody_else)
        around.may_start.set()
        around.may_tell.set()
        return cls(around, home, ear)

    async def prepare(self, runtime: Runtime, say: Say) -> None:
        """Make the runtime's image if it is not there, which takes a minute or so.

        Raises:
            EngineUnavailable: it cannot be made.
        """
        await self.around.engine.in_thread(lambda: image_of(runtime, say))

    async def run(self, request: LocalRequest, listener: Listener, stop: asyncio.Event) -> LocalOutcome:
        """Run a script to its end; `stop` lets it end as a run does that somebody cancels: SIGTERM, grace, SIGKILL.

        Who cancels this cannot wait for the grace: the container is killed, and what is left of it removed.

        Raises:
            OSError: a file cannot be read, or the disk is full.
        """
        queued = await self._queue(request)
        ref = RunAttempt(run_id=queued.run_id, attempt=queued.attempt)
        self.around.journal.accept(queued, None)
        entry = self.around.journal.entry(ref)
        if entry is None:
            raise AssertionError("what was accepted just now is there")
        attempt = Attempt(entry, queued, self.around)
        self._ear.listeners[ref.run_id] = listener
        stopping = asyncio.create_task(self._stop_when(stop, attempt, ref))
        living = asyncio.create_task(attempt.run())
        try:
            await asyncio.shield(living)
        except asyncio.CancelledError:
            stop.set()
            await self._kill_until_over(living, f"run-{ref.run_id}-{ref.attempt}")
            raise
        finally:
            stopping.cancel()
            del self._ear.listeners[ref.run_id]
            await self.around.supplies.objects.delete(ids.variables_key(ref.run_id))
        end = self._ear.ends.pop(ref.run_id)
        return LocalOutcome(end, await asyncio.to_thread(self._deliver, end, request.output))

    async def sweep(self) -> bool:
        """End what still runs and remove it; False when the engine does not answer."""
        around, journal = self.around, self.around.journal
        for entry in journal.unfinished():
            journal.record_end(entry.ref, datetime.now(UTC), None)
        try:
            async with asyncio.timeout(SWEEP_PATIENCE_S):
                await Sweep(journal, around.engine, around.runs_folder, around.slots_folder, around.packages).once()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Let go of the engine and the journal."""
        self.around.engine.close()
        self.around.journal.close()

    async def _stop_when(self, stop: asyncio.Event, attempt: Attempt, ref: RunAttempt) -> None:
        await stop.wait()
        self.around.journal.set_cause(ref, Cause.USER_REQUEST)
        attempt.stop()

    async def _kill_until_over(self, living: "asyncio.Task[None]", name: str) -> None:
        """Kill a container that may be about to start or to end, so that no call of the engine is left under way."""
        while not living.done():
            await self.around.engine.ask(lambda engine: engine.kill(name), KILL_PATIENCE_S)
            await asyncio.wait([living], timeout=KILL_EVERY_S)

    async def _queue(self, request: LocalRequest) -> RunQueued:
        """Write the request as the scheduler would, its files in the runner's cache and its variables sealed."""
        supplies = self.around.supplies
        run_id = ids.run_id(datetime.now(UTC).date(), secrets.token_hex(6))
        files: list[tuple[Path, AssetType]] = [(request.script, "script"), *request.assets]
        assets = [await self._asset(path, kind) for path, kind in files]
        if request.variables:
            key = next(iter(supplies.keys.values()))
            sealed = seal(key, run_id, json.dumps(dict(request.variables)).encode())
            await supplies.objects.put(ids.variables_key(run_id), sealed)
        spec = TrainingSpec(
            entry_point=request.script.name,
            runtime=request.runtime,
            compute=request.compute,
            timeout_s=request.timeout_s,
            grace_s=request.grace_s,
            metric_definitions=tuple(request.metric_definitions),
            variable_names=tuple(request.variables),
            assets=tuple(assets),
            dataset=await self._dataset(request.data),
        )
        return RunQueued(
            run_id=run_id,
            attempt=1,
            runner_id=self.around.runner_id,
            tenant_id="local",
            model_id=ids.model_id("0" * 8),
            spec=spec,
        )

    async def _asset(self, path: Path, kind: AssetType) -> PinnedAsset:
        identity = ids.asset_id(secrets.token_hex(8))
        sha256, size = await asyncio.to_thread(self.around.supplies.cache.keep, path, identity)
        return PinnedAsset(filename=path.name, sha256=sha256, size_bytes=size, asset_id=identity, asset_type=kind)

    async def _dataset(self, path: Path) -> PinnedDataset:
        identity = ids.dataset_id(secrets.token_hex(8))
        sha256, size = await asyncio.to_thread(self.around.supplies.cache.keep, path, identity)
        return PinnedDataset(filename=path.name, sha256=sha256, size_bytes=size, dataset_id=identity)

    def _deliver(self, end: End, output: Path | None) -> Path | None:
        artifact = end.artifact if isinstance(end, RunSucceeded) else None
        if artifact is None:
            return None
        stored = self.home / "objects" / content_key(artifact.sha256)
        if output is None:
            return stored
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(stored, output / ("model" if artifact.kind == "file" else "model.tar")))


async def _nobody_else() -> None:
    """There is no cluster that could be another one."""

"""The life of one attempt, from accepted to cleaned up, on any number of runner processes one after the other.

Every step looks first at what is there already (the journal, the container by its name), so that it may be killed
anywhere and begun again. How the run ended is decided in `outcome`; here is only the order in which things are done.
"""

import asyncio
from datetime import UTC, datetime

import structlog

from schemas.events import RunQueued
from schemas.parts import Usage
from schemas.reason import Reason, RunStatus
from services.backbone.crash_points import crash_point
from services.backbone.errors import BrokerReplaced
from services.runner import events, folder, quota
from services.runner.artifact import Collected, Collection, Limits, NoArtifact, Refused, collect
from services.runner.errors import EngineRefused, EngineUnavailable
from services.runner.events import Aftermath, Outgoing, Pen
from services.runner.frames import End, Log
from services.runner.journal import Entry, State
from services.runner.keeping import Keeper
from services.runner.outcome import MESSAGE_CHARACTERS, Cause, Conclusion, Ended, Evidence, Exit, Lost, conclude
from services.runner.output import Batches, OutputPublisher
from services.runner.packages import RequirementsTold, Told
from services.runner.sandbox import ContainerState
from services.runner.setting_up import PATIENCE_S, SettingUp, Surroundings
from services.runner.supplies import GivenUp, patiently
from services.runner.watch import MARGIN_S, Watch

UPLOAD_PATIENCE_S = 900.0
CLEAN_UP_PATIENCE_S = 30.0

log = structlog.get_logger()


class Attempt:
    """One attempt in this process. `run` may be called once; `stop` any time, after its cause was journaled."""

    def __init__(self, entry: Entry, queued: RunQueued, around: Surroundings) -> None:
        self._entry = entry
        self._queued = queued
        self._around = around
        self._stopping = asyncio.Event()
        if entry.cause is not None:
            self._stopping.set()
        self._pen = Pen(around.runner_id, entry.ref, entry.traceparent)
        self._output = OutputPublisher(
            self._pen,
            Batches(entry.output_from, entry.output_to),
            around.journal,
            around.publisher,
            now,
            around.may_tell,
        )
        self._setting_up = SettingUp(entry, queued, around, self._stopping)
        out = self._setting_up.folder.out
        self._keeper = Keeper(entry.ref, out, around.checkpoints, around.limits.checkpoint_every_s)
        self._log = log.bind(run_id=entry.ref.run_id, attempt=entry.ref.attempt)

    def stop(self) -> None:
        """Let the attempt end as its journaled cause says."""
        self._stopping.set()

    async def run(self) -> None:
        """See the attempt through to its end; returns when the end is journaled and everything is cleaned up.

        Raises:
            BrokerReplaced: the process has to start again before it can go on.
        """
        state: ContainerState | None = None
        try:
            state = await self._container()
            if state is not None:
                state = await self._watch()
                crash_point("after_container_over")
            conclusion = await self._conclude_with_artifact(state)
        except GivenUp as problem:
            conclusion = problem.lost
        except RequirementsTold as problem:
            conclusion = await self._tell_requirements(problem.told)
        except EngineRefused as problem:
            self._log.warning("engine_refused", reason=problem.reason)
            refusal = f"the engine refused: {self._setting_up.folder.hide(problem.reason)}"
            conclusion = Ended(RunStatus.FAILED, Reason.SANDBOX_REFUSED, refusal[:MESSAGE_CHARACTERS])
        except EngineUnavailable as problem:
            conclusion = Lost(Reason.ENGINE_UNAVAILABLE, str(problem))
        except BrokerReplaced:
            raise
        except Exception as problem:  # noqa: BLE001 - the edge: one broken attempt must not take the others along
            self._log.exception("attempt_broke")
            conclusion = Lost(Reason.CONTAINER_LOST, f"the runner failed: {type(problem).__name__}")
        await self._forget_secrets()
        self._end(self._cause_first(conclusion, state), state)
        await self._clean_up()

    async def _container(self) -> ContainerState | None:
        """Find the attempt's container or set it up, and tell that it has started; None when it must not start."""
        was_running = self._entry.state is State.RUNNING
        state = await self._setting_up.find(None if was_running or self._setting_up.has_begun() else PATIENCE_S)
        if state is None and was_running:
            return None  # gone: what is journaled tells how it ended
        if state is None or state.status == "created":
            state = await self._setting_up.start()
        if state is not None and not was_running:
            started_at = state.started_at or now()
            event = events.run_started(self._pen, state.container_id, started_at)
            crash_point("before_start_journaled")
            self._around.journal.record_start(self._entry.ref, state.container_id, started_at, event)
            crash_point("after_start_journaled")
            self._around.changed()
            self._log.info("run_started", container_id=state.container_id)
        return state

    async def _tell_requirements(self, told: Told) -> Conclusion:
        """Tell why the requirements cannot be installed, as the attempt's only output: no script has written any."""
        for sequence, text in enumerate(told.lines, 1):
            self._output.batches.add(Log(seq=sequence, stream="stderr", text=text, at=told.at))
        await self._output.send_all()
        await self._around.same_cluster()
        return Ended(RunStatus.FAILED, Reason.REQUIREMENTS_FAILED, told.message[:MESSAGE_CHARACTERS])

    async def _watch(self) -> ContainerState | None:
        spec = self._queued.spec
        watch = Watch(
            setting_up=self._setting_up,
            definitions=spec.metric_definitions,
            around=self._around,
            output=self._output,
            on_cause=self._on_cause,
            patience_s=spec.grace_s + MARGIN_S,
        )
        async with self._keeper.while_it_runs():
            over = await watch.until_over(spec.timeout_s, self._stopping)
        await self._around.same_cluster()  # while the container is there, its output can be told to another one again
        return over

    def _on_cause(self, cause: Cause) -> None:
        counts = self._around.journal.set_cause(self._entry.ref, cause)
        crash_point("after_limit_journaled")
        self._log.info("run_over_its_limit", limit=cause, cause=counts)

    async def _conclude_with_artifact(self, state: ContainerState | None) -> Conclusion:
        first = self._conclude(state, NoArtifact())
        if isinstance(first, Lost):
            await self._keep_last_checkpoint()
        if not isinstance(first, Ended) or first.status is not RunStatus.SUCCEEDED:
            return first
        return self._conclude(state, await self._collect())

    async def _keep_last_checkpoint(self) -> None:
        """Keep what the script has kept last, also if a restart of the host has unmounted where it lies."""
        try:
            await asyncio.to_thread(quota.attach_again, self._setting_up.folder.out)
        except OSError as problem:
            self._log.warning("checkpoint_not_kept", error=str(problem))
        else:
            await self._keeper.keep_last()

    def _cause_first(self, conclusion: Conclusion, state: ContainerState | None) -> Conclusion:
        """Let a stop that was journaled while the attempt failed, or was told of, win over what came of it."""
        entry = self._around.journal.entry(self._entry.ref)
        return conclusion if entry is None or entry.cause is None else self._conclude(state, NoArtifact())

    def _conclude(self, state: ContainerState | None, artifact: Collection) -> Conclusion:
        entry = self._around.journal.entry(self._entry.ref)
        exit_ = Exit(state.exit_code, state.oom_killed) if state else Exit()
        batches = self._output.batches
        cause = entry.cause if entry else None
        return conclude(Evidence(cause, batches.end, exit_, batches.last_error_line), artifact)

    async def _collect(self) -> Collection:
        """Take the artifact and put it into the object store."""
        place = self._setting_up.folder
        private, limits = place.path / "artifact", Limits(self._around.limits.max_artifact_bytes)

        def take() -> Collection:
            private.unlink(missing_ok=True)
            quota.attach_again(place.out)
            quota.settle(place.out)
            return collect(place.out, private, limits)

        try:
            found = await asyncio.to_thread(take)
        except OSError as problem:
            raise GivenUp(Lost(Reason.DISK_FULL, f"the artifact could not be copied: {problem.strerror}")) from problem
        crash_point("after_artifact_collected")
        if isinstance(found, Refused):  # the reason names a file as the script has named it
            mask = folder.mask_of(place)
            return Refused(found.anonymous if mask is None else mask.text(found.reason))
        if isinstance(found, Collected):
            store = self._around.supplies.objects.store_file
            await patiently(lambda: store(found.path, found.sha256), Reason.UPLOAD_FAILED, UPLOAD_PATIENCE_S)
            crash_point("after_artifact_upload")
        return found

    async def _forget_secrets(self) -> None:
        """See to it that they are gone before anybody hears of the end; what cannot be removed is swept later."""
        try:
            await asyncio.to_thread(folder.clear_slot, self._setting_up.folder)
        except OSError as problem:
            self._log.warning("clean_up_failed", error=str(problem))
        crash_point("after_secrets_removed")

    def _end(self, conclusion: Conclusion, state: ContainerState | None) -> None:
        event = self._event(conclusion, state)
        crash_point("before_end_journaled")
        self._around.journal.record_end(self._entry.ref, now(), event)
        crash_point("after_end_journaled")
        self._around.changed()
        reason = getattr(conclusion, "reason", None)
        self._log.info("attempt_ended", conclusion=type(conclusion).__name__, reason=reason)

    def _event(self, conclusion: Conclusion, state: ContainerState | None) -> Outgoing | None:
        aftermath = self._aftermath(state)
        match conclusion:
            case Ended():
                return events.run_ended(self._pen, conclusion, aftermath)
            case Lost():
                lost = Lost(conclusion.reason, self._setting_up.folder.hide(conclusion.message))
                return events.attempt_lost(self._pen, lost, aftermath.ended_at)
            case _:
                return None

    def _aftermath(self, state: ContainerState | None) -> Aftermath:
        end = self._output.batches.end
        entry = self._around.journal.entry(self._entry.ref)
        ended_at = (end.ended_at if end else None) or (state.finished_at if state else None) or now()
        return Aftermath(
            ended_at=ended_at,
            started_at=entry.started_at if entry else None,
            usage=usage_of(end) if end and end.error is None else None,
            output_sequence=self._output.batches.last_output,
        )

    async def _clean_up(self) -> None:
        """Remove container and folder; what cannot be removed now is swept later."""
        name = self._setting_up.name
        try:
            crash_point("before_container_removal")
            await self._around.engine.ask(lambda engine: engine.remove(name), CLEAN_UP_PATIENCE_S)
            crash_point("after_container_removal")
            await asyncio.to_thread(folder.clear, self._setting_up.folder)
            crash_point("after_folder_removal")
            self._around.journal.release_seat(self._entry.ref)
        except (EngineUnavailable, EngineRefused, OSError) as problem:
            self._log.warning("clean_up_failed", error=str(problem))


def usage_of(end: End) -> Usage:
    """Tell what the script used."""
    return Usage(peak_memory_bytes=end.peak_memory_bytes, cpu_s=end.cpu_seconds, wall_s=max(end.wall_seconds, 0.0))


def now() -> datetime:
    """Read the clock."""
    return datetime.now(UTC)

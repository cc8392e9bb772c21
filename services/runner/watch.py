"""Watching a container that runs: its output on, its stop orders and its deadline in, until the engine says it is over.

The shim keeps the deadline by itself; what stands here is the backstop for a shim that does not, and it never kills for
any other cause but a full output folder: not because Kafka is away, not because the engine was.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, repeat

import structlog

from schemas.parts import MetricDefinition
from services.backbone.crash_points import crash_point
from services.runner import quota
from services.runner.definitions import Meter
from services.runner.errors import EngineRefused
from services.runner.following import Following
from services.runner.outcome import Cause
from services.runner.output import OutputPublisher
from services.runner.sandbox import ContainerState, is_over
from services.runner.setting_up import SettingUp, Surroundings

FLUSH_EVERY_S = 0.2
IDLE_S = 5.0
FIRST_POLLS_S, LATER_POLLS_S = (0.01, 0.02, 0.05, 0.1, 0.2), 0.5
MEASURE_EVERY_S = 1.0
MARGIN_S = 5.0
"""How much longer than the grace period the shim may take before the whole container is killed."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Watch:
    """One container, by name.

    Attributes:
        definitions: which metrics are looked for in its log.
        patience_s: how long it may go on after it was told to stop.
    """

    setting_up: SettingUp
    definitions: tuple[MetricDefinition, ...]
    around: Surroundings
    output: OutputPublisher
    on_cause: Callable[[Cause], None]
    patience_s: float

    @property
    def name(self) -> str:
        """The container's."""
        return self.setting_up.name

    async def until_over(self, limit_s: float, stopping: asyncio.Event) -> ContainerState | None:
        """Publish output until the container is over and all of its output is out.

        Returns:
            The container's last state; None when it is gone.
        """
        guard = asyncio.create_task(self._guard(limit_s + self.patience_s, stopping))
        measuring = asyncio.create_task(self._measure())
        try:
            return await self._follow_until_over()
        finally:
            guard.cancel()
            measuring.cancel()
            await asyncio.gather(guard, measuring, return_exceptions=True)

    async def _guard(self, left_s: float, stopping: asyncio.Event) -> None:
        """Stop the container when it is told to, or when it outlives its deadline.

        The deadline is the shim's. This backstop counts on this process's own clock, and anew after a restart: by
        wall clocks a laptop that slept, or an engine with a clock of its own, would end a healthy training.
        """
        engine = self.around.engine
        try:
            async with asyncio.timeout(left_s):
                await stopping.wait()
        except TimeoutError:
            self.on_cause(Cause.TIMEOUT)
        else:
            crash_point("before_terminate")
            await engine.ask(lambda sandbox: sandbox.terminate(self.name))
            crash_point("after_terminate")
            await asyncio.sleep(self.patience_s)
        crash_point("before_backstop_kill")
        await engine.ask(lambda sandbox: sandbox.kill(self.name))
        crash_point("after_backstop_kill")

    async def _measure(self) -> None:
        """Kill the container once it keeps too much, where no file system keeps it from doing so."""
        out, limit = self.setting_up.folder.out, self.around.limits.quota
        if out.is_mount():
            return
        excess = None
        while excess is None:
            await asyncio.sleep(MEASURE_EVERY_S)
            try:
                excess = await asyncio.to_thread(quota.excess, out, limit)
            except OSError as error:
                log.warning("output_not_measured", container=self.name, error=str(error))
        log.info("output_quota_exceeded", container=self.name, excess=excess)
        self.on_cause(Cause.DISK_QUOTA)
        await self.around.engine.ask(lambda sandbox: sandbox.kill(self.name))

    async def _follow_until_over(self) -> ContainerState | None:
        """Follow the log, again from its beginning whenever the stream broke, until it was read after the end."""
        while True:
            before = await self._state()
            await self._follow_once(before)
            await self.output.send_all()
            if self.output.batches.end is not None:
                return await self._wait_until_over()
            if before is None or is_over(before):
                return before
            await asyncio.sleep(FLUSH_EVERY_S)

    async def _follow_once(self, state: ContainerState | None) -> None:
        if state is None:
            return
        meter = Meter(self.definitions, self.around.limits.max_output_bytes)
        try:
            following = Following(await self.around.engine.ask(lambda sandbox: sandbox.follow(self.name)), meter)
        except EngineRefused:  # it was removed just now; whoever asks for its state will see
            return
        try:
            while self.output.batches.end is None and (frames := await following.next(IDLE_S)) is not None:
                timed_out = self.output.batches.timed_out
                for frame in frames:
                    self.output.batches.add(frame)
                if self.output.batches.timed_out and not timed_out:
                    self.on_cause(Cause.TIMEOUT)
                await self.output.send_all()
                if not frames and not following.measuring and is_over(await self._state()):
                    return  # the stream hangs: the log is read once more
                await _wait_for(following.pressing, FLUSH_EVERY_S)
        finally:
            following.close()
            if meter.exhausted:
                log.warning("metrics_left_out", container=self.name)

    async def _wait_until_over(self) -> ContainerState | None:
        """The shim has said its last word: the container is about to be over, and is killed if it is not."""
        patience = asyncio.get_running_loop().time() + MARGIN_S
        for delay in chain(FIRST_POLLS_S, repeat(LATER_POLLS_S)):
            if is_over(state := await self._state()):
                return state
            if asyncio.get_running_loop().time() > patience:
                await self.around.engine.ask(lambda sandbox: sandbox.kill(self.name))
            await asyncio.sleep(delay)
        raise AssertionError("polls never end")

    async def _state(self) -> ContainerState | None:
        return await self.around.engine.ask(lambda sandbox: sandbox.inspect(self.name))


async def _wait_for(event: asyncio.Event, longest_s: float) -> None:
    try:
        async with asyncio.timeout(longest_s):
            await event.wait()
    except TimeoutError:
        return

"""The runner's heartbeat: what it has and what it is doing, every few seconds and as soon as that changes.

It also notices whether Kafka is there: who could not announce itself has been cut off and may have missed a revocation.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from schemas.parts import Capacity, RunAttempt, Runtime
from services.backbone.crash_points import crash_point
from services.backbone.errors import PublishFailed
from services.backbone.health import Health
from services.backbone.publisher import Publisher
from services.runner.engine import PART as ENGINE
from services.runner.events import Announcement, runner_heartbeat
from services.runner.journal import Journal, State

DEBOUNCE_S = 0.1
ENDED_FOR = timedelta(hours=1)
ENDED_AT_MOST = 200
PART = "heartbeat"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Offer:
    """What a runner has to give, and where it listens."""

    capacity: Capacity
    runtimes: tuple[Runtime, ...]
    dispatch_partition: int


@dataclass
class Heart:
    """Beats for one runner.

    Attributes:
        connected: the last beat was heard.
        cut_off: a beat was not heard; who has seen to what that means clears it.
    """

    journal: Journal
    publisher: Publisher
    health: Health
    every_s: float
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    cut_off: asyncio.Event = field(default_factory=asyncio.Event)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """What is running may have changed."""
        self._wake.set()

    async def run(self, offer: Offer) -> None:
        """Beat until cancelled."""
        self.health.expect(PART)
        while True:
            self._wake.clear()
            await self._beat(offer)
            try:
                async with asyncio.timeout(self.every_s):
                    await self._wake.wait()
                    await asyncio.sleep(DEBOUNCE_S)
            except TimeoutError:
                continue

    async def _beat(self, offer: Offer) -> None:
        now = datetime.now(UTC)
        event = runner_heartbeat(self.journal.runner_id, self.journal.next_beat(), self._announcement(offer, now), now)
        crash_point("after_beat_counted")
        try:
            await self.publisher.publish([event])
            crash_point("after_heartbeat_publish")
        except PublishFailed as error:
            log.warning("heartbeat_failed", error=str(error))
            self.health.failing(PART, str(error))
            self.connected.clear()
            self.cut_off.set()
        else:
            self.health.ok(PART)
            self.connected.set()

    def _announcement(self, offer: Offer, now: datetime) -> Announcement:
        """Tell what there is; while the engine is away no runtime is offered, so that no run is given to lose."""
        alive: dict[State, list[RunAttempt]] = {State.ACCEPTED: [], State.RUNNING: []}
        for entry in self.journal.unfinished():
            alive[entry.state].append(entry.ref)
        return Announcement(
            capacity=offer.capacity,
            runtimes=offer.runtimes if self.health.works(ENGINE) else (),
            dispatch_partition=offer.dispatch_partition,
            accepted=tuple(alive[State.ACCEPTED]),
            running=tuple(alive[State.RUNNING]),
            ended=tuple(self.journal.lately_ended(now - ENDED_FOR, ENDED_AT_MOST)),
        )

"""What the leader does during its term, side by side: hear runners, decide, say that it is there, tell its load.

Beacon and load are no decisions and go straight to Kafka; a broker that is down holds neither up for ever nor ends the
term. Decides nothing itself: `rounds` does.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import asyncpg
import structlog

from schemas.cloudevents import CloudEvent, encode
from schemas.events import RunnerHeartbeat, SchedulerBeacon, SchedulerLoad
from schemas.topics import RUNNERS, address_of
from services.backbone.consumer import Consumer, Received, Subscription
from services.backbone.crash_points import crash_point
from services.backbone.errors import PoisonError, is_transient
from services.backbone.health import Health
from services.backbone.outbox import sweep
from services.backbone.publisher import Outgoing, Publisher
from services.backbone.retry import delays
from services.backbone.watchdog import LOOK_EVERY_S, Seen, Watchdog
from services.scheduler import events, store
from services.scheduler.roster import why_impossible
from services.scheduler.rounds import Term, play_round
from services.scheduler.settings import SchedulerSettings

PART = "leader"
HEARING = "scheduler.runners"
SWEEP_INTERVAL_S = 600.0

log = structlog.get_logger()


class Leading:
    """One term of one leader."""

    def __init__(
        self, settings: SchedulerSettings, term: Term, pool: asyncpg.Pool, publisher: Publisher, health: Health
    ) -> None:
        self._settings = settings
        self._term = term
        self._pool = pool
        self._publisher = publisher
        self._health = health
        self._woken = asyncio.Event()
        self._load: SchedulerLoad | None = None
        self._rounds = 0
        self._retrying = False

    async def run(self) -> None:
        """Lead until cancelled.

        Raises:
            ExceptionGroup: what ended the term: `Superseded` if a later leader did, `Stuck` if no round is played.
        """
        hearing = Subscription(HEARING, (RUNNERS.name,), self.on_runners, from_end=True)
        consumer = Consumer(self._settings, hearing, self._publisher, self._health)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(consumer.run())
                group.create_task(self._say_that_it_is_there(consumer))
                group.create_task(self._persistently(self._decide, self._sleep_until_woken))
                group.create_task(self._tell_load())
                group.create_task(self._watch())
                group.create_task(self._persistently(self._sweep, lambda: asyncio.sleep(SWEEP_INTERVAL_S)))
        finally:
            self._health.ok(HEARING, "only the leader listens")

    def wake(self, *_: object) -> None:
        """Let a round begin at once."""
        self._woken.set()

    async def on_runners(self, batch: Sequence[Received]) -> None:
        """Hear runners, and the leader's own beacon."""
        at, roster = time.monotonic(), self._term.roster
        for received in batch:
            event = received.event
            if not isinstance(event, CloudEvent):
                continue
            match event.data:
                case SchedulerBeacon() as beacon:
                    roster.on_beacon(beacon, at)
                case RunnerHeartbeat() as heartbeat:
                    if reason := why_impossible(heartbeat):
                        raise PoisonError(reason)
                    if roster.on_heartbeat(heartbeat, at):
                        log.info("runner_there", runner_id=heartbeat.runner_id)
                        self.wake()

    async def _decide(self) -> None:
        async with self._pool.acquire() as connection:
            self._load = await play_round(connection, self._term, time.monotonic())
        self._rounds += 1
        self._health.ok(PART, f"leads in epoch {self._term.epoch}")

    async def _sleep_until_woken(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.tick_s):
                await self._woken.wait()
        self._woken.clear()

    async def _sweep(self) -> None:
        """Forget what will not be republished any more, a bounded batch at a time."""
        while True:
            async with self._pool.acquire() as connection, connection.transaction():
                run_ids = await store.runs_to_sweep(connection)
                await sweep(connection, run_ids)
                await store.mark_swept(connection, run_ids)
            if len(run_ids) < store.SWEPT_RUNS:
                return

    async def _persistently(self, action: Callable[[], Awaitable[None]], pause: Callable[[], Awaitable[None]]) -> None:
        """Repeat an action, each time after a pause, or after a backoff where it failed for now."""
        pauses = delays()
        while True:
            try:
                await action()
            except Exception as error:
                if not is_transient(error):
                    raise
                self._retrying = True
                self._health.failing(PART, repr(error))
                log.warning("leader_retries", error=repr(error))
                await asyncio.sleep(next(pauses))
            else:
                self._retrying = False
                pauses = delays()
                await pause()

    async def _watch(self) -> None:
        """Notice that no round is played any more, though none fails."""
        watchdog = Watchdog(PART, self._health)
        while True:
            watchdog.look(Seen(self._rounds, waiting=True, excused=self._retrying), "it leads and plays no round")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _say_that_it_is_there(self, consumer: Consumer) -> None:
        """Publish the beacon each interval, once it would be heard."""
        await consumer.wait_until_caught_up()
        beat = 0
        while True:
            beat += 1
            await self._announce(events.beacon(self._term.epoch, beat, datetime.now(UTC)))
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _tell_load(self) -> None:
        """Publish the load when it has changed, at most once a tick, and every now and then anyway."""
        told: SchedulerLoad | None = None
        told_at, sequence = 0.0, 0
        while True:
            load, at = self._load, time.monotonic()
            if load is not None and (load != told or at - told_at >= self._settings.load_interval_s):
                sequence += 1
                if await self._announce(events.load_published(load, sequence, datetime.now(UTC))):
                    told, told_at = load, at
            await asyncio.sleep(self._settings.tick_s)

    async def _announce(self, event: CloudEvent) -> bool:
        topic, key = address_of(event.data)
        try:
            await self._publisher.publish([Outgoing(topic.name, key, *encode(event))])
            crash_point("after_announcement_publish")
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("announcement_failed", type=event.data.type, error=repr(error))
            return False
        return True

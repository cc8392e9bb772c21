"""The runner's wiring: settings → journal → engine, cache, supplies → attempts → dispatch, heartbeat, outbox, health.

Reads: `runyard.dispatch` (its partition) → RunQueued: `Handlers.on_run_queued`, RunRevoked: `Handlers.on_run_revoked`.
Writes: `runyard.runs`, `runyard.output`, `runyard.runners`. A stop leaves the containers running: the next start finds
them again.
"""

import asyncio
import os
from dataclasses import dataclass
from functools import partial

import structlog

from schemas.topics import DISPATCH, TOPICS
from services.backbone.broker import cluster_id, cluster_with, watch
from services.backbone.consumer import Consumer, Subscription
from services.backbone.crash_points import crash_point
from services.backbone.errors import BrokerReplaced
from services.backbone.health import Health, serve_health
from services.backbone.kafka import client_options
from services.backbone.objects import Objects
from services.backbone.publisher import Publisher
from services.backbone.sealing import parse_keys
from services.backbone.service import run_parts, run_service
from services.backbone.telemetry import configure_logs
from services.backbone.watchdog import watch_loop
from services.runner.artifact import Limits
from services.runner.cache import Cache
from services.runner.checkpoint_store import CheckpointStore
from services.runner.delivery import Delivery
from services.runner.dispatch import Dispatch, partition_of
from services.runner.engine import PART as ENGINE
from services.runner.engine import Engine
from services.runner.folder import Owner
from services.runner.handlers import Handlers
from services.runner.heartbeat import Heart, Offer
from services.runner.journal import Journal
from services.runner.roster import Roster
from services.runner.sandbox_runtimes import runtimes
from services.runner.setting_up import RunLimits, Surroundings
from services.runner.settings import RunnerSettings, capacity
from services.runner.supplies import Supplies
from services.runner.sweep import Sweep

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Runner:
    """All parts of one runner, wired."""

    settings: RunnerSettings
    health: Health
    journal: Journal
    engine: Engine
    publisher: Publisher
    heart: Heart
    delivery: Delivery
    roster: Roster

    async def run(self) -> None:
        """Run every part until a signal comes."""
        log.info("runner_starting", runner_id=self.journal.runner_id, root=os.geteuid() == 0)
        try:
            await run_parts(
                serve_health(self.health, self.settings.health_host, self.settings.health_port),
                self._listen(),
                self._attend(),
                self.engine.watch(),
                watch_loop(self.health),
            )
        finally:
            await self.publisher.close()
            self.engine.close()
            self.journal.close()

    async def _attend(self) -> None:
        """Take up the journal's attempts, and sweep away what is nobody's."""
        sweep = Sweep(self.journal, self.engine, self.roster.around.runs_folder)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.roster.run())
            group.create_task(sweep.run())

    async def _listen(self) -> None:
        """Tell what happens, and take part in what is to be done.

        Topics are made by the services that own a database, who know whether this is still their cluster.

        Raises:
            BrokerReplaced: it is another one; the next start tells it all that the journal has, output, too.
        """
        cluster = await cluster_with(self.settings, TOPICS)
        if not self.journal.adopt_cluster(cluster):
            raise BrokerReplaced(f"cluster {cluster} has not heard of this runner's attempts")
        crash_point("after_cluster_adopted")
        self.roster.around.may_tell.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.delivery.run())
            group.create_task(watch(self.settings, cluster, self.settings.broker_check_s))
            group.create_task(self._take_part())

    async def _take_part(self) -> None:
        """Announce the runner and read what is meant for it, once the engine has said which runtimes there are."""
        runner_id = self.journal.runner_id
        offered = await self.engine.ask(lambda _: runtimes())
        log.info("runtimes_offered", runtimes=offered)
        offer = Offer(capacity(self.settings), offered, partition_of(runner_id))
        handlers = Handlers(self.journal, self.roster, self.roster.around.changed)
        subscription = Subscription(
            "dispatch", (DISPATCH.name,), handlers.handle, f"runner-{runner_id}", (offer.dispatch_partition,)
        )
        consumer = partial(Consumer, self.settings, subscription, self.publisher, self.health)
        dispatch = Dispatch(consumer, self.heart, self.roster.around.may_start)
        async with asyncio.TaskGroup() as group:
            group.create_task(dispatch.run())
            group.create_task(self.heart.run(offer))


def wire(settings: RunnerSettings) -> Runner:
    """Make the parts of a runner and connect them."""
    health = Health(settings.stuck_after_s)
    health.expect(ENGINE, "dispatch", "heartbeat")
    settings.work_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    journal = Journal(settings.work_dir / "journal.db")
    publisher = Publisher(client_options(settings))
    heart = Heart(journal, publisher, health, settings.heartbeat_s)
    delivery = Delivery(journal, publisher, health)
    engine = Engine(health)

    def changed() -> None:
        heart.wake()
        delivery.wake()

    supplies = _supplies(settings)
    around = Surroundings(
        runner_id=journal.runner_id,
        runs_folder=settings.work_dir / "runs",
        limits=_limits(settings),
        journal=journal,
        engine=engine,
        supplies=supplies,
        checkpoints=_checkpoints(settings, supplies),
        publisher=publisher,
        changed=changed,
        may_start=asyncio.Event(),
        may_tell=asyncio.Event(),
        same_cluster=partial(_check_cluster, settings, journal),
    )
    return Runner(settings, health, journal, engine, publisher, heart, delivery, Roster(around))


async def _check_cluster(settings: RunnerSettings, journal: Journal) -> None:
    if (found := await cluster_id(settings)) != journal.cluster_id():
        raise BrokerReplaced(f"cluster {found} answers now")


def _supplies(settings: RunnerSettings) -> Supplies:
    objects = Objects(settings.objects_url)
    cache = Cache(settings.work_dir / "cache", objects, settings.cache_max_gb << 30)
    cache.clear_unfinished()
    keys = parse_keys(settings.sealing_key.get_secret_value(), settings.sealing_keys_retired.get_secret_value())
    return Supplies(objects, cache, {key.key_id: key for key in keys})


def _checkpoints(settings: RunnerSettings, supplies: Supplies) -> CheckpointStore:
    limits = Limits(settings.max_checkpoint_bytes)
    return CheckpointStore(supplies.objects, supplies.keys, settings.work_dir / "checkpoints", limits)


def _limits(settings: RunnerSettings) -> RunLimits:
    root = os.geteuid() == 0
    uid, gid = (settings.run_uid_base, settings.run_uid_base) if root else (os.geteuid(), os.getegid())
    return RunLimits(
        grace_s=settings.grace_s,
        checkpoint_every_s=settings.checkpoint_every_s,
        max_artifact_bytes=settings.max_artifact_bytes,
        max_output_bytes=settings.max_output_bytes,
        max_line_bytes=settings.max_line_bytes,
        tmp_bytes=settings.tmp_mb << 20,
        pids_limit=settings.pids_limit,
        oci_runtime=settings.oci_runtime,
        first_owner=Owner(uid, gid),
        owner_per_slot=root,
    )


async def run(settings: RunnerSettings) -> None:
    """Run a runner."""
    await wire(settings).run()


def main() -> None:
    """Start the service with settings from the environment."""
    settings = RunnerSettings()
    configure_logs("runner", settings.log_level)
    run_service(run(settings))


if __name__ == "__main__":
    main()

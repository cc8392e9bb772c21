"""The runner's wiring: settings → journal → engine, cache, supplies → attempts → dispatch, heartbeat, outbox, health.

Reads: `runyard.dispatch` (its partition) → RunQueued: `Handlers.on_run_queued`, RunRevoked: `Handlers.on_run_revoked`.
Writes: `runyard.runs`, `runyard.output`, `runyard.runners`. A stop leaves the containers running: the next start finds
them again.
"""

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from services.runner import quota, seccomp
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
from services.runner.package_cache import PackageCache
from services.runner.package_index import ask_pip, package_index
from services.runner.package_outcome import InstallLimits
from services.runner.packages import Packages
from services.runner.quota import Quota
from services.runner.roster import Roster
from services.runner.sandbox_runtimes import runtimes
from services.runner.setting_up import RunLimits, Surroundings, first_uid_of
from services.runner.settings import PackageSettings, RunnerSettings, capacity, install_runtime
from services.runner.slot import slots_folder, why_unusable
from services.runner.supplies import Supplies
from services.runner.sweep import Sweep

INSTALLS_FROM = 2048
"""Where, above the user ids of runs, those of installs begin."""

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
        self._say_what_is_missing()
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

    def _say_what_is_missing(self) -> None:
        """Say once what this host does not let the sandbox have, and what stands in its place."""
        limits = self.roster.around.limits
        if not limits.owner_per_seat:
            log.warning(
                "user_ids_shared", why="the runner is not root", instead="all runs have the runner's own user id"
            )
        if not limits.loop_quota:
            why = quota.obstacle() or "RUNYARD_LOOP_QUOTA is false"
            log.warning("output_quota_watched", why=why, instead="the output folder is measured every second")

    async def _attend(self) -> None:
        """Take up the journal's attempts, and sweep away what is nobody's."""
        around = self.roster.around
        sweep = Sweep(self.journal, self.engine, around.runs_folder, around.slots_folder, around.packages)
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

    supplies, limits = _supplies(settings), _limits(settings, journal.runner_id)
    around = Surroundings(
        runner_id=journal.runner_id,
        runs_folder=settings.work_dir / "runs",
        slots_folder=_slots(settings),
        limits=limits,
        journal=journal,
        engine=engine,
        supplies=supplies,
        packages=_packages(settings, limits, engine, supplies.cache, journal.runner_id),
        checkpoints=_checkpoints(settings, supplies),
        publisher=publisher,
        changed=changed,
        may_start=asyncio.Event(),
        may_tell=asyncio.Event(),
        same_cluster=partial(_check_cluster, settings, journal),
    )
    return Runner(settings, health, journal, engine, publisher, heart, delivery, Roster(around))


def _slots(settings: RunnerSettings) -> Path | None:
    slots = slots_folder(settings.slots_dir, settings.work_dir)
    problem = why_unusable(slots)
    if problem is None:
        return slots
    log.warning("secrets_lie_on_disk", slots=str(slots), reason=problem)
    return None


async def _check_cluster(settings: RunnerSettings, journal: Journal) -> None:
    if (found := await cluster_id(settings)) != journal.cluster_id():
        raise BrokerReplaced(f"cluster {found} answers now")


def _supplies(settings: RunnerSettings) -> Supplies:
    objects = Objects(settings.objects_url)
    cache = Cache(settings.work_dir / "cache", objects, settings.cache_max_gb << 30)
    cache.clear_unfinished()
    keys = parse_keys(settings.sealing_key.get_secret_value(), settings.sealing_keys_retired.get_secret_value())
    return Supplies(objects, cache, {key.key_id: key for key in keys})


def _packages(settings: RunnerSettings, limits: RunLimits, engine: Engine, objects: Cache, runner_id: str) -> Packages:
    installs, folder = PackageSettings(), settings.work_dir / "packages"
    cache = PackageCache(folder / "ready", settings.work_dir / "runs", installs.cache_max_gb << 30)
    cache.clear_unfinished()
    url = installs.index_url.get_secret_value() if installs.index_url else None
    find_index = partial(package_index, url, installs.hosts, installs.ca_file)
    find_index("")  # what is set wrongly is known at the start
    offset = INSTALLS_FROM if limits.owner_per_seat else 0
    return Packages(
        runner_id=runner_id,
        making=folder / "making",
        cache=cache,
        objects=objects,
        engine=engine,
        limits=InstallLimits(
            timeout_s=installs.timeout_s,
            max_bytes=installs.max_gb << 30,
            memory_bytes=installs.memory_gb << 30,
            builds_allowed=installs.builds_allowed,
            oci_runtime=install_runtime(settings.oci_runtime, installs),
            seccomp_profile=limits.seccomp_profile,
        ),
        first_owner=Owner(limits.first_owner.uid + offset, limits.first_owner.gid + offset),
        find_index=lambda: find_index(ask_pip()),
    )


def _checkpoints(settings: RunnerSettings, supplies: Supplies) -> CheckpointStore:
    limits = Limits(settings.max_checkpoint_bytes)
    return CheckpointStore(supplies.objects, supplies.keys, settings.work_dir / "checkpoints", limits)


def _limits(settings: RunnerSettings, runner_id: str) -> RunLimits:
    root = os.geteuid() == 0
    first = Owner(os.geteuid(), os.getegid())
    if root:
        uid = settings.run_uid_base or first_uid_of(runner_id)
        first = Owner(uid, uid)
    return RunLimits(
        checkpoint_every_s=settings.checkpoint_every_s,
        max_artifact_bytes=settings.max_artifact_bytes,
        max_output_bytes=settings.max_output_bytes,
        max_line_bytes=settings.max_line_bytes,
        max_lines_per_s=settings.max_lines_per_s,
        max_bytes_per_s=settings.max_bytes_per_s,
        tmp_bytes=settings.tmp_mb << 20,
        pids_limit=settings.pids_limit,
        oci_runtime=settings.oci_runtime,
        seccomp_profile=seccomp.profile(settings.seccomp_profile or seccomp.OWN),
        quota=Quota(settings.max_out_bytes, settings.max_out_files),
        loop_quota=settings.loop_quota and quota.obstacle() is None,
        first_owner=first,
        owner_per_seat=root,
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

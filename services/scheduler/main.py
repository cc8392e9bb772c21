"""The scheduler's wiring: which topic goes to which handler, and what runs side by side.

runyard.runs      → handlers.Folds.on_run_facts      every instance, as group `scheduler`
runyard.runners   → leading.Leading.on_runners       the leader, without a group
"""

import asyncio

from schemas.topics import RUNS, TOPICS
from services.backbone.broker import Broker
from services.backbone.consumer import Consumer, Subscription
from services.backbone.health import Health, serve_health
from services.backbone.kafka import client_options, ensure_topics
from services.backbone.postgres import open_pool, watch_postgres
from services.backbone.publisher import Publisher
from services.backbone.relay import Relay
from services.backbone.service import run_parts, run_service
from services.backbone.telemetry import configure_logs
from services.backbone.watchdog import watch_loop
from services.scheduler import store
from services.scheduler.handlers import Folds
from services.scheduler.leader import Leader
from services.scheduler.settings import SchedulerSettings

FOLDS = "scheduler.runs"


async def serve(settings: SchedulerSettings) -> None:
    """Run the scheduler until a signal comes."""
    configure_logs("scheduler", settings.log_level)
    health = Health(settings.stuck_after_s)
    health.expect("leader", FOLDS, "relay", "postgres")
    await run_parts(
        serve_health(health, settings.health_host, settings.health_port),
        schedule(settings, health),
        watch_loop(health),
    )


async def schedule(settings: SchedulerSettings, health: Health) -> None:
    """Fold, relay and, if nobody else does, lead, until cancelled."""
    url = settings.postgres_url.get_secret_value()
    pool = await open_pool(url, store.SCHEMA, settings.postgres_pool_size)
    publisher = Publisher(client_options(settings))
    broker = Broker(settings, url, store.SCHEMA, health)
    try:
        await broker.join()
        await ensure_topics(settings, TOPICS)
        facts = Subscription(FOLDS, (RUNS.name,), Folds(pool).on_run_facts, settings.consumer_group)
        async with asyncio.TaskGroup() as group:
            group.create_task(Consumer(settings, facts, publisher, health).run())
            group.create_task(Relay(url, store.SCHEMA, publisher, RUNS.name, health).run())
            group.create_task(Leader(settings, pool, publisher, health).run())
            group.create_task(broker.hold(settings.broker_check_s))
            group.create_task(watch_postgres(pool, health))
    finally:
        await publisher.close()  # before another cluster may be told anything
        await broker.leave()
        pool.terminate()


def main() -> None:
    """Start the scheduler with settings from the environment."""
    run_service(serve(SchedulerSettings()))


if __name__ == "__main__":
    main()

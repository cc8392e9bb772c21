"""The auditor's wiring: which topic goes to which handler, and what runs side by side."""

import asyncio

from schemas.topics import OUTPUT, RUNS, TOPICS
from services.auditor import store
from services.auditor.handlers import Handlers
from services.auditor.settings import AuditorSettings
from services.backbone.broker import Broker
from services.backbone.consumer import Consumer, Subscription
from services.backbone.health import Health, serve_health
from services.backbone.kafka import client_options, ensure_topics
from services.backbone.postgres import open_pool, watch_postgres
from services.backbone.publisher import Publisher
from services.backbone.service import run_parts, run_service
from services.backbone.telemetry import configure_logs
from services.backbone.watchdog import watch_loop

GROUP = "auditor"
SCHEMA = "ledger"


def subscriptions(handlers: Handlers, group: str) -> tuple[Subscription, ...]:
    """Say what the auditor reads, and what handles it."""
    return (
        Subscription("auditor.runs", (RUNS.name,), handlers.on_runs, group),
        Subscription("auditor.output", (OUTPUT.name,), handlers.on_output, group),
    )


async def serve(settings: AuditorSettings) -> None:
    """Run the auditor until a signal comes."""
    configure_logs("auditor", settings.log_level)
    health = Health(settings.stuck_after_s)
    health.expect("auditor.runs", "auditor.output", "postgres")
    await run_parts(
        serve_health(health, settings.health_host, settings.health_port),
        audit(settings, health, GROUP),
        watch_loop(health),
    )


async def audit(settings: AuditorSettings, health: Health, group: str) -> None:
    """Consume as a member of a consumer group, until cancelled or until another broker answers."""
    url = settings.postgres_url.get_secret_value()
    pool = await open_pool(url, SCHEMA, settings.postgres_pool_size)
    publisher = Publisher(client_options(settings))
    broker = Broker(settings, url, SCHEMA, health)
    try:
        cluster = await broker.join()
        await ensure_topics(settings, TOPICS)
        async with pool.acquire() as connection:
            handlers = Handlers(pool, await store.epoch_of(connection, cluster))
        consumers = [Consumer(settings, wanted, publisher, health) for wanted in subscriptions(handlers, group)]
        async with asyncio.TaskGroup() as tasks:
            for consumer in consumers:
                tasks.create_task(consumer.run())
            tasks.create_task(broker.hold(settings.broker_check_s))
            tasks.create_task(watch_postgres(pool, health))
    finally:
        await publisher.close()  # before another cluster may be told anything
        await broker.leave()
        await pool.close()


def main() -> None:
    """Start the auditor with settings from the environment."""
    run_service(serve(AuditorSettings()))


if __name__ == "__main__":
    main()

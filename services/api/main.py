"""The api's wiring: settings → pool → objects → handlers → HTTP, and which topic goes to which handler.

Reads: `runyard.runs` (group `api`) → `Handlers.on_run_facts`; `runyard.load` (every instance) → `LoadView.on_load`.
Writes: `runyard.runs`, by its outbox.
"""

import asyncio

import asyncpg
import httpx
import uvicorn

from schemas.topics import LOAD, RUNS, TOPICS
from services.api.application import make_application
from services.api.connections import connection_type
from services.api.context import Context, Limits
from services.api.handlers import Handlers
from services.api.load import LoadView
from services.api.settings import ApiSettings
from services.api.sweep import Sweeper
from services.api.tokens import Keys, PublishedKeys, SharedSecret, TokenVerifier
from services.api.variables import SealedVariables
from services.backbone.broker import Broker
from services.backbone.consumer import Consumer, Subscription
from services.backbone.health import Health
from services.backbone.kafka import client_options, ensure_topics
from services.backbone.objects import Objects
from services.backbone.postgres import open_pool, watch_postgres
from services.backbone.publisher import Publisher
from services.backbone.relay import Relay
from services.backbone.sealing import parse_keys
from services.backbone.service import run_parts, run_service
from services.backbone.telemetry import configure_logs
from services.backbone.watchdog import watch_loop

SCHEMA = "registry"
GROUP = "api"
DRAIN_S = 5


async def serve(settings: ApiSettings) -> None:
    """Run the api until a signal comes."""
    configure_logs("api", settings.log_level)
    health = Health(settings.stuck_after_s)
    health.expect("api.runs", "api.load", "relay", "postgres")
    url = settings.postgres_url.get_secret_value()
    pool = await open_pool(url, SCHEMA, settings.postgres_pool_size)
    publisher = Publisher(client_options(settings))
    try:
        async with httpx.AsyncClient() as client:
            context = make_context(settings, pool, health, client)
            await run_parts(
                _serve_http(settings, context),
                _follow_topics(settings, context, publisher),
                Sweeper(pool, context.objects, context.variables).run(settings.sweep_every_s),
                watch_postgres(pool, health),
                watch_loop(health),
            )
    finally:
        await publisher.close()
        pool.terminate()


def make_context(settings: ApiSettings, pool: asyncpg.Pool, health: Health, client: httpx.AsyncClient) -> Context:
    """Make what request handlers work with."""
    objects = Objects(settings.objects_url)
    keys = parse_keys(settings.sealing_key.get_secret_value(), settings.sealing_keys_retired.get_secret_value())
    limits = Limits(
        json_bytes=settings.max_json_bytes,
        asset_bytes=settings.max_asset_bytes,
        dataset_bytes=settings.max_dataset_bytes,
        patience_s=settings.client_patience_s,
        body_bytes_per_s=settings.slowest_body_bytes_per_s,
        follow_poll_s=settings.follow_poll_s,
    )
    tokens = TokenVerifier(_keys(settings, client), settings.jwt_issuer, settings.jwt_audience, settings.jwt_leeway_s)
    return Context(pool, objects, SealedVariables(objects, keys), tokens, LoadView(), limits, health)


def _keys(settings: ApiSettings, client: httpx.AsyncClient) -> Keys:
    if settings.jwt_secret is not None:
        return SharedSecret(settings.jwt_secret.get_secret_value())
    return PublishedKeys(str(settings.jwt_jwks_url), client)


def make_server(settings: ApiSettings, context: Context) -> uvicorn.Server:
    """Make the HTTP server, not started yet."""
    config = uvicorn.Config(
        make_application(context, context.health),
        host=settings.api_host,
        port=settings.api_port,
        http=connection_type(settings.client_patience_s),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    return uvicorn.Server(config)


async def _serve_http(settings: ApiSettings, context: Context) -> None:
    server = make_server(settings, context)
    try:
        await server._serve()
    except asyncio.CancelledError:
        server.should_exit = True
        await server.shutdown()
        raise


async def _follow_topics(settings: ApiSettings, context: Context, publisher: Publisher) -> None:
    """Read and relay; requests are accepted without it, since what they begin waits in the outbox."""
    url, health = settings.postgres_url.get_secret_value(), context.health
    broker = Broker(settings, url, SCHEMA, health)
    handlers = Handlers(context.pool, context.variables, context.objects)
    facts = Subscription("api.runs", (RUNS.name,), handlers.on_run_facts, GROUP)
    load = Subscription("api.load", (LOAD.name,), context.load.on_load)
    try:
        await broker.join()
        await ensure_topics(settings, TOPICS)
        async with asyncio.TaskGroup() as group:
            group.create_task(Relay(url, SCHEMA, publisher, RUNS.name, health).run())
            group.create_task(Consumer(settings, facts, publisher, health).run())
            group.create_task(Consumer(settings, load, publisher, health).run())
            group.create_task(broker.hold(settings.broker_check_s))
    finally:
        await publisher.close()  # before another cluster may be told anything
        await broker.leave()


def main() -> None:
    """Start the api with settings from the environment."""
    run_service(serve(ApiSettings()))


if __name__ == "__main__":
    main()

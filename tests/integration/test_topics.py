"""Protects the topics: made as the contract has them, and no service works where somebody else makes or made them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from schemas.topics import DISPATCH, RUNS, TOPICS
from services.backbone.broker import PART, Broker
from services.backbone.errors import TopicsUnfit
from services.backbone.health import Health
from services.backbone.kafka import client_options, ensure_topics, partitions_of, why_it_makes_topics
from services.backbone.settings import ServiceSettings
from services.cli.embedded_kafka import EmbeddedKafka
from services.cli.errors import CliError
from services.cli.republish import republish_open_runs
from tests.integration.conftest import Database


class Obliging(EmbeddedKafka):
    """A broker as many are set up: it makes every topic that is asked for."""

    def _properties(self, controller_port: int) -> str:
        return super()._properties(controller_port) + "auto.create.topics.enable=true\n"


@pytest_asyncio.fixture(scope="module")
async def obliging(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceSettings]:
    server = Obliging(Path(tmp_path_factory.mktemp("obliging")))
    await server.start()
    yield ServiceSettings(kafka_bootstrap_servers=server.bootstrap_servers)
    await server.stop()


async def ask_for(topic: str, settings: ServiceSettings) -> None:
    """Send to a topic, as any producer does that does not know that it is not there."""
    producer = AIOKafkaProducer(**client_options(settings))
    await producer.start()
    await producer.send_and_wait(topic, b"{}")
    await producer.stop()


async def why_it_waits(settings: ServiceSettings, database: Database) -> str:
    """Let a service try to join, and tell what its health says once it has asked."""
    health = Health()
    broker = Broker(settings, database.scheduler_url, "scheduling", health)
    joining = asyncio.create_task(broker.join())
    try:
        async with asyncio.timeout(20):
            while PART not in health.parts or "not answered yet" in str(health.parts[PART].detail):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert not joining.done()
        return str(health.parts[PART].detail)
    finally:
        joining.cancel()
        await asyncio.wait([joining])


async def test_topics_are_made_as_the_contract_has_them(kafka_settings: ServiceSettings) -> None:
    admin = AIOKafkaAdminClient(**client_options(kafka_settings))
    await admin.start()
    found = await partitions_of(admin)
    asked = ConfigResource(ConfigResourceType.TOPIC, DISPATCH.name, {"segment.ms": "", "retention.ms": ""})
    [answer] = await admin.describe_configs([asked])
    await admin.close()
    assert {topic.name: found[topic.name] for topic in TOPICS} == {topic.name: topic.partitions for topic in TOPICS}
    assert {name: value for name, value, *_ in answer.resources[0][4]} == {
        "segment.ms": str(12 * 3600 * 1000),
        "retention.ms": str(7 * 24 * 3600 * 1000),
    }
    assert await why_it_makes_topics(kafka_settings) is None


async def test_no_service_works_with_a_broker_that_makes_topics_by_itself(
    obliging: ServiceSettings, database: Database
) -> None:
    assert "auto.create.topics.enable is true at broker 1: set it to false" in await why_it_waits(obliging, database)


async def test_no_service_works_with_topics_that_a_broker_has_made_by_itself(
    obliging: ServiceSettings, database: Database
) -> None:
    await ask_for(RUNS.name, obliging)
    assert "runyard.runs has 1 partitions and not 6" in await why_it_waits(obliging, database)
    with pytest.raises(TopicsUnfit, match="runyard replay --open-runs"):
        await ensure_topics(obliging, TOPICS)


async def test_nothing_is_retold_to_topics_that_a_broker_has_made_by_itself(
    obliging: ServiceSettings, database: Database
) -> None:
    await ask_for(RUNS.name, obliging)
    with pytest.raises(CliError, match=r"runyard\.runs has 1 partitions and not 6"):
        await republish_open_runs(database.admin_url, obliging)

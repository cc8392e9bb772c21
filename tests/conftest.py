"""Real servers for the tests: one PostgreSQL and one Apache Kafka per session, started when first asked for."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.cli.embedded_kafka import EmbeddedKafka
from services.cli.embedded_postgres import EmbeddedPostgres


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the end-to-end tests try a system that is up already."""
    parser.addoption("--system-at", type=Path, help="the data folder of a system that is up; else the tests start one")


@pytest_asyncio.fixture(scope="session")
async def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedPostgres]:
    """A PostgreSQL server for the session."""
    server = EmbeddedPostgres(Path(tmp_path_factory.mktemp("postgres")), durable=False)
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="session")
async def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedKafka]:
    """An Apache Kafka broker for the session."""
    server = EmbeddedKafka(Path(tmp_path_factory.mktemp("kafka")))
    await server.start()
    yield server
    await server.stop()

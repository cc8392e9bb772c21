"""A fresh, migrated database for each test, cloned from a template, and topics on the real broker."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio

from schemas.topics import TOPICS
from services.backbone.kafka import ensure_topics
from services.backbone.settings import ServiceSettings
from services.cli.embedded_kafka import EmbeddedKafka
from services.cli.embedded_postgres import EmbeddedPostgres
from services.cli.migrate import API_ROLE, AUDITOR_ROLE, SCHEDULER_ROLE, migrate_all

PASSWORDS = {role: f"{role}-test" for role in (API_ROLE, SCHEDULER_ROLE, AUDITOR_ROLE)}
TEMPLATE = "runyard_template"


@dataclass(frozen=True, slots=True)
class Database:
    """One test's own database."""

    admin_url: str

    @property
    def api_url(self) -> str:
        return self._as(API_ROLE)

    @property
    def scheduler_url(self) -> str:
        return self._as(SCHEDULER_ROLE)

    @property
    def auditor_url(self) -> str:
        return self._as(AUDITOR_ROLE)

    def _as(self, role: str) -> str:
        parts = urlsplit(self.admin_url)
        return urlunsplit(parts._replace(netloc=f"{role}:{PASSWORDS[role]}@{parts.hostname}:{parts.port}"))


def _named(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


@pytest_asyncio.fixture(scope="session")
async def template(postgres_server: EmbeddedPostgres) -> str:
    """A migrated database that tests are cloned from; returns the server's administrator URL."""
    admin = await asyncpg.connect(postgres_server.admin_url)
    await admin.execute(f"CREATE DATABASE {TEMPLATE}")
    await admin.close()
    await migrate_all(_named(postgres_server.admin_url, TEMPLATE), PASSWORDS)
    return postgres_server.admin_url


@pytest_asyncio.fixture
async def database(template: str) -> AsyncIterator[Database]:
    """A database of this test's own."""
    async with a_database(template) as own:
        yield own


@pytest_asyncio.fixture(scope="module")
async def module_database(template: str) -> AsyncIterator[Database]:
    """A database that the tests of one module share."""
    async with a_database(template) as shared:
        yield shared


@asynccontextmanager
async def a_database(template: str) -> AsyncIterator[Database]:
    """Clone the template for the length of a block."""
    name = f"test_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(template)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        yield Database(_named(template, name))
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest_asyncio.fixture(scope="session")
async def kafka_settings(kafka_server: EmbeddedKafka) -> ServiceSettings:
    """Settings that reach the session's broker, with all topics of the contract there.

    Topics are shared by the tests of a session: use run ids, runner ids and group names of your own.
    """
    settings = ServiceSettings(kafka_bootstrap_servers=kafka_server.bootstrap_servers)
    await ensure_topics(settings, TOPICS)
    return settings


@pytest.fixture
def group() -> str:
    """A consumer group of this test's own."""
    return f"test-{secrets.token_hex(6)}"

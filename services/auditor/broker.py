"""Which broker the auditor reads from: offsets of one Kafka cluster say nothing about another's."""

import asyncio

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from services.backbone.errors import TransientError
from services.backbone.kafka import client_options
from services.backbone.retry import until_it_works
from services.backbone.settings import ServiceSettings

REQUEST_TIMEOUT_MS = 10_000


class BrokerReplaced(Exception):
    """Another cluster answers now: the process starts again, in a new broker epoch."""


async def cluster_id(settings: ServiceSettings) -> str:
    """Ask Kafka for its cluster's id; waits, with backoff, for a broker that is not there yet."""

    async def attempt() -> str:
        admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=REQUEST_TIMEOUT_MS)
        try:
            await admin.start()
            return str((await admin.describe_cluster())["cluster_id"])
        except KafkaError as error:
            raise TransientError(repr(error)) from error
        finally:
            await admin.close()

    return await until_it_works("kafka", attempt)


async def watch(settings: ServiceSettings, expected: str, every_s: float) -> None:
    """Ask from time to time whether it is still the same cluster.

    Raises:
        BrokerReplaced: it is another one.
    """
    while True:
        await asyncio.sleep(every_s)
        found = await cluster_id(settings)
        if found != expected:
            raise BrokerReplaced(f"cluster {found} answers in place of {expected}")

"""How a service reaches Kafka: connection options in one place, topics as the contract has them.

Owns the options of every client and the creation of topics; never consumes or produces by itself.
"""

import ssl
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from schemas.topics import Topic
from services.backbone.errors import TransientError
from services.backbone.retry import until_it_works
from services.backbone.settings import ServiceSettings

KEEP_FOR_EVER_MS = -1
MAX_RECORD_BYTES = 4 << 20
SEGMENT_MS = 10 * 60 * 1000
LONGEST_SEGMENT = timedelta(hours=12)
"""Kafka deletes whole segments, once the newest record is older than the retention: a record may stay for so much
longer. Kafka's own 7 days would let a RunQueued outlive what the runners remember (`JOURNAL_KEPT`, 8 days)."""


def client_options(settings: ServiceSettings) -> dict[str, Any]:
    """Collect what every aiokafka client needs to connect."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers.split(","),
        "security_protocol": settings.kafka_security_protocol,
    }
    if settings.kafka_security_protocol.endswith("SSL"):
        options["ssl_context"] = ssl.create_default_context(cafile=settings.kafka_ca_file)
    if settings.kafka_security_protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_username
        options["sasl_plain_password"] = password.get_secret_value() if password else None
    return options


async def ensure_topics(settings: ServiceSettings, topics: Sequence[Topic]) -> None:
    """Create the topics that are missing; waits, with backoff, for a broker that is not there yet."""

    async def attempt() -> None:
        admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=10_000)
        try:
            await admin.start()
            existing = await admin.list_topics()
            missing = [_new_topic(topic, settings.topic_replication) for topic in topics if topic.name not in existing]
            if missing:
                _check(await admin.create_topics(missing))
        except TopicAlreadyExistsError:
            return  # another service was faster
        except KafkaError as error:
            raise TransientError(repr(error)) from error
        finally:
            await admin.close()

    await until_it_works("kafka", attempt)


async def committed_notes(settings: ServiceSettings, group: str, topics: Sequence[str]) -> list[str]:
    """Read what a group noted down when it committed the offsets of these topics' partitions.

    Raises:
        KafkaError: Kafka does not answer.
    """
    admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=10_000)
    try:
        await admin.start()
        committed = await admin.list_consumer_group_offsets(group)
        return [place.metadata for partition, place in committed.items() if partition.topic in topics]
    finally:
        await admin.close()


def _new_topic(topic: Topic, replication: int) -> NewTopic:
    retention = KEEP_FOR_EVER_MS if topic.retention is None else int(topic.retention.total_seconds() * 1000)
    configs = {
        "cleanup.policy": "compact" if topic.compacted else "delete",
        "retention.ms": str(retention),
        "min.insync.replicas": str(max(1, replication - 1)),
        "max.message.bytes": str(MAX_RECORD_BYTES),
    }
    if topic.retention is not None:
        configs["segment.ms"] = str(int(LONGEST_SEGMENT.total_seconds() * 1000))
    if topic.compacted:  # only closed segments are compacted, and these topics are read from the start
        configs |= {"segment.ms": str(SEGMENT_MS), "min.cleanable.dirty.ratio": "0.1"}
    return NewTopic(topic.name, topic.partitions, replication, topic_configs=configs)


def _check(response: Any) -> None:
    for _, code, *_ in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise error

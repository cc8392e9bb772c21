"""How a service reaches Kafka: connection options in one place, topics as the contract has them.

Owns the options of every client, the creation of topics, and what a cluster must be like; never consumes or produces
by itself.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from schemas.topics import Topic
from services.backbone.errors import TopicsUnfit, TransientError
from services.backbone.retry import until_it_works
from services.backbone.settings import ServiceSettings

KEEP_FOR_EVER_MS = -1
MAX_RECORD_BYTES = 4 << 20
ADMIN_TIMEOUT_MS = 10_000
SEGMENT_MS = 10 * 60 * 1000
LONGEST_SEGMENT = timedelta(hours=12)
"""Kafka deletes whole segments, once the newest record is older than the retention: a record may stay for so much
longer. Kafka's own 7 days would let a RunQueued outlive what the runners remember (`JOURNAL_KEPT`, 8 days)."""


AUTO_CREATION = "auto.create.topics.enable"
FORBID_IT = "set it to false, or a Kafka that lost its data makes topics that are not ours before anybody notices"
MADE_BY_OTHERS = (
    f"somebody else made or changed them. Set {AUTO_CREATION} to false; then, if nothing in them is needed, delete"
    " them. If Kafka has lost its data, format it anew with another cluster id, then: runyard replay --open-runs"
)

log = structlog.get_logger()


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


async def heeding_cancellation(closing: Awaitable[None]) -> None:
    """Close a client of aiokafka, which swallows a cancellation that comes while it waits for its own tasks to end.

    Raises:
        asyncio.CancelledError: one came meanwhile: the caller would go on as if nobody had asked it to stop.
    """
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    asked_before = task.cancelling()
    await closing
    if task.cancelling() > asked_before:
        raise asyncio.CancelledError


@contextlib.asynccontextmanager
async def admin_client(
    options: Mapping[str, Any], timeout_ms: int = ADMIN_TIMEOUT_MS
) -> AsyncIterator[AIOKafkaAdminClient]:
    """Connect a client for asking about a cluster, and close it again; `timeout_ms` is for each answer.

    Raises:
        KafkaError: Kafka does not answer.
    """
    admin = AIOKafkaAdminClient(**options, request_timeout_ms=timeout_ms)
    try:
        await admin.start()
        yield admin
    finally:
        await heeding_cancellation(admin.close())


async def ensure_topics(settings: ServiceSettings, topics: Sequence[Topic]) -> None:
    """Create the topics that are missing; waits, with backoff, for a broker that is not there yet.

    Raises:
        TopicsUnfit: one that is there has other partitions.
    """

    async def attempt() -> None:
        try:
            async with admin_client(client_options(settings)) as admin:
                existing = await partitions_of(admin)
                if problem := why_unfit(existing, topics):
                    raise TopicsUnfit(problem)
                missing = [topic for topic in topics if topic.name not in existing]
                new = [_new_topic(topic, settings.topic_replication) for topic in missing]
                if new:
                    _check(await admin.create_topics(new))
        except TopicAlreadyExistsError:
            return  # another service was faster
        except KafkaError as error:
            raise TransientError(repr(error)) from error

    await until_it_works("kafka", attempt)


async def partitions_of(admin: AIOKafkaAdminClient) -> dict[str, int]:
    """List the topics that a cluster has, with the number of partitions of each; 0 while one is being made."""
    return {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}


def why_unfit(existing: Mapping[str, int], topics: Sequence[Topic]) -> str | None:
    """Say which topics are there with other partitions than ours; None when none is.

    >>> why_unfit({"runyard.load": 1}, [Topic("runyard.load", partitions=1, retention=None)])
    """
    wrong = [
        f"{topic.name} has {existing[topic.name]} partitions and not {topic.partitions}"
        for topic in topics
        if existing.get(topic.name, 0) not in (0, topic.partitions)
    ]
    return f"{', '.join(wrong)}: {MADE_BY_OTHERS}" if wrong else None


async def why_it_makes_topics(settings: ServiceSettings) -> str | None:
    """Say which brokers make topics by themselves; None when none does, or when the account may not ask for that.

    Raises:
        TransientError: Kafka does not answer.
    """
    try:
        async with admin_client(client_options(settings)) as admin:
            brokers = [str(broker["node_id"]) for broker in (await admin.describe_cluster())["brokers"]]
            asked = [ConfigResource(ConfigResourceType.BROKER, broker, {AUTO_CREATION: ""}) for broker in brokers]
            answers = await admin.describe_configs(asked)
    except KafkaError as error:
        raise TransientError(repr(error)) from error
    return why_auto_creating([resource for answer in answers for resource in answer.resources])


def why_auto_creating(resources: Sequence[tuple[Any, ...]]) -> str | None:
    """Judge what brokers told of their settings, each: error code, its text, kind, id, (name, value, …) of settings."""
    making = []
    for code, problem, _, broker, entries in resources:
        if code:
            log.warning("broker_settings_not_told", broker=broker, error=problem or for_code(code).__name__)
        elif any((name, value) == (AUTO_CREATION, "true") for name, value, *_ in entries):
            making.append(broker)
    return f"{AUTO_CREATION} is true at broker {', '.join(making)}: {FORBID_IT}" if making else None


async def committed_notes(settings: ServiceSettings, group: str, topics: Sequence[str]) -> list[str]:
    """Read what a group noted down when it committed the offsets of these topics' partitions.

    Raises:
        KafkaError: Kafka does not answer.
    """
    async with admin_client(client_options(settings)) as admin:
        committed = await admin.list_consumer_group_offsets(group)
        return [place.metadata for partition, place in committed.items() if partition.topic in topics]


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

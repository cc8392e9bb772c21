"""`runyard dead-letters` as an operator types it, on a real broker: what was refused is seen and can be tried again."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from schemas.cloudevents import CloudEvent, encode
from schemas.events import RunWaiting
from schemas.reason import Reason
from schemas.topics import Topic
from services.backbone.consumer import Consumer, Received, Subscription
from services.backbone.errors import PoisonError
from services.backbone.health import Health
from services.backbone.kafka import client_options, ensure_topics
from services.backbone.polling import CarefulConsumer
from services.backbone.publisher import Publisher
from services.backbone.settings import ServiceSettings
from services.cli.data_dir import DataDir
from services.cli.embedded_process import free_port

CHECKOUT = Path(__file__).parents[2]
RUNYARD = [sys.executable, "-c", "from services.cli.main import app; app()"]
DEADLINE_S = 30
HEADERS, VALUE = encode(
    CloudEvent(
        uuid4(),
        "/test",
        "run-a",
        datetime(2026, 3, 13, tzinfo=UTC),
        RunWaiting(run_id="run-a", attempt=1, reason=Reason.NO_RUNNER, message="not yet"),
    )
)


@pytest.fixture
async def topic(kafka_settings: ServiceSettings, group: str) -> str:
    await ensure_topics(kafka_settings, [Topic(group, partitions=3, retention=None)])
    return group


@pytest.fixture
async def producer(kafka_settings: ServiceSettings) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(**client_options(kafka_settings), max_request_size=8 << 20)
    await producer.start()
    yield producer
    await producer.stop()


@pytest.fixture
async def publisher(kafka_settings: ServiceSettings) -> AsyncIterator[Publisher]:
    publisher = Publisher(client_options(kafka_settings))
    yield publisher
    await publisher.close()


async def runyard(kafka: ServiceSettings, *words: object) -> subprocess.CompletedProcess[str]:
    """Run `runyard dead-letters …` against a broker."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    environment = {**kept, "RUNYARD_KAFKA_BOOTSTRAP_SERVERS": kafka.kafka_bootstrap_servers}
    return await asyncio.to_thread(_run, [*RUNYARD, "dead-letters", *map(str, words)], environment)


def _run(command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=90, check=False
    )


async def listed(kafka: ServiceSettings, topic: str, *words: object) -> list[dict[str, Any]]:
    told = await runyard(kafka, "list", "--topic", topic, "--json", *words)
    assert told.returncode == 0, told.stderr
    return [json.loads(line) for line in told.stdout.splitlines()]


class Handler:
    """Refuses everything until it is mended."""

    def __init__(self) -> None:
        self.mended = False
        self.seen: list[Received] = []

    async def on_batch(self, batch: Sequence[Received]) -> None:
        if not self.mended:
            raise PoisonError("not mended yet")
        self.seen += batch


@asynccontextmanager
async def consuming(kafka: ServiceSettings, topic: str, publisher: Publisher, handler: Handler) -> AsyncIterator[None]:
    consumer = Consumer(kafka, Subscription("mended", (topic,), handler.on_batch, topic), publisher, Health())
    task = asyncio.create_task(consumer.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            await consumer.wait_until_caught_up()
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def records(kafka: ServiceSettings, topic: str) -> list[ConsumerRecord]:
    """Read all that stands on a topic."""
    reader = CarefulConsumer(**client_options(kafka))
    await reader.start()
    partitions = [TopicPartition(topic, number) for number in range(3)]
    reader.assign(partitions)
    await reader.seek_to_beginning(*partitions)
    ends, found = await reader.end_offsets(partitions), list[ConsumerRecord]()
    while any(reader.positions()[partition] < end for partition, end in ends.items()):
        for batch in (await reader.getmany(timeout_ms=500)).values():
            found += batch
    await reader.stop()
    return found


async def test_a_refused_message_is_listed_shown_retried_and_handled(
    kafka_settings: ServiceSettings, topic: str, producer: AIOKafkaProducer, publisher: Publisher
) -> None:
    sent = await producer.send_and_wait(topic, VALUE, key=b"\xffkey", partition=2, headers=[*HEADERS, ("more", None)])
    handler = Handler()
    async with consuming(kafka_settings, topic, publisher, handler):
        [letter] = await listed(kafka_settings, topic)
        assert (letter["topic"], letter["partition"], letter["offset"]) == (topic, 2, sent.offset)
        assert (letter["consumer"], letter["reason"]) == ("mended", "PoisonError: not mended yet")
        assert (letter["whole"], letter["retried_at"]) == (True, None)
        shown = await runyard(kafka_settings, "show", letter["at"])
        assert "header    more: null" in shown.stdout
        assert "key       \\xffkey" in shown.stdout
        assert '"message":"not yet"' in shown.stdout

        handler.mended = True
        retried = await runyard(kafka_settings, "retry", letter["letter_id"][:13], letter["at"])
        assert (retried.returncode, retried.stderr) == (0, "")
        assert retried.stdout == f"{topic}/2/0 was published again and stands at {topic}/2/1\n"
        async with asyncio.timeout(DEADLINE_S):
            while not handler.seen:  # noqa: ASYNC110 - the handler is the test's own
                await asyncio.sleep(0.05)
    first, second = await records(kafka_settings, topic)
    assert (first.key, first.value, first.headers) == (second.key, second.value, second.headers)
    assert first.partition == second.partition
    [after] = await listed(kafka_settings, topic)
    assert after["new_offset"] == 1
    assert after["retried_at"] is not None

    again = await runyard(kafka_settings, "retry", letter["letter_id"])
    assert (again.returncode, "retried before" in again.stderr, "--again" in again.stderr) == (2, True, True)
    forced = await runyard(kafka_settings, "retry", letter["letter_id"], "--again")
    assert (forced.returncode, len(await records(kafka_settings, topic))) == (0, 3)


async def test_what_a_letter_had_to_leave_out_is_read_again_where_it_stood_or_not_retried(
    kafka_settings: ServiceSettings, topic: str, producer: AIOKafkaProducer, publisher: Publisher
) -> None:
    headers = [("more", b"h" * 1000)] * 200
    await producer.send_and_wait(topic, b"v" * 2_000_000, key=b"k" * 10_000, partition=0, headers=headers)
    await producer.send_and_wait(topic, b"w" * 600_000, partition=1)
    async with consuming(kafka_settings, topic, publisher, Handler()):
        letters = {letter["partition"]: letter["letter_id"] for letter in await listed(kafka_settings, topic)}
    assert set(letters) == {0, 1}
    retried = await runyard(kafka_settings, "retry", letters[0])
    assert retried.returncode == 0, retried.stderr
    first, second = [record for record in await records(kafka_settings, topic) if record.partition == 0]
    assert (first.key, first.value, first.headers) == (second.key, second.value, second.headers)

    await producer.send_and_wait(topic, b"another", partition=1)
    admin = AIOKafkaAdminClient(**client_options(kafka_settings))
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 1): RecordsToDelete(before_offset=1)})
    await admin.close()
    gone = await runyard(kafka_settings, "retry", letters[1])
    assert gone.returncode == 1
    assert f"holds only a part of its message, and {topic}/1/0 is gone" in gone.stderr
    assert len([record for record in await records(kafka_settings, topic) if record.partition == 1]) == 1


async def test_another_message_in_the_place_of_the_refused_one_is_not_taken_for_it(
    kafka_settings: ServiceSettings, topic: str, producer: AIOKafkaProducer, publisher: Publisher
) -> None:
    await producer.send_and_wait(topic, b"v" * 600_000, partition=0)
    async with consuming(kafka_settings, topic, publisher, Handler()):
        [letter] = await listed(kafka_settings, topic)
    admin = AIOKafkaAdminClient(**client_options(kafka_settings))
    await admin.start()
    await admin.delete_topics([topic])
    async with asyncio.timeout(DEADLINE_S):
        while topic in await admin.list_topics():  # noqa: ASYNC110 - the broker has no event for it
            await asyncio.sleep(0.1)
    await admin.close()
    await ensure_topics(kafka_settings, [Topic(topic, partitions=3, retention=None)])
    await producer.send_and_wait(topic, b"V" * 600_000, partition=0)
    refused = await runyard(kafka_settings, "retry", letter["letter_id"])
    assert refused.returncode == 1
    assert f"another message stands at {topic}/0/0 now" in refused.stderr


async def test_the_list_is_bounded_newest_first_and_filtered(
    kafka_settings: ServiceSettings, topic: str, producer: AIOKafkaProducer, publisher: Publisher
) -> None:
    for _ in range(5):
        await producer.send_and_wait(topic, b"{", partition=0)
    async with consuming(kafka_settings, topic, publisher, Handler()):
        assert [letter["offset"] for letter in await listed(kafka_settings, topic, "--limit", 3)] == [4, 3, 2]
    assert len(await listed(kafka_settings, topic, "--since", "1h", "--consumer", "mended")) == 5
    assert await listed(kafka_settings, topic, "--consumer", "nobody") == []
    assert await listed(kafka_settings, topic, "--since", "2099-01-01T00:00:00Z") == []
    table = await runyard(kafka_settings, "list", "--topic", topic, "--limit", 2)
    header, *rows = table.stdout.splitlines()
    assert header.split() == ["letter", "at", "set", "aside", "by", "message", "retried", "reason"]
    assert [f"{topic}/0/{offset}" in row for offset, row in zip((4, 3), rows, strict=True)] == [True, True]
    assert table.stderr == "3 older ones are not shown: --limit, --since\n"


async def test_a_data_folder_tells_where_its_kafka_is(
    kafka_settings: ServiceSettings, topic: str, tmp_path: Path
) -> None:
    words = ["list", "--topic", topic, "--data-dir", tmp_path]
    elsewhere = kafka_settings.model_copy(update={"kafka_bootstrap_servers": ""})
    no_folder = await runyard(elsewhere, *words)
    assert (no_folder.returncode, "is no data folder of Runyard" in no_folder.stderr) == (2, True)
    folder = DataDir.at(tmp_path)
    folder.ensure_secrets()
    never_up = await runyard(elsewhere, *words)
    assert (never_up.returncode, "runyard up" in never_up.stderr) == (2, True)
    folder.kafka.mkdir()
    (folder.kafka / "port").write_text(str(free_port()))
    down = await runyard(elsewhere, *words)
    assert (down.returncode, "does not answer" in down.stderr, "Traceback" in down.stderr) == (4, True, False)
    (folder.kafka / "port").write_text(kafka_settings.kafka_bootstrap_servers.rpartition(":")[2])
    up = await runyard(elsewhere, *words)
    assert (up.returncode, up.stdout) == (0, "no dead letters\n")


@pytest.mark.parametrize("command", ["list", "show", "retry"])
async def test_every_command_teaches_itself_with_an_example(kafka_settings: ServiceSettings, command: str) -> None:
    told = await runyard(kafka_settings, command, "--help")
    assert told.returncode == 0
    assert f"runyard dead-letters {command}" in told.stdout


async def test_a_letter_that_is_not_there_is_named(kafka_settings: ServiceSettings) -> None:
    refused = await runyard(kafka_settings, "show", "0/999999")
    assert (refused.returncode, "there is no one dead letter '0/999999'" in refused.stderr) == (2, True)

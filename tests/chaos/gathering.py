"""Collecting evidence from a system: its tables, its topics, its objects, its engine, its files and its processes.

`at_rest` waits until nothing moves any more, `gather` reads while the system runs, `gather_after` once it has stopped.
Reads as the databases' administrator and as any Kafka client; changes nothing and judges nothing.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import docker
import httpx
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from schemas.topics import TOPICS
from services.auditor.verify import verify
from tests.chaos.evidence import (
    Evidence,
    Outage,
    Place,
    RunRow,
    StoredEvent,
    Terms,
    TopicRecord,
    VersionRow,
)
from tests.chaos.harness import RUNNERS, Chaos
from tests.chaos.observing import RUNNER, Observer
from tests.chaos.submitting import Book

POLL_S = 0.5
OUTBOXES = ("registry", "scheduling")
SCHEMAS = ("registry", "scheduling", "ledger")
ENDED = ("succeeded", "failed", "cancelled")
OWNED = ("uploads", "variables", "checkpoints")
"""Kinds of objects that go away with what they belong to; contents may stay for others."""
STAGED = "*#*"
"""How a local store names what is being written."""
MAKING = ("runs/*", "cache/*.part", "packages/making/*", "packages/ready/*.part")
"""What a runner's work folder holds only while something goes on."""
LEFT_AT_REST_S = 100.0
"""Runners sweep once a minute what they could not remove at once."""


@dataclass(frozen=True, slots=True)
class Witnesses:
    """Who has seen what during a fault test."""

    book: Book
    observer: Observer
    outages: Sequence[Outage] = ()
    faults_stopped: float = 0.0
    canaries: Sequence[str] = ()


async def at_rest(chaos: Chaos, book: Book, timeout_s: float) -> bool:
    """Wait until every accepted run has ended, everything is sent and stored, and nothing is left; False if not so."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            if not await open_runs(chaos, book):
                break
        await asyncio.sleep(POLL_S)
    until = max(until, time.monotonic() + LEFT_AT_REST_S)
    while time.monotonic() < until:
        if not await open_runs(chaos, book) and await _settled(chaos):
            return True
        await asyncio.sleep(POLL_S)
    return False


async def open_runs(chaos: Chaos, book: Book) -> list[str]:
    """List the accepted runs that the ledger does not show as ended."""
    rows = await _rows(chaos, "SELECT run_id FROM ledger.runs WHERE status = ANY($1::text[])", list(ENDED))
    ended = {row["run_id"] for row in rows}
    return [str(told.run_id) for told in book.accepted() if told.run_id not in ended]


def let_a_day_pass(chaos: Chaos) -> None:
    """Make what killed uploads and refused submissions left look a day old, which is when the api sweeps it."""
    moment, objects = time.time() - 2 * 24 * 3600, chaos.data_dir.path / "objects"
    for path in [*objects.rglob(STAGED), *(path for kind in OWNED for path in (objects / kind).rglob("*"))]:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (moment, moment))


async def gather(chaos: Chaos, witnesses: Witnesses) -> Evidence:
    """Collect everything that a running system shows; containers of other systems on its engine are left out."""
    records = await _all_records(chaos)
    versions = [VersionRow(*row.values()) for row in await _rows(chaos, SELECT_VERSIONS)]
    stored = [_event(row) for row in await _rows(chaos, SELECT_EVENTS)]
    verified = await verify(chaos.postgres.admin_url)
    epochs = await _rows(chaos, "SELECT max(epoch) AS epoch FROM ledger.broker_epochs")
    options, runners = chaos.options, chaos.runner_ids()
    return Evidence(
        terms=Terms(options.lease_s, options.heartbeat_s),
        told=witnesses.book.lines,
        lifetimes=[each for each in witnesses.observer.lifetimes() if each.runner_id in runners.values()],
        outages=witnesses.outages,
        faults_stopped=witnesses.faults_stopped,
        runners=runners,
        stored=stored,
        tables=await _tables(chaos),
        audit=[tuple(row) for row in await _rows(chaos, "SELECT run_id, action FROM ledger.audit_entries")],
        chain_difference=verified.first_difference,
        versions=versions,
        records=[_topic_record(record) for record in records],
        broker_epoch=epochs[0]["epoch"] or 1,
        objects={row.sha256: _stored_digest(chaos, row.sha256) for row in versions},
        unsent=await _unsent(chaos),
        missing_output=[row["run_id"] for row in await _rows(chaos, SELECT_MISSING_OUTPUT)],
        leftovers=await _leftovers(chaos),
        canaries=witnesses.canaries,
        places=[
            *_topics_as_places(records),
            *await _tables_as_places(chaos),
            *await _metrics(chaos),
            *witnesses.observer.inspections(),
        ],
    )


def gather_after(evidence: Evidence, chaos: Chaos) -> Evidence:
    """Add what only a stopped system shows: its journals, its files, and whatever of it still runs."""
    unsent = dict(evidence.unsent)
    for name in RUNNERS:
        with contextlib.closing(sqlite3.connect(chaos.work_dir(name) / "journal.db")) as journal:
            [unsent[f"the journal of {name}"]] = journal.execute(
                "SELECT count(*) FROM outbox WHERE NOT published"
            ).fetchone()
    slots = [f"folder {place}" for place in map(chaos.slots, RUNNERS) if place.exists()]
    leftovers = [
        *evidence.leftovers,
        *slots,
        *_mounts(chaos),
        *(f"process {line}" for line in _processes(chaos.data_dir.path)),
    ]
    if chaos.engine is not None:
        leftovers += [f"process {pid} of the private engine" for pid in chaos.engine.processes()]
        leftovers += [f"mount {mount} of the private engine" for mount in chaos.engine.mounts()]
    files = [path for path in chaos.data_dir.path.rglob("*") if path.is_file() and not path.is_symlink()]
    return replace(evidence, unsent=unsent, leftovers=leftovers, files=files)


SELECT_EVENTS = """
SELECT run_id, version, event_id::text AS event_id, type, data::text AS data, stale, broker_epoch,
       extract(epoch FROM occurred_at)::float8 AS occurred, extract(epoch FROM stored_at)::float8 AS stored
FROM ledger.run_events ORDER BY run_id, version
"""
SELECT_VERSIONS = "SELECT model_id, version, run_id, sha256 FROM registry.versions"
SELECT_MISSING_OUTPUT = """
SELECT run_id FROM ledger.runs_v1 WHERE output_sequence IS NOT NULL AND stored_output_sequence < output_sequence
"""
SELECT_STATES = {
    "registry": "SELECT run_id, state::text AS state FROM registry.runs",
    "scheduling": "SELECT run_id, state::text AS state FROM scheduling.runs",
    "ledger": "SELECT run_id, run::text AS state FROM ledger.runs WHERE run IS NOT NULL",
}


async def _rows(chaos: Chaos, statement: str, *arguments: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(chaos.postgres.admin_url, timeout=10)
    try:
        return list(await connection.fetch(statement, *arguments))
    finally:
        await connection.close()


def _event(row: asyncpg.Record) -> StoredEvent:
    return StoredEvent(
        run_id=row["run_id"],
        version=row["version"],
        event_id=row["event_id"],
        type=row["type"],
        data=json.loads(row["data"]) or {},
        stale=row["stale"],
        occurred=row["occurred"],
        stored=row["stored"],
        epoch=row["broker_epoch"],
    )


async def _tables(chaos: Chaos) -> dict[str, dict[str, RunRow]]:
    tables = {}
    for name, statement in SELECT_STATES.items():
        states = {row["run_id"]: json.loads(row["state"]) for row in await _rows(chaos, statement)}
        tables[name] = {
            run_id: RunRow(state["status"], state["reason"], state["attempt"], state["version"])
            for run_id, state in states.items()
        }
    return tables


async def _unsent(chaos: Chaos) -> dict[str, int]:
    counts = {}
    for schema in OUTBOXES:
        [row] = await _rows(chaos, f"SELECT count(*) AS rows FROM {schema}.outbox WHERE sent_at IS NULL")  # noqa: S608
        counts[f"{schema}.outbox"] = row["rows"]
    return counts


async def _settled(chaos: Chaos) -> bool:
    """Whether everything is sent and stored, and nothing is left."""
    if any((await _unsent(chaos)).values()) or await _rows(chaos, SELECT_MISSING_OUTPUT) or await _leftovers(chaos):
        return False
    told = {_header(record, "ce_id") for record in await _all_records(chaos) if record.topic == "runyard.runs"} - {""}
    [row] = await _rows(
        chaos, "SELECT count(*) AS rows FROM ledger.run_events WHERE event_id::text = ANY($1::text[])", sorted(told)
    )
    return bool(row["rows"] == len(told))


async def _all_records(chaos: Chaos) -> list[ConsumerRecord]:
    """Read every topic from the beginning to where it ends now."""
    consumer = AIOKafkaConsumer(bootstrap_servers=chaos.kafka.bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [TopicPartition(topic.name, number) for topic in TOPICS for number in range(topic.partitions)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        found: list[ConsumerRecord] = []
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
        return found
    finally:
        await consumer.stop()


def _header(record: ConsumerRecord, name: str) -> str:
    return next((value.decode(errors="replace") for key, value in record.headers if key == name and value), "")


def _topic_record(record: ConsumerRecord) -> TopicRecord:
    event_id, kind, subject = (_header(record, name) for name in ("ce_id", "ce_type", "ce_subject"))
    return TopicRecord(record.topic, record.partition, record.offset, event_id, kind, subject)


def _topics_as_places(records: Sequence[ConsumerRecord]) -> list[Place]:
    contents: dict[str, list[bytes]] = defaultdict(list)
    for record in records:
        headers = [part for key, value in record.headers for part in (key.encode(), value or b"")]
        contents[record.topic] += [record.key or b"", record.value or b"", *headers]
    return [Place(f"topic {topic}", b"\n".join(parts)) for topic, parts in contents.items()]


async def _tables_as_places(chaos: Chaos) -> list[Place]:
    """Read every row of every table as text; bytea stands there in hexadecimal."""
    found = []
    tables = await _rows(
        chaos, "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = ANY($1::text[])", list(SCHEMAS)
    )
    for schema, table in tables:
        rows = await _rows(chaos, f'SELECT to_jsonb(t)::text AS line FROM "{schema}"."{table}" t')  # noqa: S608
        found.append(Place(f"table {schema}.{table}", "\n".join(row["line"] for row in rows).encode()))
    return found


async def _metrics(chaos: Chaos) -> list[Place]:
    found = []
    async with httpx.AsyncClient(timeout=10) as client:
        for name, url in chaos.urls.items():
            found.append(Place(f"metrics of {name}", (await client.get(f"{url}/metrics")).content))
    return found


def _stored_digest(chaos: Chaos, sha256: str) -> str | None:
    path = chaos.data_dir.path / "objects" / "objects" / sha256[:2] / sha256
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


async def _leftovers(chaos: Chaos) -> list[str]:
    """Find what no run needs any more, in words: containers, volumes, mounts, folders, objects of ended runs."""
    slots = [path for name in RUNNERS for path in chaos.slots(name).glob("*")]
    return [
        *await asyncio.to_thread(_containers, chaos),
        *_mounts(chaos),
        *(f"folder {path}" for path in slots),
        *left_in_work_folders(map(chaos.work_dir, RUNNERS)),
        *left_in_the_store(chaos.data_dir.path / "objects"),
    ]


def left_in_work_folders(work_folders: Iterable[Path]) -> list[str]:
    """Find what runners have not finished: folders of runs and of installs, halves of what their caches take in."""
    return [f"folder {path}" for work in work_folders for pattern in MAKING for path in sorted(work.glob(pattern))]


def left_in_the_store(objects: Path) -> list[str]:
    """Find what belongs to no open run: half-written files of any kind, and whatever goes with its owner."""
    owned = {path for kind in OWNED for path in (objects / kind).rglob("*") if path.is_file()}
    return [f"object {path}" for path in sorted(owned | set(objects.rglob(STAGED)))]


def _containers(chaos: Chaos) -> list[str]:
    host = chaos.docker_host
    client = docker.DockerClient(base_url=host, version="auto") if host else docker.from_env()
    with contextlib.closing(client):
        own = set(chaos.runner_ids().values())
        found = client.api.containers(all=True, filters={"label": RUNNER})  # those of runs, and those of installs
        left = [f"container {each['Names'][0]}" for each in found if each["Labels"].get(RUNNER) in own]
        volumes = client.api.volumes().get("Volumes") if chaos.engine is not None else None
        return left + [f"volume {volume['Name']}" for volume in volumes or ()]


def _mounts(chaos: Chaos) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {line.split()[4]}" for line in lines if line.split()[4].startswith(f"{chaos.data_dir.path}/")]


def _processes(folder: Path) -> list[str]:
    """Find the processes that name a folder in their command, work in it, or were given it by their environment."""
    found, needle = [], str(folder).encode()
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) in (os.getpid(), os.getppid()):
            continue
        with contextlib.suppress(OSError):
            told = (process / "cmdline").read_bytes()
            if needle in told + b"\0" + os.fsencode((process / "cwd").readlink()) + (process / "environ").read_bytes():
                found.append(f"{process.name}: {told.replace(bytes(1), b' ').decode(errors='replace')[:100]}")
    return found


def duplicates(evidence: Evidence) -> int:
    """Count the records on `runyard.runs` and `runyard.output` that repeat an event: each was absorbed."""
    repeated: dict[str, int] = defaultdict(int)
    for record in evidence.records:
        if record.topic in ("runyard.runs", "runyard.output"):
            repeated[record.event_id] += 1
    return sum(count - 1 for count in repeated.values())


def lost_attempts(evidence: Evidence) -> int:
    """Count the attempts that were replaced."""
    kind: Any = "runyard.run.requeued.v1"
    return sum(event.type == kind and event.stale is None for event in evidence.stored)

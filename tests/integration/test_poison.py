"""Protects every consumer from every message that makes no sense: set aside by each of them, and the next one handled.

One scene for the module, with all consumers at work; behind each poison, on the same partition, goes a message that
makes sense, and every consumer of the topic must have handled it within 5 s.
"""

import json
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
import pytest_asyncio

from schemas.cloudevents import CloudEvent
from schemas.events import AnyEvent, RunnerHeartbeat, RunQueued, RunRevoked, RunWaiting, SchedulerLoad
from schemas.ids import event_id
from schemas.parts import Capacity, RunAttempt
from schemas.reason import Reason
from schemas.topics import DISPATCH, LOAD, OUTPUT, RUNNERS, RUNS
from services.backbone.kafka import MAX_RECORD_BYTES
from services.runner.dispatch import partition_of
from tests.integration.conftest import Database
from tests.integration.poison_scene import Record, Scene, a_scene, record_of
from tests.life_of_a_run import SPEC, logs, requested, started

CONSUMERS = {
    RUNS.name: {"api.runs", "scheduler.runs", "auditor.runs"},
    OUTPUT.name: {"auditor.output"},
    DISPATCH.name: {"dispatch"},
    RUNNERS.name: {"scheduler.runners"},
    LOAD.name: {"api.load"},
}
NUMBERS = count(1)


@pytest_asyncio.fixture(scope="module")
async def scene(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with a_scene(module_database, tmp_path_factory.mktemp("poison")) as scene:
        yield scene


def told(data: AnyEvent, subject: str) -> CloudEvent:
    return CloudEvent(event_id(subject, 0, data.type, next(NUMBERS)), "/runyard/test", subject, datetime.now(UTC), data)


def good(scene: Scene, topic: str, mark: str) -> Record:
    """A message that makes sense on a topic, and that leaves a trace."""
    data: AnyEvent
    match topic:
        case RUNS.name:
            data, key = waiting(scene.run_id, mark), scene.run_id
        case OUTPUT.name:
            data, key = logs("a line", run_id=f"run-{mark}"), f"run-{mark}"
        case DISPATCH.name:
            data, key = revoked(scene, f"run-{mark}"), scene.runner_id
        case RUNNERS.name:
            data, key = heartbeat(f"rnr-{mark}"), f"rnr-{mark}"
        case _:
            load = SchedulerLoad(epoch=1, runners=(), occupied=(), queue=(), typical_run_s=int(mark, 16))
            data, key = load, "load"
    return record_of(told(data, key), key)


def waiting(run_id: str, message: str) -> RunWaiting:
    return RunWaiting(run_id=run_id, attempt=1, reason=Reason.NO_GPU_RUNNER, message=message)


def revoked(scene: Scene, run_id: str, attempt: int = 1) -> RunRevoked:
    return RunRevoked(run_id=run_id, attempt=attempt, runner_id=scene.runner_id, reason=Reason.USER_REQUEST)


def heartbeat(runner_id: str, **changes: Any) -> RunnerHeartbeat:
    room = Capacity(cpu_cores=1, memory_gb=1)
    told = {"beat": 1, "capacity": room, "runtimes": (), "dispatch_partition": 0}
    return RunnerHeartbeat(runner_id=runner_id, **(told | changes))


async def handled_by_all(scene: Scene, topic: str, mark: str) -> bool:
    """Whether a good message has left its trace with every consumer of its topic."""
    match topic:
        case RUNS.name:
            traces = (
                "SELECT count(*) FROM registry.runs WHERE state ->> 'message' = $1",
                "SELECT count(*) FROM scheduling.runs WHERE state ->> 'message' = $1",
                "SELECT count(*) FROM ledger.run_events WHERE data ->> 'message' = $1",
            )
            return all([await scene.counted(trace, mark) for trace in traces])
        case OUTPUT.name:
            return bool(await scene.counted("SELECT count(*) FROM ledger.log_lines WHERE run_id = $1", f"run-{mark}"))
        case DISPATCH.name:
            return any(event.subject == f"run-{mark}" for event in scene.said)
        case RUNNERS.name:
            return f"rnr-{mark}" in scene.runners()
        case _:
            return any(load.typical_run_s == int(mark, 16) for load in scene.loads)


def partition_on(scene: Scene, topic: str) -> int:
    return partition_of(scene.runner_id) if topic == DISPATCH.name else 0


async def refused_by(scene: Scene, topic: str, poison: Record) -> dict[str, str]:
    """Send poison and a good message behind it; returns who refused the poison, and why, once all went on."""
    mark, partition = secrets.token_hex(5), partition_on(scene, topic)
    place = await scene.send(topic, partition, poison)
    behind = await scene.send(topic, partition, good(scene, topic, mark))
    await scene.until(lambda: handled_by_all(scene, topic, mark))
    await scene.until_letters_are_read()
    assert scene.refusals.of(behind) == {}
    return {name: letter.reason for name, letter in scene.refusals.of(place).items() if not name.startswith("test.")}


@dataclass(frozen=True)
class Poison:
    """What is done to a good record, and the words by which every consumer's reason must tell it."""

    of: Callable[[Record], Record]
    reason: str


def value(raw: bytes | None) -> Callable[[Record], Record]:
    return lambda record: replace(record, value=raw)


def with_field(name: str, raw: str) -> Callable[[Record], Record]:
    """Put a field before all others, as raw JSON."""
    return lambda record: replace(
        record, value=b'{"%s":%s,' % (name.encode(), raw.encode()) + (record.value or b"")[1:]
    )


def header(name: str, raw: bytes | None) -> Callable[[Record], Record]:
    return lambda record: replace(record, headers=[(n, raw if n == name else v) for n, v in record.headers])


def added(*headers: tuple[str | bytes, bytes | None]) -> Callable[[Record], Record]:
    return lambda record: replace(record, headers=[*record.headers, *headers])


def without(name: str) -> Callable[[Record], Record]:
    return lambda record: replace(record, headers=[(n, v) for n, v in record.headers if n != name])


def first_field(record: Record) -> str:
    return str(next(iter(json.loads(record.value or b"{}"))))


def twice(record: Record) -> Record:
    name = first_field(record)
    return with_field(name, json.dumps(json.loads(record.value or b"")[name]))(record)


BIG = MAX_RECORD_BYTES - 4096
EVERYWHERE = {
    "broken JSON": Poison(value(b"{broken"), "Invalid JSON"),
    "an empty value": Poison(value(b""), "Invalid JSON"),
    "no value": Poison(value(None), "the record has no value"),
    "a list": Poison(value(b"[]"), "should be an object"),
    "no fields": Poison(value(b"{}"), "Field required"),
    "bytes that are no text": Poison(value(b"\xff\xfe\xfd"), "Invalid JSON"),
    "JSON of depth 10,000": Poison(value(b'{"a":' * 10_000 + b"1" + b"}" * 10_000), "recursion limit"),
    "depth 10,000 in a field nobody reads": Poison(with_field("new", "[" * 10_000 + "]" * 10_000), "recursion limit"),
    "a name twice": Poison(twice, "stands twice"),
    "a name twice far down": Poison(with_field("new", '[{"a":{"b":1,"b":2}}]'), "'b' stands twice"),
    "NaN": Poison(with_field("new", "NaN"), "NaN is no number"),
    "minus infinity": Poison(with_field("new", "[-Infinity]"), "-Infinity is no number"),
    "a number of 5,000 digits": Poison(with_field("new", "1" * 5_000), "number out of range"),
    "a value of 4 MiB": Poison(value(b"{" * BIG), "Invalid JSON"),
    "headers of 4 MiB": Poison(
        lambda r: added(("ce_more", b"x" * (BIG - 4096)))(without("ce_id")(r)), "ce_id is missing"
    ),
    "5,000 headers and no id": Poison(
        lambda r: added(*[("more", b"x")] * 5_000)(without("ce_id")(r)), "ce_id is missing"
    ),
    "a key of 1 MB": Poison(lambda r: replace(value(b"{")(r), key=b"k" * 1_000_000), "Invalid JSON"),
    "a key that is no text": Poison(lambda r: replace(value(b"{")(r), key=b"\xff\x00"), "Invalid JSON"),
    "a null header": Poison(header("ce_id", None), "header ce_id is null"),
    "a header that is no text": Poison(header("ce_subject", b"\xff\xfe"), "header ce_subject is not UTF-8"),
    "a header's name that is no text": Poison(
        added((b"\xff\xfe", b"x")), "the record cannot be read: UnicodeDecodeError"
    ),
    "a header twice": Poison(added(("ce_id", b"again")), "header ce_id stands twice"),
    "a null header of 3 MB by name": Poison(added(("ce_" + "n" * 3_000_000, None)), "header ce_nnn"),
    "no id": Poison(without("ce_id"), "header ce_id is missing"),
    "an id that is no UUID": Poison(header("ce_id", b"run-1"), "ce_id is not a UUID"),
    "no type": Poison(without("ce_type"), "header ce_type is missing"),
    "an empty subject": Poison(header("ce_subject", b""), "header ce_subject is missing"),
    "another specversion": Poison(header("ce_specversion", b"0.3"), "ce_specversion is not 1.0"),
    "a time without an offset": Poison(header("ce_time", b"2026-03-13T16:10:00"), "ce_time"),
    "a time before the year 1": Poison(header("ce_time", b"0001-01-01T00:00:00+14:00"), "ce_time"),
    "a time after the year 9999": Poison(header("ce_time", b"9999-12-31T23:59:59-14:00"), "ce_time"),
    "a day that is none": Poison(header("ce_time", b"2026-02-30T00:00:00Z"), "ce_time"),
}


@pytest.mark.parametrize("topic", CONSUMERS)
@pytest.mark.parametrize("name", EVERYWHERE)
async def test_what_is_no_event_is_refused_by_every_consumer_and_holds_nobody_up(
    scene: Scene, topic: str, name: str
) -> None:
    poison = EVERYWHERE[name]
    record = poison.of(good(scene, topic, secrets.token_hex(5)))
    refused = await refused_by(scene, topic, record)
    assert set(refused) == CONSUMERS[topic]
    assert {consumer: reason for consumer, reason in refused.items() if poison.reason not in reason} == {}


@pytest.mark.parametrize("topic", CONSUMERS)
async def test_what_belongs_on_another_topic_is_refused_by_every_consumer(scene: Scene, topic: str) -> None:
    stranger = OUTPUT.name if topic == RUNS.name else RUNS.name
    refused = await refused_by(scene, topic, good(scene, stranger, secrets.token_hex(5)))
    assert set(refused) == CONSUMERS[topic]
    assert all(f"does not belong on {topic}" in reason for reason in refused.values())


@dataclass(frozen=True)
class Case:
    """A record on a topic, who refuses it (by a word of the reason), and whether the ledger keeps it."""

    topic: str
    record: Callable[[Scene], Record]
    refused: dict[str, str]
    stored: bool = False


def event(make: Callable[[Scene], AnyEvent], subject: str = "run-stranger") -> Callable[[Scene], Record]:
    return lambda scene: record_of(told(make(scene), subject), subject)


def typed(topic: str, type_name: bytes, raw: bytes) -> Callable[[Scene], Record]:
    return lambda scene: value(raw)(header("ce_type", type_name)(good(scene, topic, secrets.token_hex(5))))


def asking(run_id: str, **spec: Any) -> Callable[[Scene], Record]:
    return event(lambda _: requested(run_id, spec=SPEC.model_copy(update=spec)), run_id)


def queued(run_id: str, attempt: int = 1, **spec: Any) -> Callable[[Scene], Record]:
    def make(scene: Scene) -> RunQueued:
        wanted = SPEC.model_copy(update=spec)
        ids = {"run_id": run_id, "runner_id": scene.runner_id, "tenant_id": "acme", "model_id": "mdl-1"}
        return RunQueued(attempt=attempt, spec=wanted, **ids)

    return event(make)


DEEP = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
LONG = secrets.token_hex(500_000)
HUGE = SPEC.compute.model_copy(update={"memory_gb": 10**12})
CASES = {
    "an unknown type": Case(RUNS.name, typed(RUNS.name, b"runyard.run.paused.v1", b"\xff"), {}, stored=True),
    "a newer version": Case(RUNS.name, typed(RUNS.name, b"runyard.run.waiting.v9", DEEP), {}, stored=True),
    "an unknown type of output": Case(OUTPUT.name, typed(OUTPUT.name, b"runyard.run.traced.v1", DEEP), {}, stored=True),
    "an unknown type for a runner": Case(DISPATCH.name, typed(DISPATCH.name, b"runyard.run.paused.v1", b"{}"), {}),
    "an unknown type from a runner": Case(RUNNERS.name, typed(RUNNERS.name, b"runyard.runner.left.v1", DEEP), {}),
    "a newer load": Case(LOAD.name, typed(LOAD.name, b"runyard.scheduler.load.v2", b"[]"), {}),
    "no key": Case(
        RUNS.name, lambda s: replace(event(lambda _: started(run_id="run-nokey"))(s), key=None), {}, stored=True
    ),
    "5,000 headers": Case(
        RUNS.name,
        lambda s: added(*[("more", b"x")] * 5_000)(event(lambda _: started(run_id="run-many"))(s)),
        {},
        stored=True,
    ),
    "the last time there is": Case(
        RUNS.name,
        lambda s: header("ce_time", b"9999-12-31T23:59:59.999999Z")(event(lambda _: started(run_id="run-late"))(s)),
        {},
        stored=True,
    ),
    "a run's id with NUL": Case(
        RUNS.name,
        event(lambda _: started(run_id="run-\0")),
        dict.fromkeys(CONSUMERS[RUNS.name], "CharacterNotInRepertoireError"),
    ),
    "a run's id of 1 MB": Case(
        RUNS.name, event(lambda _: started(run_id=LONG)), {"auditor.runs": "ProgramLimitExceededError"}
    ),
    "a type with NUL": Case(
        RUNS.name, typed(RUNS.name, b"runyard.\0", b"{}"), {"auditor.runs": "CharacterNotInRepertoireError"}
    ),
    "a request whose run no folder can be named after": Case(
        RUNS.name, asking("../../etc"), {"scheduler.runs": "cannot be the id of a run"}, stored=True
    ),
    "a request that lasts longer than the calendar": Case(
        RUNS.name, asking("run-for-ever", timeout_s=10**12), {"scheduler.runs": "a time limit of"}, stored=True
    ),
    "a request for more than a number holds": Case(
        RUNS.name, asking("run-huge", compute=HUGE), {"scheduler.runs": "NumericValueOutOfRangeError"}, stored=True
    ),
    "an attempt beyond all numbers": Case(RUNS.name, event(lambda s: started(10**30, s.run_id)), {}, stored=True),
    "a line of an attempt beyond all numbers": Case(
        OUTPUT.name, event(lambda _: logs("x", attempt=10**30)), {"auditor.output": "DataError"}
    ),
    "output of a run with NUL": Case(
        OUTPUT.name, event(lambda _: logs("x", run_id="run-\0")), {"auditor.output": "CharacterNotInRepertoireError"}
    ),
    "an order whose run no folder can be named after": Case(
        DISPATCH.name, queued("../../etc"), {"dispatch": "cannot be the id of a run"}
    ),
    "an order whose run has NUL": Case(DISPATCH.name, queued("run-\0"), {"dispatch": "cannot be the id of a run"}),
    "an order that no journal holds": Case(DISPATCH.name, queued("run-1", 2**70), {"dispatch": "is above"}),
    "an order that lasts beyond all numbers": Case(
        DISPATCH.name, queued("run-1", timeout_s=10**400), {"dispatch": "is above"}
    ),
    "a revocation that no journal holds": Case(
        DISPATCH.name, event(lambda s: revoked(s, "run-1", 2**70)), {"dispatch": "is above"}
    ),
    "an order for another runner": Case(
        DISPATCH.name, event(lambda s: revoked(s, "../..").model_copy(update={"runner_id": "rnr-2"})), {}
    ),
    "a runner with NUL": Case(
        RUNNERS.name, event(lambda _: heartbeat("rnr-\0")), {"scheduler.runners": "cannot be the id of"}
    ),
    "a runner that nobody can reach": Case(
        RUNNERS.name,
        event(lambda _: heartbeat("rnr-far", dispatch_partition=DISPATCH.partitions)),
        {"scheduler.runners": "has no partition 12"},
    ),
    "a runner of endless memory": Case(
        RUNNERS.name,
        event(lambda _: heartbeat("rnr-big", capacity=Capacity(cpu_cores=1, memory_gb=2**40))),
        {"scheduler.runners": "is above"},
    ),
    "a runner that runs what cannot be": Case(
        RUNNERS.name,
        event(lambda _: heartbeat("rnr-odd", running=(RunAttempt(run_id="run-\0", attempt=1),))),
        {"scheduler.runners": "cannot be the id of"},
    ),
}


KEPT = """
SELECT (SELECT count(*) FROM ledger.run_events WHERE event_id = $1::uuid)
     + (SELECT count(*) FROM ledger.unread_output WHERE event_id = $1::uuid)
"""


@pytest.mark.parametrize("name", CASES)
async def test_what_only_some_can_take_is_refused_by_the_others_alone(scene: Scene, name: str) -> None:
    case = CASES[name]
    record = case.record(scene)
    refused = await refused_by(scene, case.topic, record)
    assert set(refused) == set(case.refused)
    assert all(case.refused[consumer] in reason for consumer, reason in refused.items()), refused
    identity = next(raw for header_name, raw in record.headers if header_name == "ce_id")
    assert await scene.counted(KEPT, (identity or b"").decode()) == int(case.stored)

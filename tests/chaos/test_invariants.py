"""Protects the checker itself: hand-made evidence that breaks a promise is caught, and honest evidence is not."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.evidence import (
    Evidence,
    Lifetime,
    Outage,
    Place,
    RunRow,
    StoredEvent,
    Told,
    TopicRecord,
    VersionRow,
)
from tests.chaos.invariants import check
from tests.chaos.submitting import Book, Order, Submitter

RUN, DIGEST, CANARY = "run-custom-20260313-f7e2a1", "d" * 64, "canary0123456789abcdef0123456789"
FACTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("training_requested", {"run_id": RUN, "model_id": "mdl-1"}),
    ("queued", {"attempt": 1, "runner_id": "rnr-1"}),
    ("started", {"attempt": 1}),
    ("requeued", {"attempt": 2}),
    ("queued", {"attempt": 2, "runner_id": "rnr-2"}),
    ("started", {"attempt": 2}),
    ("succeeded", {"attempt": 2, "reason": None, "artifact": {"sha256": DIGEST}}),
    ("model_version_created", {}),
    ("succeeded", {"attempt": 1, "reason": None, "artifact": {"sha256": "e" * 64}}),
)
"""A run whose first runner was cut off at second 100 and came back at 120, with an end that came too late."""


def event(version: int, kind: str, data: Mapping[str, Any], **fields: Any) -> StoredEvent:
    known = {"occurred": 100.0 + version * 3, "stored": 100.0 + version * 3} | fields
    return StoredEvent(RUN, version, f"event-{version}", f"runyard.run.{kind}.v1", data, **known)


STORED = (
    *(event(version, *fact) for version, fact in enumerate(FACTS[:8], 1)),
    event(9, *FACTS[8], stale="already_ended"),
)
ROW = RunRow("succeeded", None, 2, 1)
HONEST = Evidence(
    told=(Told(100.0, "accepted", "key-1", "model", 202, RUN, "mdl-1"),),
    lifetimes=(
        Lifetime(RUN, 1, "rnr-1", "container-1", 101.0, 125.0, 143),
        Lifetime(RUN, 2, "rnr-2", "container-2", 115.0, 118.0, 0),
    ),
    outages=(Outage("runner", "cut_off", 100.0, 120.0),),
    faults_stopped=120.0,
    runners={"runner": "rnr-1", "runner-2": "rnr-2"},
    stored=STORED,
    tables={"registry": {RUN: ROW}, "scheduling": {RUN: ROW}, "ledger": {RUN: ROW}},
    audit=((RUN, "model.custom_training_started"), (RUN, "model.custom_training_ended")),
    versions=(VersionRow("mdl-1", 1, RUN, DIGEST),),
    records=tuple(TopicRecord("runyard.runs", 0, n, each.event_id, each.type, RUN) for n, each in enumerate(STORED)),
    objects={DIGEST: DIGEST},
    unsent={"registry.outbox": 0},
    canaries=(CANARY,),
    places=(Place("topic runyard.runs", b'{"variable_names": ["API_KEY"]}'),),
)


async def broken(evidence: Evidence) -> set[str]:
    return {violation.invariant for violation in await check(evidence)}


def with_event(version: int, **changes: Any) -> tuple[StoredEvent, ...]:
    return tuple(replace(each, **changes) if each.version == version else each for each in STORED)


async def test_honest_evidence_breaks_no_promise() -> None:
    assert await check(HONEST) == []


async def test_i1_an_accepted_run_that_the_ledger_does_not_know() -> None:
    forgotten = replace(HONEST.told[0], run_id="run-custom-20260313-000000", key="key-2")
    assert "I1" in await broken(replace(HONEST, told=(*HONEST.told, forgotten)))


async def test_i1_a_key_that_was_answered_with_two_runs() -> None:
    other = tuple(replace(each, run_id="run-2") for each in STORED)
    twice = replace(HONEST, told=(*HONEST.told, replace(HONEST.told[0], run_id="run-2")), stored=(*STORED, *other))
    assert "I1" in await broken(twice)


DOUBLED = replace(STORED[0], run_id="run-2", event_id="event-10")
UNANSWERED = Told(100.0, "unknown", "key-2", "model", model_id="mdl-1")


async def test_i1_a_run_that_no_key_explains() -> None:
    doubled = replace(HONEST, stored=(*STORED, DOUBLED))
    assert "I1" in await broken(doubled)
    assert "I1" not in await broken(replace(doubled, told=(*HONEST.told, UNANSWERED)))


@pytest.mark.parametrize(
    "told",
    [
        replace(UNANSWERED, outcome="unanswered", key="key-1-cancel"),
        replace(UNANSWERED, model_id="mdl-2"),
        replace(UNANSWERED, key="key-1"),
    ],
    ids=["of a cancellation", "of another model's", "of a key that got its answer"],
)
async def test_i1_a_run_that_only_an_unknown_outcome_of_something_else_would_explain(told: Told) -> None:
    assert "I1" in await broken(replace(HONEST, stored=(*STORED, DOUBLED), told=(*HONEST.told, told)))


async def test_i1_two_runs_are_not_explained_by_one_key() -> None:
    third = replace(DOUBLED, run_id="run-3", event_id="event-11")
    twice = replace(HONEST, stored=(*STORED, DOUBLED, third), told=(*HONEST.told, UNANSWERED))
    assert "I1" in await broken(replace(twice, told=(*twice.told, replace(UNANSWERED, at=101.0))))
    assert "I1" not in await broken(replace(twice, told=(*twice.told, replace(UNANSWERED, key="key-3"))))


async def test_i1_a_503_on_a_cancel_hides_no_second_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter((503, 202))
    monkeypatch.setattr("tests.chaos.submitting.RETRY_S", 0)
    submitter = Submitter("http://api", lambda: "token", Book(tmp_path / "told.jsonl"))
    await submitter._http.aclose()
    transport = httpx.MockTransport(lambda _: httpx.Response(next(answers)))
    submitter._http = httpx.AsyncClient(base_url="http://api", transport=transport)
    await submitter.cancel(Order(1, "key-1", "model", {}), HONEST.told[0])
    await submitter.close()
    assert [told.outcome for told in submitter.book.lines] == ["cancelling", "unanswered"]
    evidence = replace(HONEST, stored=(*STORED, DOUBLED), told=(*HONEST.told, *submitter.book.lines))
    assert "I1" in await broken(evidence)


async def test_i2_a_run_without_an_end() -> None:
    assert "I2" in await broken(replace(HONEST, stored=STORED[:6]))


async def test_i2_a_run_with_two_ends() -> None:
    assert "I2" in await broken(replace(HONEST, stored=with_event(9, stale=None)))


async def test_i2_a_run_that_ends_too_late() -> None:
    allowed_s = 2 * (60 + 7) + 60
    assert "I2" not in await broken(replace(HONEST, stored=with_event(7, stored=120.0 + allowed_s)))
    assert "I2" in await broken(replace(HONEST, stored=with_event(7, stored=121.0 + allowed_s)))


async def test_i3_an_overlap_while_the_first_runner_was_there() -> None:
    assert "I3" in await broken(replace(HONEST, outages=()))
    assert "I3" in await broken(replace(HONEST, outages=(Outage("runner-2", "cut_off", 100.0, 120.0),)))
    assert "I3" in await broken(replace(HONEST, outages=(Outage("runner", "cut_off", 10.0, 20.0),)))


async def test_i3_an_overlap_that_goes_on_after_the_return() -> None:
    first, second = HONEST.lifetimes
    assert "I3" not in await broken(
        replace(HONEST, lifetimes=(replace(first, ended=149.0), replace(second, ended=160)))
    )
    assert "I3" in await broken(replace(HONEST, lifetimes=(replace(first, ended=151.0), replace(second, ended=160))))
    assert "I3" in await broken(replace(HONEST, lifetimes=(replace(first, ended=None), second)))


async def test_i3_two_containers_of_one_attempt() -> None:
    first, second = HONEST.lifetimes
    assert "I3" in await broken(replace(HONEST, lifetimes=(first, replace(second, attempt=1))))


async def test_i4_an_end_of_a_replaced_attempt_that_had_an_effect() -> None:
    early = replace(STORED[8], version=7, stale=None)
    later = tuple(replace(each, version=each.version + 1) for each in STORED[6:8])
    assert "I4" in await broken(replace(HONEST, stored=(*STORED[:6], early, *later)))


@pytest.mark.parametrize("table", ["registry", "scheduling", "ledger"])
@pytest.mark.parametrize("row", [None, RunRow("failed", None, 2, 1), RunRow("succeeded", None, 1, 1)])
async def test_i4_a_table_that_tells_another_outcome(table: str, row: RunRow | None) -> None:
    rows = {} if row is None else {RUN: row}
    assert "I4" in await broken(replace(HONEST, tables={**HONEST.tables, table: rows}))


@pytest.mark.parametrize("entries", [0, 2])
async def test_i5_a_start_that_is_not_audited_exactly_once(entries: int) -> None:
    assert "I5" in await broken(replace(HONEST, audit=((RUN, "model.custom_training_started"),) * entries))


async def test_i5_a_chain_that_does_not_verify() -> None:
    assert "I5" in await broken(replace(HONEST, chain_difference="audit_entries 3: hash"))


async def test_i6_a_version_of_the_losing_attempts_artifact() -> None:
    wrong = VersionRow("mdl-1", 1, RUN, "e" * 64)
    assert "I6" in await broken(replace(HONEST, versions=(wrong,)))


async def test_i6_two_versions_of_one_run_and_none() -> None:
    assert "I6" in await broken(replace(HONEST, versions=(*HONEST.versions, VersionRow("mdl-1", 2, RUN, DIGEST))))
    assert "I6" in await broken(replace(HONEST, versions=()))


async def test_i6_an_artifact_that_is_gone_or_not_what_it_was() -> None:
    assert "I6" in await broken(replace(HONEST, objects={}))
    assert "I6" in await broken(replace(HONEST, objects={DIGEST: "f" * 64}))


async def test_i7_a_gap_in_a_history() -> None:
    assert "I7" in await broken(replace(HONEST, stored=STORED[:3] + STORED[4:]))


async def test_i7_a_start_that_nothing_was_queued_for() -> None:
    moved = (STORED[0], replace(STORED[2], version=2), replace(STORED[1], version=3), *STORED[3:])
    assert "I7" in await broken(replace(HONEST, stored=moved))


async def test_i8_an_outbox_with_something_unsent() -> None:
    assert "I8" in await broken(replace(HONEST, unsent={"scheduling.outbox": 1}))


async def test_i8_a_topic_and_a_ledger_that_differ_either_way() -> None:
    assert "I8" in await broken(replace(HONEST, records=HONEST.records[1:]))
    unknown = TopicRecord("runyard.runs", 0, 99, "event-99", "runyard.run.started.v1", RUN)
    assert "I8" in await broken(replace(HONEST, records=(*HONEST.records, unknown)))


async def test_i8_a_lost_brokers_events_need_not_be_on_the_new_ones_topic() -> None:
    assert "I8" not in await broken(replace(HONEST, records=(), broker_epoch=2))


async def test_i8_output_that_was_told_and_not_stored() -> None:
    assert "I8" in await broken(replace(HONEST, missing_output=(RUN,)))


async def test_i9_a_container_that_was_killed_while_its_runner_was_cut_off() -> None:
    first, second = HONEST.lifetimes
    killed = replace(HONEST, lifetimes=(replace(first, ended=110.0), second))
    assert "I9" in await broken(killed)
    engine = Outage("engine", "killed", 109.0, 112.0)
    assert "I9" not in await broken(replace(killed, outages=(*HONEST.outages, engine)))


@pytest.mark.parametrize(
    ("ended", "back", "blamed"),
    [
        pytest.param(113.0, 112.9, False, id="revoked as soon as the link was there again"),
        pytest.param(113.0, 113.1, True, id="the link was not there yet"),
        pytest.param(110.0, 109.9, True, id="nobody had replaced it yet"),
    ],
)
async def test_i9_a_revocation_passes_as_soon_as_the_link_is_there(ended: float, back: float, blamed: bool) -> None:
    first, second = HONEST.lifetimes
    outages = tuple(replace(outage, back=back) for outage in HONEST.outages)
    killed = replace(HONEST, lifetimes=(replace(first, ended=ended), second), outages=outages)
    assert ("I9" in await broken(killed)) is blamed


async def test_i9_a_run_that_ended_otherwise_than_its_script_does() -> None:
    failed = with_event(7, type="runyard.run.failed.v1", data={"attempt": 2, "reason": "script_error"})
    assert "I9" in await broken(replace(HONEST, stored=failed))


async def test_i9_an_attempt_that_was_lost_while_its_engine_was_there() -> None:
    lost = with_event(4, type="runyard.run.attempt_lost.v1", data={"attempt": 1, "reason": "container_lost"})
    assert "I9" in await broken(replace(HONEST, stored=lost))


async def test_i9_an_attempt_that_was_replaced_needs_a_cause() -> None:
    elsewhere = replace(HONEST, outages=(Outage("runner-2", "cut_off", 100.0, 120.0),))
    assert "I9" in await broken(elsewhere)
    long_before = replace(HONEST, outages=(Outage("runner", "cut_off", 10.0, 60.0),))
    assert "I9" in await broken(long_before)


REPLACED_AT, LEASE_S = 112.0, 7.0


@pytest.mark.parametrize(
    ("broker", "breaks"),
    [
        (Outage("kafka", "killed", 90.0, 113.0, back=REPLACED_AT - LEASE_S), set()),
        (Outage("kafka", "killed", 90.0, 104.0, back=99.0), set()),
        (Outage("kafka", "killed", 90.0, 113.0, back=REPLACED_AT - 1), {"I3", "I9"}),
        (Outage("kafka", "killed", 90.0, 130.0, back=125.0), {"I3", "I9"}),
        (Outage("kafka", "killed", 70.0, 95.0, back=90.0), {"I3", "I9"}),
        (Outage("kafka", "killed", REPLACED_AT - LEASE_S, 110.0, back=108.0), set()),
        (Outage("kafka", "killed", REPLACED_AT - LEASE_S, 113.0, back=111.0), {"I3", "I9"}),
    ],
    ids=[
        "a runner that was silent a lease after it",
        "one that was not well after all",
        "as soon as it is back",
        "while it is down",
        "when all were well again long ago",
        "an outage of less than a gap",
        "an outage of more than a gap",
    ],
)
async def test_a_broker_that_is_down_is_no_cause_to_lose_a_runner(broker: Outage, breaks: set[str]) -> None:
    assert await broken(replace(HONEST, outages=(broker,))) == breaks


async def test_i10_a_container_that_is_left() -> None:
    assert "I10" in await broken(replace(HONEST, leftovers=("container /run-x-1",)))


@pytest.mark.parametrize(
    "content",
    [
        CANARY.encode(),
        CANARY.encode().hex().encode(),
        b"Y2FuYXJ5MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODk=",
        b"eGNhbmFyeTAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5",
        b"eHhjYW5hcnkwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OQ==",
    ],
    ids=["plain", "hexadecimal", "base64", "base64 behind one byte", "base64 behind two"],
)
async def test_i11_a_canary_in_whatever_form(content: bytes, tmp_path: Path) -> None:
    assert "I11" in await broken(replace(HONEST, places=(Place("topic", b"before " + content + b" after"),)))
    (tmp_path / "server.log").write_bytes(b"x" * ((1 << 20) - 7) + content)
    assert "I11" in await broken(replace(HONEST, files=(tmp_path / "server.log",)))

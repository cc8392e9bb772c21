"""Protects what the ledger decides: numbers without gaps, hashes that cover everything, audit entries that follow."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cloudevents import value_of
from schemas.events import RunFact
from services.auditor import comparison
from services.auditor.audit import AuditEntry, ChainedEntry, Head, chain
from services.auditor.canonical import GENESIS, storable_json
from services.auditor.history import Arrival, History, Position, StoredEvent, event_hash
from services.auditor.ledger import Appended, append
from tests import life_of_a_run as life

NOW = life.at(1000)


def arrival(fact: RunFact, offset: int = 0, **changes: Any) -> Arrival:
    event = life.told(fact, offset)
    position = Position(1, "runyard.runs", 0, offset)
    value = value_of(fact)
    told = Arrival(fact.run_id, event.id, fact.type, event.source, fact.run_id, event.time, value, None, position)
    return replace(told, **changes)


def arrivals(*facts: RunFact) -> list[Arrival]:
    return [arrival(fact, offset) for offset, fact in enumerate(facts)]


def test_events_are_numbered_per_run_and_chained() -> None:
    other = "run-other"
    appended = append({}, arrivals(life.requested(), life.requested(other), life.queued(), life.waiting()), set(), NOW)
    assert [(e.arrival.run_id, e.version, e.stale) for e in appended.events] == [
        (life.RUN_ID, 1, None),
        (other, 1, None),
        (life.RUN_ID, 2, None),
        (life.RUN_ID, 3, "not_from_starting"),
    ]
    first, foreign, second, third = appended.events
    assert first.hash == event_hash(GENESIS, first)
    assert second.hash == event_hash(first.hash, second)
    assert appended.histories[life.RUN_ID].last_hash == third.hash
    assert appended.histories[other].last_hash == foreign.hash


def test_repeated_ids_get_no_number_whether_stored_or_in_the_same_batch() -> None:
    told = arrivals(life.requested(), life.requested(), life.queued(), life.started())
    appended = append({}, told, {told[2].event_id}, NOW)
    assert [e.version for e in appended.events] == [1, 2]
    assert [e.arrival.type.split(".")[2] for e in appended.events] == ["training_requested", "started"]
    assert append({}, told, {a.event_id for a in told}, NOW) == Appended((), {}, ())


@pytest.mark.parametrize("kind", ["runyard.run.started.v2", "com.example.other", "runyard.run.logs_appended.v1"])
def test_what_this_code_cannot_fold_is_numbered_and_without_effect(kind: str) -> None:
    odd = arrival(life.queued(), 1, type=kind, event_id=uuid4())
    appended = append({}, [arrival(life.requested()), odd], set(), NOW)
    assert [(e.version, e.stale) for e in appended.events] == [(1, None), (2, "unknown_type")]
    assert (
        appended.histories[life.RUN_ID].run
        == append({}, [arrival(life.requested())], set(), NOW).histories[life.RUN_ID].run
    )


FACTS = [
    *(life.requested(), life.waiting(), life.queued(), life.started(), life.cancellation(), life.lost()),
    *(life.requeued(), life.succeeded(), life.failed(), life.cancelled(), life.versioned()),
]


def stored(appended: Sequence[Appended]) -> list[StoredEvent]:
    return [event for part in appended for event in part.events]


def in_parts(told: list[Arrival], size: int) -> Iterator[Appended]:
    histories: dict[str, History] = {}
    known: set[UUID] = set()
    for start in range(0, len(told), size):
        appended = append(histories, told[start : start + size], known, NOW)
        histories |= appended.histories
        known |= {event.arrival.event_id for event in appended.events}
        yield appended


@given(st.lists(st.sampled_from(FACTS), max_size=25), st.integers(1, 7))
def test_how_events_are_cut_into_batches_makes_no_difference(facts: list[RunFact], size: int) -> None:
    told = arrivals(*facts)
    whole, parts = append({}, told, set(), NOW), list(in_parts(told, size))
    assert stored(parts) == list(whole.events)
    assert [entry for part in parts for entry in part.entries] == list(whole.entries)
    assert comparison.refold(whole.events) == whole.histories.get(life.RUN_ID, History())
    assert [event.version for event in whole.events] == list(range(1, len(whole.events) + 1))
    once = [entry.action for entry in whole.entries if "cancellation" not in entry.action]
    assert len(once) == len(set(once))


@given(st.lists(st.sampled_from(FACTS), max_size=25))
def test_what_was_appended_shows_no_difference(facts: list[RunFact]) -> None:
    appended = append({}, arrivals(*facts), set(), NOW)
    rows = [(event, storable_json(event.arrival.value)) for event in appended.events]
    links = chain(Head(), appended.entries)
    assert list(comparison.in_events(rows)) == []
    assert list(comparison.in_entries(life.RUN_ID, appended.events, links)) == []
    assert list(comparison.in_chain(Head(), links)) == []


CHANGED: dict[str, Any] = {
    "run_id": "run-x",
    "event_id": UUID(int=1),
    "type": "x",
    "source": "x",
    "subject": "x",
    "occurred_at": life.START + timedelta(microseconds=1),
    "value": b"{}",
    "traceparent": "x",
    "position": Position(2, "runyard.runs", 0, 0),
    "version": 9,
    "stale": "x",
    "stored_at": NOW + timedelta(microseconds=1),
}


@pytest.mark.parametrize("name", CHANGED)
def test_an_events_hash_covers_every_field(name: str) -> None:
    [event] = append({}, [arrival(life.requested())], set(), NOW).events
    of_arrival = name in {field.name for field in fields(Arrival)}
    change = {name: CHANGED[name]}
    altered = replace(event, arrival=replace(event.arrival, **change)) if of_arrival else replace(event, **change)
    assert event_hash(GENESIS, altered) != event.hash
    assert event_hash("f" * 64, event) != event.hash


def test_the_table_of_changes_names_every_field_of_an_event() -> None:
    names = {field.name for kind in (Arrival, StoredEvent) for field in fields(kind)}
    assert set(CHANGED) == names - {"arrival", "hash"}


@pytest.mark.parametrize("name", [field.name for field in fields(AuditEntry)])
def test_an_entrys_hash_covers_every_field(name: str) -> None:
    [link] = chain(Head(), append({}, [arrival(life.requested())], set(), NOW).entries)
    other: dict[str, Any] = {"event_id": UUID(int=1), "occurred_at": NOW, "details": {}}
    altered = ChainedEntry(replace(link.entry, **{name: other.get(name, "x")}), *link_place(link))
    assert [difference.column for difference in comparison.in_chain(Head(), [altered])] == ["hash"]


def link_place(link: ChainedEntry) -> tuple[int, str, str]:
    return link.index, link.previous_hash, link.hash


def test_an_entry_taken_out_of_the_chain_shows() -> None:
    links = chain(Head(), append({}, arrivals(*life.whole_life()), set(), NOW).entries)
    found = [str(difference) for difference in comparison.in_chain(Head(), [links[0], links[2]])]
    assert found[0] == "audit_entries 3: index: expected 2, found 3"


def test_audit_entries_name_who_acted() -> None:
    told = arrivals(life.requested(), life.queued(), life.cancellation(), life.succeeded(), life.versioned())
    entries = append({}, told, set(), NOW).entries
    assert [(entry.action, entry.actor, entry.request_id) for entry in entries] == [
        ("model.custom_training_started", "ada", "req-1"),
        ("model.custom_training_cancellation_requested", "bob", "req-2"),
        ("model.custom_training_ended", "/runyard/test", None),
        ("model.version_created", "/runyard/test", None),
    ]


def test_a_cancellation_that_came_too_late_is_told_as_such() -> None:
    told = arrivals(life.requested(), life.cancelled(), life.cancellation())
    late = append({}, told, set(), NOW).entries[-1]
    assert (late.action, late.details) == (
        "model.custom_training_cancellation_requested",
        {"stale": "already_ended"},
    )


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (b'{"a": "\\u0000", "\\u0000": ["\\ud800"]}', '{"a": "\\ufffd", "\\ufffd": ["\\ufffd"]}'),
        (b'"\\\\u0000"', '"\\\\u0000"'),
        (b"{", "null"),
        (b"\xff\xff", "null"),
        (b"Infinity", "null"),
        (b"1e999", "null"),
        (b"9" * 5000, "null"),
        (b"[" * 100_000 + b"]" * 100_000, "null"),
    ],
    ids=["nul", "escaped", "open", "no-utf8", "infinity", "too-large", "too-long", "too-deep"],
)
def test_json_is_written_so_that_postgres_can_hold_it(value: bytes, held: str) -> None:
    assert storable_json(value) == held

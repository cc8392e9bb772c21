"""Protects the wire: one recorded event of each type must decode, and encode again byte for byte, for ever.

A golden file is written once, when its type is new, checked by eye, and never regenerated.
"""

import json
from pathlib import Path

import pytest

from schemas.cloudevents import MODEL_OF, CloudEvent, MalformedEvent, UnknownEvent, decode, encode
from schemas.events import RunQueued

GOLDEN = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "golden").glob("*.json")}
STARTED = GOLDEN["runyard.run.started.v1"]


def headers(golden: dict[str, dict[str, str]] = STARTED, **changes: bytes | None) -> list[tuple[str, bytes | None]]:
    found: dict[str, bytes | None] = {name: text.encode() for name, text in golden["headers"].items()}
    return list((found | changes).items())


def test_every_type_has_its_golden_event() -> None:
    assert set(GOLDEN) == set(MODEL_OF)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_golden_event_is_read_and_written_byte_for_byte(name: str) -> None:
    golden = GOLDEN[name]
    event = decode(headers(golden), golden["value"].encode())
    assert isinstance(event, CloudEvent)
    assert type(event.data) is MODEL_OF[name]
    written_headers, value = encode(event)
    assert {key: text.decode() for key, text in written_headers} == golden["headers"]
    assert value.decode() == golden["value"]


def test_fields_that_a_newer_producer_added_are_ignored_at_any_depth() -> None:
    golden = GOLDEN["runyard.run.succeeded.v1"]
    value = json.loads(golden["value"])
    value["new"] = {"nested": [1]}
    value["usage"]["gpu_s"] = 3
    newer = decode(headers(golden), json.dumps(value).encode())
    older = decode(headers(golden), golden["value"].encode())
    assert isinstance(newer, CloudEvent)
    assert isinstance(older, CloudEvent)
    assert newer.data == older.data


def test_a_grace_period_travels_and_one_from_before_there_was_any_is_ten_seconds() -> None:
    golden = GOLDEN["runyard.run.queued.v1"]
    assert "grace_s" not in golden["value"]
    value = json.loads(golden["value"])
    for told, read in (
        (value["spec"], 10),
        (value["spec"] | {"grace_s": 0}, 0),
        (value["spec"] | {"grace_s": 600}, 600),
    ):
        event = decode(headers(golden), json.dumps(value | {"spec": told}).encode())
        assert isinstance(event, CloudEvent)
        assert isinstance(event.data, RunQueued)
        assert event.data.spec.grace_s == read
        assert json.loads(encode(event)[1])["spec"] == told


def test_an_unknown_type_and_a_newer_version_are_handed_on_unread() -> None:
    event = decode(headers(ce_type=b"runyard.run.started.v2"), b"\xff not even JSON")
    assert isinstance(event, UnknownEvent)
    assert event.value == b"\xff not even JSON"


@pytest.mark.parametrize("name", ["ce_id", "ce_source", "ce_type", "ce_subject", "ce_time", "ce_specversion"])
def test_a_missing_null_or_undecodable_attribute_is_malformed_and_named(name: str) -> None:
    value = STARTED["value"].encode()
    without = [(key, text) for key, text in headers() if key != name]
    for wrong in (without, headers(**{name: None}), headers(**{name: b"\xff\xfe"})):
        with pytest.raises(MalformedEvent, match=name):
            decode(wrong, value)


@pytest.mark.parametrize("name", ["ce_id", "ce_time"])
def test_an_attribute_that_stands_twice_or_makes_no_sense_is_malformed(name: str) -> None:
    with pytest.raises(MalformedEvent, match=name):
        decode([*headers(), (name, b"again")], STARTED["value"].encode())
    with pytest.raises(MalformedEvent, match=name):
        decode(headers(**{name: b"yesterday"}), STARTED["value"].encode())


@pytest.mark.parametrize(
    "value",
    [None, b"", b"{", b"[]", b"null", b"\xff", b"[" * 10_000, b'{"attempt": NaN}', b'{"run_id": 1}'],
    ids=["none", "empty", "open", "list", "null", "no-utf8", "deep", "nan", "wrong"],
)
def test_a_value_that_does_not_fit_is_malformed(value: bytes | None) -> None:
    with pytest.raises(MalformedEvent):
        decode(headers(), value)


@pytest.mark.parametrize(
    ("before", "word"),
    [
        ('"attempt":1,', "'attempt' stands twice"),
        ('"new":[{"a":1,"a":1}],', "'a' stands twice"),
        ('"new":NaN,', "NaN is no number"),
        ('"new":{"a":[-Infinity]},', "-Infinity is no number"),
    ],
)
def test_json_that_parsers_disagree_about_is_malformed_at_any_depth_and_in_unknown_fields(
    before: str, word: str
) -> None:
    with pytest.raises(MalformedEvent, match=word):
        decode(headers(), ("{" + before + STARTED["value"][1:]).encode())


def test_a_metric_that_is_no_number_is_malformed() -> None:
    golden = GOLDEN["runyard.run.metrics_reported.v1"]
    for wrong in ("NaN", "Infinity", '"1"x'):
        with pytest.raises(MalformedEvent):
            decode(headers(golden), golden["value"].replace("0.125", wrong).encode())

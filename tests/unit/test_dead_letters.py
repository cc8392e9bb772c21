"""Protects dead letters: each fits on its topic, says what it left out, is found by name, and is shown harmlessly."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from schemas.cloudevents import CloudEvent, decode
from schemas.events import MessageRefused
from services.backbone.dead_letters import MOST_REASON_CHARACTERS, DeadLetters, _letter
from services.backbone.kafka import MAX_RECORD_BYTES
from services.backbone.polling import UnreadableRecord
from services.backbone.publisher import Publisher
from services.cli.dead_letters import _moment, described, printable, summary
from services.cli.errors import UsageRefused
from services.cli.letters import Letter, Retry, find

AT = datetime(2026, 3, 13, 16, 10, tzinfo=UTC)


def record(key: bytes | None = b"run-a", value: bytes | None = b"{", headers: Any = ()) -> ConsumerRecord:
    return ConsumerRecord("runyard.runs", 3, 17, 1_700_000_000_000, 0, key, value, None, -1, -1, tuple(headers))


def refused(refused_record: ConsumerRecord, reason: str = "why") -> tuple[MessageRefused, int]:
    """The letter about a record, as it is read, and its size on the wire."""
    letter = _letter(refused_record, reason, "auditor.runs")
    event = decode(letter.headers, letter.value)
    assert isinstance(event, CloudEvent)
    assert isinstance(event.data, MessageRefused)
    size = len(letter.key.encode()) + len(letter.value) + sum(len(name) + len(raw) for name, raw in letter.headers)
    return event.data, size


LARGE = {
    "value": record(value=b"v" * MAX_RECORD_BYTES),
    "key": record(key=b"k" * MAX_RECORD_BYTES),
    "key of replacement characters": record(key=b"\xff" * MAX_RECORD_BYTES),
    "a header": record(headers=[("ce_id", b"h" * MAX_RECORD_BYTES)]),
    "a header's name": record(headers=[("n" * MAX_RECORD_BYTES, None)]),
    "many headers": record(headers=[("more", b"h" * 40)] * 80_000),
    "everything": record(b"k" * 10**6, b"v" * 10**6, [("n" * 1000, b"h" * 1000)] * 1000),
}


@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE.keys())
def test_a_letter_about_anything_fits_on_its_topic_and_says_that_it_is_not_all(large: ConsumerRecord) -> None:
    data, size = refused(large, reason="r" * MOST_REASON_CHARACTERS)
    assert size < MAX_RECORD_BYTES // 4
    assert not data.whole


def test_a_letter_about_a_record_that_cannot_be_read_does_not_pretend_to_hold_it() -> None:
    nothing: Any = (-1, 0, None, None, None, -1, -1, ())
    data, _ = refused(UnreadableRecord("runyard.runs", 3, 17, *nothing, why="the record cannot be read"))
    assert not data.whole
    assert (data.key_base64, data.value_base64, data.headers_base64) == (None, None, ())


def test_a_letter_about_an_ordinary_message_holds_all_of_it() -> None:
    data, _ = refused(record(b"\xff", b"\x00{", [("ce_id", None), ("ce_id", b"\xfe"), ("more", b"")]))
    assert data.whole
    assert base64.b64decode(data.key_base64 or "") == b"\xff"
    assert base64.b64decode(data.value_base64 or "") == b"\x00{"
    assert data.headers_base64 == (("ce_id", None), ("ce_id", base64.b64encode(b"\xfe").decode()), ("more", ""))
    assert (data.topic, data.partition, data.offset, data.value_size_bytes) == ("runyard.runs", 3, 17, 2)


def test_no_key_and_no_value_are_told_from_empty_ones() -> None:
    nothing, _ = refused(record(None, None))
    empty, _ = refused(record(b"", b""))
    assert (nothing.key_base64, nothing.value_base64, nothing.value_size_bytes) == (None, None, None)
    assert (empty.key_base64, empty.value_base64, empty.value_size_bytes) == ("", "", 0)
    assert nothing.whole
    assert empty.whole


def test_the_window_of_poison_is_remembered_in_order_and_recalled_by_the_next() -> None:
    first, second = (DeadLetters(Publisher({}), "auditor.runs") for _ in range(2))
    first.recall("0110")
    first.handled(2)
    assert first.remembered == "011000"
    first.handled(1000)
    assert first.remembered == "0" * 100
    second.recall(first.remembered + "1")
    assert second.remembered == "0" * 99 + "1"


def letter(letter_id: str, at: str = "0/1", retry: Retry | None = None, **changes: Any) -> Letter:
    told = {"reason": "broken", "topic": "runyard.runs", "partition": 3, "offset": 17, "consumer": "api.runs"}
    return Letter(letter_id, at, AT, "runyard.runs/3/17/0", MessageRefused(**(told | changes)), retry)


def test_a_letter_is_found_by_its_id_the_beginning_of_it_or_its_place() -> None:
    letters = [letter("aaaa-1", "0/1"), letter("aaaa-2", "0/2"), letter("bbbb-3", "0/3")]
    assert find(letters, "aaaa-2") is find(letters, "0/2") is letters[1]
    assert find(letters, "BB") is letters[2]
    for wrong in ("aaaa", "", "0/4", "c"):
        with pytest.raises(UsageRefused):
            find(letters, wrong)


def test_a_letter_of_an_older_release_with_as_many_headers_as_fit_is_not_taken_for_whole() -> None:
    assert not letter("a", headers_base64=(("more", ""),) * 100).whole
    assert letter("a", headers_base64=(("more", ""),) * 99).whole
    assert not letter("a", value_base64="e30=", value_size_bytes=3).whole


def test_nothing_of_a_letter_gives_orders_to_the_terminal() -> None:
    evil = base64.b64encode("\x1b]0;owned\x07\u202e\n".encode()).decode()
    shown = "\n".join(
        described(letter("a", reason="\x1b[2J", key_base64=evil, value_base64=evil, headers_base64=(("\x1b", evil),)))
    )
    assert all(character == "\n" or character.isprintable() for character in shown)
    assert "\\x1b[2J" in shown
    assert printable("x" * 10_000).endswith("… (10000 characters)")


def test_a_summary_tells_machines_what_became_of_a_letter() -> None:
    assert summary(letter("a", retry=Retry(AT, 40), value_size_bytes=0)) == {
        "letter_id": "a",
        "at": "0/1",
        "time": "2026-03-13T16:10:00Z",
        "consumer": "api.runs",
        "topic": "runyard.runs",
        "partition": 3,
        "offset": 17,
        "reason": "broken",
        "value_size_bytes": 0,
        "whole": True,
        "retried_at": "2026-03-13T16:10:00Z",
        "new_offset": 40,
    }


def test_since_is_a_duration_or_a_time() -> None:
    assert _moment(None) is None
    assert _moment("2026-03-13T16:10:00Z") == AT
    assert _moment("2026-03-13T16:10:00") == AT
    two_hours_ago = _moment("2h")
    assert two_hours_ago is not None
    assert abs(datetime.now(UTC) - two_hours_ago - timedelta(hours=2)) < timedelta(minutes=1)
    for wrong in ("yesterday", "2w", "-1h", "99999999d"):
        with pytest.raises(UsageRefused):
            _moment(wrong)

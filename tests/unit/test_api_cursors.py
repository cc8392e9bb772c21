"""Protects cursors: what was handed out comes back, anything else is refused and never crashes."""

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as some

from services.api.cursors import (
    CursorRefused,
    decode_cursor,
    decode_place,
    decode_position,
    encode_cursor,
    encode_place,
    encode_position,
)

printable = some.text(max_size=40).filter(str.isprintable)
numbers = some.integers(0, 2**31 - 1)


def cursor_of(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@given(numbers, numbers)
def test_a_position_comes_back_as_it_was(attempt: int, sequence: int) -> None:
    assert decode_cursor(encode_cursor(attempt, sequence), int, int) == (attempt, sequence)


@given(some.datetimes(timezones=some.just(UTC)), printable)
def test_a_place_comes_back_as_it_was(moment: datetime, identity: str) -> None:
    assert decode_place(encode_place(moment, identity)) == (moment, identity)


@given(numbers, printable)
def test_a_cursor_needs_no_escaping_in_a_url(number: int, text: str) -> None:
    assert set(encode_cursor(number, text)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_no_cursor_is_the_beginning() -> None:
    assert decode_place(None) == (None, None)


@given(some.text(max_size=80))
def test_a_strangers_text_is_refused_or_read_but_never_crashes(text: str) -> None:
    for types in ((int,), (int, int), (str, str)):
        try:
            parts = decode_cursor(text, *types)
        except CursorRefused:
            continue
        assert [type(part) for part in parts] == list(types)


@given(some.binary(max_size=60))
def test_encoded_bytes_of_a_stranger_never_crash(raw: bytes) -> None:
    text = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    try:
        decode_place(text)
    except CursorRefused:
        return


@pytest.mark.parametrize(
    "text",
    [
        *("", "!", "====", "e30", "null", "é", "W", "W1swXV0", "-" * 512, cursor_of({"a": 1}), cursor_of([])),
        *(cursor_of([1, 2]), cursor_of(["1"]), cursor_of([True]), cursor_of([1.0]), cursor_of([None]), cursor_of([-1])),
        *(cursor_of([2**31]), cursor_of([10**300]), encode_cursor(7) + "A" * 512),
    ],
)
def test_garbage_is_no_cursor_of_a_number(text: str) -> None:
    with pytest.raises(CursorRefused):
        decode_cursor(text, int)


@pytest.mark.parametrize(
    "text",
    [
        encode_cursor("yesterday", "mdl-1"),
        encode_cursor("2026-03-13T16:10:00", "mdl-1"),
        encode_cursor("2026-03-13T16:10:00+00:00", "mdl\0"),
        encode_cursor("2026-03-13T16:10:00+00:00", "mdl\n1"),
        cursor_of(["2026-03-13T16:10:00+00:00", "\ud800"]),
        encode_cursor(1, 2),
    ],
    ids=["no-time", "no-offset", "nul", "newline", "surrogate", "numbers"],
)
def test_garbage_is_no_place_in_a_list(text: str) -> None:
    with pytest.raises(CursorRefused):
        decode_place(text)


def test_a_cursor_that_nests_too_deeply_is_refused() -> None:
    with pytest.raises(CursorRefused):
        decode_cursor(base64.urlsafe_b64encode(b"[" * 380).decode().rstrip("="), int)


@given(numbers, numbers, numbers)
def test_a_position_in_the_output_comes_back_as_it_was(attempt: int, sequence: int, place: int) -> None:
    assert decode_position(encode_position((attempt, sequence, place))) == (attempt, sequence, place)


def test_a_position_without_a_place_is_the_cursor_that_it_was_before_there_were_places() -> None:
    assert encode_position((2, 7, 0)) == encode_cursor(2, 7)
    assert decode_position(None) == (0, 0, 0)


@pytest.mark.parametrize(
    "value", [[1], [1, 2, 3, 4], [1, 2, -1], [1, 2, 2**31], [1, 2, "a"], [1, 2, True], [1, 2, None]]
)
def test_other_positions_are_refused(value: object) -> None:
    with pytest.raises(CursorRefused):
        decode_position(cursor_of(value))

"""Protects what reads JSON: one meaning for every reader, and the same error for whatever else it may be."""

import json

import pytest

from services.api.strict_json import read_strictly


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (b"{}", {}),
        (b'{"a": {"b": 1}, "c": {"b": 2}}', {"a": {"b": 1}, "c": {"b": 2}}),
        (b'[1, -2.5e3, "\\u00e9", null, true]', [1, -2500.0, "é", None, True]),
        ('"Größe"'.encode(), "Größe"),
        (b"\xef\xbb\xbf{}", {}),
        (b"[" * 500 + b"]" * 500, None),
        (b"9" * 4300, int("9" * 4300)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_is_read(text: bytes, meaning: object) -> None:
    read = read_strictly(text)
    assert meaning is None or read == meaning


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"a": 1, "a": 1}', "twice"),
        (b'[{"a": {"b": 1, "\\u0062": 2}}]', "twice"),
        (b"NaN", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"\xff", "UTF-8"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        ("{}".encode("utf-16"), "UTF-8"),
        (b"[" * 100_000, "deeply"),
        (b'{"a":' * 100_000, "deeply"),
        (b"9" * 4301, "too long"),
        (b"", "Expecting value"),
        (b"{} {}", "Extra data"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_json_or_could_be_read_in_two_ways_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=why):
        read_strictly(text)

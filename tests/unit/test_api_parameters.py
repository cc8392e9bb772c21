"""Protects what the OpenAPI document says of texts and times: the same as the code, on both sides of every rule."""

import json
import re
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from services.api.bodies import FILE_NAME, ONE_LINE, SAID_OF_VARIABLES, free_name, passable_value, plain_text
from services.api.cursors import CursorRefused, decode_place, encode_cursor
from services.api.parameters import Moment

DOCUMENT = json.loads((Path(__file__).parents[2] / "schemas" / "exported" / "openapi.json").read_text())
MOMENT: TypeAdapter[datetime] = TypeAdapter(Moment)


def accepts(rule: Any, text: str) -> bool:
    try:
        rule(text)
    except ValueError:
        return False
    return True


def test_the_document_says_of_every_character_what_the_code_says_of_a_line() -> None:
    characters = [chr(code) for code in (*range(0x3000), 0xFFFD, 0x1F3C3)]
    refused = {character for character in characters if not re.search(ONE_LINE.replace("$", r"\Z"), character)}
    assert refused == {character for character in characters if not accepts(plain_text, character)}
    assert {unicodedata.category(character) for character in refused} == {"Cc", "Zl", "Zp"}


@pytest.mark.parametrize("text", ["", "a\n", "\na", "a\0", "two words", "größe", "🏃", "\u2028"])
def test_the_document_says_of_a_line_what_the_code_says(text: str) -> None:
    assert bool(re.search(ONE_LINE.replace("$", r"\Z"), text)) == accepts(plain_text, text)


@pytest.mark.parametrize("name", ["a.csv", "größe.csv", "x" * 255])
def test_the_document_allows_plain_file_names(name: str) -> None:
    assert re.search(FILE_NAME, name)


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", "a\nb", "x" * 256])
def test_the_document_forbids_what_cannot_be_a_file_name(name: str) -> None:
    assert not re.search(FILE_NAME.replace("$", r"\Z"), name)


@pytest.mark.parametrize(
    "name", ["A", "_", "x" * 128, "x" * 129, "1A", "A-B", "", "É", "PATH", "MY_PATH", "LD_X", "LDX", "PYTHONPATH"]
)
def test_the_document_says_of_a_variables_name_what_the_code_says(name: str) -> None:
    said = SAID_OF_VARIABLES["propertyNames"]
    enumerated, prefixed = said["not"]["anyOf"]
    reserved = name in enumerated["enum"] or bool(re.search(prefixed["pattern"], name))
    assert (bool(re.search(said["pattern"], name)) and not reserved) == accepts(free_name, name)


@pytest.mark.parametrize("value", ["", "a", "a\nb", "a\0b"])
def test_the_document_says_of_a_variables_value_what_the_code_says(value: str) -> None:
    pattern = SAID_OF_VARIABLES["additionalProperties"]["pattern"].replace("$", r"\Z")
    assert bool(re.search(pattern, value)) == accepts(passable_value, value)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-13T16:10:00Z", datetime(2026, 3, 13, 16, 10, tzinfo=UTC)),
        ("2026-03-13t16:10:00.5z", datetime(2026, 3, 13, 16, 10, 0, 500_000, tzinfo=UTC)),
        ("2026-03-13T17:10:00+01:00", datetime(2026, 3, 13, 16, 10, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_a_time_is_written_as_rfc_3339_has_it(text: str, moment: datetime) -> None:
    assert MOMENT.validate_python(text) == moment


@pytest.mark.parametrize(
    "text",
    [
        *(
            "0",
            "0.5",
            "1773418200",
            "-1",
            "now",
            "",
            "2026-03-13",
            "16:10:00Z",
            "2026-03-13T16:10:00",
            "2026-13-13T00:00:00Z",
        ),
        *(
            "2026-03-13 16:10:00Z",
            "2026-03-13T16:10Z",
            "20260313T161000Z",
            "٢026-03-13T16:10:00Z",
            "2026-03-13T16:10:00Z\n",
        ),
        *("0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "2026-03-13T24:00:01Z"),
    ],
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        MOMENT.validate_python(text)


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59.999999-23:59", "2026-03-13T16:10:00"]
)
def test_a_cursor_of_a_time_that_is_none_in_utc_is_refused(moment: str) -> None:
    with pytest.raises(CursorRefused):
        decode_place(encode_cursor(moment, "mdl-1"))


def test_every_answer_that_needs_a_header_says_so_in_the_document() -> None:
    for item in DOCUMENT["paths"].values():
        for operation in item.values():
            for status, answer in operation["responses"].items():
                wanted = {"401": "WWW-Authenticate", "403": "WWW-Authenticate", "503": "Retry-After", "201": "Location"}
                assert status not in wanted or wanted[status] in answer["headers"]

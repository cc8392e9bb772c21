"""Parameters that many routes share: the key of a repeated request, and where a list goes on."""

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Header, Query
from pydantic import AfterValidator, AwareDatetime, BeforeValidator

from services.api import cursors
from services.api.bodies import ONE_LINE, plain_text
from services.api.idempotency import HEADER, MAX_KEY_CHARACTERS, valid_key

DEFAULT_PAGE, LARGEST_PAGE = 50, 200
LARGEST_INTEGER = 2**31 - 1
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
CURSOR = {"pattern": "^[A-Za-z0-9_-]+$", "maxLength": cursors.MAX_CHARACTERS}


def _visible(key: str) -> str:
    if not valid_key(key):
        raise ValueError(f"a key has 1 to {MAX_KEY_CHARACTERS} visible ASCII characters")
    return key


def _place(cursor: str) -> str:
    cursors.decode_place(cursor)
    return cursor


def _position(cursor: str) -> str:
    cursors.decode_position(cursor)
    return cursor


def _number_cursor(cursor: str) -> str:
    cursors.decode_cursor(cursor, int)
    return cursor


def _rfc_3339(text: object) -> object:
    if not isinstance(text, str) or not RFC_3339.fullmatch(text):
        raise ValueError("a time is written as RFC 3339 has it, with an offset: 2026-03-13T16:10:00Z")
    return text


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("there is no such time in UTC") from error


Moment = Annotated[AwareDatetime, BeforeValidator(_rfc_3339), AfterValidator(_in_utc)]
IdempotencyKey = Annotated[
    str | None,
    AfterValidator(lambda key: None if key is None else _visible(key)),
    Header(
        alias=HEADER,
        description="Repeating a request with the same key and body returns the first answer.",
        json_schema_extra={"pattern": "^[!-~]+$", "maxLength": MAX_KEY_CHARACTERS},
    ),
]
Limit = Annotated[int, Query(ge=1, le=LARGEST_PAGE, description="How many items at most.")]
PlaceCursor = Annotated[
    str | None,
    AfterValidator(lambda cursor: None if cursor is None else _place(cursor)),
    Query(description="`next_cursor` of the page before.", json_schema_extra={**CURSOR}),
]
NumberCursor = Annotated[
    str | None,
    AfterValidator(lambda cursor: None if cursor is None else _number_cursor(cursor)),
    Query(description="`next_cursor` of the page before.", json_schema_extra={**CURSOR}),
]
OutputCursor = Annotated[
    str | None,
    AfterValidator(lambda cursor: None if cursor is None else _position(cursor)),
    Query(
        description="`next_cursor` of an earlier answer, or the id of a followed event.", json_schema_extra={**CURSOR}
    ),
]
LastEventId = Annotated[
    str | None,
    AfterValidator(lambda cursor: None if cursor is None else _position(cursor)),
    Header(
        alias="Last-Event-ID",
        description="Where a broken stream goes on; wins over `after`.",
        json_schema_extra={**CURSOR},
    ),
]
FilterText = Annotated[
    str | None,
    AfterValidator(lambda text: None if text is None else plain_text(text)),
    Query(max_length=256, json_schema_extra={"pattern": ONE_LINE}),
]

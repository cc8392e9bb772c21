"""Parameters that many routes share: the key of a repeated request, and where a list goes on."""

from typing import Annotated

from fastapi import Header, Query
from pydantic import AfterValidator

from services.api import cursors
from services.api.bodies import plain_text
from services.api.idempotency import HEADER, MAX_KEY_CHARACTERS, valid_key

DEFAULT_PAGE, LARGEST_PAGE = 50, 200
LARGEST_INTEGER = 2**31 - 1


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


IdempotencyKey = Annotated[
    str | None,
    AfterValidator(lambda key: None if key is None else _visible(key)),
    Header(alias=HEADER, description="Repeating a request with the same key and body returns the first answer."),
]
Limit = Annotated[int, Query(ge=1, le=LARGEST_PAGE, description="How many items at most.")]
PlaceCursor = Annotated[
    str | None,
    AfterValidator(lambda cursor: None if cursor is None else _place(cursor)),
    Query(description="`next_cursor` of the page before."),
]
NumberCursor = Annotated[
    str | None,
    AfterValidator(lambda cursor: None if cursor is None else _number_cursor(cursor)),
    Query(description="`next_cursor` of the page before."),
]
OutputCursor = Annotated[
    str | None,
    AfterValidator(lambda cursor: None if cursor is None else _position(cursor)),
    Query(description="`next_cursor` of an earlier answer, or the id of a followed event."),
]
LastEventId = Annotated[
    str | None,
    AfterValidator(lambda cursor: None if cursor is None else _position(cursor)),
    Header(alias="Last-Event-ID", description="Where a broken stream goes on; wins over `after`."),
]
FilterText = Annotated[
    str | None,
    AfterValidator(lambda text: None if text is None else plain_text(text)),
    Query(max_length=256),
]

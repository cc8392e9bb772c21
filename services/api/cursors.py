"""Opaque cursors: where a list or a stream goes on. Pure. Clients hand them back as they got them."""

import base64
import binascii
import json
from datetime import UTC, datetime

MAX_CHARACTERS = 512

Position = tuple[int, int, int]
"""Attempt, sequence and place: where a stream of output goes on. Only points of log lines have a place above 0."""

BEGINNING: Position = (0, 0, 0)


class CursorRefused(ValueError):
    """The text is no cursor of ours."""


def encode_cursor(*parts: str | int) -> str:
    """Write a place as a cursor.

    >>> decode_cursor(encode_cursor(2, "a"), int, str)
    (2, 'a')
    """
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode().rstrip("=")


def decode_cursor(text: str, *types: type) -> tuple[str | int, ...]:
    """Read a cursor that has parts of these types.

    Raises:
        CursorRefused: it has not.
    """
    if len(text) > MAX_CHARACTERS:
        raise CursorRefused("not a cursor of this list")
    try:
        parts = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise CursorRefused("not a cursor of this list") from error
    if not isinstance(parts, list) or [type(part) for part in parts] != list(types):
        raise CursorRefused("not a cursor of this list")
    if any(isinstance(part, int) and not 0 <= part < 1 << 31 for part in parts):
        raise CursorRefused("not a cursor of this list")
    if any(isinstance(part, str) and not part.isprintable() for part in parts):
        raise CursorRefused("not a cursor of this list")
    return tuple(parts)


def encode_position(position: Position) -> str:
    """Write a position in a run's output as a cursor; a place is written only where there is one.

    >>> [decode_position(encode_position((1, 7, place))) for place in (0, 3)]
    [(1, 7, 0), (1, 7, 3)]
    """
    attempt, sequence, place = position
    return encode_cursor(attempt, sequence, place) if place else encode_cursor(attempt, sequence)


def decode_position(text: str | None) -> Position:
    """Read a position in a run's output; no cursor is its beginning."""
    if text is None:
        return BEGINNING
    try:
        attempt, sequence = decode_cursor(text, int, int)
    except CursorRefused:
        attempt, sequence, place = decode_cursor(text, int, int, int)
        return int(attempt), int(sequence), int(place)
    return int(attempt), int(sequence), 0


def encode_place(created_at: datetime, identity: str) -> str:
    """Write the place behind an item of a list that is ordered by time and id."""
    return encode_cursor(created_at.isoformat(), identity)


def decode_place(text: str | None) -> tuple[datetime | None, str | None]:
    """Read the place in a list that is ordered by time and id; no cursor is its beginning."""
    if text is None:
        return None, None
    moment, identity = decode_cursor(text, str, str)
    try:
        created_at = datetime.fromisoformat(str(moment))
        if created_at.tzinfo is None:
            raise ValueError("no offset")
        return created_at.astimezone(UTC), str(identity)
    except (ValueError, OverflowError) as error:  # the first day of the year 1 is none everywhere
        raise CursorRefused("not a cursor of this list") from error

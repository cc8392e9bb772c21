"""JSON as the ledger hashes it, and as Postgres can hold it. Pure; knows nothing of events."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import rfc8785

GENESIS = "0" * 64
"""What stands in for the hash before the first."""


def link(previous: str, content: dict[str, Any]) -> str:
    """Chain content to what stands before it: SHA-256 over the previous hash and the content's canonical JSON.

    Raises:
        ValueError: if the content holds what canonical JSON (RFC 8785) cannot say.
    """
    return hashlib.sha256(previous.encode() + rfc8785.dumps(content)).hexdigest()


def exact(moment: datetime) -> str:
    """Write a time to the microsecond, as exactly as Postgres keeps it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def storable_json(value: bytes | str) -> str:
    r"""Write JSON so that Postgres can hold it as jsonb; what it cannot hold at all becomes `null`.

    NUL and lone surrogates, which JSON allows and Postgres does not, become U+FFFD.

    >>> storable_json(b'{"text": "a\u0000b"}')
    '{"text": "a\\ufffdb"}'
    >>> storable_json(b"no JSON")
    'null'
    """
    try:
        return json.dumps(storable(json.loads(value)), allow_nan=False)
    except (ValueError, RecursionError):
        return "null"


def storable_text(text: str) -> str:
    """Replace what Postgres refuses in text by U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def storable(value: Any) -> Any:
    """Do the same to every text within some JSON."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable_text(key): storable(item) for key, item in value.items()}
    return value

"""Idempotency keys: the same key and body get the first answer, another body is refused. Pure.

Bodies are compared by an HMAC of their parsed fields, so that nothing of them is kept. Owns the rules; the rows are the
store's.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

KEPT_FOR = timedelta(days=7)
HEADER = "Idempotency-Key"
MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that carries a key: whose, where, and what it asks for.

    `fingerprints` are by each secret that is known, the current one first, so that a changed secret breaks nothing.
    """

    tenant_id: str
    path: str
    key: str
    fingerprints: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is kept: never with a variable's value."""

    status: int
    body: str
    location: str | None = None
    replayed: bool = False


def valid_key(key: str) -> bool:
    """Whether a header's value can be a key: 1 to 255 visible ASCII characters."""
    return 1 <= len(key) <= MAX_KEY_CHARACTERS and all("!" <= character <= "~" for character in key)


def fingerprint(secret: bytes, fields: Mapping[str, object]) -> bytes:
    """Digest the parsed fields of a request, whatever their order and spelling were."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(hashlib.sha256(b"idempotency" + secret).digest(), canonical, hashlib.sha256).digest()


def same_request(ticket: Ticket, kept: bytes) -> bool:
    """Whether a kept fingerprint is this request's."""
    return any(hmac.compare_digest(kept, own) for own in ticket.fingerprints)

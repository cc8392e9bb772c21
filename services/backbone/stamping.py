"""Stamps for content that is too large to be sealed: HMAC-SHA256 under a sealing key, bound to its subject.

Whoever checks a stamp knows that somebody with the key made this very content for this very subject. It hides nothing
(see `sealing`), and owns the stamp's format only.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import BinaryIO

from services.backbone.errors import SealBroken
from services.backbone.sealing import KEY_ID_BYTES, SealingKey

MAGIC = b"RYC1"
STAMP_BYTES = len(MAGIC) + KEY_ID_BYTES + hashlib.sha256().digest_size


def stamp(key: SealingKey, subject: str, content: BinaryIO) -> bytes:
    """Make the stamp of a file, from where it stands to its end: magic, key id, digest."""
    return MAGIC + key.key_id.encode().ljust(KEY_ID_BYTES, b"\0") + _digest(key, subject, content)


def check_stamp(keys: Mapping[str, SealingKey], subject: str, stamped: bytes, content: BinaryIO) -> None:
    """Check the stamp of a file, from where it stands to its end, by the one of these keys that it names.

    Raises:
        SealBroken: unknown key, wrong subject, or changed content.
    """
    key = keys.get(stamped[len(MAGIC) : len(MAGIC) + KEY_ID_BYTES].rstrip(b"\0").decode(errors="replace"))
    if not stamped.startswith(MAGIC) or key is None:
        raise SealBroken("stamped by a key that is not configured here")
    if not hmac.compare_digest(stamped[len(MAGIC) + KEY_ID_BYTES :], _digest(key, subject, content)):
        raise SealBroken("the stamp does not fit its subject, or the content was changed")


def _digest(key: SealingKey, subject: str, content: BinaryIO) -> bytes:
    mac = hmac.new(hashlib.sha256(b"stamp" + key.secret).digest(), subject.encode() + b"\0", hashlib.sha256)
    while chunk := content.read(1 << 20):
        mac.update(chunk)
    return mac.digest()

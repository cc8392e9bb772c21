"""Sealing of secrets: AES-256-GCM, bound to their subject, with the key's id in the header.

A sealed value opens only with the same key and for the same subject, so a copied object is useless elsewhere. Owns the
format; never stores anything.
"""

import base64
import os
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.backbone.errors import SealBroken

MAGIC = b"RYS1"
NONCE_BYTES = 12  # NIST SP 800-38D, 8.2: 96-bit nonces; random ones are safe for fewer than 2**32 seals per key
KEY_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A 256-bit key and the id by which sealed bytes name it."""

    key_id: str
    secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "SealingKey":
        """Read `<key id>:<base64 of 32 bytes>`.

        Raises:
            ValueError: if the text has another form; the message never repeats the secret.
        """
        key_id, _, encoded = text.partition(":")
        if not 1 <= len(key_id.encode()) <= KEY_ID_BYTES:
            raise ValueError(f"a sealing key is '<id of 1-{KEY_ID_BYTES} bytes>:<base64 of 32 bytes>'")
        secret = base64.b64decode(encoded, validate=True)
        if len(secret) != 32:
            raise ValueError("a sealing key has 32 bytes; make one with: openssl rand -base64 32")
        return cls(key_id, secret)


def parse_keys(current: str, retired: str = "") -> tuple[SealingKey, ...]:
    """Read the key that seals, and those of before that still open, with blanks between them.

    Raises:
        ValueError: one of them has another form.
    """
    return tuple(SealingKey.parse(text) for text in (current, *retired.split()))


def seal(key: SealingKey, subject: str, plain: bytes) -> bytes:
    """Encrypt for one subject: magic, key id, nonce, ciphertext with tag."""
    nonce = os.urandom(NONCE_BYTES)
    header = MAGIC + key.key_id.encode().ljust(KEY_ID_BYTES, b"\0")
    return header + nonce + AESGCM(key.secret).encrypt(nonce, plain, header + subject.encode())


def unseal(keys: dict[str, SealingKey], subject: str, sealed: bytes) -> bytes:
    """Decrypt what was sealed for that subject by one of these keys (by key id).

    Raises:
        SealBroken: unknown key, wrong subject, or changed bytes.
    """
    header, rest = sealed[: len(MAGIC) + KEY_ID_BYTES], sealed[len(MAGIC) + KEY_ID_BYTES :]
    key = keys.get(header[len(MAGIC) :].rstrip(b"\0").decode(errors="replace"))
    if not header.startswith(MAGIC) or key is None:
        raise SealBroken("sealed by a key that is not configured here")
    try:
        return AESGCM(key.secret).decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], header + subject.encode())
    except (InvalidTag, ValueError) as error:
        raise SealBroken("the seal does not fit its subject, or was changed") from error

"""Protects the rules of idempotency keys: what is a key, and what is the same request."""

import pytest

from services.api.idempotency import Ticket, fingerprint, same_request, valid_key


@pytest.mark.parametrize(
    ("key", "valid"),
    [("a", True), ("x" * 255, True), ("x" * 256, False), ("", False), ("a b", False), ("ü", False), ("a\n", False)],
)
def test_a_key_has_1_to_255_visible_characters(key: str, valid: bool) -> None:
    assert valid_key(key) is valid


def test_a_fingerprint_knows_fields_and_not_their_order() -> None:
    kept = fingerprint(b"secret", {"a": 1, "b": {"c": "x", "d": None}})
    assert kept == fingerprint(b"secret", {"b": {"d": None, "c": "x"}, "a": 1})
    assert kept != fingerprint(b"secret", {"a": 1, "b": {"c": "y", "d": None}})
    assert kept != fingerprint(b"secret", {"a": True, "b": {"c": "x", "d": None}})


def test_a_request_is_recognised_after_the_secret_has_changed() -> None:
    fields: dict[str, object] = {"name": "wine"}
    kept = fingerprint(b"old", fields)
    rotated = Ticket("acme", "/path", "key", (fingerprint(b"new", fields), fingerprint(b"old", fields)))
    assert same_request(rotated, kept)
    assert not same_request(Ticket("acme", "/path", "key", (fingerprint(b"new", fields),)), kept)

"""Protects the secrecy of variables: a seal opens only with its key, for its subject, unchanged."""

import pytest

from services.backbone.errors import SealBroken
from services.backbone.sealing import SealingKey, seal, unseal

KEY = SealingKey("k1", b"\x01" * 32)
OTHER = SealingKey("k2", b"\x02" * 32)


def test_a_seal_opens_with_its_key_for_its_subject() -> None:
    assert unseal({"k1": KEY}, "run-a", seal(KEY, "run-a", b"canary")) == b"canary"


def test_sealed_bytes_do_not_show_the_value_and_differ_each_time() -> None:
    first, second = seal(KEY, "run-a", b"canary"), seal(KEY, "run-a", b"canary")
    assert b"canary" not in first
    assert first != second


def test_an_old_key_still_opens_after_rotation() -> None:
    assert unseal({"k1": KEY, "k2": OTHER}, "run-a", seal(KEY, "run-a", b"canary")) == b"canary"


def test_a_seal_does_not_open_for_another_subject() -> None:
    with pytest.raises(SealBroken):
        unseal({"k1": KEY}, "run-b", seal(KEY, "run-a", b"canary"))


def test_a_seal_does_not_open_with_another_key() -> None:
    with pytest.raises(SealBroken):
        unseal({"k1": SealingKey("k1", OTHER.secret)}, "run-a", seal(KEY, "run-a", b"canary"))
    with pytest.raises(SealBroken):
        unseal({"k2": OTHER}, "run-a", seal(KEY, "run-a", b"canary"))


@pytest.mark.parametrize("position", [0, 5, 15, 30, -1])
def test_a_seal_with_one_changed_bit_does_not_open(position: int) -> None:
    sealed = bytearray(seal(KEY, "run-a", b"canary"))
    sealed[position] ^= 1
    with pytest.raises(SealBroken):
        unseal({"k1": KEY}, "run-a", bytes(sealed))


@pytest.mark.parametrize("length", [0, 3, 12, 23])
def test_a_cut_seal_does_not_open(length: int) -> None:
    with pytest.raises(SealBroken):
        unseal({"k1": KEY}, "run-a", seal(KEY, "run-a", b"canary")[:length])


def test_a_key_is_read_from_text_and_never_printed() -> None:
    key = SealingKey.parse("k1:" + "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")
    assert key == KEY
    assert "AQEB" not in repr(key)
    assert "\\x01" not in repr(key)


@pytest.mark.parametrize("text", ["", "k1", ":AQEB", "k1:AQEB", "a-very-long-id:AQEB", "k1:not base64!"])
def test_a_malformed_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        SealingKey.parse(text)

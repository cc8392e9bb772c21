"""Protects runners from what is not theirs: a stamp fits one content, for one subject, under a key that is known."""

import io

import pytest

from services.backbone.errors import SealBroken
from services.backbone.sealing import SealingKey
from services.backbone.stamping import STAMP_BYTES, check_stamp, stamp

KEY = SealingKey("k1", b"\x01" * 32)
OTHER = SealingKey("k2", b"\x02" * 32)


def stamped(key: SealingKey = KEY, subject: str = "run-a/1", content: bytes = b"content") -> bytes:
    return stamp(key, subject, io.BytesIO(content))


def check(made: bytes, subject: str = "run-a/1", content: bytes = b"content", *keys: SealingKey) -> None:
    check_stamp({key.key_id: key for key in keys or (KEY,)}, subject, made, io.BytesIO(content))


def test_a_stamp_fits_what_it_was_made_for_after_the_key_was_replaced_too() -> None:
    assert len(stamped()) == STAMP_BYTES
    check(stamped())
    check(stamped(), "run-a/1", b"content", OTHER, KEY)
    check(stamped(content=b""), content=b"")


def test_a_stamp_is_of_what_comes_from_where_the_file_stands() -> None:
    file = io.BytesIO(b"header content")
    file.seek(7)
    check(stamp(KEY, "run-a/1", file))


@pytest.mark.parametrize("subject", ["run-a/2", "run-b/1", "run-a/11", ""])
def test_it_does_not_fit_another_run_or_attempt(subject: str) -> None:
    with pytest.raises(SealBroken, match="subject"):
        check(stamped(), subject)


def test_subject_and_content_cannot_be_shifted_into_each_other() -> None:
    with pytest.raises(SealBroken):
        check(stamped(subject="run-a/1", content=b"1content"), "run-a/11", b"content")


@pytest.mark.parametrize("content", [b"", b"conten", b"content ", b"Content"])
def test_it_does_not_fit_other_content(content: bytes) -> None:
    with pytest.raises(SealBroken, match="changed"):
        check(stamped(), content=content)


def test_it_does_not_fit_under_another_key() -> None:
    with pytest.raises(SealBroken, match="not configured"):
        check(stamped(OTHER))
    with pytest.raises(SealBroken, match="changed"):
        check(stamped(SealingKey("k1", OTHER.secret)))


@pytest.mark.parametrize(
    "made", [b"", b"RYC1", b"\xff" * STAMP_BYTES, stamped()[:-1], stamped() + b"x", b"X" + stamped()[1:]]
)
def test_what_is_no_stamp_fits_nothing(made: bytes) -> None:
    with pytest.raises(SealBroken):
        check(made)

"""When the object store is given up, what its owner is told, and what is never told."""

import errno

import pytest

from schemas.reason import Reason
from services.backbone.errors import ObjectMissing, ObjectUnavailable
from services.runner.supplies import GivenUp, patiently


@pytest.mark.parametrize(
    ("problem", "reason", "message"),
    [
        (ObjectUnavailable("https://own.example/bucket: 503"), Reason.UPLOAD_FAILED, "could not be used for 0 s"),
        (PermissionError(errno.EACCES, "denied", "/srv/objects"), Reason.UPLOAD_FAILED, "could not be used for 0 s"),
        (OSError(errno.ENOSPC, "full", "/srv/objects"), Reason.DISK_FULL, "the runner's disk is full"),
        (ObjectMissing("sha256/00"), Reason.UPLOAD_FAILED, "not in the object store: sha256/00"),
    ],
)
async def test_what_goes_wrong_with_the_store_is_told_without_its_address(
    problem: Exception, reason: Reason, message: str
) -> None:
    async def fails() -> None:
        raise problem

    with pytest.raises(GivenUp, match=message) as given_up:
        await patiently(fails, Reason.UPLOAD_FAILED, 0)
    assert given_up.value.lost.reason is reason
    for address in ("own.example", "/srv"):
        assert address not in given_up.value.lost.message

"""Protects the object store: content by digest, whole or not at all, bounded."""

import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.backbone.errors import ObjectMissing
from services.backbone.objects import Objects, TooLarge, content_key


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(f"file://{tmp_path}/store")


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _read(objects: Objects, key: str) -> bytes:
    return b"".join([chunk async for chunk in objects.stream(key)])


async def test_content_is_stored_under_its_digest(objects: Objects) -> None:
    stored = await objects.store_content(_chunks(b"ab", b"", b"c"), max_bytes=3)
    assert stored.sha256 == hashlib.sha256(b"abc").hexdigest()
    assert stored.size_bytes == 3
    assert await _read(objects, content_key(stored.sha256)) == b"abc"


async def test_an_empty_stream_is_content_too(objects: Objects) -> None:
    stored = await objects.store_content(_chunks(), max_bytes=0)
    assert stored.size_bytes == 0
    assert await _read(objects, content_key(stored.sha256)) == b""


async def test_a_stream_over_the_limit_leaves_nothing(objects: Objects, tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        await objects.store_content(_chunks(b"ab", b"cd"), max_bytes=3)
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


async def test_the_same_content_twice_is_one_object(objects: Objects, tmp_path: Path) -> None:
    await objects.store_content(_chunks(b"abc"), max_bytes=3)
    await objects.store_content(_chunks(b"abc"), max_bytes=3)
    assert len([path for path in (tmp_path / "store").rglob("*") if path.is_file()]) == 1


async def test_a_file_is_stored_under_its_known_digest(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    await objects.store_file(tmp_path / "model.bin", digest)
    assert await _read(objects, content_key(digest)) == b"weights"


async def test_a_missing_object_says_so(objects: Objects) -> None:
    with pytest.raises(ObjectMissing):
        await objects.get("variables/run-none")
    with pytest.raises(ObjectMissing):
        await _read(objects, "objects/none")


async def test_a_value_is_put_replaced_and_deleted_once_or_twice(objects: Objects) -> None:
    await objects.put("variables/run-a", b"one")
    await objects.put("variables/run-a", b"two")
    assert await objects.get("variables/run-a") == b"two"
    await objects.delete("variables/run-a")
    await objects.delete("variables/run-a")
    with pytest.raises(ObjectMissing):
        await objects.get("variables/run-a")


async def test_a_stream_replaces_what_was_there_whole_or_not_at_all(objects: Objects, tmp_path: Path) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"half"
        raise TooLarge

    await objects.put_stream("checkpoints/run-a/1", _chunks(b"o", b"ne"))
    with pytest.raises(TooLarge):
        await objects.put_stream("checkpoints/run-a/1", breaks())
    assert await _read(objects, "checkpoints/run-a/1") == b"one"
    await objects.put_stream("checkpoints/run-a/1", _chunks(b"two"))
    assert await _read(objects, "checkpoints/run-a/1") == b"two"
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == ["1"]


async def test_all_below_a_prefix_goes_and_nothing_beside_it(objects: Objects) -> None:
    for key in ("checkpoints/run-a/1", "checkpoints/run-a/2", "checkpoints/run-ab/1"):
        await objects.put(key, b"kept")
    assert await objects.delete_below("checkpoints/run-a") == 2
    assert await objects.delete_below("checkpoints/run-a") == 0
    assert [found.key async for found in objects.listing("checkpoints")] == ["checkpoints/run-ab/1"]


DIES_HALF_WAY = """
import asyncio, os, signal, sys
from services.backbone.objects import Objects

async def chunks():
    for chunk in range(64):
        yield b"x" * (1 << 20)
        if chunk == 32:
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(Objects(sys.argv[1]).store_content(chunks(), 1 << 30))
"""


async def test_what_a_killed_process_has_written_half_is_found_and_removed(objects: Objects, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    died = subprocess.run([sys.executable, "-c", DIES_HALF_WAY, url], check=False)  # noqa: ASYNC221 - it is quick
    assert died.returncode == -9
    await objects.put("variables/whole", b"whole")
    left = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(left) == 2
    now = datetime.now(UTC)
    assert await objects.remove_unfinished(now - timedelta(days=1)) == 0
    assert await objects.remove_unfinished(now + timedelta(days=1)) == 1
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == ["whole"]

"""The runner's cache: what travels once, and whose a file is."""

import hashlib
import os
from pathlib import Path

import pytest

from schemas.parts import PinnedAsset, PinnedDataset, PinnedObject
from services.backbone.errors import ObjectMissing
from services.backbone.objects import Objects, content_key
from services.runner.cache import Cache, DigestMismatch

CONTENT = b"a,b\n1,2\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def dataset(dataset_id: str, sha256: str = SHA256) -> PinnedDataset:
    return PinnedDataset(filename="data.csv", sha256=sha256, size_bytes=len(CONTENT), dataset_id=dataset_id)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "cache", Objects((tmp_path / "objects").as_uri()), 1 << 20)
    cache.clear_unfinished()
    return cache


async def inode(cache: Cache, pinned: PinnedObject) -> int:
    async with cache.hold([pinned]) as paths:
        assert paths[pinned.sha256].read_bytes() == CONTENT
        return paths[pinned.sha256].stat().st_ino


async def test_a_dataset_is_fetched_once_and_read_only(cache: Cache) -> None:
    await cache.objects.put(content_key(SHA256), CONTENT)
    first = await inode(cache, dataset("dts-1"))
    await cache.objects.delete(content_key(SHA256))
    assert await inode(cache, dataset("dts-1")) == first
    assert [path.stat().st_mode & 0o777 for path in cache.folder.iterdir()] == [0o444]


async def test_two_owners_of_the_same_bytes_never_share_a_file(cache: Cache) -> None:
    await cache.objects.put(content_key(SHA256), CONTENT)
    asset = PinnedAsset(filename="a", sha256=SHA256, size_bytes=1, asset_id="ast-1", asset_type="data")
    assert len({await inode(cache, pinned) for pinned in (dataset("dts-1"), dataset("dts-2"), asset)}) == 3


async def test_an_id_that_climbs_stays_in_the_folder(cache: Cache, tmp_path: Path) -> None:
    await cache.objects.put(content_key(SHA256), CONTENT)
    await inode(cache, dataset("../../escaped"))
    assert [path.parent for path in tmp_path.rglob("*escaped*")] == []
    assert len(list(cache.folder.iterdir())) == 1


async def test_bytes_that_are_not_those_that_were_pinned_are_not_kept(cache: Cache) -> None:
    await cache.objects.put(content_key(SHA256), b"others")
    with pytest.raises(DigestMismatch):
        await inode(cache, dataset("dts-1"))
    assert list(cache.folder.iterdir()) == []


async def test_what_the_store_lacks_is_missing(cache: Cache) -> None:
    with pytest.raises(ObjectMissing):
        await inode(cache, dataset("dts-1"))


async def test_a_file_of_this_machine_is_copied_in_and_then_held_like_any_other(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes(CONTENT)
    assert cache.keep(tmp_path / "mine.csv", "dts-1") == (SHA256, len(CONTENT))
    assert await inode(cache, dataset("dts-1")) != (tmp_path / "mine.csv").stat().st_ino


async def test_what_was_used_longest_ago_goes_first_and_what_is_held_stays(cache: Cache, tmp_path: Path) -> None:
    cache.max_bytes = len(CONTENT)
    (tmp_path / "mine.csv").write_bytes(CONTENT)
    for age, owner in ((300, "dts-held"), (200, "dts-old"), (100, "dts-new")):
        cache.keep(tmp_path / "mine.csv", owner)
        newest = max(cache.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1_000_000 - age, 1_000_000 - age))
    async with cache.hold([dataset("dts-held")]):
        async with cache.hold([]):
            pass
        assert len(list(cache.folder.iterdir())) == 1
        assert await inode(cache, dataset("dts-held")) > 0

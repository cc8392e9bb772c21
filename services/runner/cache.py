"""Objects of the store on the runner's own disk, by SHA-256 and by whose they are, so that a dataset travels once.

A file appears whole or not at all, its digest checked on the way in, read-only for everybody. The folder is kept below
a size by removing what was used longest ago, never what an attempt holds. It never serves bytes that were not checked,
nor one file to two tenants: locks and watches on a file that both have mounted would carry messages between their runs
(docs/decisions/0015-cached-files-have-one-owner.md).
"""

import asyncio
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4
from weakref import WeakValueDictionary

from schemas.parts import PinnedAsset, PinnedDataset, PinnedObject
from services.backbone.crash_points import crash_point
from services.backbone.errors import TransientError
from services.backbone.objects import Objects, content_key

READ_ONLY = 0o444


class DigestMismatch(TransientError):
    """The store's bytes are not those that were pinned: damaged on the way, or in the store."""


@dataclass
class Cache:
    """The folder of one runner; any number of attempts may use it at once."""

    folder: Path
    objects: Objects
    max_bytes: int
    _held: Counter[str] = field(default_factory=Counter)
    _locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    @asynccontextmanager
    async def hold(self, wanted: Sequence[PinnedObject]) -> AsyncIterator[dict[str, Path]]:
        """Fetch what is missing and keep all of it until the end of the block; digest → file.

        Raises:
            ObjectMissing: the store does not have one of them.
            TransientError: the store did not answer, or gave other bytes.
            OSError: the disk is full.
        """
        names = [file_name(pinned.sha256, _owner(pinned)) for pinned in wanted]
        self._held.update(names)
        try:
            for pinned, name in zip(wanted, names, strict=True):
                async with self._locks.setdefault(name, asyncio.Lock()):
                    await self._ensure(pinned, self.folder / name)
            yield {pinned.sha256: self.folder / name for pinned, name in zip(wanted, names, strict=True)}
        finally:
            self._held.subtract(names)
            self._held += Counter()  # forgets those that nobody holds
            await asyncio.to_thread(self._shrink, frozenset(self._held))

    def keep(self, source: Path, owner: str) -> tuple[str, int]:
        """Copy a file of this machine into the cache as the content of a dataset or asset; its digest and its size.

        Raises:
            OSError: it cannot be read, or the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"{uuid4().hex}.part"
        try:
            with source.open("rb") as bytes_, part.open("xb") as target:
                shutil.copyfileobj(bytes_, target, 1 << 20)
            with part.open("rb") as copied:
                digest = hashlib.file_digest(copied, "sha256").hexdigest()
            size_bytes = part.stat().st_size
            part.chmod(READ_ONLY)
            part.rename(self.folder / file_name(digest, owner))
        finally:
            part.unlink(missing_ok=True)
        return digest, size_bytes

    def clear_unfinished(self) -> None:
        """Remove what an earlier process was still writing; to be called before the first use."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("*.part"):
            leftover.unlink()

    async def _ensure(self, pinned: PinnedObject, path: Path) -> None:
        if path.exists():
            os.utime(path)
            return
        part = path.with_suffix(f".{uuid4().hex}.part")
        try:
            with part.open("xb") as target:
                await self._download(pinned, target)
            part.chmod(READ_ONLY)
            crash_point("before_cache_rename")
            part.rename(path)
            crash_point("after_cache_rename")
        finally:
            part.unlink(missing_ok=True)

    async def _download(self, pinned: PinnedObject, target: BinaryIO) -> None:
        digest = hashlib.sha256()

        def take(chunk: bytes) -> None:
            digest.update(chunk)
            target.write(chunk)

        async for chunk in self.objects.stream(content_key(pinned.sha256)):
            await asyncio.to_thread(take, chunk)
        if digest.hexdigest() != pinned.sha256:
            raise DigestMismatch(f"the bytes of {pinned.filename} are not those that were pinned")

    def _shrink(self, held: frozenset[str]) -> None:
        files = [(about.st_mtime, about.st_size, path) for path, about in self._finished()]
        excess = sum(size for _, size, _ in files) - self.max_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            if path.name not in held:
                path.unlink(missing_ok=True)
                excess -= size

    def _finished(self) -> list[tuple[Path, os.stat_result]]:
        return [(path, path.stat()) for path in self.folder.iterdir() if path.suffix != ".part"]


def file_name(sha256: str, owner: str) -> str:
    """Name the file that a dataset's or an asset's bytes are kept in; ids come from outside, so they are digested.

    >>> file_name("0" * 4, "dts-00000000")
    '0000-5363178bb75760c5'
    """
    return f"{sha256}-{hashlib.sha256(owner.encode()).hexdigest()[:16]}"


def _owner(pinned: PinnedObject) -> str:
    """Tell whose bytes they are: datasets and assets belong to one tenant each."""
    match pinned:
        case PinnedDataset():
            return pinned.dataset_id
        case PinnedAsset():
            return pinned.asset_id
        case _:
            return ""

"""The object store: a local folder or a bucket, by URL. Content is addressed by its SHA-256.

Owns keys and streaming; never knows what the bytes mean. Writes become visible whole or not at all.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from services.backbone.crash_points import crash_point
from services.backbone.errors import ObjectExists, ObjectMissing, ObjectUnavailable

CHUNK_BYTES = 1 << 20
RETRY_FOR = timedelta(seconds=60)
"""How long a bucket that does not answer is asked again: well below what a watchdog takes for a standstill."""
STAGED = re.compile(r".+#\d+")
"""How a local store names a file while it is written (`LocalStore` of the object_store crate); no listing shows it."""


class TooLarge(Exception):
    """More bytes than the caller allows; nothing was stored."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What was stored: its digest is its address."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object as a listing shows it; `stored_at` is when it was last written."""

    key: str
    stored_at: datetime


def content_key(sha256: str) -> str:
    """Name the object of a digest."""
    return f"objects/{sha256[:2]}/{sha256}"


class Objects:
    """A store of objects behind one URL: `file:///folder`, `s3://…`, `gs://…`, `az://…`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._folder = Path(parts.path) if parts.scheme == "file" else None
        self._store: ObjectStore = (
            LocalStore(self._folder, mkdir=True)
            if self._folder
            else from_url(url, retry_config={"retry_timeout": RETRY_FOR})
        )

    async def store_content(self, chunks: AsyncIterator[bytes], max_bytes: int) -> StoredObject:
        """Store a stream under its digest.

        Raises:
            TooLarge: the stream is longer than `max_bytes`.
            ObjectUnavailable: the store did not answer.
        """
        upload, digest, size = f"uploads/{uuid4().hex}", hashlib.sha256(), 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise TooLarge(f"more than {max_bytes} bytes")
                digest.update(chunk)
                if chunk:
                    yield chunk

        try:
            await obstore.put_async(self._store, upload, counted())
            crash_point("before_content_rename")
            await obstore.rename_async(self._store, upload, content_key(digest.hexdigest()))
            crash_point("after_content_rename")
        except BaseError as error:
            raise ObjectUnavailable(str(error)) from error
        return StoredObject(digest.hexdigest(), size)

    async def store_file(self, path: Path, sha256: str) -> None:
        """Store a file whose digest is known under that digest."""
        try:
            await obstore.put_async(self._store, content_key(sha256), path)
        except BaseError as error:
            raise ObjectUnavailable(str(error)) from error

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a stream under a key of its own, replacing what was there once all of it has arrived."""
        try:
            await obstore.put_async(self._store, key, chunks)
        except BaseError as error:
            raise ObjectUnavailable(str(error)) from error

    async def put(self, key: str, value: bytes) -> None:
        """Store a small value under a key of its own, replacing what was there."""
        try:
            await obstore.put_async(self._store, key, value)
        except BaseError as error:
            raise ObjectUnavailable(str(error)) from error

    async def create(self, key: str, value: bytes) -> None:
        """Store a small value under a key that is still free.

        Raises:
            ObjectExists: the key is taken; nothing was changed.
        """
        try:
            await obstore.put_async(self._store, key, value, mode="create")
        except (AlreadyExistsError, FileExistsError) as error:
            raise ObjectExists(key) from error
        except BaseError as error:
            raise ObjectUnavailable(str(error)) from error

    async def get(self, key: str) -> bytes:
        """Read a small value.

        Raises:
            ObjectMissing: nothing has that key.
        """
        try:
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())
        except (NotFoundError, FileNotFoundError) as error:
            raise ObjectMissing(key) from error
        except BaseError as error:
            raise ObjectUnavailable(str(error)) from error

    async def stream(self, key: str) -> AsyncGenerator[bytes, None]:
        """Read an object in chunks of about a mebibyte; raises like `get`, before the first chunk if it is missing."""
        try:
            result = await obstore.get_async(self._store, key)
            async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)
        except (NotFoundError, FileNotFoundError) as error:
            raise ObjectMissing(key) from error
        except BaseError as error:
            raise ObjectUnavailable(str(error)) from error

    async def delete(self, key: str) -> None:
        """Remove an object; it is no error if there is none."""
        try:
            await obstore.delete_async(self._store, key)
        except (NotFoundError, FileNotFoundError):
            return
        except BaseError as error:
            raise ObjectUnavailable(str(error)) from error

    async def delete_below(self, prefix: str) -> int:
        """Remove all objects below a prefix, and tell how many there were."""
        keys = [found.key async for found in self.listing(prefix)]
        for key in keys:
            await self.delete(key)
        return len(keys)

    async def listing(self, prefix: str) -> AsyncIterator[ListedObject]:
        """List the objects below a prefix, such as `objects`."""
        try:
            async for batch in obstore.list(self._store, prefix):
                for meta in batch:
                    yield ListedObject(meta["path"], meta["last_modified"])
        except BaseError as error:
            raise ObjectUnavailable(str(error)) from error

    async def stored_at(self, key: str) -> datetime | None:
        """Tell when an object was last written; None when there is none."""
        try:
            return (await obstore.head_async(self._store, key))["last_modified"]
        except (NotFoundError, FileNotFoundError):
            return None
        except BaseError as error:
            raise ObjectUnavailable(str(error)) from error

    async def remove_unfinished(self, before: datetime) -> int:
        """Remove what processes that were killed have written half, if it was last written before a time.

        Only a local folder keeps such files; a bucket's unfinished uploads are ended by its own lifecycle rule.
        """
        return 0 if self._folder is None else await asyncio.to_thread(_remove_staged, self._folder, before)


def _remove_staged(folder: Path, before: datetime) -> int:
    removed = 0
    for path in folder.rglob("*#*"):
        try:
            if STAGED.fullmatch(path.name) and datetime.fromtimestamp(path.stat().st_mtime, UTC) < before:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue  # its writer has finished just now
    return removed

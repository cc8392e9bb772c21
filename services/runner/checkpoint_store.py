"""Checkpoints on their way from one attempt to the next, by way of the object store: one object for each attempt.

An object is a stamp and a tar, replaced whole by each newer snapshot, so that a reader finds one that fits itself. The
stamp is of run, attempt and content under the sealing key: what no runner has made is never unpacked. Owns the object's
form; never looks into a run's folder.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import structlog

from schemas.ids import checkpoint_key, checkpoints_folder
from schemas.parts import RunAttempt
from services.backbone.crash_points import crash_point
from services.backbone.errors import ObjectMissing, SealBroken
from services.backbone.objects import CHUNK_BYTES, Objects
from services.backbone.sealing import SealingKey
from services.backbone.stamping import STAMP_BYTES, check_stamp, stamp
from services.runner.artifact import Limits
from services.runner.supplies import patiently
from services.runner.unpacking import DamagedError, check, most_archive_bytes

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """Where checkpoints are kept and found.

    Attributes:
        keys: the sealing keys by id, the current one first.
        folder: for files without names, which go with the process.
    """

    objects: Objects
    keys: Mapping[str, SealingKey] = field(repr=False)
    folder: Path
    limits: Limits

    async def keep(self, ref: RunAttempt, archive: BinaryIO) -> None:
        """Make a tar the attempt's checkpoint, in place of the one before; a reader sees the one or the other.

        Raises:
            ObjectUnavailable: the store did not answer.
        """
        key = next(iter(self.keys.values()))
        archive.seek(0)
        stamped = await asyncio.to_thread(stamp, key, _subject(ref), archive)
        archive.seek(0)
        crash_point("before_checkpoint_upload")
        await self.objects.put_stream(checkpoint_key(ref.run_id, ref.attempt), _chunks(stamped, archive))
        crash_point("after_checkpoint_upload")

    @asynccontextmanager
    async def before(self, ref: RunAttempt) -> AsyncIterator[BinaryIO | None]:
        """Fetch, for the length of a block, the newest checkpoint of the attempts before this one, ready to unpack.

        Damaged ones are left out.

        Raises:
            GivenUp: the store does not answer, or the disk is full.
        """
        with self.private_file() as archive:
            yield archive if ref.attempt > 1 and await self._fetch_newest(ref, archive) else None

    @contextmanager
    def private_file(self) -> Iterator[BinaryIO]:
        """Open a file that has no name, so that no crash leaves it behind."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            yield cast(BinaryIO, file)

    async def _fetch_newest(self, ref: RunAttempt, archive: BinaryIO) -> bool:
        for earlier in await patiently(partial(self._earlier, ref)):
            said = log.bind(run_id=ref.run_id, attempt=ref.attempt, of_attempt=earlier.attempt)
            fault = await patiently(partial(self._fetch, earlier, archive))
            if fault is None:
                said.info("checkpoint_found")
                return True
            said.warning("checkpoint_left_out", why=fault)
        return False

    async def _earlier(self, ref: RunAttempt) -> list[RunAttempt]:
        """List the attempts before one that have a checkpoint, the newest first."""
        names = [found.key.rpartition("/")[2] async for found in self.objects.listing(checkpoints_folder(ref.run_id))]
        numbers = sorted((int(name) for name in names if name.isascii() and name.isdigit()), reverse=True)
        return [RunAttempt(run_id=ref.run_id, attempt=number) for number in numbers if 1 <= number < ref.attempt]

    async def _fetch(self, ref: RunAttempt, archive: BinaryIO) -> str | None:
        """Download a checkpoint, and leave the file standing at its tar; returns what is wrong with it."""
        archive.seek(0)
        archive.truncate()
        most_bytes = STAMP_BYTES + most_archive_bytes(self.limits)
        try:
            async with aclosing(self.objects.stream(checkpoint_key(ref.run_id, ref.attempt))) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(archive.write, chunk)
                    if archive.tell() > most_bytes:
                        return "it is larger than it may be here"
        except ObjectMissing:
            return "it was deleted just now"
        return await asyncio.to_thread(self._fault, ref, archive)

    def _fault(self, ref: RunAttempt, archive: BinaryIO) -> str | None:
        archive.seek(0)
        try:
            check_stamp(self.keys, _subject(ref), archive.read(STAMP_BYTES), archive)
            archive.seek(STAMP_BYTES)
            check(archive, self.limits)
        except (SealBroken, DamagedError) as error:
            return str(error)
        archive.seek(STAMP_BYTES)
        return None


def _subject(ref: RunAttempt) -> str:
    return f"{ref.run_id}/{ref.attempt}"


async def _chunks(stamped: bytes, archive: BinaryIO) -> AsyncIterator[bytes]:
    yield stamped
    while chunk := await asyncio.to_thread(archive.read, CHUNK_BYTES):
        yield chunk

"""Reading this runner's partition of `runyard.dispatch`, and the gate that keeps attempts from starting unread.

The gate opens when the partition was read to its end; it closes when the runner was cut off, and the partition is read
to its end again before it opens: a revocation may have been waiting there.
"""

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.topics import DISPATCH
from services.backbone.consumer import Consumer
from services.backbone.crash_points import crash_point
from services.runner.heartbeat import Heart


def partition_of(runner_id: str) -> int:
    """Tell the partition on which a runner listens; it announces it, so nobody else has to compute it.

    >>> partition_of("rnr-00000000")
    1
    """
    return zlib.crc32(runner_id.encode()) % DISPATCH.partitions


@dataclass
class Dispatch:
    """One runner's reading; `consumer` makes a fresh consumer of its partition."""

    consumer: Callable[[], Consumer]
    heart: Heart
    may_start: asyncio.Event = field(repr=False)

    async def run(self) -> None:
        """Read until cancelled.

        Raises:
            ExceptionGroup: too much poison, or a bug in a handler.
        """
        while True:
            await self._read_until_cut_off()
            await self.heart.connected.wait()

    async def _read_until_cut_off(self) -> None:
        self.heart.cut_off.clear()  # what happens from here on, the end that is read to may not hold
        async with asyncio.TaskGroup() as group:
            consumer = self.consumer()
            reading = group.create_task(consumer.run())
            await consumer.wait_until_caught_up()
            crash_point("after_dispatch_caught_up")
            if not self.heart.cut_off.is_set():
                self.may_start.set()
                await self.heart.cut_off.wait()
                self.may_start.clear()
            reading.cancel()

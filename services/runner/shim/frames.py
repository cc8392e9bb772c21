"""Writes frames: one JSON object per line to the container's standard output, numbered without a gap.

Owns the sequence and the budget of the whole output; `services.runner.frames` reads it back. It never blocks unless it
is told to: while the engine takes nothing, the deadline must still hold.
"""

import json
import os
import select

CHUNK_BYTES = 65536
FRAME_BYTES = 100
"""What a line's frame takes beside its text, about."""


class FrameWriter:
    """Writes frames without ever blocking, and refuses output frames once their budget is spent."""

    def __init__(self, descriptor: int, budget_bytes: int) -> None:
        self.descriptor = descriptor
        self.left_bytes = budget_bytes
        self.backlog = bytearray()
        self.exceeded = False
        self.sequence = self.refused_lines = self.refused_bytes = 0
        os.set_blocking(descriptor, False)

    def send(self, kind: str, **fields: object) -> None:
        """Queue a frame that must arrive, whatever was written before."""
        self._queue(self._encode(kind, fields))

    def offer(self, kind: str, size_bytes: int, **fields: object) -> None:
        """Queue a frame of output; once one did not fit, it and all that follow are only counted."""
        frame = self._encode(kind, fields)
        if self._spend(len(frame)):
            self._queue(frame)
        else:
            self.refused_lines += 1
            self.refused_bytes += size_bytes

    def charge(self, size_bytes: int) -> None:
        """Count a line that is not sent: a flood spends the budget whether or not anybody could read it."""
        self._spend(size_bytes + FRAME_BYTES)

    def flush(self, *, wait: bool = False) -> None:
        """Write what the engine takes now, or all of it."""
        while self.backlog:
            try:
                del self.backlog[: os.write(self.descriptor, self.backlog[:CHUNK_BYTES])]
            except BlockingIOError:
                if not wait:
                    return
                select.select([], [self.descriptor], [])

    def _spend(self, size_bytes: int) -> bool:
        self.exceeded = self.exceeded or size_bytes > self.left_bytes
        if not self.exceeded:
            self.left_bytes -= size_bytes
        return not self.exceeded

    def _encode(self, kind: str, fields: dict[str, object]) -> bytes:
        # ASCII only: the engine cuts its log entries at 16 KiB, and half a character would not survive that.
        frame = {"seq": self.sequence + 1, "type": kind, **fields}
        return json.dumps(frame, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"

    def _queue(self, frame: bytes) -> None:
        self.sequence += 1
        self.backlog += frame

"""Follows the file that the script appends its metrics to; bad lines are counted, never fatal.

The file is the script's, and so hostile: it is opened without following a link or waiting, and only if it is a file.
"""

import json
import math
import os
from collections.abc import Iterator

from services.runner.shim.files import open_regular
from services.runner.shim.frames import CHUNK_BYTES
from services.runner.shim.lines import LineSplitter


class MetricsTail:
    """Reads the metrics as they come."""

    def __init__(self, path: str, limit_bytes: int, budget_bytes: int) -> None:
        self.path = path
        self.lines = LineSplitter(limit_bytes)
        self.left_bytes = budget_bytes
        self.inode = self.offset = self.skipped = 0

    def read(self) -> list[dict[str, object]]:
        """Return the metrics that were appended since the last call, at most one chunk of them."""
        chunk = self._next_chunk()  # first: it may replace the splitter
        return self._parse(self.lines.feed(chunk))

    def finish(self) -> Iterator[dict[str, object]]:
        """Yield all that is left, when nobody writes any more."""
        while chunk := self._next_chunk():
            yield from self._parse(self.lines.feed(chunk))
        yield from self._parse(self.lines.finish())

    def _next_chunk(self) -> bytes:
        descriptor = open_regular(self.path)
        if descriptor is None:
            return b""
        try:
            return self._read_from(descriptor)
        except OSError:
            return b""
        finally:
            os.close(descriptor)

    def _read_from(self, descriptor: int) -> bytes:
        about = os.fstat(descriptor)
        if self.inode != about.st_ino or about.st_size < self.offset:  # the script began the file anew
            self.inode, self.offset = about.st_ino, 0
            self.lines = LineSplitter(self.lines.limit_bytes)
        chunk = os.pread(descriptor, min(CHUNK_BYTES, self.left_bytes), self.offset)
        self.offset += len(chunk)
        self.left_bytes -= len(chunk)
        return chunk

    def _parse(self, lines: Iterator[tuple[bytes, bool]]) -> list[dict[str, object]]:
        read = [None if cut else parse_metric(line) for line, cut in lines if line.strip()]
        self.skipped += read.count(None)
        return [metric for metric in read if metric]


def parse_metric(line: bytes) -> dict[str, object] | None:
    """Read one line of metrics; None when it is not a name with a finite value."""
    try:
        found = json.loads(line)
        name, value, step = found["name"], found["value"], found.get("step")
        metric = {"name": name, "value": float(value), "step": None if step is None else int(step)}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    whole = step is None or (type(step) in (int, float) and step == metric["step"] and abs(step) < 2**63)
    named = isinstance(name, str) and 0 < len(name) <= 256 and name.isprintable()
    return metric if named and whole and type(value) in (int, float) and math.isfinite(metric["value"]) else None

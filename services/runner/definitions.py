"""Metric definitions at work: which of a log's lines say which value. Pure, and the same again for the same log.

A point is known by its line's sequence and by its definition's place, so a log that is read again from its beginning
gives the very same points. The lines and the patterns are strangers': what both may cost together is bounded.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemas.parts import MetricDefinition
from services.backbone.patterns import Pattern, PatternRefused, compile_pattern
from services.runner.frames import Frame, Log

MOST_WORK = 1 << 37
"""Bytes of lines times instructions of patterns in one attempt: 40 patterns of 50 instructions go through 64 MiB. The
worst that was found takes 4 ns each, so 9 minutes of a core; what people write takes a small part of that."""
POINT_OVERHEAD_BYTES = 128
"""What a point takes in JSON beside its name, about."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A value that a definition found; `place` is the definition's, from 1."""

    place: int
    name: str
    value: float

    @property
    def size_bytes(self) -> int:
        """What it takes as a point in JSON, about."""
        return POINT_OVERHEAD_BYTES + len(self.name.encode())


@dataclass(frozen=True, kw_only=True)
class MeasuredLog(Log):
    """A line in which metrics were found."""

    found: tuple[Found, ...]


class Meter:
    """Reads one log, from its first line on.

    Args:
        definitions: a pattern that cannot be used here finds nothing; the api refuses such before they come.
        most_bytes: how much the points may take together; beyond it, or beyond MOST_WORK, no more are found.
    """

    def __init__(self, definitions: Sequence[MetricDefinition], most_bytes: int) -> None:
        self.exhausted = False
        self._patterns = list(_compiled(definitions))
        self._cost = sum(pattern.size for _, _, pattern in self._patterns)
        self._bytes_left, self._work_left = most_bytes, MOST_WORK

    def read(self, frame: Frame) -> Frame:
        """Return the frame, with what was found in it if it is a line that says something."""
        if not isinstance(frame, Log) or not self._patterns or self.exhausted:
            return frame
        line = frame.text.encode(errors="replace")
        self._work_left -= len(line) * self._cost
        if self._work_left < 0:
            self.exhausted = True
            return frame
        found = self._within_bounds(self._found_in(line))
        if not found:
            return frame
        return MeasuredLog(
            seq=frame.seq, stream=frame.stream, text=frame.text, at=frame.at, truncated=frame.truncated, found=found
        )

    def _found_in(self, line: bytes) -> Iterator[Found]:
        for place, name, pattern in self._patterns:
            value = finite(pattern.find(line))
            if value is not None:
                yield Found(place=place, name=name, value=value)

    def _within_bounds(self, found: Iterator[Found]) -> tuple[Found, ...]:
        kept = []
        for one in found:
            self._bytes_left -= one.size_bytes
            if self._bytes_left < 0:
                self.exhausted = True
                break
            kept.append(one)
        return tuple(kept)


def finite(caught: bytes | None) -> float | None:
    """Read a number; None when it is none, or none that can be drawn.

    >>> [finite(caught) for caught in (b"1e-3", b" 7 ", b"0.5,", b"nan", b"1e999", b"1_000", b"", None)]
    [0.001, 7.0, None, None, None, None, None, None]
    """
    if caught is None or b"_" in caught:  # which Python would take
        return None
    try:
        value = float(caught)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _compiled(definitions: Sequence[MetricDefinition]) -> Iterator[tuple[int, str, Pattern]]:
    for place, definition in enumerate(definitions, 1):
        try:
            yield place, definition.name, compile_pattern(definition.regex)
        except PatternRefused:
            continue

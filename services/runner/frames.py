"""Reads back what the shim wrote: bytes of the container's output become typed frames.

Pure and incremental. It never trusts the bytes: chunks may break anywhere, lines may be garbage, a log that is followed
again starts from its beginning. What is not a frame is skipped and counted, what was seen before is skipped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

MAX_FRAME_BYTES = 1024 * 1024
"""No frame of the shim comes near this; a longer line is not a frame and is not kept."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """The script's process exists."""

    seq: int
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Log:
    """One line of output, safe to show."""

    seq: int
    stream: str
    text: str
    at: datetime
    truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One finite value of one metric."""

    seq: int
    name: str
    value: float
    step: int | None = None
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Timeout:
    """The deadline has passed; SIGTERM follows."""

    seq: int
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Output that was counted and thrown away at this place; `because` says which limit it was over."""

    seq: int
    lines: int
    bytes: int
    because: str | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """The last frame: how the script ended and what it used.

    `error` says why no script could be started or followed; then neither an exit code nor a signal is known. Every
    other attempt has exactly one of the two. `failure` is what the script itself says about its failure.
    """

    seq: int
    exit_code: int | None
    signal: int | None
    timed_out: bool = False
    terminated: bool = False
    output_quota_exceeded: bool = False
    skipped_metrics: int = 0
    oom_kills: int = 0
    peak_memory_bytes: int | None = None
    cpu_seconds: float | None = None
    wall_seconds: float = 0.0
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: str | None = None
    failure: str | None = None


Frame = Started | Log | Metric | Timeout | Dropped | End

_KINDS: Mapping[str, type[Frame]] = {
    "started": Started,
    "log": Log,
    "metric": Metric,
    "timeout": Timeout,
    "dropped": Dropped,
    "end": End,
}


class FrameDecoder:
    """Turns chunks of the log into frames, leaving out all up to the sequence that was handled before."""

    def __init__(self, after: int = 0) -> None:
        self.last_seq = after
        self.garbage_lines = 0
        self._held = b""
        self._oversized = False

    def feed(self, chunk: bytes) -> list[Frame]:
        r"""Return the frames that this chunk completes.

        >>> decoder = FrameDecoder(after=1)
        >>> decoder.feed(b'{"seq":1,"type":"dropped","lines":1,"bytes":9}\n{"seq":2,"type":"dropped","li')
        []
        >>> decoder.feed(b'nes":3,"bytes":7}\n')
        [Dropped(seq=2, lines=3, bytes=7)]
        """
        *lines, self._held = (self._held + chunk).split(b"\n")
        frames = [frame for line in lines if (frame := self._take(line)) is not None]
        if len(self._held) > MAX_FRAME_BYTES:
            self._held, self._oversized = b"", True
        return frames

    def _take(self, line: bytes) -> Frame | None:
        frame = None if self._oversized else parse(line)
        self._oversized = False
        if frame is None:
            self.garbage_lines += 1
            return None
        if frame.seq <= self.last_seq:
            return None
        self.last_seq = frame.seq
        return frame


def parse(line: bytes) -> Frame | None:
    """Read one line; None when it is no frame of ours. Fields that a newer shim may add are left out.

    >>> parse(b'{"seq": 4, "type": "end", "exit_code": 0, "signal": null}').exit_code
    0
    >>> parse(b"Segmentation fault") is None
    True
    """
    try:
        found = json.loads(line)
        kind = _KINDS[found["type"]]
        known = {field.name: _value(field.name, found[field.name]) for field in fields(kind) if field.name in found}
        frame = kind(**known)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return frame if type(frame.seq) is int else None


def _value(name: str, value: Any) -> Any:
    if (name == "at" or name.endswith("_at")) and value is not None:
        return datetime.fromisoformat(value)
    return value

"""Reads back what the shim wrote: bytes of the container's output become typed frames.

Pure and incremental. It never trusts the bytes: chunks may break anywhere, lines may be garbage, a log that is followed
again starts from its beginning. What is not a frame is skipped and counted, what was seen before is skipped. On gVisor
a script can write frames of its own (docs/security.md): each field is what can be stored, or it is no frame.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from datetime import UTC, datetime
from types import NoneType
from typing import Any, get_args

MAX_FRAME_BYTES = 1024 * 1024
"""No frame of the shim comes near this; a longer line is not a frame and is not kept."""
MOST = 1 << 48
"""What nothing that the shim counts comes near: bytes, lines, seconds, sequences. Its sums fit into a bigint."""
MOST_TEXT_BYTES = 256 << 10
"""What a line of `max_line_bytes` has at most, in UTF-8; an event takes a few of them."""
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
SIGNED = frozenset({"step", "value"})


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
        known = {field.name: _value(field, found[field.name]) for field in fields(kind) if field.name in found}
        return kind(**known)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _value(field: "Field[Any]", value: Any) -> Any:
    """Take a field's value, if it is one that the field may have.

    Raises:
        ValueError, TypeError, OverflowError: it is none.
    """
    allowed = get_args(field.type) or (field.type,)
    if value is None and NoneType in allowed:
        return None
    if datetime in allowed:
        return _moment(value)
    if float in allowed and type(value) in (int, float):
        well = math.isfinite(value) and (field.name in SIGNED or 0 <= value < MOST)
    elif int in allowed and type(value) is int:
        well = abs(value) < 1 << 63 if field.name in SIGNED else 0 <= value < MOST
    else:
        well = type(value) in allowed and (type(value) is not str or _is_text(value))
    if not well:
        raise ValueError(f"{field.name} cannot be {value!r:.40}")
    return value


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    if not EARLIEST <= moment <= LATEST:  # a TypeError where it has no offset
        raise ValueError("that is no time of ours")
    return moment


def _is_text(value: str) -> bool:
    """Whether it can be stored: not too long, no NUL, and no half of a character, which UTF-8 cannot write."""
    return len(value.encode()) <= MOST_TEXT_BYTES and "\0" not in value

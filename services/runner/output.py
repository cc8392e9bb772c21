"""A script's output on its way to the topic: frames become batches, batches become LogsAppended and MetricsReported.

The sequence of an event is that of its frames, and a batch is journaled before it is sent: a runner that was killed
repeats the very same batch under the same ids and goes on behind it, so nothing is lost and nothing is new. `Batches`
is pure; `OutputPublisher` waits for Kafka as long as it takes, since the container's log keeps what was not sent yet.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Protocol

from schemas.parts import LogLine, MetricPoint, RunAttempt
from services.backbone.crash_points import crash_point
from services.backbone.publisher import Record
from services.backbone.retry import until_it_works
from services.runner.definitions import MeasuredLog
from services.runner.events import Outgoing, Pen, logs_appended, metrics_reported
from services.runner.frames import Dropped, End, Frame, Log, Metric, Timeout

MAX_BATCH_FRAMES = 500
MAX_BATCH_BYTES = 512 << 10
TRACEBACK = "Traceback (most recent call last):"
FRAME_OVERHEAD_BYTES = 128
"""What sequence, stream and time of a line take in JSON, about."""

Output = Log | Metric | Dropped


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames that are published together, in order."""

    frames: tuple[Output, ...]

    @property
    def last(self) -> int:
        """The sequence up to which output is published when this batch is."""
        return self.frames[-1].seq


class Batches:
    """Cuts frames into batches and remembers what the end has to tell.

    Frames may be added again and again from the log's beginning: each is taken once.

    Args:
        sent: what is published for sure.
        promised: where the batch ends that was journaled last; it is cut there again, as it was.
    """

    def __init__(self, sent: int = 0, promised: int = 0) -> None:
        self.sent = sent
        self.last_output = sent
        self._last_exception: str | None = None
        self._last_error: str | None = None
        self._in_traceback = False
        self.end: End | None = None
        self.timed_out = False
        self._seen = 0
        self._promised = promised
        self._waiting: deque[Output] = deque()

    @property
    def last_error_line(self) -> str | None:
        """The last exception that stderr shows; the last line of stderr where it shows none."""
        return self._last_exception or self._last_error

    @property
    def waiting(self) -> int:
        """How many frames are not yet in a batch."""
        return len(self._waiting)

    def add(self, frame: Frame) -> None:
        """Take a frame in, unless it was seen before."""
        if frame.seq <= self._seen:
            return
        self._seen = frame.seq
        match frame:
            case End():
                self.end = frame
                self._tell_skipped(frame)
            case Timeout():
                self.timed_out = True
            case Log() | Metric() | Dropped():
                self._add_output(frame)

    def take(self) -> Batch | None:
        """Cut the next batch; None when there is nothing to send yet."""
        if self._seen < self._promised and self.end is None:
            return None
        if self._waiting and self._waiting[0].seq > self._promised:
            self._promised = 0
        frames: list[Output] = []
        room = MAX_BATCH_BYTES
        while self._waiting and self._belongs(self._waiting[0], len(frames), room):
            frames.append(self._waiting.popleft())
            room -= _size(frames[-1])
        if not frames:
            return None
        self.sent = frames[-1].seq
        return Batch(tuple(frames))

    def _tell_skipped(self, end: End) -> None:
        """Say in the log, at the end's own place in the order, how much of METRICS_PATH was left out."""
        if end.skipped_metrics and end.ended_at is not None:
            lines = "1 line" if end.skipped_metrics == 1 else f"{end.skipped_metrics:,} lines"
            text = f"[runyard] {lines} of METRICS_PATH left out: no JSON object with a name and a finite value"
            self._append(Log(seq=end.seq, stream="stderr", text=text, at=end.ended_at, truncated=True))

    def _add_output(self, frame: Output) -> None:
        if isinstance(frame, Log) and frame.stream == "stderr" and frame.text.strip():
            self._note_error(frame.text)
        self._append(frame)

    def _append(self, frame: Output) -> None:
        self.last_output = frame.seq
        if frame.seq > self.sent:
            self._waiting.append(frame)

    def _note_error(self, line: str) -> None:
        """Keep what names an exception: after a traceback's indented lines the first one that is not."""
        self._last_error = line.strip()
        if line.startswith(TRACEBACK):
            self._in_traceback = True
        elif self._in_traceback and not line[0].isspace():
            self._last_exception, self._in_traceback = line.strip(), False

    def _belongs(self, frame: Output, taken: int, room: int) -> bool:
        if self.sent < self._promised:
            return frame.seq <= self._promised
        return taken == 0 or (taken < MAX_BATCH_FRAMES and _size(frame) <= room)


def events_of(batch: Batch, pen: Pen, now: datetime) -> list[Outgoing]:
    """Write a batch as events: its lines in one, its metrics in another.

    The one with the batch's last frame goes last: who has stored that has stored all before it. A line in which metrics
    were found is in both, and its own event is that of the lines.
    """
    logs = [frame for frame in batch.frames if isinstance(frame, Log | Dropped)]
    points = [point for frame in batch.frames for point in _points(frame)]
    events = []
    if points:
        events.append(metrics_reported(pen, points, now))
    if logs:
        lines = [_line(frame) if isinstance(frame, Log) else _gap(frame, now) for frame in logs]
        dropped = sum(frame.lines for frame in logs if isinstance(frame, Dropped))
        events.append(logs_appended(pen, lines, dropped, logs[0].seq, now))
    return events if batch.frames[-1] in logs else events[::-1]


class OutputJournal(Protocol):
    """What is written down before output is sent."""

    def begin_output(self, ref: RunAttempt, output_from: int, output_to: int) -> None:
        """Promise a batch."""


class Publishing(Protocol):
    """Who takes events: Kafka, or whoever listens here."""

    async def publish(self, records: Sequence[Record]) -> None:
        """Take records in order; returns when they are safe there."""


@dataclass(frozen=True, slots=True)
class OutputPublisher:
    """Sends one attempt's batches, each until Kafka has it."""

    pen: Pen
    batches: Batches
    journal: OutputJournal
    publisher: Publishing
    clock: Callable[[], datetime] = field(repr=False)
    may_tell: asyncio.Event = field(repr=False)

    async def send_all(self) -> None:
        """Send all that is there, once it is known to which cluster; returns when it is acknowledged."""
        await self.may_tell.wait()
        sent = self.batches.sent
        while (batch := self.batches.take()) is not None:
            self.journal.begin_output(self.pen.ref, sent, batch.last)
            crash_point("after_output_promised")
            events = events_of(batch, self.pen, self.clock())
            await until_it_works("kafka", partial(self.publisher.publish, events))
            crash_point("after_output_publish")
            sent = batch.last


def _size(frame: Output) -> int:
    match frame:
        case Log():
            text = frame.text
        case Metric():
            text = frame.name
        case Dropped():
            text = frame.because or ""
    found = sum(one.size_bytes for one in frame.found) if isinstance(frame, MeasuredLog) else 0
    return FRAME_OVERHEAD_BYTES + len(text.encode()) + found


def _gap(frame: Dropped, now: datetime) -> LogLine:
    """Say in the log itself, at its place, that lines were kept back."""
    lines = "1 line" if frame.lines == 1 else f"{frame.lines:,} lines"
    because = f": {frame.because}" if frame.because else ""
    text = f"[runyard] {lines} ({frame.bytes:,} bytes) were dropped here{because}"
    return LogLine(sequence=frame.seq, stream="stderr", text=text, at=now, truncated=True)


def _line(frame: Log) -> LogLine:
    stream = "stderr" if frame.stream == "stderr" else "stdout"
    return LogLine(sequence=frame.seq, stream=stream, text=frame.text, at=frame.at, truncated=frame.truncated)


def _points(frame: Output) -> list[MetricPoint]:
    match frame:
        case Metric():
            return [MetricPoint(sequence=frame.seq, name=frame.name, value=frame.value, step=frame.step, at=frame.at)]
        case MeasuredLog():
            return [
                MetricPoint(sequence=frame.seq, place=one.place, name=one.name, value=one.value, at=frame.at)
                for one in frame.found
            ]
    return []

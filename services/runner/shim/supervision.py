"""Sees one script through, from its start to the last of its processes, and writes down what happens on the way.

Owns the order of things: pipes and metrics are read, stop signals and the deadline are obeyed, orphans are reaped, and
the end comes last. It must never wait for the script or the engine longer than its orders say.
"""

import os
import select
import signal
import time
from contextlib import suppress

from services.runner.shim.consumption import consumption
from services.runner.shim.files import failure_message
from services.runner.shim.frames import CHUNK_BYTES, FrameWriter
from services.runner.shim.launching import launch
from services.runner.shim.lines import LineSplitter, rfc3339, safe_text
from services.runner.shim.masking import Mask
from services.runner.shim.metrics_tail import MetricsTail
from services.runner.shim.orders import Orders
from services.runner.shim.rate import Rate
from services.runner.shim.stop_signals import stop_was_asked

BACKLOG_BYTES = 262144  # frames that the engine has not taken yet; above this the script's pipes are left alone
LOOK_EVERY_S, METRICS_EVERY_S = (
    0.1,
    0.2,
)  # a stop from outside waits for the former, since nothing wakes the shim for it
REAP_WITHIN_S = 10.0


class Supervisor:
    """Runs one script."""

    def __init__(self, orders: Orders, frames: FrameWriter, mask: Mask, born: float) -> None:
        self.orders, self.frames, self.mask = orders, frames, mask
        self.deadline = born + orders.deadline_s
        self.kill_at: float | None = None
        self.timed_out = self.terminated = False
        self.script, self.metrics_at = 0, 0.0
        self.outcome: int | None = None  # exit code, or minus the signal
        self.streams: dict[int, tuple[str, LineSplitter]] = {}
        self.rate = Rate(orders.max_lines_per_s, orders.max_bytes_per_s, born)
        self.metrics = MetricsTail(orders.metrics_path, orders.max_line_bytes, orders.max_output_bytes)
        self.wake, self.waker = os.pipe()
        self.before = consumption()
        self.started_at, self.started = time.time(), born

    def run(self) -> int:
        """Start the script, see it through, write the end; return the exit code for the container."""
        self._start()
        while self.outcome is None:
            self._step()
        kill_everything(self.script)
        self._reap_all()
        self._drain()
        return self._end(self.outcome)

    def _start(self) -> None:
        os.set_blocking(self.waker, False)
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        for name, descriptor in ("stdout", out), ("stderr", err):
            os.set_blocking(descriptor, False)
            self.streams[descriptor] = name, LineSplitter(self.orders.max_line_bytes)
        self.script = launch(self.orders, out_end, err_end)
        self.started_at, self.started = time.time(), time.monotonic()
        self.deadline = self.started + self.orders.deadline_s  # the script's time, not the shim's
        self.frames.send("started", at=rfc3339(self.started_at))

    def _step(self) -> None:
        reading = [self.wake] if len(self.frames.backlog) > BACKLOG_BYTES else [self.wake, *self.streams]
        writing = [self.frames.descriptor] if self.frames.backlog else []
        ready, _, _ = select.select(reading, writing, [], LOOK_EVERY_S)
        for descriptor in ready:
            if descriptor == self.wake:
                os.read(self.wake, CHUNK_BYTES)
            else:
                self._read(descriptor)
        self._tell_dropped()
        self._tail_metrics()
        self.frames.flush()
        self.terminated = stop_was_asked() or self.terminated
        self._enforce(time.monotonic())
        self._reap()

    def _read(self, descriptor: int) -> bool:
        """Pass on what one of the pipes holds; return whether there may be more."""
        try:
            data = os.read(descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return False
        self._pass_on(descriptor, data)
        if not data:
            os.close(descriptor)
            del self.streams[descriptor]
        return bool(data)

    def _pass_on(self, descriptor: int, data: bytes) -> None:
        name, splitter = self.streams[descriptor]
        at, now = rfc3339(time.time()), time.monotonic()
        for line, cut in self.mask.lines(splitter.feed(data) if data else splitter.finish()):
            if self.rate.lines:
                self._tell_dropped()
            if self.rate.admits(len(line), now):
                mark = {"truncated": True} if cut else {}
                self.frames.offer("log", len(line), stream=name, text=safe_text(line, cut), at=at, **mark)
            else:
                self.frames.charge(len(line))

    def _tell_dropped(self, *, at_once: bool = False) -> None:
        told = self.rate.dropped(time.monotonic(), at_once=at_once)
        if told:
            self.frames.send("dropped", **told)

    def _tail_metrics(self) -> None:
        if time.monotonic() < self.metrics_at or len(self.frames.backlog) > BACKLOG_BYTES:
            return
        self.metrics_at = time.monotonic() + METRICS_EVERY_S
        for metric in self.metrics.read():
            self._offer_metric(metric)

    def _offer_metric(self, metric: dict[str, object]) -> None:
        told = metric | {"name": self.mask.text(str(metric["name"]))}
        self.frames.offer("metric", 0, **told, at=rfc3339(time.time()))

    def _enforce(self, now: float) -> None:
        if self.kill_at is not None:
            if now >= self.kill_at:
                kill_everything(self.script)
            return
        if now >= self.deadline:
            self.timed_out = True
            self.frames.send("timeout", at=rfc3339(time.time()))
        if self.timed_out or self.terminated or self.frames.exceeded:
            self.kill_at = now + self.orders.grace_s
            os.killpg(self.script, signal.SIGTERM)

    def _reap(self) -> bool:
        """Collect whoever has ended, orphans too; return whether there may be more."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.script:
                self.outcome = os.waitstatus_to_exitcode(status)

    def _reap_all(self) -> None:
        until = time.monotonic() + REAP_WITHIN_S
        while self._reap() and time.monotonic() < until:
            kill_everything(self.script)
            select.select([], [], [], 0.005)

    def _drain(self) -> None:
        for descriptor in list(self.streams):
            while self._read(descriptor):
                self.frames.flush(wait=True)
        for descriptor in self.streams:
            self._pass_on(descriptor, b"")
        self._tell_dropped(at_once=True)
        for metric in self.metrics.finish():
            self._offer_metric(metric)
            self.frames.flush(wait=len(self.frames.backlog) > BACKLOG_BYTES)

    def _end(self, outcome: int) -> int:
        refused = {"lines": self.frames.refused_lines, "bytes": self.frames.refused_bytes}
        if self.frames.refused_lines:
            too_much = f"more than {self.orders.max_output_bytes:,} bytes of output"
            self.frames.send("dropped", **refused, because=too_much)
        kills, cpu_s, peak_bytes = consumption()
        failure = failure_message(self.orders.failure_path, self.mask) if outcome else None
        self.frames.send(
            "end",
            exit_code=outcome if outcome >= 0 else None,
            signal=-outcome if outcome < 0 else None,
            timed_out=self.timed_out,
            terminated=self.terminated,
            output_quota_exceeded=self.frames.exceeded,
            skipped_metrics=self.metrics.skipped,
            oom_kills=kills - self.before[0],
            peak_memory_bytes=peak_bytes,
            cpu_seconds=round(max(cpu_s - self.before[1], 0.0), 3),
            wall_seconds=round(time.monotonic() - self.started, 3),
            started_at=rfc3339(self.started_at),
            ended_at=rfc3339(time.time()),
            **({"failure": failure} if failure else {}),
        )
        self.frames.flush(wait=True)
        return outcome if outcome >= 0 else 128 - outcome


def kill_everything(script: int) -> None:
    """Kill all that runs in the container but the shim; outside a container only the script's group."""
    with suppress(ProcessLookupError, PermissionError):
        if os.getpid() == 1:
            os.kill(-1, signal.SIGKILL)
        elif script:
            os.killpg(script, signal.SIGKILL)

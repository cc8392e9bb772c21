"""The entry of every run's container: PID 1, which starts the script and writes down all that happens to it.

It owns the script's processes and the container's standard output, where it writes one JSON object per line ("frames",
see `services.runner.frames`) with the next `seq`. It must never import more than the standard library of Python 3.10,
nor believe the script: what that prints, writes or forks is bounded here, and the deadline holds without a runner.
"""

import codecs
import ctypes
import json
import math
import os
import resource
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

CHUNK_BYTES = 65536
BACKLOG_BYTES = 262144  # frames that the engine has not taken yet; above this the script's pipes are left alone
METRICS_EVERY_S = 0.2
REAP_WITHIN_S = 10.0
EXIT_NOT_STARTED, PR_SET_DUMPABLE = 125, 4  # as `docker run` answers; linux/prctl.h
CGROUP = "/sys/fs/cgroup"
# Terminal control must not reach whoever reads the logs: C0 becomes its Unicode pictures, C1 is replaced.
HARMLESS = {code: 0x2400 + code for code in range(32) if code != 9} | dict.fromkeys(range(127, 160), 0xFFFD)


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
        self.exceeded = self.exceeded or len(frame) > self.left_bytes
        if self.exceeded:
            self.refused_lines += 1
            self.refused_bytes += size_bytes
        else:
            self.left_bytes -= len(frame)
            self._queue(frame)

    def flush(self, *, wait: bool = False) -> None:
        """Write what the engine takes now, or all of it."""
        while self.backlog:
            try:
                del self.backlog[: os.write(self.descriptor, self.backlog[:CHUNK_BYTES])]
            except BlockingIOError:
                if not wait:
                    return
                select.select([], [self.descriptor], [])

    def _encode(self, kind: str, fields: dict[str, object]) -> bytes:
        # ASCII only: the engine cuts its log entries at 16 KiB, and half a character would not survive that.
        frame = {"seq": self.sequence + 1, "type": kind, **fields}
        return json.dumps(frame, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"

    def _queue(self, frame: bytes) -> None:
        self.sequence += 1
        self.backlog += frame


class LineSplitter:
    """Cuts a stream of bytes into lines; of a line above the limit only the beginning is kept, and marked."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held, self.skipping = b"", False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield each finished line without its newline, and whether it was cut."""
        *lines, self.held = (self.held + data).split(b"\n")
        for line in lines:
            if not self.skipping:
                yield line[: self.limit_bytes], len(line) > self.limit_bytes
            self.skipping = False
        if len(self.held) > self.limit_bytes and not self.skipping:
            yield self.held[: self.limit_bytes], True
            self.skipping = True
        if self.skipping:
            self.held = b""

    def finish(self) -> Iterator[tuple[bytes, bool]]:
        """Yield what stands after the last newline."""
        if self.held:
            yield from self.feed(b"\n")


class MetricsTail:
    """Follows the file that the script appends its metrics to; bad lines are counted, never fatal."""

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
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return self._read_from(descriptor)
            finally:
                os.close(descriptor)
        return b""

    def _read_from(self, descriptor: int) -> bytes:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            return b""
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


class Supervisor:
    """Runs one script from its start to the last of its processes."""

    def __init__(self, spec: dict[str, Any], frames: FrameWriter, born: float) -> None:
        self.spec = spec
        self.frames = frames
        self.deadline = born + spec["deadline_s"]
        self.kill_at: float | None = None
        self.timed_out = self.terminated = False
        self.script, self.metrics_at = 0, 0.0
        self.outcome: int | None = None  # exit code, or minus the signal, as in the subprocess module
        self.streams: dict[int, tuple[str, LineSplitter]] = {}
        self.metrics = MetricsTail(spec["metrics_path"], spec["max_line_bytes"], spec["max_output_bytes"])
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
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_terminate)
        self.script = self._launch()
        self.started_at, self.started = time.time(), time.monotonic()
        self.frames.send("started", at=rfc3339(self.started_at))

    def _launch(self) -> int:
        """Start the script with nothing of the shim's but two pipes."""
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        for name, descriptor in ("stdout", out), ("stderr", err):
            os.set_blocking(descriptor, False)
            self.streams[descriptor] = name, LineSplitter(self.spec["max_line_bytes"])
        argv = [word.encode() for word in self.spec["argv"]]
        files: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out_end, "stderr": err_end}
        environ = {name.encode(): value.encode() for name, value in self.spec["environment"].items()}
        process = subprocess.Popen(argv, env=environ, preexec_fn=self._become_the_script, **files)
        process.returncode = 0  # reaped below, with the orphans, and not by the subprocess module
        os.close(out_end)
        os.close(err_end)
        return process.pid

    def _become_the_script(self) -> None:
        """Between fork and exec: a session of its own, and without memory the script goes before the shim."""
        set_dumpable(1)  # else the kernel gives the file below to root; exec does the same a moment later
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - pathlib costs 10 ms
            file.write("1000")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.setsid()
        os.chdir(self.spec["cwd"])

    def _on_terminate(self, *_: object) -> None:
        self.terminated = True

    def _step(self) -> None:
        reading = [self.wake] if len(self.frames.backlog) > BACKLOG_BYTES else [self.wake, *self.streams]
        writing = [self.frames.descriptor] if self.frames.backlog else []
        ready, _, _ = select.select(reading, writing, [], METRICS_EVERY_S)
        for descriptor in ready:
            if descriptor == self.wake:
                os.read(self.wake, CHUNK_BYTES)
            else:
                self._read(descriptor)
        self._tail_metrics()
        self.frames.flush()
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
        name, lines = self.streams[descriptor]
        at = rfc3339(time.time())
        for line, cut in lines.feed(data) if data else lines.finish():
            mark = {"truncated": True} if cut else {}
            self.frames.offer("log", len(line), stream=name, text=safe_text(line, cut), at=at, **mark)

    def _tail_metrics(self) -> None:
        if time.monotonic() < self.metrics_at or len(self.frames.backlog) > BACKLOG_BYTES:
            return
        self.metrics_at = time.monotonic() + METRICS_EVERY_S
        for metric in self.metrics.read():
            self.frames.offer("metric", 0, **metric, at=rfc3339(time.time()))

    def _enforce(self, now: float) -> None:
        if self.kill_at is not None:
            if now >= self.kill_at:
                kill_everything(self.script)
            return
        if now >= self.deadline:
            self.timed_out = True
            self.frames.send("timeout", at=rfc3339(time.time()))
        if self.timed_out or self.terminated or self.frames.exceeded:
            self.kill_at = now + self.spec["grace_s"]
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
        for metric in self.metrics.finish():
            self.frames.offer("metric", 0, **metric, at=rfc3339(time.time()))
            self.frames.flush(wait=len(self.frames.backlog) > BACKLOG_BYTES)

    def _end(self, outcome: int) -> int:
        if self.frames.refused_lines:
            self.frames.send("dropped", lines=self.frames.refused_lines, bytes=self.frames.refused_bytes)
        kills, cpu_s, peak_bytes = consumption()
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
        )
        self.frames.flush(wait=True)
        return outcome if outcome >= 0 else 128 - outcome


def set_dumpable(value: int) -> None:
    """Say whether other processes of the same user may look into this one's memory and descriptors (prctl(2))."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, value, 0, 0, 0)


def kill_everything(script: int) -> None:
    """Kill all that runs in the container but the shim; outside a container only the script's group."""
    with suppress(ProcessLookupError, PermissionError):
        if os.getpid() == 1:
            os.kill(-1, signal.SIGKILL)
        elif script:
            os.killpg(script, signal.SIGKILL)


def safe_text(line: bytes, cut: bool) -> str:
    """Decode a line of output so that it can be shown: no invalid UTF-8, no control characters but the tabulator."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(line, final=not cut)
    return text.removesuffix("\r").translate(HARMLESS)


def rfc3339(moment: float) -> str:
    """Write a time as RFC 3339 in UTC, to the millisecond."""
    millis = int(moment * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(millis // 1000)) + f".{millis % 1000:03d}Z"


def consumption() -> tuple[int, float, int]:
    """Return OOM kills, CPU seconds and peak memory: from cgroup v2 or v1, else of the processes already reaped."""
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    kills = counter("memory.events", "oom_kill") or counter("memory/memory.oom_control", "oom_kill")
    micros, nanos = counter("cpu.stat", "usage_usec"), counter("cpuacct/cpuacct.usage")
    reaped_s = reaped.ru_utime + reaped.ru_stime
    cpu_s = micros / 1e6 if micros is not None else nanos / 1e9 if nanos is not None else reaped_s
    peak_bytes = counter("memory.peak") or counter("memory/memory.max_usage_in_bytes")
    return kills or 0, cpu_s, peak_bytes or reaped.ru_maxrss * 1024


def counter(file: str, key: str = "") -> int | None:
    """Read one number of the container's control group, alone in its file or behind its key."""
    with suppress(OSError, ValueError), open(f"{CGROUP}/{file}") as lines:  # noqa: PTH123 - as above
        for line in lines:
            *name, number = line.split()
            if name == key.split():
                return int(number)
    return None


def main() -> int:
    """Run what the slot beside this file says; whatever goes wrong here, an end is written."""
    born = time.monotonic()
    set_dumpable(0)
    frames = FrameWriter(1, 0)
    try:
        with open(os.path.dirname(os.path.abspath(__file__)) + "/spec.json", "rb") as file:  # noqa: PTH100, PTH120, PTH123
            spec = json.load(file)
        frames.left_bytes = spec["max_output_bytes"]
        return Supervisor(spec, frames, born).run()
    except Exception as problem:  # noqa: BLE001 - the outermost edge: without an end the attempt would count as lost
        kill_everything(0)
        frames.send("end", exit_code=None, signal=None, error=f"{type(problem).__name__}: {problem}"[:1000])
        frames.flush(wait=True)
        return EXIT_NOT_STARTED


if __name__ == "__main__":
    sys.exit(main())

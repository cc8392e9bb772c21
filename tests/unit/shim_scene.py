"""A slot on this machine, and the shim as a process that runs what lies in it: no container, no PID 1."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.runner.frames import Dropped, End, Frame, FrameDecoder, Log, Metric
from services.runner.slot import write_shim


@dataclass
class Slot:
    """A slot folder for one script, and the shim that runs it."""

    folder: Path

    def write(self, script: str, **changes: Any) -> None:
        if not (self.folder / "shim").exists():
            write_shim(self.folder)
        (self.folder / "train.py").write_text(script)
        metrics = self.folder / "metrics.jsonl"
        spec: dict[str, Any] = {
            "argv": [sys.executable, "-u", str(self.folder / "train.py")],
            "cwd": str(self.folder),
            "environment": {"METRICS_PATH": str(metrics)},
            "secret_names": [],
            "metrics_path": str(metrics),
            "failure_path": str(self.folder / "failure"),
            "deadline_s": 30,
            "grace_s": 0.3,
            "max_line_bytes": 1000,
            "max_output_bytes": 1_000_000,
            "max_lines_per_s": 100_000,
            "max_bytes_per_s": 1_000_000_000,
        }
        (self.folder / "spec.json").write_text(json.dumps(spec | changes))

    def start(self, script: str, **changes: Any) -> "subprocess.Popen[bytes]":
        self.write(script, **changes)
        command = [sys.executable, "-I", "-S", "-B", str(self.folder / "shim")]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def run(self, script: str, **changes: Any) -> "Outcome":
        with self.start(script, **changes) as process:
            return finish(process)


@dataclass
class Frames:
    """All that a shim has told of a script that is over."""

    frames: list[Frame]

    @property
    def end(self) -> End:
        last = self.frames[-1]
        assert isinstance(last, End), self.frames
        return last

    @property
    def lines(self) -> list[str]:
        return [frame.text for frame in self.frames if isinstance(frame, Log)]

    @property
    def dropped(self) -> list[tuple[int, int, str | None]]:
        return [(frame.lines, frame.bytes, frame.because) for frame in self.frames if isinstance(frame, Dropped)]

    @property
    def metrics(self) -> list[tuple[str, float, int | None]]:
        return [(frame.name, frame.value, frame.step) for frame in self.frames if isinstance(frame, Metric)]


@dataclass
class Outcome(Frames):
    """The same, and what the shim itself exited with."""

    exit_code: int


def finish(process: "subprocess.Popen[bytes]", head: bytes = b"") -> Outcome:
    output, _ = process.communicate(timeout=30)
    frames = FrameDecoder().feed(head + output)
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
    return Outcome(frames, process.returncode)


def read_until(process: "subprocess.Popen[bytes]", text: bytes) -> bytes:
    assert process.stdout is not None
    head = b""
    while text not in head:
        chunk = os.read(process.stdout.fileno(), 65536)
        assert chunk, head
        head += chunk
    return head

"""One hostile script in one real container, and what its shim tells of it, without a runner that could help."""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.runner.folder import Contents, Orders, Owner, RunFolder, clear, prepare
from services.runner.frames import Frame, FrameDecoder
from services.runner.sandbox import Sandbox
from services.runner.sandbox_walls import SandboxSpec
from tests.unit.shim_scene import Frames

MIB = 1 << 20
UID = 64_500 if os.geteuid() == 0 else os.geteuid()


@dataclass
class Told(Frames):
    """All frames of a run that is over, and how long it took from its start."""

    seconds: float


@dataclass
class Cell:
    """A container for one script; `run` once."""

    sandbox: Sandbox
    spec: SandboxSpec
    script: Path

    def start(self, script: str, **orders: Any) -> None:
        self.script.write_text(script)
        told: dict[str, Any] = {"variables": {}, "deadline_s": 30, "grace_s": 0.5, **orders}
        prepare(
            self.spec.folder,
            Orders(self.spec.run_id, 1, "train.py", "data.csv", **told),
            Contents({"train.py": self.script}, {"data.csv": self.script}),
            self.spec.owner,
        )
        self.sandbox.create(self.spec)
        self.sandbox.start(self.spec.name)

    def frames(self) -> Iterator[Frame]:
        decoder = FrameDecoder()
        for chunk in self.sandbox.follow(self.spec.name):
            yield from decoder.feed(chunk)

    def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """Read the log from its beginning to a frame."""
        return next(frame for frame in self.frames() if wanted(frame))

    def run(self, script: str, **orders: Any) -> Told:
        began = time.monotonic()
        self.start(script, **orders)
        return Told(list(self.frames()), time.monotonic() - began)


@contextlib.contextmanager
def a_cell(sandbox: Sandbox, image: str, folder: Path) -> Iterator[Cell]:
    """Make a cell; its container and its folder are gone at the end."""
    run_id = f"test-{uuid.uuid4().hex[:12]}"
    spec = SandboxSpec(
        run_id=run_id,
        attempt=1,
        runner_id=f"runner-{run_id}",
        image=image,
        folder=RunFolder(folder / f"run-{run_id}-1"),
        owner=Owner(UID, UID),
        cpu_cores=2,
        memory_bytes=512 * MIB,
        pids_limit=100,
        scratch_bytes=64 * MIB,
    )
    try:
        yield Cell(sandbox, spec, folder / f"{run_id}.py")
    finally:
        sandbox.remove(spec.name)
        assert sandbox.owned(spec.runner_id) == []
        clear(spec.folder)

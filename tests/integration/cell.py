"""One script in one real container with a run's walls, and what its shim tells of it; there is no runner to help."""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.runner.folder import Contents, Orders, Owner, RunFolder, prepare, remove
from services.runner.frames import Frame, FrameDecoder
from services.runner.sandbox import ContainerState, Sandbox, is_over
from services.runner.sandbox_walls import SandboxSpec
from tests.unit.shim_scene import Frames

MIB = 1 << 20
PATIENCE_S = 60
ALONE = os.geteuid() == 0
"""Whether a container can have a user id that nobody else has."""


@dataclass
class Told(Frames):
    """All frames of a run that is over, and how long it took from its start."""

    seconds: float


@dataclass
class Cell:
    """A container for one script; `run` once."""

    sandbox: Sandbox
    spec: SandboxSpec
    files: Path

    def prepare(self, script: str, **orders: Any) -> None:
        code, data = self.files / f"{self.spec.name}.py", self.files / f"{self.spec.name}.csv"
        code.write_text(script)
        data.write_text("a,b\n1,2\n")
        told: dict[str, Any] = {"variables": {}, "deadline_s": PATIENCE_S, "grace_s": 0.5, **orders}
        prepare(
            self.spec.folder,
            Orders(self.spec.run_id, self.spec.attempt, "train.py", "wine data.csv", **told),
            Contents(code={"train.py": code}, data={"wine data.csv": data}),
            self.spec.owner,
        )

    def start(self, script: str, **orders: Any) -> None:
        self.prepare(script, **orders)
        self.sandbox.create(self.spec)
        self.sandbox.start(self.spec.name)

    def frames(self, after: int = 0) -> list[Frame]:
        """Read the log to its end."""
        decoder = FrameDecoder(after)
        return [frame for chunk in self.sandbox.follow(self.spec.name) for frame in decoder.feed(chunk)]

    def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """Read the log from its beginning to a frame."""
        decoder, stream = FrameDecoder(), self.sandbox.follow(self.spec.name)
        with contextlib.closing(stream):
            return next(frame for chunk in stream for frame in decoder.feed(chunk) if wanted(frame))

    def run(self, script: str, **orders: Any) -> Told:
        began = time.monotonic()
        self.start(script, **orders)
        return Told(self.frames(), time.monotonic() - began)

    def ended(self) -> ContainerState:
        """Wait for the engine, which closes the log a moment before it calls the container exited."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            state = self.sandbox.inspect(self.spec.name)
            if state is not None and is_over(state):
                return state
        raise AssertionError("the container does not end")


@contextlib.contextmanager
def a_cell(sandbox: Sandbox, image: str, folder: Path, **changes: Any) -> Iterator[Cell]:
    """Make a cell; its containers and its folder are gone at the end. `changes` are fields of its `SandboxSpec`."""
    number = secrets.token_hex(6)
    uid = 2_000_000_000 + int(number[-6:], 16) if ALONE else os.geteuid()  # processes are counted by it, host-wide
    usual: dict[str, Any] = {
        "run_id": f"test-{number}",
        "attempt": 1,
        "runner_id": f"rnr-test-{number}",
        "image": image,
        "folder": RunFolder(folder / number),
        "owner": Owner(uid, uid if ALONE else os.getegid()),
        "cpu_cores": 2,
        "memory_bytes": 512 * MIB,
        "pids_limit": 100,
        "scratch_bytes": 64 * MIB,
        "own_user": ALONE,
    }
    spec = SandboxSpec(**{**usual, **changes})
    try:
        yield Cell(sandbox, spec, folder)
    finally:
        for container in sandbox.owned(spec.runner_id):
            sandbox.remove(container.name)
        assert sandbox.owned(spec.runner_id) == []
        remove(spec.folder.path)

"""Where hostile cases are played: one runner without services, a few baits on the host, and who looks after each case.

Owns what is seen of a run and what must be gone after it. Never judges what a script said.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from schemas.parts import Compute, LogLine, MetricPoint
from services.runner.local import LocalOutcome, LocalRequest, LocalRunner, local_runner
from services.runner.sandbox import RUNNER_LABEL
from tests.security import sentinels
from tests.security.case import Attack, Probe, Seen, script_of

MOST_ARTIFACT_BYTES = 32 << 20
MOST_OUTPUT_BYTES = 1 << 20
SETTINGS: dict[str, Any] = {
    "max_output_bytes": MOST_OUTPUT_BYTES,
    "max_artifact_bytes": MOST_ARTIFACT_BYTES,
    "max_out_bytes": 256 << 20,
    "max_out_files": 20_000,
    "tmp_mb": 64,
    "pids_limit": 64,
}
"""Small limits, so that attacks meet them at once; the walls are the same whatever their height."""
SETTINGS_OF_RUNTIME: dict[str, dict[str, Any]] = {"runsc": {"pids_limit": 512}}
"""gVisor's own kernel is a process of the same control group, with threads that count."""
MOST_RUNS = 100
FIRST_UIDS = range(61_000, 63_900, MOST_RUNS)
"""Drawn from, so that two suites on one machine do not take each other's processes for what was left behind."""
DATASET = "a,b\n1,2\n"
NOTHING_LEFT_WITHIN_S = 10.0


@dataclass
class Recorder:
    """Listens to one run, and asks the engine about its container while that is there."""

    client: docker.APIClient
    container_id: str = ""
    inspected: str = ""
    lines: list[LogLine] = field(default_factory=list)
    points: list[MetricPoint] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    printed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_started(self, container_id: str) -> None:
        self.container_id = container_id
        with contextlib.suppress(docker.errors.NotFound):
            self.inspected = json.dumps(self.client.inspect_container(container_id))
        self.started.set()

    def on_line(self, line: LogLine) -> None:
        self.lines.append(line)
        self.printed.set()

    def on_point(self, point: MetricPoint) -> None:
        self.points.append(point)


@dataclass
class Baits:
    """What a script would reach if a wall had a hole: listeners of the host, and files with secrets."""

    folder: Path
    port: int
    abstract: str
    knocks: list[str] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, str]:
        """What scripts are told, as a spy among them would know it."""
        return {
            "HOST_PORT": str(self.port),
            "HOST_ADDRESSES": " ".join(host_addresses()),
            "HOST_ABSTRACT": self.abstract,
            "HOST_SOCKET": str(self.folder / "socket"),
            "HOST_FOLDER": str(self.folder),
            "HOST_PID": str(os.getpid()),
        }


@dataclass
class Stage:
    """One runner on one OCI runtime."""

    runner: LocalRunner
    client: docker.APIClient
    baits: Baits
    scripts: Path
    oci_runtime: str

    async def play(self, attack: Attack, recorder: Recorder | None = None) -> Seen:
        """Run a script to its end."""
        heard = recorder or Recorder(self.client)
        return await self._run(attack.text, attack, heard)

    async def probe(self, name: str, probes: Sequence[Probe]) -> Seen:
        """Try some probes in one container."""
        attack = Attack(name=name, script="", timeout_s=120)
        return await self._run(script_of(probes), attack, Recorder(self.client))

    def sentinels(self) -> dict[str, str]:
        """Take the host's sentinels, and who has knocked at its doors."""
        return {**sentinels.take(self.baits.folder / "planted"), "knocks": " ".join(self.baits.knocks)}

    async def leftovers(self) -> list[str]:
        """Tell what is left of runs when none is going on; waits a moment for processes that are ending."""
        until = time.monotonic() + NOTHING_LEFT_WITHIN_S
        while (left := self._left()) and time.monotonic() < until:  # noqa: ASYNC110 - processes have no event
            await asyncio.sleep(0.1)
        return left

    async def _run(self, text: str, attack: Attack, recorder: Recorder) -> Seen:
        folder = self.scripts / secrets.token_hex(8)
        folder.mkdir()
        for name, content in {"train.py": text, "data.csv": DATASET, **attack.assets}.items():
            (folder / name).write_text(content)
        request = LocalRequest(
            script=folder / "train.py",
            data=folder / "data.csv",
            assets=[(folder / name, "script" if name.endswith(".py") else "data") for name in attack.assets],
            variables={**self.baits.facts, **attack.variables},
            compute=Compute(cpu_cores=1, memory_gb=1),
            timeout_s=attack.timeout_s,
            grace_s=1,
        )
        began = time.monotonic()
        outcome: LocalOutcome = await self.runner.run(request, recorder, asyncio.Event())
        seconds = time.monotonic() - began
        shutil.rmtree(folder)
        return Seen(outcome.end, recorder.lines, recorder.points, outcome.artifact, recorder.inspected, seconds)

    def _left(self) -> list[str]:
        runner_id, runs = self.runner.around.runner_id, self.runner.around.runs_folder
        first = self.runner.around.limits.first_owner.uid
        uids = (first, first + MOST_RUNS)
        found = self.client.containers(all=True, filters={"label": f"{RUNNER_LABEL}={runner_id}"})
        as_root = os.geteuid() == 0
        return [
            *(f"container {container['Names']}" for container in found),
            *(f"folder {path.name}" for path in (runs.iterdir() if runs.exists() else ())),
            *(f"mount {point}" for point in sentinels.mounts_below(self.runner.home)),
            *(f"process {process}" for process in (sentinels.processes_of(*uids) if as_root else ())),
            *(f"shared memory {name}" for name in (sentinels.shared_memory_of(*uids) if as_root else ())),
        ]


@asynccontextmanager
async def a_stage(oci_runtime: str, **settings: Any) -> AsyncIterator[Stage]:
    """Open a stage on one of the engine's OCI runtimes; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="runyard-hostile-"))
    folder.chmod(0o755)
    client = docker.from_env().api
    try:
        with baited(folder) as baits:
            (folder / "scripts").mkdir()
            own = {"oci_runtime": oci_runtime, "run_uid_base": secrets.choice(FIRST_UIDS)}
            limits = {**SETTINGS, **SETTINGS_OF_RUNTIME.get(oci_runtime, {}), **own, **settings}
            async with local_runner(**limits) as runner:
                await runner.prepare("python3.11", lambda line: None)
                yield Stage(runner, client, baits, folder / "scripts", oci_runtime)
    finally:
        client.close()
        shutil.rmtree(folder)


def oci_runtimes() -> list[str]:
    """List the OCI runtimes that the engine has, of those that are promised."""
    client = docker.from_env().api
    try:
        found = client.info()["Runtimes"]
        return [name for name in ("runc", "runsc") if name in found]
    finally:
        client.close()


def host_addresses() -> list[str]:
    """Tell the host's own addresses on every interface, its bridges too."""
    found = {"127.0.0.1", "172.17.0.1"}
    with contextlib.suppress(OSError):
        found |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anywhere:
        anywhere.connect(("192.0.2.1", 9))  # sends nothing: it only asks for the route (TEST-NET-1, RFC 5737)
        found.add(anywhere.getsockname()[0])
    return sorted(found)


@contextlib.contextmanager
def baited(folder: Path) -> Iterator[Baits]:
    """Lay out the baits; every connection to one of the listeners is a knock."""
    sentinels.plant(folder / "planted", other_uid=64_999)
    abstract = f"runyard-hostile-{secrets.token_hex(8)}"
    loop = asyncio.get_running_loop()
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as hidden, socket.socket(socket.AF_UNIX) as named:
        tcp.bind(("0.0.0.0", 0))  # noqa: S104 - on every interface, so that any of them would show a hole
        hidden.bind(f"\0{abstract}")
        named.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        baits = Baits(folder, tcp.getsockname()[1], abstract)

        def knocked(listener: socket.socket, name: str) -> None:
            with contextlib.suppress(OSError):
                listener.accept()[0].close()
                baits.knocks.append(name)

        listeners = {"tcp": tcp, "abstract socket": hidden, "named socket": named}
        for name, listener in listeners.items():
            listener.listen()
            listener.setblocking(False)
            loop.add_reader(listener, knocked, listener, name)
        try:
            yield baits
        finally:
            for listener in listeners.values():
                loop.remove_reader(listener)

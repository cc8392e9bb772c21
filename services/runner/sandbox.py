"""One container per attempt, on one Docker Engine: made, started, watched, signalled, removed.

It owns what the engine is asked for, and with that the sandbox's walls. Only `services.runner.sandbox*` knows Docker;
what leaves this file is in our own words. It must never decide how a run ended, and never give a container the
script's variables: they would stand in `docker inspect`. All calls block: call them in threads.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit
from docker.types.daemon import CancellableStream
from docker.utils import kwargs_from_env

from services.runner.errors import EngineRefused, EngineUnavailable
from services.runner.folder import MOUNTED_AT, PACKAGES, PYTHON, SCRATCH, Owner, RunFolder

RUN_LABEL = "runyard.run_id"
ATTEMPT_LABEL = "runyard.attempt"
RUNNER_LABEL = "runyard.runner_id"
INSTALL_LABEL = "runyard.install"

CPU_PERIOD_US = 100_000
SHM_BYTES = 256 * 1024 * 1024
OPEN_FILES = 4096  # INR_OPEN_MAX of linux/fs.h: above the engine's own limit no container would start
ENTRY = [PYTHON, "-I", "-S", "-B", f"{MOUNTED_AT}/slot/shim.py"]
# The shim bounds what is logged; the engine must neither rotate nor drop, whatever its own defaults say (FACTS.md:
# following a rotated log loses lines). `max-size` has no word for unlimited.
LOG = LogConfig(type="json-file", config={"mode": "blocking", "max-size": "1t", "max-file": "1", "compress": "false"})

CLOSED_SOCKET = "file descriptor cannot be a negative integer"
"""What urllib3 says of a connection in its pool whose socket a follower closed at the moment when its log ended."""

_BROKEN = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
"""What a connection raises, since the SDK does not wrap it."""


@dataclass(frozen=True, kw_only=True)
class SandboxSpec:
    """What one attempt gets. The folder must be prepared before and stay until the container is removed.

    `image` is an id or a digest, so that a tag that moves changes nothing; `seccomp_profile` is the profile itself
    as JSON; `oci_runtime` is a name that the engine knows (`runsc`); `packages` is a folder of installed packages.
    """

    run_id: str
    attempt: int
    runner_id: str
    image: str
    folder: RunFolder
    owner: Owner
    cpu_cores: float
    memory_bytes: int
    gpu: bool = False
    pids_limit: int = 1024
    scratch_bytes: int = 1024**3
    file_size_bytes: int = 16 * 1024**3
    packages: Path | None = None
    oci_runtime: str | None = None
    seccomp_profile: str | None = None

    @property
    def name(self) -> str:
        """The container's name; names are exclusive, so an attempt can have one container only."""
        return f"run-{self.run_id}-{self.attempt}"

    @property
    def labels(self) -> dict[str, str]:
        """How the container is found again."""
        return {RUN_LABEL: self.run_id, ATTEMPT_LABEL: str(self.attempt), RUNNER_LABEL: self.runner_id}


@dataclass(frozen=True)
class ContainerState:
    """What the engine knows of a container; `status` in the engine's words (created, running, exited, dead, …).

    `exit_code` is null while it has not ended. 137 alone does not mean that memory ran out.
    """

    container_id: str
    status: str
    exit_code: int | None
    oom_killed: bool
    started_at: datetime | None
    finished_at: datetime | None
    error: str = ""


@dataclass(frozen=True)
class OwnedContainer:
    """A container of this runner, found by its labels."""

    name: str
    run_id: str
    attempt: int
    status: str


class LogStream:
    """The container's output from its beginning, chunk by chunk, as it comes.

    It ends when the container ends, when the connection breaks, or when another thread closes it: its end proves
    nothing, so ask `Sandbox.inspect`, and follow again with a decoder that skips what was seen.
    """

    def __init__(self, stream: "CancellableStream[bytes]") -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except (*_BROKEN, ValueError):
            return  # closed here or broken there: what is raised depends on what was being read
        finally:
            self._stream._response.close()  # type: ignore[attr-defined]  # else the garbage collector closes it

    def close(self) -> None:
        """Stop following; may be called by another thread than the one that iterates."""
        with suppress(OSError, AttributeError):  # it may have ended by itself just now
            self._stream.close()


class Sandbox:
    """The containers of one engine."""

    def __init__(self, client: docker.APIClient) -> None:
        self._client = client

    @classmethod
    def connect(cls, *, base_url: str | None = None, timeout_s: int = 30, followers: int = 64) -> "Sandbox":
        """Connect to the engine of the environment, or to the one named; `followers` logs can be followed at once.

        Raises:
            EngineUnavailable: Nobody answers.
        """
        with _translated():
            options: dict[str, Any] = {"base_url": base_url} if base_url else {**kwargs_from_env()}
            client = docker.APIClient(version="auto", timeout=timeout_s, max_pool_size=followers + 8, **options)
        return cls(client)

    def close(self) -> None:
        """Let the connections go; containers run on."""
        self._client.close()

    def create(self, spec: SandboxSpec) -> str:
        """Create the attempt's container, or adopt the one that has its name; return its id.

        Raises:
            EngineRefused: The image is missing, the configuration is refused, or the name is somebody else's.
            EngineUnavailable: The outcome is unknown; calling again is safe.
        """
        try:
            with _translated():
                return self._create(spec)
        except (EngineUnavailable, EngineRefused):
            adopted = self._adopt(spec)
            if adopted is None:
                raise
            return adopted

    def start(self, name: str) -> None:
        """Start a created container; one that was started before is left alone, since a script must not run twice."""
        state = self.inspect(name)
        if state is None:
            raise EngineRefused(f"no container {name}")
        if state.status == "created":
            with _translated():
                self._client.start(name)

    def inspect(self, name: str) -> ContainerState | None:
        """Ask for the container's state; None when there is no such container."""
        found = self._inspect(name)
        return None if found is None else _state(found)

    def follow(self, name: str) -> LogStream:
        """Follow the shim's frames from the first one on."""
        with _translated():
            return LogStream(self._client.logs(name, stdout=True, stderr=False, stream=True, follow=True))

    def terminate(self, name: str) -> None:
        """Send SIGTERM to the shim, which hands it on; harmless when the container has ended."""
        self._signal(name, "SIGTERM")

    def kill(self, name: str) -> None:
        """End every process of the container at once; harmless when it has ended. Its last frame will be missing."""
        self._signal(name, "SIGKILL")

    def remove(self, name: str) -> None:
        """Remove the container and its log, running or not; harmless when it is gone."""
        with _translated(ignore=(404, 409)):
            self._client.remove_container(name, v=True, force=True)

    def ping(self) -> None:
        """Do nothing but hear that the engine is there."""
        with _translated():
            self._client.ping()

    def owned(self, runner_id: str) -> list[OwnedContainer]:
        """List this runner's containers, ended ones too."""
        with _translated():
            found = self._client.containers(all=True, filters={"label": [f"{RUNNER_LABEL}={runner_id}", RUN_LABEL]})
        return [
            OwnedContainer(
                name=container["Names"][0].removeprefix("/"),
                run_id=container["Labels"][RUN_LABEL],
                attempt=int(container["Labels"][ATTEMPT_LABEL]),
                status=container["State"],
            )
            for container in found
        ]

    def installs(self, runner_id: str) -> list[str]:
        """Name the containers in which this runner installs packages, ended ones too."""
        with _translated():
            found = self._client.containers(all=True, filters={"label": [f"{RUNNER_LABEL}={runner_id}", INSTALL_LABEL]})
        return [container["Names"][0].removeprefix("/") for container in found]

    def _create(self, spec: SandboxSpec) -> str:
        made = self._client.create_container(
            spec.image,
            name=spec.name,
            labels=spec.labels,
            entrypoint=ENTRY,
            user=f"{spec.owner.uid}:{spec.owner.gid}",
            stop_signal="SIGTERM",
            network_disabled=True,
            host_config=self._client.create_host_config(**_walls(spec), **_limits(spec)),
        )
        return str(made["Id"])

    def _adopt(self, spec: SandboxSpec) -> str | None:
        """Find the container that an earlier call has made; None when there is none."""
        found = self._inspect(spec.name)
        if found is None:
            return None
        if not spec.labels.items() <= (found["Config"]["Labels"] or {}).items():
            raise EngineRefused(f"the name {spec.name} belongs to a container that is not this attempt's")
        return str(found["Id"])

    def _inspect(self, name: str) -> dict[str, Any] | None:
        with _translated():
            try:
                return dict(self._client.inspect_container(name))
            except docker.errors.NotFound:
                return None

    def _signal(self, name: str, signal: str) -> None:
        with _translated(ignore=(404, 409)):
            self._client.kill(name, signal)


def _walls(spec: SandboxSpec) -> dict[str, Any]:
    """What the container cannot reach."""
    seccomp = [] if spec.seccomp_profile is None else [f"seccomp={spec.seccomp_profile}"]
    parts = ((spec.folder.slot, True), (spec.folder.code, True), (spec.folder.data, True), (spec.folder.out, False))
    return {
        "network_mode": "none",
        "ipc_mode": "private",
        "read_only": True,
        "mounts": [
            Mount(target=f"{MOUNTED_AT}/{part.name}", source=str(part), type="bind", read_only=read_only)
            for part, read_only in parts
        ]
        + ([Mount(PACKAGES, str(spec.packages), type="bind", read_only=True)] if spec.packages else []),
        # `exec` must be said: some libraries compile at run time and load what they have made.
        "tmpfs": {SCRATCH: f"rw,exec,nosuid,nodev,mode=1777,size={spec.scratch_bytes}"},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true", *seccomp],
        "init": False,
        "log_config": LOG,
        "runtime": spec.oci_runtime,
        "device_requests": [DeviceRequest(count=1, capabilities=[["gpu"]])] if spec.gpu else None,
    }


def _limits(spec: SandboxSpec) -> dict[str, Any]:
    """How much the container can take. CPU by quota: the engine refuses NanoCPUs above the host's cores."""
    return {
        "cpu_period": CPU_PERIOD_US,
        "cpu_quota": int(spec.cpu_cores * CPU_PERIOD_US),
        "mem_limit": spec.memory_bytes,
        "memswap_limit": spec.memory_bytes,
        "pids_limit": spec.pids_limit,
        "shm_size": min(SHM_BYTES, spec.memory_bytes),
        "ulimits": [
            Ulimit(name="nofile", soft=OPEN_FILES, hard=OPEN_FILES),
            Ulimit(name="fsize", soft=spec.file_size_bytes, hard=spec.file_size_bytes),
            Ulimit(name="core", soft=0, hard=0),
        ],
    }


def _state(found: dict[str, Any]) -> ContainerState:
    state = found["State"]
    return ContainerState(
        container_id=found["Id"],
        status=state["Status"],
        exit_code=state["ExitCode"] if state["Status"] in ("exited", "dead") else None,
        oom_killed=state["OOMKilled"],
        started_at=_moment(state["StartedAt"]),
        finished_at=_moment(state["FinishedAt"]),
        error=state["Error"],
    )


def _moment(text: str) -> datetime | None:
    """Read one of the engine's times; it writes year 1 for never."""
    return None if text.startswith("0001-") else datetime.fromisoformat(text)


@contextmanager
def _translated(ignore: tuple[int, ...] = ()) -> Iterator[None]:
    """Turn what the SDK raises into our two errors: 5xx and silence are transient, 4xx is the engine's word."""
    try:
        yield
    except docker.errors.APIError as problem:
        status = problem.status_code or 500
        if status in ignore:
            return
        reason = str(problem.explanation or problem)
        raise (EngineUnavailable(reason) if status >= 500 else EngineRefused(reason)) from problem
    except (docker.errors.DockerException, *_BROKEN) as problem:
        raise EngineUnavailable(str(problem)) from problem
    except ValueError as problem:
        if CLOSED_SOCKET not in str(problem):
            raise
        raise EngineUnavailable("the connection was closed while it was idle") from problem

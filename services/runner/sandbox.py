"""One container per attempt, on one Docker Engine: made, started, watched, signalled, removed.

Only `services.runner.sandbox*` knows Docker; what leaves this file is in our own words. A container whose walls
(`sandbox_walls`) its inspection does not confirm is removed and never started. This file must never decide how a run
ended, and never give a container the script's variables: they would stand in `docker inspect`. All calls block: call
them in threads.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions
from docker.types.daemon import CancellableStream
from docker.utils import kwargs_from_env

from services.runner.errors import EngineRefused, EngineUnavailable
from services.runner.sandbox_walls import (
    ATTEMPT_LABEL,
    INSTALL_LABEL,
    RUN_LABEL,
    RUNNER_LABEL,
    SandboxSpec,
    request,
    unconfirmed,
)

CLOSED_SOCKET = "file descriptor cannot be a negative integer"
"""What urllib3 says of a connection in its pool whose socket a follower closed at the moment when its log ended."""

_BROKEN = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
"""What a connection raises, since the SDK does not wrap it."""


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


def is_over(state: ContainerState | None) -> bool:
    """Whether a container runs no more; None is one that is gone."""
    return state is None or state.status in ("exited", "dead", "removing")


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
        self._confirmed: set[str] = set()

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
        """Create the attempt's container, or adopt the one that has its name, and confirm its walls; return its id.

        Raises:
            EngineRefused: The image is missing, the configuration is refused, the name is somebody else's, or a control
                cannot be confirmed: then the container is gone, and the reason names the control.
            EngineUnavailable: The outcome is unknown; calling again is safe.
        """
        try:
            with _translated():
                self._client.create_container_from_config(request(spec), spec.name)  # type: ignore[no-untyped-call]
        except (EngineUnavailable, EngineRefused):
            if self._left_behind(spec) is None:
                raise
        return self._confirm(spec)

    def is_as_asked(self, spec: SandboxSpec) -> bool:
        """Whether the attempt's container is there and shows each control as one that was made now would have to.

        Raises:
            EngineRefused: The name is somebody else's.
        """
        found = self._left_behind(spec)
        return found is not None and not any(unconfirmed(spec, found))

    def start(self, name: str) -> None:
        """Start a created container; harmless when it is gone, or was started: a script must not run twice.

        Raises:
            EngineRefused: Nobody here has confirmed its walls.
        """
        state = self.inspect(name)
        if state is None:
            return
        if state.status == "created":
            if state.container_id not in self._confirmed:
                raise EngineRefused(f"the walls of {name} were not confirmed")
            with _translated(ignore=(404,)):
                self._client.start(name)
        self._confirmed.discard(state.container_id)

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

    def _left_behind(self, spec: SandboxSpec) -> dict[str, Any] | None:
        """Find the container that an earlier call has made; its name may belong to nobody else."""
        found = self._inspect(spec.name)
        if found and not spec.labels.items() <= (found["Config"]["Labels"] or {}).items():
            raise EngineRefused(f"the name {spec.name} belongs to a container that is not this attempt's")
        return found

    def _confirm(self, spec: SandboxSpec) -> str:
        """Let nobody start a container that does not show each control as it was asked for."""
        found = self._inspect(spec.name)
        if found is None:
            raise EngineUnavailable("the container went away")
        if problems := list(unconfirmed(spec, found)):
            self.remove(spec.name)
            raise EngineRefused(f"cannot be confirmed: {'; '.join(problems)}")
        self._confirmed.add(found["Id"])
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

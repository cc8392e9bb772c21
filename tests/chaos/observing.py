"""An independent observer of containers: Docker's own stamps of when each started and died, whoever asked for it.

It follows the engine's events and inspects what is there every half second, so that an engine that dies and comes
back, whose events are then gone, hides nothing but what it forgot itself. Owns one thread per way of looking; knows
nothing of Runyard but its labels.
"""

import contextlib
import json
import threading
import time
from datetime import datetime
from typing import Any, cast

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions

from tests.chaos.evidence import Lifetime, Place
from tests.chaos.private_engine import listens

RUN, ATTEMPT, RUNNER = "runyard.run_id", "runyard.attempt", "runyard.runner_id"
INSPECT_EVERY_S = 0.5
NEVER = "0001-"
GONE = (docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)


class Observer:
    """Watches one engine from `start` to `stop`; `docker_host` None is the engine of the environment."""

    def __init__(self, docker_host: str | None = None) -> None:
        self._docker_host = docker_host
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._found: dict[str, dict[str, Any]] = {}
        self._inspected: dict[str, bytes] = {}
        self._since_ns = time.time_ns()
        self._following: Any = None
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._follow, self._look_around)]

    def start(self) -> None:
        """Begin to watch."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Look around once more and stop."""
        self._stopping.set()
        with contextlib.suppress(*GONE, AttributeError, ValueError):
            self._following.close()
        for thread in self._threads:
            thread.join(timeout=15)

    def lifetimes(self) -> list[Lifetime]:
        """Tell every container that has been seen running."""
        with self._lock:
            return [_lifetime(name, found) for name, found in self._found.items() if "started" in found]

    def inspections(self) -> list[Place]:
        """Tell what `docker inspect` said of each container while it ran."""
        with self._lock:
            return [Place(f"docker inspect {name[:12]}", content) for name, content in self._inspected.items()]

    def _connect(self) -> docker.DockerClient:
        if not listens(self._docker_host):
            raise ConnectionRefusedError(self._docker_host)
        if self._docker_host is None:
            return docker.from_env(timeout=10)
        return docker.DockerClient(base_url=self._docker_host, version="auto", timeout=10)

    def _follow(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(*GONE, ValueError), contextlib.closing(self._connect()) as client:
                since = self._since_ns / 1e9
                filters = {"type": "container", "label": RUN}
                self._following = client.api.events(since=cast("int", f"{since:.9f}"), decode=True, filters=filters)
                try:
                    for event in self._following:
                        self._on_event(event)
                finally:
                    self._following._response.close()  # else the garbage collector closes it
            self._stopping.wait(0.1)

    def _on_event(self, event: dict[str, Any]) -> None:
        action, labels, at = event.get("Action"), event["Actor"]["Attributes"], event["timeNano"]
        with self._lock:
            self._since_ns = max(self._since_ns, at + 1)
            found = self._found.setdefault(event["Actor"]["ID"], {"labels": labels})
            if action == "start":
                found.setdefault("started", at / 1e9)
            elif action == "die":
                found["ended"] = at / 1e9
                found["exit_code"] = int(labels["exitCode"])

    def _look_around(self) -> None:
        while not self._stopping.wait(INSPECT_EVERY_S):
            self._look_once()
        self._look_once()

    def _look_once(self) -> None:
        with contextlib.suppress(*GONE), contextlib.closing(self._connect()) as client:
            asked_at = time.time()
            present = client.api.containers(all=True, filters={"label": RUN})
            for container in present:
                with contextlib.suppress(docker.errors.NotFound):
                    self._on_inspection(client.api.inspect_container(container["Id"]), asked_at)
            self._on_absence({container["Id"] for container in present}, asked_at)

    def _on_inspection(self, told: dict[str, Any], at: float) -> None:
        state, name = told["State"], told["Id"]
        with self._lock:
            found = self._found.setdefault(name, {"labels": told["Config"]["Labels"]})
            self._inspected[name] = json.dumps(told).encode()
            if not state["StartedAt"].startswith(NEVER):
                found.setdefault("started", _seconds(state["StartedAt"]))
            if state["Running"]:
                found["alive"] = at
                found.pop("gone", None)
            elif "started" in found and not state["FinishedAt"].startswith(NEVER):
                found.setdefault("ended", _seconds(state["FinishedAt"]))
                found.setdefault("exit_code", state["ExitCode"])

    def _on_absence(self, present: set[str], at: float) -> None:
        """A container that the engine does not know any more has ended, at the latest since it was last seen alive."""
        with self._lock:
            for name, found in self._found.items():
                if name not in present and "started" in found and found.get("started", at) < at:
                    found.setdefault("gone", at)


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _lifetime(name: str, found: dict[str, Any]) -> Lifetime:
    ended = found.get("ended")
    if ended is None and "gone" in found:
        ended = found.get("alive", found["started"])
    return Lifetime(
        run_id=found["labels"][RUN],
        attempt=int(found["labels"][ATTEMPT]),
        runner_id=found["labels"][RUNNER],
        container_id=name,
        started=found["started"],
        ended=ended,
        exit_code=found.get("exit_code"),
    )

"""A container of the real engine with the walls of a run, or with some of them taken out, and a probe inside."""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
from docker.utils import kwargs_from_env

from services.runner.folder import PYTHON
from services.runner.sandbox import Sandbox
from services.runner.sandbox_walls import SandboxSpec, request
from tests.integration.cell import MIB, PATIENCE_S, a_cell


def engine() -> docker.APIClient:
    """Connect to the engine that the runner would use."""
    return docker.APIClient(version="auto", timeout=PATIENCE_S, **kwargs_from_env())


class Forgetful(docker.APIClient):
    """An engine's client whose engine makes something else than it was asked for: `Part.Key` → what it makes of it."""

    differs: Mapping[str, Any]

    def create_container_from_config(self, config: Any, name: str | None = None, platform: str | None = None) -> Any:
        return super().create_container_from_config(altered(config, self.differs), name, platform)


def altered(asked: Mapping[str, Any], differences: Mapping[str, Any]) -> dict[str, Any]:
    """Change a request at some places."""
    made = {**asked, "HostConfig": {**asked["HostConfig"]}}
    for place, value in differences.items():
        part, key = place.split(".")
        (made if part == "Config" else made[part])[key] = value
    return made


def forgetful(differences: Mapping[str, Any]) -> Forgetful:
    client = Forgetful(version="auto", timeout=PATIENCE_S, **kwargs_from_env())
    client.differs = differences
    return client


@contextlib.contextmanager
def a_spec(folder: Path, image: str, runtime: str, script: str = "pass") -> Iterator[SandboxSpec]:
    """Lay out a run of one script; its container and its folder are gone at the end."""
    small = {"cpu_cores": 1, "pids_limit": 64, "file_size_bytes": 32 * MIB}
    with (
        contextlib.closing(Sandbox.connect()) as sandbox,
        a_cell(sandbox, image, folder, oci_runtime=runtime, **small) as cell,
    ):
        cell.prepare(script)
        yield cell.spec


def probe(spec: SandboxSpec, code: str, differences: Mapping[str, Any] | None = None) -> Any:
    """Run code in the place of the shim, in a container with some differences; what it prints is JSON."""
    with contextlib.closing(engine()) as client:
        body = altered(request(spec), {"Config.Entrypoint": [PYTHON, "-I", "-c", code], **(differences or {})})
        container = client.create_container_from_config(body, f"{spec.name}-{secrets.token_hex(4)}")["Id"]  # type: ignore[no-untyped-call]
        try:
            client.start(container)
            ended = _wait(client, container)
            said = client.logs(container, stdout=True, stderr=True).decode(errors="replace")
            assert ended == 0, said
            return json.loads(said)
        finally:
            client.remove_container(container, force=True)


def _wait(client: docker.APIClient, container: str) -> int:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        state = client.inspect_container(container)["State"]
        if state["Status"] == "exited":
            return int(state["ExitCode"])
    raise AssertionError("the probe does not end")


def runtimes() -> list[str]:
    """List the OCI runtimes that this host's engine has, of those that a run may have."""
    try:
        with contextlib.closing(engine()) as client:
            known = client.info()["Runtimes"]
    except docker.errors.DockerException:
        return ["runc"]  # the tests themselves will say that no engine answers
    return [name for name in ("runc", "runsc") if name in known]

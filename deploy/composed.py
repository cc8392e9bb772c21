"""compose.yaml brought up for real, for as long as a command runs, and taken down without a trace.

Owns one project per checkout: its name, its folder (`.runyard/composed`: secrets, the runner's work, where the system
answers) and its end, which comes whatever happens: the command fails, a part does not become healthy, Ctrl-C, SIGTERM.
What a killed one has left is swept away first. Images stay; they are the cache. Never changes what compose.yaml says.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import docker
from docker import DockerClient
from docker.errors import APIError, DockerException
from docker.models.containers import Container

from deploy.images.build import ensure_all, workshop
from deploy.images.recipes import ROOT
from services.cli.data_dir import DataDir
from services.cli.embedded_process import free_port
from services.runner.sandbox_rootfs import CannotBuildError
from services.runner.sandbox_walls import RUN_LABEL

FOLDER = ROOT / ".runyard" / "composed"
PROJECT = f"runyard-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
SLOTS = Path("/dev/shm") / PROJECT  # noqa: S108 - where the runner's secrets lie, on the host's tmpfs
PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
HEALTHY_TIMEOUT_S = 180.0
POLL_S = 0.5
END_TIMEOUT_S = 30
OURS = ("RUNYARD_", "KAFKA_", "POSTGRES_", "COMPOSE_", "PYTHON_IMAGE")
"""What compose.yaml reads from the environment: it must come from our file, not from whoever calls."""
CPU_CORES, MEMORY_GB = 4, 16
"""What the endpoint's page asks for in its example; the runner announces it whatever the host has."""


class CannotCompose(Exception):
    """The system could not be brought up or taken down; the text says what to do about it."""


@dataclass(frozen=True)
class Project:
    """The composed system of this checkout."""

    engine: DockerClient
    compose: tuple[str, ...]

    @property
    def data_dir(self) -> DataDir:
        """Its folder, laid out as `runyard up` lays out its own, so that every command and test finds its way."""
        return DataDir.at(FOLDER)

    @property
    def log_path(self) -> Path:
        """Where the logs are kept when the command has failed."""
        return FOLDER.with_suffix(".log")

    def containers(self) -> list[Container]:
        """List its containers, ended ones too."""
        return list(self.engine.containers.list(all=True, filters={"label": f"{PROJECT_LABEL}={PROJECT}"}))

    def call(self, *words: str, capture: bool = False) -> str:
        """Call Compose; its words go where ours go, unless they are wanted as the answer."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        done = subprocess.run(
            [*self.compose, "--project-name", PROJECT, "--env-file", str(FOLDER / "env"), *words],
            cwd=ROOT,
            env=kept,
            stdout=subprocess.PIPE if capture else sys.stderr,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CannotCompose(f"`{self.compose[-1]} {words[0]}` ended with {done.returncode}")
        return done.stdout or ""


def say(line: str) -> None:
    """Tell of the progress."""
    sys.stderr.write(f"[composed] {line}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def composed_system() -> Iterator[Project]:
    """Bring the system up, hand it over healthy, and take it down at the end of the block, whatever happens.

    Raises:
        CannotCompose: Compose is missing, another one is up in this checkout, or a part did not become healthy.
        CannotBuildError: an image can neither be pulled nor made here.
    """
    FOLDER.parent.mkdir(exist_ok=True)
    with FOLDER.with_suffix(".lock").open("w") as lock, closing(docker.from_env(timeout=120)) as engine:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotCompose("another composed system is up in this checkout: wait for its end") from error
        project = Project(engine, find_compose())
        with workshop(say) as shop:
            images = ensure_all(shop)
        sweep(project)
        try:
            yield _brought_up(project, images)
        finally:
            take_down(project)


def find_compose() -> tuple[str, ...]:
    """Find Compose: the engine's plugin, or the program of its own.

    Raises:
        CannotCompose: there is none.
    """
    for words in (("docker", "compose"), ("docker-compose",)):
        with contextlib.suppress(FileNotFoundError):
            if subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0:
                return words
    raise CannotCompose(
        "neither `docker compose` nor `docker-compose` is here: install Compose (https://docs.docker.com/compose/install/;"
        " on Debian: apt-get install docker-compose)"
    )


def environment(images: Mapping[str, str], data_dir: DataDir) -> dict[str, str]:
    """Fill in what deploy/compose.env.example asks for, and where this project differs from the defaults."""
    known = data_dir.secrets()
    return {
        "RUNYARD_POSTGRES_ADMIN_PASSWORD": secrets.token_urlsafe(24),
        "RUNYARD_API_DB_PASSWORD": known.api_password,
        "RUNYARD_SCHEDULER_DB_PASSWORD": known.scheduler_password,
        "RUNYARD_AUDITOR_DB_PASSWORD": known.auditor_password,
        "RUNYARD_SEALING_KEY": known.sealing_key,
        "RUNYARD_JWT_SECRET": known.jwt_secret,
        "KAFKA_CLUSTER_ID": secrets.token_urlsafe(16),
        "RUNYARD_WORK_DIR": str(data_dir.path / "work"),
        "RUNYARD_SLOTS_DIR": str(SLOTS),
        "RUNYARD_RUNNER_CPU_CORES": str(CPU_CORES),
        "RUNYARD_RUNNER_MEMORY_GB": str(MEMORY_GB),
        "RUNYARD_API_PUBLISH": f"127.0.0.1:{free_port()}",
        "RUNYARD_KAFKA_PUBLISH": f"127.0.0.1:{free_port()}",
        **images,
    }


def _brought_up(project: Project, images: Mapping[str, str]) -> Project:
    began, data_dir = time.monotonic(), project.data_dir
    with data_dir.locked():
        data_dir.ensure_secrets()
    told = environment(images, data_dir)
    (FOLDER / "env").touch(mode=0o600)
    (FOLDER / "env").write_text("".join(f"{name}={value}\n" for name, value in told.items()))
    data_dir.keep_url(f"http://{told['RUNYARD_API_PUBLISH']}")
    data_dir.kafka.mkdir()
    (data_dir.kafka / "port").write_text(told["RUNYARD_KAFKA_PUBLISH"].rpartition(":")[2])
    try:
        project.call("up", "--detach", "--no-build")
        _wait_until_healthy(project)
    except CannotCompose:
        _show_logs(project)
        raise
    say(f"up and healthy after {time.monotonic() - began:.0f} s: {', '.join(_versions(project))}")
    return project


def _wait_until_healthy(project: Project) -> None:
    deadline = time.monotonic() + HEALTHY_TIMEOUT_S
    while states := {_service(c): state for c in project.containers() if (state := _state(c)) not in GOOD}:
        if time.monotonic() > deadline or "unhealthy" in states.values():
            raise CannotCompose(f"not everything became healthy: {states}")
        time.sleep(POLL_S)


GOOD = ("healthy", "exited 0")


def _state(container: Container) -> str:
    """Tell a container's health, or how it ended; `migrate` has to end well, the others must not end."""
    state: dict[str, Any] = container.attrs["State"]
    if state["Status"] == "exited":
        return f"exited {state['ExitCode']}"
    return str(state.get("Health", {}).get("Status", state["Status"]))


def _service(container: Container) -> str:
    return str(container.labels[SERVICE_LABEL])


def _versions(project: Project) -> list[str]:
    """Ask the parts themselves which versions they are."""
    running = {_service(container): container for container in project.containers()}

    def answer(service: str, *command: str) -> str:
        output = cast("bytes", running[service].exec_run(list(command)).output)
        return output.decode().strip().splitlines()[-1]

    kafka = answer("kafka", "/opt/kafka/bin/kafka-broker-api-versions.sh", "--version")
    return [
        f"Apache Kafka {kafka.split()[0]}",
        answer("postgres", "postgres", "--version").replace("postgres (PostgreSQL)", "PostgreSQL"),
        f"Compose {project.call('version', '--short', capture=True).strip()}",
        f"Docker Engine {project.engine.version()['Version']}",
        f"services on {answer('api', 'python3', '--version')}",
    ]


def _show_logs(project: Project, lines: int = 25) -> None:
    for container in project.containers():
        if _state(container) not in GOOD:
            say(f"{_service(container)} is {_state(container)}; its log ends with:")
            sys.stderr.write(container.logs(tail=lines).decode(errors="replace"))


def keep_logs(project: Project) -> None:
    """Write all logs to a file beside the project's folder, for whoever has to find out."""
    project.log_path.write_text(project.call("logs", "--no-color", "--timestamps", capture=True))
    say(f"the logs are in {project.log_path}")


def take_down(project: Project) -> None:
    """Stop and remove everything of the project, and see to it that nothing is left.

    Raises:
        CannotCompose: something is left; the text names it.
    """
    with _undisturbed():
        began = time.monotonic()
        if (FOLDER / "env").exists():
            with contextlib.suppress(CannotCompose):  # what it does not manage, the sweep does
                project.call("down", "--volumes", "--timeout", str(END_TIMEOUT_S))
        sweep(project)
        say(f"taken down without a trace in {time.monotonic() - began:.0f} s")


def sweep(project: Project) -> None:
    """Remove by label and folder whatever there is of the project.

    Raises:
        CannotCompose: something could not be removed.
    """
    engine, mine = project.engine, {"label": f"{PROJECT_LABEL}={PROJECT}"}
    for container in (*project.containers(), *_runs(engine)):
        with contextlib.suppress(APIError):
            container.remove(force=True, v=True)
    for network in engine.networks.list(filters=mine):
        with contextlib.suppress(APIError):
            network.remove()
    for volume in engine.volumes.list(filters=mine):
        with contextlib.suppress(APIError):
            volume.remove()
    for folder in (FOLDER, SLOTS):
        if folder.exists():
            shutil.rmtree(folder)
    left = [str(container.name) for container in (*project.containers(), *_runs(engine))]
    left += [str(network.name) for network in engine.networks.list(filters=mine)]
    left += [str(volume.name) for volume in engine.volumes.list(filters=mine)]
    left += [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if f" {FOLDER}/" in line]
    if left:
        raise CannotCompose(f"could not be removed: {', '.join(left)}")


def _runs(engine: DockerClient) -> list[Container]:
    """Find the containers of runs that the project's runner has left: they mount something of its work folder."""
    found = engine.containers.list(all=True, filters={"label": RUN_LABEL})
    return [c for c in found if any(m["Source"].startswith(f"{FOLDER}/") for m in c.attrs["Mounts"])]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal end what has to be finished."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(command: list[str]) -> int:
    """Run a command on a composed system; returns its exit code. It finds the system by RUNYARD_DATA_DIR."""
    with composed_system() as project:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        with subprocess.Popen(command, env=kept | {"RUNYARD_DATA_DIR": str(FOLDER)}) as process:
            try:
                code = process.wait()
            except BaseException:  # Ctrl-C has reached it, too; give it the time to say what it has found
                process.terminate()
                raise
        if code:
            keep_logs(project)
        return code


def main(arguments: list[str] | None = None) -> int:
    """Bring compose.yaml up, run a command, take everything down."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.composed",
        description="Bring compose.yaml up for real, wait until every part is healthy, run a command with"
        " RUNYARD_DATA_DIR set, take everything down without a trace, and end as the command has ended.",
        epilog="example: python -m deploy.composed runyard train examples/wine/train.py --data examples/wine/wine.csv",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run while the system is up")
    command = parser.parse_args(arguments).command
    if not command:
        parser.error("say what to run while the system is up")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        return run(command)
    except (CannotCompose, CannotBuildError, DockerException) as error:
        say(f"cannot: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

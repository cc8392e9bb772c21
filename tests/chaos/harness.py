"""A whole system to be broken: the parts of `runyard up`, with two runners, a short lease and a patient restarter.

Owns starting, starting again and stopping; never decides what breaks when (`faults` does), nor what is right
(`invariants` does). Everything it starts ends with it.
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from services.cli.data_dir import DataDir, Secrets
from services.cli.embedded_kafka import EmbeddedKafka, Listener
from services.cli.embedded_postgres import EmbeddedPostgres
from services.cli.migrate import API_ROLE, AUDITOR_ROLE, SCHEDULER_ROLE, migrate_all
from services.cli.service_process import ServiceProcess
from services.cli.system import Addresses, SystemOptions, service_settings
from services.cli.tokens import Claims, mint
from services.runner import quota
from services.runner.settings import RunnerSettings
from services.runner.slot import slots_folder
from tests.chaos.broker_proxy import BrokerProxy
from tests.chaos.private_engine import PrivateEngine

SERVICES = ("api", "scheduler", "runner", "runner-2", "auditor")
RUNNERS = ("runner", "runner-2")
STOP_ORDER = ("runner", "runner-2", "scheduler", "auditor", "api")
PORTS = range(15_000, 30_000)
"""Below the ephemeral range: in it a client that reconnects may take the port of the server that it waits for."""
POLL_S = 0.05
READY_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """What the system shall be like.

    Attributes:
        environment: added to every service's.
        environment_of: added to one service's, by its name in `SERVICES`.
        private_engine: run containers on an engine of the harness's own, which may be killed.
        restart: False leaves dead parts dead.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    environment_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    private_engine: bool = False
    restart: bool = True
    heartbeat_s: float = 1.0
    lease_s: float = 7.0
    cpu_cores: int = 4
    memory_gb: int = 8


@contextlib.asynccontextmanager
async def chaos_system(data_dir: Path, options: ChaosOptions | None = None) -> AsyncIterator["Chaos"]:
    """Start a system, hand it over ready, and stop it at the end of the block, whatever happens in between.

    Must be entered on the main thread (see `embedded_process`).
    """
    folder = DataDir.at(data_dir)
    with folder.locked():
        chaos = Chaos(folder, options or ChaosOptions())
        try:
            await chaos.start()
            yield chaos
        finally:
            await chaos.stop()
            chaos.forget_the_lost()


class Chaos:
    """The parts of a system that is to be broken; see `chaos_system`.

    Attributes:
        services: by name; the two runners are `runner` and `runner-2`, which reaches Kafka through `proxy`.
        restarts: how often the restarter started each part again.
        held: parts that shall stay dead until their names are taken out again.
    """

    def __init__(self, data_dir: DataDir, options: ChaosOptions) -> None:
        self.options = options
        self.data_dir = data_dir
        self.services: dict[str, ServiceProcess] = {}
        self.restarts: Counter[str] = Counter()
        self.held: set[str] = set()
        self.engine = PrivateEngine() if options.private_engine else None
        self.urls: dict[str, str] = {}
        self._keepers: list[asyncio.Task[None]] = []
        kafka_port, second_port, proxy_port, postgres_port = free_ports(4)
        self.postgres = EmbeddedPostgres(data_dir.postgres, postgres_port)
        self.kafka = EmbeddedKafka(data_dir.kafka, kafka_port, Listener(second_port, proxy_port))
        self.proxy = BrokerProxy(proxy_port, second_port)

    @property
    def api_url(self) -> str:
        """Where the api answers."""
        return self.urls["api"]

    def forget_the_lost(self) -> None:
        """Remove what runners that were killed for good have left outside of the data folder: mounts and slots."""
        quota.detach(self.data_dir.path)
        for name in RUNNERS:
            shutil.rmtree(self.slots(name), ignore_errors=True)

    @property
    def docker_host(self) -> str | None:
        """The engine that the runners use; None for the one of the environment."""
        return self.engine.url if self.engine else None

    def token(self, claims: Claims | None = None) -> str:
        """Mint a bearer token for this system."""
        return mint(self.data_dir, claims)

    def work_dir(self, runner: str) -> Path:
        """Tell a runner's work folder."""
        return self.data_dir.path / runner

    def slots(self, runner: str) -> Path:
        """Tell where the secrets of a runner's runs lie."""
        return slots_folder(RunnerSettings.model_fields["slots_dir"].default, self.work_dir(runner))

    async def start(self) -> None:
        """Start everything; returns when every part is ready."""
        secrets = self.data_dir.ensure_secrets()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._start_postgres(secrets))
            group.create_task(self.kafka.start())
            group.create_task(self.proxy.start())
            if self.engine is not None:
                group.create_task(self._start_engine(self.engine))
        self._make_services(secrets)
        for process in self.services.values():
            await process.start()
        if self.options.restart:
            self._keep_everything()
        await self.ready()

    async def ready(self, *names: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until these services (all by default) say that every part of them works.

        Raises:
            TimeoutError: which is not ready, and what it says.
        """
        reports: dict[str, str] = {}
        until = time.monotonic() + timeout_s
        async with httpx.AsyncClient(timeout=5) as client:
            for name in names or SERVICES:
                while not await _is_ready(client, self.urls[name], reports):
                    if time.monotonic() > until:
                        raise TimeoutError(f"{name} is not ready: {reports}; its log is {self.services[name].log_path}")
                    await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """Stop everything in order: who acts first, then who records, then what holds the data."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for name in STOP_ORDER:
            if name in self.services:
                self.go_on(name)
                await self.services[name].stop()
        await self.proxy.stop()
        await self.kafka.stop()
        await self.postgres.stop()
        if self.engine is not None:
            await self.engine.stop()

    def halt(self, name: str) -> None:
        """Stop a service where it stands (SIGSTOP), as a host that hangs would."""
        self._signal(name, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Let a halted service go on (SIGCONT)."""
        self._signal(name, signal.SIGCONT)

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Keep a part (a service, `postgres`, `kafka`, `engine`) that dies dead for as long as a block runs."""
        self.held.add(name)
        try:
            yield
        finally:
            self.held.discard(name)

    def runner_ids(self) -> dict[str, str]:
        """Tell the id of each runner that has started, by its name, as its log says it."""
        found = {}
        for name in RUNNERS:
            for line in self.services[name].log_path.read_text(errors="replace").splitlines():
                if '"runner_starting"' in line:
                    found[name] = str(json.loads(line)["runner_id"])
                    break
        return found

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self.services[name].pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def _start_postgres(self, secrets: Secrets) -> None:
        await self.postgres.start()
        passwords = {
            API_ROLE: secrets.api_password,
            SCHEDULER_ROLE: secrets.scheduler_password,
            AUDITOR_ROLE: secrets.auditor_password,
        }
        await migrate_all(self.postgres.admin_url, passwords)

    async def _start_engine(self, engine: PrivateEngine) -> None:
        await engine.start()
        await engine.load("python3.11")

    def _make_services(self, secrets: Secrets) -> None:
        options = SystemOptions(self.data_dir.path, cpu_cores=self.options.cpu_cores, memory_gb=self.options.memory_gb)
        addresses = Addresses(self.postgres.admin_url, self.kafka.bootstrap_servers)
        settings = service_settings(options, self.data_dir, addresses, secrets)
        settings["runner-2"] = settings["runner"] | {
            "RUNYARD_WORK_DIR": str(self.work_dir("runner-2")),
            "RUNYARD_INSTANCE_ID": "up-2",
            "RUNYARD_RUN_UID_BASE": "66000",
            "RUNYARD_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.proxy.port}",
        }
        for name, port in zip(SERVICES, free_ports(len(SERVICES)), strict=True):
            module = "runner" if name in RUNNERS else name
            place = "API" if name == "api" else "HEALTH"
            environment = settings[name] | self._pace() | {f"RUNYARD_{place}_PORT": str(port)}
            environment |= {**self.options.environment, **self.options.environment_of.get(name, {})}
            self.urls[name] = f"http://127.0.0.1:{port}"
            self.services[name] = ServiceProcess(module, self.data_dir.logs_of(name), environment, self.urls[name])
        self.data_dir.keep_url(self.api_url)

    def _pace(self) -> dict[str, str]:
        options = self.options
        pace = {"HEARTBEAT_S": options.heartbeat_s, "LEASE_S": options.lease_s}
        engine = {"DOCKER_HOST": self.engine.url} if self.engine else {}
        return engine | {f"RUNYARD_{name}": str(value) for name, value in pace.items()}

    def _keep_everything(self) -> None:
        parts: dict[str, tuple[Callable[[], int | None], Callable[[], Awaitable[None]]]] = {
            name: (lambda process=process: process.pid, process.start)  # type: ignore[misc]
            for name, process in self.services.items()
        }
        parts["postgres"] = (lambda: self.postgres.pid, self.postgres.start)
        parts["kafka"] = (lambda: self.kafka.pid, self.kafka.start)
        if (engine := self.engine) is not None:
            parts["engine"] = (lambda: engine.pid, engine.start_again)
        self._keepers = [asyncio.create_task(self._keep(name, *part)) for name, part in parts.items()]

    async def _keep(self, name: str, pid: Callable[[], int | None], start: Callable[[], Awaitable[None]]) -> None:
        """Start a part again as soon as it is dead and nobody holds it; as often as it takes."""
        while True:
            await asyncio.sleep(POLL_S)
            if pid() is None and name not in self.held:
                try:
                    await start()
                except Exception:  # noqa: BLE001 - killed while it started, in whatever way that shows
                    await asyncio.sleep(POLL_S * 10)
                else:
                    self.restarts[name] += 1


async def _is_ready(client: httpx.AsyncClient, url: str, reports: dict[str, str]) -> bool:
    try:
        answer = await client.get(f"{url}/readyz")
    except httpx.HTTPError as error:
        reports[url] = type(error).__name__
        return False
    reports[url] = answer.text
    return answer.status_code == httpx.codes.OK


def free_ports(count: int) -> list[int]:
    """Find ports of loopback that are free now and that no client is given as its own."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return list(dict.fromkeys(found)) if len(set(found)) == count else free_ports(count)

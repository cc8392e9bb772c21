"""A whole Runyard on one machine: PostgreSQL, Kafka and the four services, for as long as a block runs.

Owns the order of starting and stopping, and which setting every service gets. `runyard up`, the demo and the end-to-end
tests all stand on it. Never prints: it tells `say`, line by line, what became ready.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.backbone.migrations import MigrationChanged
from services.backbone.retry import until_it_works
from services.backbone.settings import ServiceSettings
from services.cli.data_dir import DataDir, Secrets
from services.cli.embedded_kafka import EmbeddedKafka
from services.cli.embedded_postgres import EmbeddedPostgres
from services.cli.embedded_process import ServerFailed, free_port
from services.cli.errors import CliError, UsageRefused
from services.cli.migrate import API_ROLE, AUDITOR_ROLE, SCHEDULER_ROLE, migrate_all
from services.cli.republish import EMPTIED_AFTER_S, republish_open_runs
from services.cli.service_process import Say, ServiceProcess
from services.cli.tokens import Claims, mint

STOP_ORDER = ("runner", "scheduler", "auditor", "api")
SERVER_POLL_S = 1.0
SERVER_SILENT_POLLS = 3
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class SystemOptions:
    """What a system shall be like. Ports: 0 takes the one that was used last, or a free one.

    `environment` is added to every service's; `restart` False leaves dead services dead, for fault tests.
    """

    data_dir: Path
    host: str = LOOPBACK
    api_port: int = 0
    kafka_port: int = 0
    postgres_port: int = 0
    cpu_cores: int | None = None
    memory_gb: int | None = None
    gpus: int = 0
    restart: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def running_system(options: SystemOptions, say: Say = lambda line: None) -> AsyncIterator["RunningSystem"]:
    """Start a system, hand it over ready, and stop it at the end of the block, whatever happens in between.

    Must be entered on the main thread (see `embedded_process`).

    Raises:
        CliError: a port is taken, the folder is in use, a part does not start.
    """
    data_dir = DataDir.at(options.data_dir)
    with data_dir.locked():
        system = RunningSystem(options, data_dir, say)
        try:
            await system.start()
            yield system
        finally:
            await system.stop()


class RunningSystem:
    """The parts of a system; see `running_system`.

    Attributes:
        processes: the services by name; kill one to see what happens.
        postgres: the embedded server.
        kafka: the embedded broker.
    """

    def __init__(self, options: SystemOptions, data_dir: DataDir, say: Say) -> None:
        self._options = options
        self._say = say
        self._watchers: list[asyncio.Task[None]] = []
        self.data_dir = data_dir
        self.postgres = EmbeddedPostgres(data_dir.postgres, options.postgres_port or None)
        self.kafka = EmbeddedKafka(data_dir.kafka, options.kafka_port or None)
        self.processes: dict[str, ServiceProcess] = {}
        self.api_url = ""

    @property
    def kafka_bootstrap_servers(self) -> str:
        """Where Kafka clients connect."""
        return self.kafka.bootstrap_servers

    def token(self, claims: Claims | None = None) -> str:
        """Mint a bearer token for this system."""
        return mint(self.data_dir, claims)

    async def start(self) -> None:
        """Start everything; returns when every part is ready."""
        options = self._options
        self._check_ports()
        secrets = self.data_dir.ensure_secrets()
        await _all_of(self._start_postgres(secrets), self._start_kafka())
        await self._tell_new_broker(emptied_after_s=0)
        ports = {name: free_port() for name in STOP_ORDER} | ({"api": options.api_port} if options.api_port else {})
        self.api_url = f"http://{options.host}:{ports['api']}"
        self.data_dir.keep_url(self.api_url)
        settings = service_settings(options, self.data_dir, self._addresses(), secrets)
        for name in reversed(STOP_ORDER):
            host = options.host if name == "api" else LOOPBACK
            place = _place(name, host, ports[name])
            url = f"http://{LOOPBACK if host == '0.0.0.0' else host}:{ports[name]}"  # noqa: S104 - compared, not bound
            self.processes[name] = ServiceProcess(name, self.data_dir.logs_of(name), settings[name] | place, url)
        await _all_of(*(self._start_service(process) for process in self.processes.values()))
        if options.restart:
            self._watch()

    async def wait(self) -> None:
        """Wait for ever, or until a part cannot be kept alive.

        Raises:
            CliError: which part, and where its log is.
        """
        done, _ = await asyncio.wait(self._watchers, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Stop everything in order: who acts first, then who records, then what holds the data."""
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for name in STOP_ORDER:
            if name in self.processes:
                await self.processes[name].stop()
        await self.kafka.stop()
        await self.postgres.stop()

    def kill(self) -> None:
        """Kill everything at once."""
        for process in self.processes.values():
            process.kill()
        self.kafka.kill()
        self.postgres.kill()

    def _check_ports(self) -> None:
        options = self._options
        for host, port, option in (
            (options.host, options.api_port, "--port"),
            (LOOPBACK, options.kafka_port, "--kafka-port"),
            (LOOPBACK, options.postgres_port, "--postgres-port"),
        ):
            if port and not can_bind(host, port):
                raise UsageRefused(
                    f"{host}:{port} is taken by another program: stop it, or choose a port with {option}"
                )

    def _addresses(self) -> "Addresses":
        return Addresses(self.postgres.admin_url, self.kafka.bootstrap_servers)

    async def _start_postgres(self, secrets: Secrets) -> None:
        began = time.monotonic()
        await self.postgres.start()
        passwords = {
            API_ROLE: secrets.api_password,
            SCHEDULER_ROLE: secrets.scheduler_password,
            AUDITOR_ROLE: secrets.auditor_password,
        }
        ran = await migrate_all(self.postgres.admin_url, passwords)
        words = f"{len(ran)} migrations ran" if ran else "tables up to date"
        self._ready("PostgreSQL", began, f"{LOOPBACK}:{self.postgres.port}, {words}")

    async def _start_kafka(self) -> None:
        began = time.monotonic()
        await self.kafka.start()
        self._ready("Kafka", began, self.kafka.bootstrap_servers)

    async def _tell_new_broker(self, emptied_after_s: float = EMPTIED_AFTER_S) -> None:
        """Tell the open runs to a broker that has not heard of them, because the data of the last one is gone."""
        kafka = ServiceSettings(kafka_bootstrap_servers=self.kafka.bootstrap_servers)
        began = time.monotonic()
        told = await republish_open_runs(
            self.postgres.admin_url, kafka, only_if_replaced=True, emptied_after_s=emptied_after_s
        )
        if told.replaced:
            self._ready("Kafka", began, f"its data is new: told it {told.events} events of {told.runs} open runs again")

    async def _start_service(self, process: ServiceProcess) -> None:
        began = time.monotonic()
        await process.start()
        await process.wait_until_ready()
        self._ready(process.name, began, self.api_url if process.name == "api" else f"process {process.pid}")

    def _ready(self, part: str, began: float, detail: str) -> None:
        self._say(f"{part:<12} ready after {time.monotonic() - began:4.1f} s   {detail}")

    def _watch(self) -> None:
        watched = [process.keep_running(self._say) for process in self.processes.values()]
        watched.append(self._keep_answering("PostgreSQL", self.postgres))
        watched.append(self._keep_answering("Kafka", self.kafka))
        self._watchers = [asyncio.create_task(part) for part in watched]

    async def _keep_answering(self, name: str, server: EmbeddedPostgres | EmbeddedKafka) -> None:
        """Start a server again, at the same address, when nobody listens at its port any more."""
        silent = 0
        while True:
            await asyncio.sleep(SERVER_POLL_S)
            silent = silent + 1 if not await _listens(server.port) else 0
            if silent >= SERVER_SILENT_POLLS:
                self._say(f"{name} died; starting it again")
                await server.stop()
                try:
                    await server.start()
                    await until_it_works("PostgreSQL", self._tell_new_broker)
                except ServerFailed as error:
                    raise CliError(str(error)) from error
                silent = 0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the servers are."""

    postgres_admin_url: str
    kafka_bootstrap_servers: str

    def postgres_url(self, role: str, password: str) -> str:
        """Where a role connects."""
        parts = urlsplit(self.postgres_admin_url)
        return parts._replace(netloc=f"{role}:{password}@{parts.hostname}:{parts.port}").geturl()


def service_settings(
    options: SystemOptions, data_dir: DataDir, addresses: Addresses, secrets: Secrets
) -> dict[str, dict[str, str]]:
    """Tell each service's settings; secrets go to those only that need them. Pure."""
    shared = {"RUNYARD_KAFKA_BOOTSTRAP_SERVERS": addresses.kafka_bootstrap_servers, "RUNYARD_INSTANCE_ID": "up"}
    objects = {"RUNYARD_OBJECTS_URL": data_dir.objects_url, "RUNYARD_SEALING_KEY": secrets.sealing_key}
    runner = {
        "RUNYARD_WORK_DIR": str(data_dir.work),
        "RUNYARD_RUNNER_CPU_CORES": str(options.cpu_cores or ""),
        "RUNYARD_RUNNER_MEMORY_GB": str(options.memory_gb or ""),
        "RUNYARD_RUNNER_GPUS": str(options.gpus),
    }
    tokens = {"RUNYARD_JWT_SECRET": secrets.jwt_secret, "RUNYARD_JWT_JWKS_URL": ""}
    own = {
        "api": {**objects, **tokens, **_postgres(addresses, API_ROLE, secrets.api_password)},
        "scheduler": _postgres(addresses, SCHEDULER_ROLE, secrets.scheduler_password),
        "auditor": _postgres(addresses, AUDITOR_ROLE, secrets.auditor_password),
        "runner": {**objects, **runner},
    }
    return {name: {**shared, **settings, **options.environment} for name, settings in own.items()}


def _postgres(addresses: Addresses, role: str, password: str) -> dict[str, str]:
    return {"RUNYARD_POSTGRES_URL": addresses.postgres_url(role, password)}


def _place(service: str, host: str, port: int) -> dict[str, str]:
    kind = "API" if service == "api" else "HEALTH"
    return {f"RUNYARD_{kind}_HOST": host, f"RUNYARD_{kind}_PORT": str(port)}


def can_bind(host: str, port: int) -> bool:
    """Whether a port can be listened on.

    Raises:
        UsageRefused: the host is no address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageRefused(f"--host {host} is no address of this machine") from error
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def _all_of(*parts: Coroutine[Any, Any, None]) -> None:
    """Do everything side by side; the first failure cancels the rest and is raised in the user's words."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)
    except ExceptionGroup as failures:
        for failure in failures.exceptions:
            if isinstance(failure, ServerFailed | CliError | MigrationChanged):
                raise CliError(str(failure)) from failure
        raise

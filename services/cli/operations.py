"""`runyard migrate`, `replay` and `verify`: for who operates a system.

Owns which database is meant: the one of a data folder, started for the purpose if it is not up, or one by its URL.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

import asyncpg
import typer

from services.auditor.replay import rebuild
from services.auditor.verify import verify as verify_ledger
from services.backbone.migrations import MigrationChanged
from services.backbone.settings import ServiceSettings
from services.cli.data_dir import DataDir, InUse
from services.cli.embedded_postgres import EmbeddedPostgres
from services.cli.embedded_process import ServerFailed
from services.cli.errors import CliError, UsageRefused
from services.cli.migrate import API_ROLE, AUDITOR_ROLE, SCHEDULER_ROLE, migrate_all
from services.cli.options import DataDirOption
from services.cli.republish import republish_open_runs

PASSWORD_VARIABLES = {
    API_ROLE: "RUNYARD_API_DB_PASSWORD",
    SCHEDULER_ROLE: "RUNYARD_SCHEDULER_DB_PASSWORD",
    AUDITOR_ROLE: "RUNYARD_AUDITOR_DB_PASSWORD",
}
AdminUrlOption = Annotated[
    str | None,
    typer.Option(envvar="RUNYARD_ADMIN_URL", help="A PostgreSQL elsewhere, as its administrator.", show_default=False),
]


def migrate() -> None:
    """Bring the tables of a PostgreSQL up to date and give the services' roles their passwords.

    Reads RUNYARD_ADMIN_URL and RUNYARD_API_DB_PASSWORD, RUNYARD_SCHEDULER_DB_PASSWORD, RUNYARD_AUDITOR_DB_PASSWORD; a
    role whose password is not given keeps the one it has. `runyard up` needs none of this.

    [bold]Example[/bold]

      RUNYARD_ADMIN_URL=postgresql://admin:…@db:5432/runyard runyard migrate
    """
    url = os.environ.get("RUNYARD_ADMIN_URL")
    if not url:
        raise UsageRefused(
            "RUNYARD_ADMIN_URL is not set: postgresql://<administrator>:<password>@<host>:5432/<database>"
        )
    given = {role: os.environ.get(name) for role, name in PASSWORD_VARIABLES.items()}
    with _told():
        ran = asyncio.run(migrate_all(url, {role: password for role, password in given.items() if password}))
    for name in ran:
        typer.echo(f"ran {name}")
    typer.echo(f"{len(ran)} migrations ran" if ran else "the tables are up to date")


def replay(
    data_dir: DataDirOption,
    rebuild_projections: Annotated[bool, typer.Option("--rebuild", help="Rebuild from the stored events.")] = False,
    open_runs: Annotated[bool, typer.Option("--open-runs", help="Publish all open runs to Kafka again.")] = False,
    admin_url: AdminUrlOption = None,
) -> None:
    """Rebuild what the ledger shows of each run, or tell Kafka the open runs again. Stored events never change.

    --open-runs is what a broker needs that has lost its data: the services wait for it. `runyard up` does it by itself.
    With --admin-url Kafka is found by RUNYARD_KAFKA_BOOTSTRAP_SERVERS and its neighbours; else by the folder's system,
    which must be up.

    [bold]Examples[/bold]

      runyard replay --rebuild --data-dir .runyard/demo

      RUNYARD_ADMIN_URL=postgresql://admin:…@db:5432/runyard runyard replay --open-runs
    """
    if rebuild_projections == open_runs:
        raise UsageRefused("say what to do: --rebuild or --open-runs")
    with _told():
        asyncio.run(_replay(data_dir, admin_url) if rebuild_projections else _republish(data_dir, admin_url))


def verify(data_dir: DataDirOption, admin_url: AdminUrlOption = None) -> None:
    """Check the ledger: the audit log's hash chain, and that rebuilding would give the same tables.

    Names the first difference and exits with 1 if there is one. PostgreSQL is started if it is not up.

    [bold]Example[/bold]

      runyard verify --data-dir .runyard/demo
    """
    with _told():
        asyncio.run(_verify(data_dir, admin_url))


async def _replay(data_dir: Path, admin_url: str | None) -> None:
    async with _database(data_dir, admin_url) as url:
        report = await rebuild(url)
    typer.echo(f"{report.events} events of {report.runs} runs read; {report.changed} projections changed")
    if report.missing_audit_entries:
        typer.echo(f"{report.missing_audit_entries} audit entries are missing from the chain", err=True)
        sys.exit(1)


async def _republish(folder: Path, admin_url: str | None) -> None:
    settings = ServiceSettings()
    if admin_url is None:
        data_dir = DataDir.at(folder)
        data_dir.secrets()
        with contextlib.suppress(InUse), data_dir.locked():
            raise CliError(f"the system of {folder} is not up: `runyard up` does this by itself when it is needed")
        admin_url = EmbeddedPostgres(data_dir.postgres, int((data_dir.postgres / "port").read_text())).admin_url
        port = (data_dir.kafka / "port").read_text()
        settings = ServiceSettings(kafka_bootstrap_servers=f"127.0.0.1:{port}")

    def progress(runs: int, of: int, events: int) -> None:
        typer.echo(f"{runs} of {of} runs, {events} events", err=True)

    told = await republish_open_runs(admin_url, settings, progress)
    new = "a new cluster, which the services go on with now" if told.replaced else "the cluster that the services know"
    typer.echo(f"{told.events} events of {told.runs} runs published to {told.cluster_id}: {new}")


async def _verify(data_dir: Path, admin_url: str | None) -> None:
    async with _database(data_dir, admin_url) as url:
        report = await verify_ledger(url)
    typer.echo(f"{report.events} events of {report.runs} runs and {report.audit_entries} audit entries read")
    if not report.ok:
        typer.echo(f"the first difference: {report.first_difference}", err=True)
        sys.exit(1)
    typer.echo("the ledger holds together")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell what a database refuses in words; addresses and passwords are not among them."""
    try:
        yield
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, MigrationChanged) as error:
        raise CliError(f"the database: {error}") from error


@contextlib.asynccontextmanager
async def _database(folder: Path, admin_url: str | None) -> AsyncIterator[str]:
    """Reach a database: by URL, or a data folder's, whose server is started unless `runyard up` runs it."""
    if admin_url:
        yield admin_url
        return
    data_dir = DataDir.at(folder)
    data_dir.secrets()  # refuses a folder that holds no system
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(data_dir.locked())
        except InUse:
            port = int((data_dir.postgres / "port").read_text())
            yield EmbeddedPostgres(data_dir.postgres, port).admin_url
            return
        server = EmbeddedPostgres(data_dir.postgres)
        try:
            await server.start()
            yield server.admin_url
        except ServerFailed as error:
            raise CliError(str(error)) from error
        finally:
            await server.stop()

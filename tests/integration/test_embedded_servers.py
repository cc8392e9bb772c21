"""Protects the embedded servers: data survives stops and kills, ports are kept, nothing is left running."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from services.cli.embedded_kafka import EmbeddedKafka
from services.cli.embedded_postgres import EmbeddedPostgres
from services.cli.embedded_process import ServerFailed, ServerProcess, free_port, unprivileged_user

PARENT = """
import asyncio, sys
from pathlib import Path
from services.cli.{module} import {name}

async def main():
    await {name}(Path(sys.argv[1]), int(sys.argv[2])).start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def _query(server: EmbeddedPostgres, statement: str) -> object:
    connection = await asyncpg.connect(server.admin_url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_postgres_keeps_its_data_and_port_over_a_stop_and_a_kill(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg")
    await server.start()
    try:
        port = server.port
        await _query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        await server.stop()
        server = EmbeddedPostgres(tmp_path / "pg")
        await server.start()
        assert await _query(server, "SELECT answer FROM kept") == 42
        server.kill()
        await server.start()
        assert await _query(server, "SELECT answer FROM kept") == 42
        assert server.port == port
    finally:
        await server.stop()


async def test_postgres_is_reached_by_password_only_and_the_password_is_private(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg")
    await server.start()
    try:
        assert (tmp_path / "pg" / "password").stat().st_mode & 0o777 == 0o600
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(host="127.0.0.1", port=server.port, user="runyard_admin", password="wrong")
    finally:
        await server.stop()


async def test_a_second_server_object_ends_the_leftover_of_a_killed_parent(tmp_path: Path) -> None:
    first = EmbeddedPostgres(tmp_path / "pg")
    await first.start()
    pid = first._process.pid
    assert pid is not None
    second = EmbeddedPostgres(tmp_path / "pg")
    await second.start()
    try:
        assert await _query(second, "SELECT 1") == 1
        assert first._process.pid is None
    finally:
        await second.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a server another user")
async def test_another_user_gets_through_the_folders_of_root(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    program = private / "program"
    program.write_text("#!/bin/sh\necho started")
    program.chmod(0o755)
    process = ServerProcess("shell", tmp_path, signal.SIGTERM)
    await process.spawn(["sh", "-c", f"id -u; test -x {program} && {program}"], unprivileged_user())
    async with asyncio.timeout(10):
        while process.pid is not None:  # noqa: ASYNC110 - a child has no event to wait for
            await asyncio.sleep(0.02)
    assert process.log_tail().splitlines()[1:] == ["started"]
    assert process.log_tail().splitlines()[0] != "0"
    await process.stop()


async def test_a_taken_port_is_named(tmp_path: Path, postgres_server: EmbeddedPostgres) -> None:
    with pytest.raises(ServerFailed, match=str(postgres_server.port)):
        await EmbeddedPostgres(tmp_path / "pg", port=postgres_server.port).start()


async def test_kafka_keeps_its_topics_over_a_stop_and_a_kill(tmp_path: Path) -> None:
    server = EmbeddedKafka(tmp_path / "kafka", port=free_port())
    await server.start()
    try:
        admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap_servers)
        await admin.start()
        await admin.create_topics([NewTopic("kept", 1, 1)])
        await admin.close()
        await server.stop()
        await server.start()
        server.kill()
        await server.start()
        admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap_servers)
        await admin.start()
        assert "kept" in await admin.list_topics()
        await admin.close()
    finally:
        await server.stop()


async def test_a_server_that_is_stopped_leaves_no_process(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg")
    await server.start()
    pid = server._process.pid
    assert pid is not None
    await server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("module", "kind"), [("embedded_postgres", EmbeddedPostgres), ("embedded_kafka", EmbeddedKafka)]
)
async def test_after_kill_9_of_the_parent_the_next_start_gets_the_same_port(
    module: str, kind: type[EmbeddedPostgres | EmbeddedKafka], tmp_path: Path
) -> None:
    port = free_port()
    code = PARENT.format(module=module, name=kind.__name__)
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "it", str(port)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert await asyncio.to_thread(parent.stdout.readline) == b"ready\n"
        parent.kill()
    server = kind(tmp_path / "it", port)
    try:
        await server.start()
        assert server.port == port
    finally:
        await server.stop()


async def test_a_lock_file_that_names_a_stranger_does_not_block(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg")
    await server.start()
    try:
        await _query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        lock = tmp_path / "pg" / "cluster" / "postmaster.pid"
        pid, *rest = lock.read_text().splitlines()
        server.kill()
        with subprocess.Popen(["sleep", "60"], user=lock.owner() if os.geteuid() == 0 else None) as stranger:
            lock.write_text("\n".join([str(stranger.pid), *rest]) + "\n")
            await server.start()
            assert stranger.poll() is None
            stranger.kill()
        assert int(lock.read_text().splitlines()[0]) not in (stranger.pid, int(pid))
        assert await _query(server, "SELECT answer FROM kept") == 42
    finally:
        await server.stop()

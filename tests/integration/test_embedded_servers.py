"""Protects the embedded servers: data survives stops and kills, ports are kept, nothing is left running."""

import os
import signal
from pathlib import Path

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from services.cli.embedded_kafka import EmbeddedKafka
from services.cli.embedded_postgres import EmbeddedPostgres
from services.cli.embedded_process import ServerFailed, free_port


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

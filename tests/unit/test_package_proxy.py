"""Protects everything but the package index from an install container: what its one way out lets through."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.runner.package_index import Destination
from services.runner.package_install import listening
from services.runner.package_proxy import (
    MAX_HEAD_BYTES,
    MOST_NOTED,
    PackageProxy,
    ProxyLimits,
    Refusal,
    Wish,
    understood,
)

INDEX = Destination("https", "index.example", 443)
PLAIN = Destination("http", "plain.example", 8080)
ALLOWED = frozenset({INDEX, PLAIN})
LIMITS = ProxyLimits(max_bytes=1 << 20, max_connections=4, head_s=0.5, connect_s=2, idle_s=0.5)

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


# -- deciding


@pytest.mark.parametrize(
    "request_line",
    [
        "CONNECT elsewhere.example:443 HTTP/1.1",
        "CONNECT index.example:80 HTTP/1.1",
        "CONNECT index.example:22 HTTP/1.1",
        "CONNECT index.example HTTP/1.1",
        "CONNECT plain.example:8080 HTTP/1.1",
        "CONNECT 169.254.169.254:443 HTTP/1.1",
        "CONNECT 127.0.0.1:443 HTTP/1.1",
        "CONNECT localhost:443 HTTP/1.1",
        "CONNECT [::1]:443 HTTP/1.1",
        "CONNECT index.example.:443 HTTP/1.1",
        "CONNECT index.example.elsewhere.example:443 HTTP/1.1",
        "CONNECT someone@index.example:443 HTTP/1.1",
        "CONNECT index.example:443@elsewhere.example:443 HTTP/1.1",
        "CONNECT index.example:443/x HTTP/1.1",
        "CONNECT https://index.example:443 HTTP/1.1",
        "GET http://169.254.169.254/latest/meta-data/ HTTP/1.1",
        "GET http://127.0.0.1:2375/containers/json HTTP/1.1",
        "GET http://index.example/simple/ HTTP/1.1",
        "GET https://index.example/simple/ HTTP/1.1",
        "GET http://plain.example/simple/ HTTP/1.1",
        "GET http://someone@plain.example:8080/ HTTP/1.1",
        "GET file:///etc/passwd HTTP/1.1",
        "GET /simple/ HTTP/1.1",
        "POST http://plain.example:8080/ HTTP/1.1",
        "PUT http://plain.example:8080/ HTTP/1.1",
        "DELETE http://plain.example:8080/ HTTP/1.1",
    ],
)
def test_other_places_and_other_methods_are_forbidden(request_line: str) -> None:
    found = understood(f"{request_line}\r\nHost: index.example:443\r\n\r\n".encode(), ALLOWED)
    assert isinstance(found, Refusal)
    assert found.status == "403 Forbidden"


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n",
        b"CONNECT\r\n\r\n",
        b"CONNECT index.example:443\r\n\r\n",
        b"CONNECT index.example:443 HTTP/2\r\n\r\n",
        b"CONNECT index.example:https HTTP/1.1\r\n\r\n",
        b"CONNECT index.example:99999 HTTP/1.1\r\n\r\n",
        b"CONNECT  index.example:443 HTTP/1.1\r\n\r\n",
        b"GET http://plain.example:8080/\xff HTTP/1.1\r\n\r\n",
        b"\x1bcGET http://plain.example:8080/ HTTP/1.1\r\n\r\n",
        b"GET http://plain.example:8080/\x01 HTTP/1.1\r\n\r\n",
        b"GET http://plain.example:8080/ HTTP/1.1\r\nno field\r\n\r\n",
        b"GET http://plain.example:8080/ HTTP/1.1\r\n folded: x\r\n\r\n",
        b"GET http://plain.example:8080/ HTTP/1.1\r\nA: b\nHost: c\r\n\r\n",
        b"GET http://plain.example:8080/ HTTP/1.1\r\nA: b\rHost: c\r\n\r\n",
        b"GET http://[plain.example:8080/ HTTP/1.1\r\n\r\n",
    ],
)
def test_what_two_readers_could_read_differently_is_refused(head: bytes) -> None:
    found = understood(head, ALLOWED)
    assert isinstance(found, Refusal)
    assert found.status == "400 Bad Request"


def test_the_index_is_let_through_whatever_the_case_of_its_name() -> None:
    for head in (b"CONNECT index.example:443 HTTP/1.1\r\n\r\n", b"CONNECT INDEX.example:443 HTTP/1.0\r\nA: b\r\n\r\n"):
        assert understood(head, ALLOWED) == Wish(INDEX)


def test_a_plain_request_is_written_anew_without_what_is_between_client_and_proxy() -> None:
    head = (
        b"GET http://plain.example:8080/simple/six/?a=b HTTP/1.1\r\nHost: elsewhere.example\r\n"
        b"Authorization: Basic eA==\r\nProxy-Authorization: Basic eQ==\r\nConnection: keep-alive\r\n"
        b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    assert understood(head, ALLOWED) == Wish(
        PLAIN,
        b"GET /simple/six/?a=b HTTP/1.1\r\nHost: plain.example:8080\r\nConnection: close\r\n"
        b"Authorization: Basic eA==\r\n\r\n",
    )


# -- carrying


@dataclass
class Scene:
    """A proxy behind its socket, and a server of ours that stands for the index."""

    proxy: PackageProxy
    path: Path
    port: int
    clients: AsyncExitStack

    async def ask(self, head: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        self.clients.push_async_callback(closed, writer)
        writer.write(head.encode())
        return reader, writer

    async def tunnel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.ask(f"CONNECT 127.0.0.1:{self.port} HTTP/1.1\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        return reader, writer


@asynccontextmanager
async def a_scene(folder: Path, serve: Serve, limits: ProxyLimits = LIMITS) -> AsyncIterator[Scene]:
    async with serving(serve) as port:
        allowed = frozenset({Destination("https", "127.0.0.1", port), Destination("http", "127.0.0.1", port)})
        proxy = PackageProxy(allowed, limits)
        with listening(folder, "index.sock") as ear:
            async with AsyncExitStack() as stack, proxy.serving(ear):
                yield Scene(proxy, folder / "index.sock", port, stack)


@asynccontextmanager
async def serving(serve: Serve, port: int = 0) -> AsyncIterator[int]:
    """A server of ours on the loopback; its connections end with the block."""
    working: set[asyncio.Task[None]] = set()

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        working.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            return
        finally:
            await closed(writer)

    server = await asyncio.start_server(work, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
        await writer.drain()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_a_tunnel_carries_bytes_both_ways_until_one_side_has_had_enough(tmp_path: Path) -> None:
    async with a_scene(tmp_path, echo) as scene:
        reader, writer = await scene.tunnel()
        for word in (b"\x16\x03\x01hello", b"again"):
            writer.write(word)
            assert await reader.readexactly(len(word)) == word
        writer.close()
        assert await reader.read() == b""
        assert (scene.proxy.refused, scene.proxy.unreachable, scene.proxy.exhausted) == ([], {}, False)


async def test_a_plain_request_gets_its_answer_and_nothing_after_it_reaches_the_server(tmp_path: Path) -> None:
    heard = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nsix")
        await writer.drain()
        writer.write_eof()
        heard.extend(await reader.read())

    async with a_scene(tmp_path, answer) as scene:
        place = f"http://127.0.0.1:{scene.port}"
        reader, _ = await scene.ask(f"GET {place}/six HTTP/1.1\r\n\r\nGET {place}/more HTTP/1.1\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nsix")
    assert heard == f"GET /six HTTP/1.1\r\nHost: 127.0.0.1:{scene.port}\r\nConnection: close\r\n\r\n".encode()


async def test_a_neighbour_s_port_on_the_same_host_is_refused_and_noted_but_not_for_ever(tmp_path: Path) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("somebody came through")

    async with a_scene(tmp_path, never) as scene:
        with socket.create_server(("127.0.0.1", 0)) as neighbour:
            neighbour.setblocking(False)
            port = neighbour.getsockname()[1]
            for _ in range(MOST_NOTED + 5):
                reader, _ = await scene.ask(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n")
                assert (await reader.read()).startswith(b"HTTP/1.1 403 Forbidden\r\n")
            with pytest.raises(BlockingIOError):
                neighbour.accept()
        assert scene.proxy.refused == [f"CONNECT 127.0.0.1:{port} is not the package index"] * MOST_NOTED


async def test_an_index_that_does_not_answer_is_remembered_until_it_does(tmp_path: Path) -> None:
    async with a_scene(tmp_path, silence) as scene:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        gone = Destination("https", "127.0.0.1", port)
        scene.proxy.allowed = frozenset({gone})
        reader, _ = await scene.ask(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert list(scene.proxy.unreachable) == [gone]
        async with serving(silence, port):
            reader, _ = await scene.ask(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n")
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            assert scene.proxy.unreachable == {}


async def test_one_connection_more_than_allowed_is_refused(tmp_path: Path) -> None:
    async with a_scene(tmp_path, silence, ProxyLimits(1 << 20, max_connections=2, idle_s=30)) as scene:
        for _ in range(2):
            await scene.tunnel()
        reader, _ = await scene.ask("")
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize(("more", "exhausted"), [(0, False), (1, True)])
async def test_bytes_are_limited_over_both_directions(tmp_path: Path, more: int, exhausted: bool) -> None:
    async with a_scene(tmp_path, echo, ProxyLimits(max_bytes=2000, idle_s=5)) as scene:
        reader, writer = await scene.tunnel()
        writer.write(b"x" * (1000 + more))
        assert len(await reader.read(1000)) == (0 if exhausted else 1000)
        assert scene.proxy.exhausted is exhausted


async def test_a_head_that_is_too_long_or_never_ends_is_cut_off(tmp_path: Path) -> None:
    async with a_scene(tmp_path, silence) as scene:
        reader, _ = await scene.ask("GET http://x/ HTTP/1.1\r\nA: " + "a" * (2 * MAX_HEAD_BYTES))
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        reader, _ = await scene.ask("CONNECT ")
        assert await reader.read() == b""


async def test_a_tunnel_in_which_nothing_moves_is_closed_and_one_way_traffic_keeps_it(tmp_path: Path) -> None:
    limits = ProxyLimits(max_bytes=1 << 20, idle_s=0.4)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(10):
            await asyncio.sleep(0.1)
            writer.write(b"x")
        await reader.read()

    async with a_scene(tmp_path, drip, limits) as scene:
        reader, _ = await scene.tunnel()
        assert await reader.read() == b"x" * 10


async def test_connections_end_with_the_install(tmp_path: Path) -> None:
    async with a_scene(tmp_path, silence, ProxyLimits(1 << 20, idle_s=30)) as scene:
        reader, _ = await scene.tunnel()
        closing = asyncio.create_task(reader.read())
    assert await closing == b""


def test_a_socket_may_lie_deeper_than_its_own_path_may_be_long(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with listening(deep, "index.sock") as ear:
        assert ear.family == socket.AF_UNIX
        assert (deep / "index.sock").is_socket()
        assert (deep / "index.sock").stat().st_mode & 0o777 == 0o666

"""The only way out of an install container: a forward proxy behind a Unix socket, to the index and nowhere else.

It resolves names by itself and connects to the destinations that the operator allows: TLS by CONNECT, whose bytes it
cannot read, and GET or HEAD where an index is plain HTTP. Everything else is refused and noted. Connections, bytes
and waiting are bounded. It must never believe what a container sends, nor log more of it than a bounded excerpt.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import structlog

from services.runner.package_index import Destination

MAX_HEAD_BYTES = 16 << 10
CHUNK_BYTES = 64 << 10
MOST_NOTED = 20
EXCERPT_CHARACTERS = 100
METHODS = ("GET", "HEAD")
# RFC 9110, 7.6.1; and what tells of a body: an install sends none.
HOP_BY_HOP = frozenset(
    ("connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ProxyLimits:
    """What one install may take of the network."""

    max_bytes: int
    max_connections: int = 32
    head_s: float = 10.0
    connect_s: float = 15.0
    idle_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a container asks for; `head` is what a plain HTTP server gets to read, empty for a tunnel."""

    to: Destination
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request goes nowhere."""

    status: str
    reason: str


@dataclass
class PackageProxy:
    """One install's proxy, and what it has seen.

    Attributes:
        refused: the first few requests that went nowhere, and why.
        unreachable: destinations that did not answer when they were last tried, and why.
        exhausted: whether the install wanted more bytes than it may have.
    """

    allowed: frozenset[Destination]
    limits: ProxyLimits
    refused: list[str] = field(default_factory=list)
    unreachable: dict[Destination, str] = field(default_factory=dict)
    exhausted: bool = False
    _bytes: int = 0
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def serving(self, listening: socket.socket) -> AsyncIterator[None]:
        """Serve until the end of the block; then every connection is cut."""
        server = await asyncio.start_unix_server(self._accepted, sock=listening, limit=MAX_HEAD_BYTES)
        try:
            yield
        finally:
            server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - streams call this in a task of its own
        self._connections.add(task)
        try:
            if len(self._connections) > self.limits.max_connections:
                await self._refuse(writer, Refusal("503 Service Unavailable", "too many connections at once"))
            else:
                await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return  # one of the two sides has gone, or says nothing
        except asyncio.CancelledError:
            return  # the install is over
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self.limits.head_s):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            await self._refuse(writer, Refusal("431 Request Header Fields Too Large", "the request's head is too long"))
            return
        wish = understood(head, self.allowed)
        if isinstance(wish, Refusal):
            await self._refuse(writer, wish)
            return
        try:
            async with asyncio.timeout(self.limits.connect_s):
                there, upstream = await asyncio.open_connection(wish.to.host, wish.to.port, limit=CHUNK_BYTES)
        except (OSError, TimeoutError) as problem:
            self.unreachable[wish.to] = str(problem) or "no answer"
            log.warning("package_index_unreachable", host=wish.to.host, port=wish.to.port, error=str(problem))
            await _answer(writer, "502 Bad Gateway")
            return
        self.unreachable.pop(wish.to, None)
        try:
            await self._connect(wish, (reader, writer), (there, upstream))
        finally:
            upstream.close()

    async def _connect(
        self,
        wish: Wish,
        here: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        async with asyncio.timeout(self.limits.idle_s) as idle:
            if wish.head:
                there[1].write(wish.head)
                await self._copy(there[0], here[1], idle)
                return
            here[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await _first_of(self._copy(here[0], there[1], idle), self._copy(there[0], here[1], idle))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, idle: asyncio.Timeout) -> None:
        """Pass bytes on until their end, or until there were too many; whatever passes keeps both directions alive."""
        clock = asyncio.get_running_loop().time
        while chunk := await source.read(CHUNK_BYTES):
            self._bytes += len(chunk)
            if self._bytes > self.limits.max_bytes:
                self.exhausted = True
                return
            target.write(chunk)
            await target.drain()
            idle.reschedule(clock() + self.limits.idle_s)
        await target.drain()

    async def _refuse(self, writer: asyncio.StreamWriter, refusal: Refusal) -> None:
        if len(self.refused) < MOST_NOTED:
            self.refused.append(refusal.reason)
            log.warning("install_refused_a_connection", reason=refusal.reason)
        await _answer(writer, refusal.status)


def understood(head: bytes, allowed: frozenset[Destination]) -> Wish | Refusal:
    r"""Decide on a request by its head; pure.

    >>> understood(b"CONNECT 169.254.169.254:80 HTTP/1.1\r\n\r\n", frozenset()).status
    '403 Forbidden'
    """
    try:
        request, *fields = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = request.split(" ")
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host, port = parts.hostname, parts.port
    except ValueError:
        return Refusal("400 Bad Request", "a request that cannot be read")
    shown = method.isalpha() and target.isprintable()
    if not (shown and version.startswith("HTTP/1.") and all(map(_is_field, fields))):
        return Refusal("400 Bad Request", "a request that cannot be read")
    if method == "CONNECT":
        to = Destination("https", host or "", port or 0)
        plain = target.lower() == f"{to.host}:{to.port}"
    else:
        to = Destination("http", host or "", port or 80)
        plain = method in METHODS and parts.scheme == "http" and parts.username is None
    if not plain or to not in allowed:
        return Refusal("403 Forbidden", f"{method[:10]} {target[:EXCERPT_CHARACTERS]} is not the package index")
    return Wish(to) if method == "CONNECT" else Wish(to, _rewritten(method, target, fields))


def _is_field(line: str) -> bool:
    name, colon, value = line.partition(":")
    words = name.replace("-", "").replace("_", "")
    return bool(colon) and words.isalnum() and all(c.isprintable() or c == "\t" for c in value)


def _rewritten(method: str, target: str, fields: list[str]) -> bytes:
    """Write the request as the server itself gets it, one per connection."""
    parts = urlsplit(target)
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    kept = [line for line in fields if not _is_between_hops(line)]
    lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close", *kept]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii")


def _is_between_hops(line: str) -> bool:
    name = line.partition(":")[0].lower()
    return name in HOP_BY_HOP or name.startswith("proxy-")


async def _answer(writer: asyncio.StreamWriter, status: str) -> None:
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    with suppress(OSError):
        await writer.drain()


async def _first_of(*works: Awaitable[None]) -> None:
    """Wait for the first to end, and let the others go."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

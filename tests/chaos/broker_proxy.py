"""A TCP proxy before a port or a socket, which can cut its clients off: by refusing them, or by falling silent.

Owns its own connections only. Whoever connects through it gets what stands behind it, until `cut`.
"""

import asyncio
import contextlib
from pathlib import Path

LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 1 << 16
RETRY_S = 0.05


class BrokerProxy:
    """One proxy from `port` on loopback to `target`, which is a port there, too, or the path of a Unix socket."""

    def __init__(self, port: int, target: int | Path) -> None:
        self.port = port
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()

    async def start(self) -> None:
        """Listen."""
        self._flows.set()
        while self._server is None:  # a client's own end of a connection may hold the port for a moment
            try:
                self._server = await asyncio.start_server(self._serve, LOOPBACK, self.port)
            except OSError:
                await asyncio.sleep(RETRY_S)

    async def cut(self, *, silent: bool = False) -> None:
        """Cut everybody off: connections break and new ones are refused, or with `silent` nothing passes any more."""
        self._flows.clear()
        if not silent:
            await self.stop()

    async def mend(self) -> None:
        """Let everything pass again; what a silent cut held back is lost, as its connections are."""
        self._break_connections()
        await self.start()

    async def stop(self) -> None:
        """Listen no more and break what is connected."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._break_connections()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(LOOPBACK, self._target)

    def _break_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        both = {writer, target_writer}
        self._writers |= both
        try:
            await asyncio.gather(self._pump(reader, target_writer), self._pump(target_reader, writer))
        finally:
            for each in both:
                each.transport.abort()
            self._writers -= both

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self._flows.wait()
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()  # whichever side ends, the connection is over

"""A TCP proxy before PostgreSQL that breaks a connection at one exact moment: at the answer to a COMMIT.

The answer is either held back, as when the server dies between making a commit durable and saying so, or passed on, and
the connection broken right behind it. Everything else passes unchanged.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Literal

COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"
"""CommandComplete of the frontend/backend protocol, as the server answers a COMMIT."""
CHUNK_BYTES = 1 << 16
LOOPBACK = "127.0.0.1"

Moment = Literal["before the answer", "behind the answer"]


class CommitProxy:
    """One proxy from `port` to `target`, both on loopback."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.broken = 0
        self.target = target
        self._moment: Moment | None = None
        self._also: Callable[[], None] = lambda: None
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["CommitProxy"]:
        server = await asyncio.start_server(self._serve, LOOPBACK, self.port)
        try:
            yield self
        finally:
            server.close()
            self._break()

    def break_next_commit(self, moment: Moment, also: Callable[[], None] = lambda: None) -> None:
        """Break every connection at the next answer to a COMMIT, and do something else before."""
        self._moment, self._also = moment, also

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self.target)
        except OSError:
            writer.transport.abort()
            return
        mine = {writer, server_writer}
        self._writers |= mine
        flows = [asyncio.create_task(self._pass_on(reader, server_writer))]
        flows.append(asyncio.create_task(self._pass_on(server_reader, writer)))
        await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        for flow in flows:
            flow.cancel()
        for end in mine:
            end.transport.abort()
        self._writers -= mine

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(CHUNK_BYTES):
                moment = self._moment if COMMITTED in chunk else None
                if moment != "before the answer":
                    target.write(chunk)
                    await target.drain()
                if moment is not None:
                    self._moment = None
                    self._also()
                    self.broken += 1
                    target.close()  # what was written still arrives
                    return

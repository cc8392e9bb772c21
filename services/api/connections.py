"""What a connection may cost while its client does nothing: uvicorn's own protocol, with an end to our patience.

uvicorn waits for ever for a request's head, for the rest of a body that was answered already, and for a client that
does not read. Here each of these has a deadline, behind which the connection is cut. Knows nothing about requests.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

READERS_PATIENCE = 10
"""A reader has so many times the patience: what waits for it is up to a mebibyte of a download, on a slow line."""


class Connection(H11Protocol):
    """An HTTP/1.1 connection whose client must get on: `patience_s` for a head, ten times that to take what waits."""

    patience_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._heeding = _Clock(transport, self.patience_s)
        self._taking = _Clock(transport, READERS_PATIENCE * self.patience_s)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what has come; a part of a head wins no time."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next head, and before it for the end of a body that nobody reads any more."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Wait for the client to take what stands in the buffer."""
        super().pause_writing()
        self._taking.start()

    def resume_writing(self) -> None:
        """The client has taken it."""
        super().resume_writing()
        self._taking.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        super().connection_lost(exc)
        self._heeding.stop()
        self._taking.stop()

    def _watch(self) -> None:
        """Let the clock run while it is the client's turn, from when it became so."""
        if self.cycle is None or self.cycle.response_complete:
            self._heeding.start()
        else:
            self._heeding.stop()


class _Clock:
    """Cuts a connection unless it is stopped in time; starting it again while it runs changes nothing."""

    def __init__(self, transport: asyncio.Transport, patience_s: float) -> None:
        self._transport = transport
        self._patience_s = patience_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._patience_s, self._transport.abort)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def connection_type(patience_s: float) -> type[Connection]:
    """Make the type of connections with so much patience, as uvicorn wants to be told."""
    return type("PatientConnection", (Connection,), {"patience_s": patience_s})

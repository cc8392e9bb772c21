"""How slowly a body may arrive: a grace, then a least average rate. Only the time that we wait for the client counts.

A large upload over a slow line goes on for as long as it moves; what trickles in to keep a connection busy is ended.
"""

import asyncio
import time
from collections.abc import Callable

from starlette.types import Message, Receive


class TooSlow(Exception):
    """The body did not arrive in time."""


class Pace:
    """Receives a body, counting its bytes and the seconds that were waited for them."""

    def __init__(
        self, receive: Receive, grace_s: float, bytes_per_s: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._receive = receive
        self._clock = clock
        self._grace_s = grace_s
        self._bytes_per_s = bytes_per_s
        self._waited_s = 0.0
        self.received = 0

    async def receive(self) -> Message:
        """Receive the next piece.

        Raises:
            TooSlow: the grace is over and what has come so far is less than the rate asks for.
        """
        began, left_s = self._clock(), self._grace_s + self.received / self._bytes_per_s - self._waited_s
        if left_s <= 0:
            raise TooSlow
        try:
            async with asyncio.timeout(left_s):
                message = await self._receive()
        except TimeoutError as error:
            raise TooSlow from error
        self._waited_s += self._clock() - began
        self.received += len(message.get("body", b""))
        return message

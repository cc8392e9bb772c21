"""The outermost layer of every request: an id, a trace, one log line, and a problem for whatever was not foreseen.

Transient failures of a database or store become a 503 with `Retry-After`, bugs a 500 that tells nothing. Never
decides anything about a request.
"""

import re
import secrets
import time

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.problems import BAD_REQUEST, Problem, internal_error, render, unavailable
from services.backbone.errors import is_transient
from services.backbone.telemetry import new_traceparent

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context, 3.2

log = structlog.get_logger()


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer for whatever comes back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        request.state.request_id = _given(request, "x-request-id", REQUEST_ID) or f"req-{secrets.token_hex(8)}"
        request.state.traceparent = _given(request, "traceparent", TRACEPARENT) or new_traceparent()
        answer = _Answer(send, request.state.request_id)
        began = time.monotonic()
        with structlog.contextvars.bound_contextvars(request_id=request.state.request_id):
            try:
                if "transfer-encoding" in request.headers and "content-length" in request.headers:
                    raise _two_lengths()
                await self._app(scope, receive, answer.send)
            except ClientDisconnect:
                log.info("client_gone")  # in the middle of its body: nobody is there to be answered
            except Exception as error:
                problem = _problem_of(error)
                if answer.status is not None:
                    raise  # too late for another answer: the broken connection tells the client
                await render(problem, request.url.path)(scope, receive, answer.send)
            took_ms = round((time.monotonic() - began) * 1000, 1)
            log.info("request", method=request.method, path=request.url.path, status=answer.status, ms=took_ms)


class _Answer:
    """The way back to the client: remembers the status and adds the request's id."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [(b"x-request-id", self._request_id.encode()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self._send(message)


def _given(request: Request, header: str, form: re.Pattern[str]) -> str | None:
    value = request.headers.get(header, "")
    return value if form.fullmatch(value) else None


def _two_lengths() -> Problem:
    """Make the problem of a body that ends at two places: a proxy may believe the other one (RFC 9112, 6.1)."""
    return Problem(
        BAD_REQUEST, "Send a Content-Length or a Transfer-Encoding, not both.", headers={"Connection": "close"}
    )


def _problem_of(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if is_transient(error):
        log.warning("request_interrupted", error=repr(error))
        return unavailable("The service cannot reach its database or object store; try again in a moment.")
    log.error("request_failed", exc_info=error)
    return internal_error()

"""What a service knows of its own health, and the small HTTP server that tells it: /healthz, /readyz, /metrics.

`/healthz` says that the process turns and is not about to end because it is stuck; `/readyz` says whether every part
works right now, and what is wrong if not. Parts report by themselves, again and again. No token, no secrets.
"""

import asyncio
import time
from dataclasses import dataclass, field

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

STUCK_AFTER_S = 120.0


@dataclass(slots=True)
class PartHealth:
    """How one part of a service is doing, and since when (monotonic seconds)."""

    ok: bool
    detail: str | None
    since: float


@dataclass(slots=True)
class Health:
    """The parts of a service by name; a part that was expected and has not reported yet is not ready.

    `stuck` says what stands still, when the process is about to end for that; parts are given `stuck_after_s` seconds.
    """

    stuck_after_s: float = STUCK_AFTER_S
    parts: dict[str, PartHealth] = field(default_factory=dict)
    stuck: str | None = None

    def expect(self, *names: str) -> None:
        """Announce parts that must report before the service is ready."""
        for name in names:
            self.parts.setdefault(name, PartHealth(False, "not started yet", time.monotonic()))

    def ok(self, name: str, detail: str | None = None) -> None:
        """Report that a part works."""
        self.parts[name] = PartHealth(True, detail, time.monotonic())

    def failing(self, name: str, detail: str) -> None:
        """Report what is wrong with a part."""
        self.parts[name] = PartHealth(False, detail, time.monotonic())

    def works(self, name: str) -> bool:
        """Whether a part last reported that it works."""
        return name in self.parts and self.parts[name].ok

    def fails(self, name: str) -> bool:
        """Whether a part last reported that it does not work; one that is not there does not fail."""
        return name in self.parts and not self.parts[name].ok

    @property
    def ready(self) -> bool:
        """Whether every part works."""
        return self.stuck is None and all(part.ok for part in self.parts.values())

    def report(self) -> dict[str, object]:
        """Describe every part, with seconds since it last reported."""
        now = time.monotonic()
        return {
            "ready": self.ready,
            "parts": {
                name: {"ok": part.ok, "detail": part.detail, "reported_s_ago": round(now - part.since, 1)}
                for name, part in self.parts.items()
            },
        }


def health_routes(health: Health) -> list[Route]:
    """Make the routes; the api mounts them beside its own, the other services serve them alone."""

    async def healthz(_: Request) -> Response:
        if health.stuck is not None:
            return JSONResponse({"status": "stuck", "detail": health.stuck}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        return JSONResponse(health.report(), status_code=200 if health.ready else 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]


async def serve_health(health: Health, host: str, port: int) -> None:
    """Serve a service's health until cancelled."""
    config = uvicorn.Config(
        Starlette(routes=health_routes(health)), host=host, port=port, log_level="warning", lifespan="off"
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    try:
        await server._serve()
    except asyncio.CancelledError:
        server.should_exit = True
        await server.shutdown()
        raise

"""The api's collaborators as one value, and one request's view of them. Made by `main`, read by routes.

Owns what a request handler can reach; never does anything itself.
"""

from dataclasses import dataclass
from typing import Annotated, cast

import asyncpg
from fastapi import Depends, Request

from services.api.idempotency import Ticket, fingerprint
from services.api.load import LoadView
from services.api.tokens import Caller, TokenVerifier
from services.api.variables import SealedVariables
from services.backbone.health import Health
from services.backbone.objects import Objects


@dataclass(frozen=True, slots=True)
class Limits:
    """How many bytes a body may have, how slowly it may come, and how often a followed stream looks for more."""

    json_bytes: int
    asset_bytes: int
    dataset_bytes: int
    patience_s: float
    body_bytes_per_s: int
    follow_poll_s: float


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that a request handler works with."""

    pool: asyncpg.Pool
    objects: Objects
    variables: SealedVariables
    tokens: TokenVerifier
    load: LoadView
    limits: Limits
    health: Health


def context_of(request: Request) -> Context:
    """Find the collaborators that `main` handed to the application."""
    return cast(Context, request.app.state.context)


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request."""

    context: Context
    caller: Caller
    path: str
    request_id: str
    traceparent: str

    def ticket(self, key: str | None, fields: dict[str, object]) -> Ticket | None:
        """Make the ticket of a request that carries an Idempotency-Key."""
        if key is None:
            return None
        prints = tuple(fingerprint(secret, fields) for secret in self.context.variables.secrets)
        return Ticket(self.caller.tenant_id, self.path, key, prints)


async def _current_call(request: Request) -> Call:
    state = request.state
    return Call(context_of(request), state.caller, request.url.path, state.request_id, state.traceparent)


CurrentCall = Annotated[Call, Depends(_current_call)]

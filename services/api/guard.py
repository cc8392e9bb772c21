"""Before a route runs: who calls, may they, and how much may they send. The body of a stranger is never read.

`guarded` says it all per route, for the code and for the OpenAPI document alike. Never looks at a resource.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from services.api import problems
from services.api.context import Limits, context_of
from services.api.problems import Kind, Problem
from services.api.tokens import Caller, KeysUnavailable, TokenRefused

Scope = Literal["models:read", "models:write", "training:run", "audit:read"]
Sends = Literal["nothing", "json", "asset", "dataset"]
Returns = Literal["application/json", "application/octet-stream", "text/event-stream"]

PATH_PARAMETER = re.compile(r"[A-Za-z0-9._-]{1,128}")
MULTIPART_OVERHEAD_BYTES = 64 * 1024
DRAINED_BYTES = 32 << 20
"""How much of a body that is too large is read and thrown away, so that its sender gets to read the answer."""
EVERYWHERE = (
    problems.UNAUTHENTICATED,
    problems.INSUFFICIENT_SCOPE,
    problems.VALIDATION_FAILED,
    problems.INTERNAL_ERROR,
    problems.UNAVAILABLE,
)
WITH_BODY = (problems.BAD_REQUEST, problems.TOO_LARGE)
KEYED = (problems.OUTCOME_UNKNOWN, problems.IDEMPOTENCY_KEY_REUSED)
WITH_JSON = (*WITH_BODY, *KEYED, problems.MALFORMED_JSON, problems.UNSUPPORTED_MEDIA_TYPE)

RAW_BYTES = {"type": "string", "format": "binary"}
SCHEMA_OF_RETURNS: dict[Returns, dict[str, str]] = {
    "application/octet-stream": RAW_BYTES,
    "text/event-stream": {"type": "string", "description": "Server-sent events, with `follow=true`."},
}
REFUSALS_OF_BODY: dict[Sends, tuple[Kind, ...]] = {
    "nothing": (),
    "json": WITH_JSON,
    "asset": (*WITH_BODY, *KEYED),
    "dataset": (*WITH_BODY, problems.OUTCOME_UNKNOWN),
}


def guarded(
    scope: Scope, *kinds: Kind, sends: Sends = "nothing", returns: Returns = "application/json"
) -> dict[str, Any]:
    """Say what a route needs, what else than JSON it may return, and how it may refuse: arguments for its decorator."""
    more = REFUSALS_OF_BODY[sends]
    extra: dict[str, Any] = {"x-required-scope": scope, "x-sends": sends, "security": [{"bearer": [scope]}]}
    if sends == "dataset":
        extra["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": RAW_BYTES}}}
    responses = _documented((*EVERYWHERE, *more, *kinds))
    if returns != "application/json":
        responses[200] = {"description": "Success", "content": {returns: {"schema": SCHEMA_OF_RETURNS[returns]}}}
    return {"openapi_extra": extra, "responses": responses}


def _documented(kinds: tuple[Kind, ...]) -> dict[int | str, dict[str, Any]]:
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        response = responses.setdefault(
            kind.status,
            {
                "description": "",
                "content": {
                    problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}},
                },
            },
        )
        response["description"] = "; ".join(filter(None, (response["description"], kind.title)))
        example = {"type": problems.TYPE_PREFIX + kind.slug, "title": kind.title, "status": kind.status}
        response["content"][problems.MEDIA_TYPE]["examples"][kind.slug] = {"value": example}
    return responses


class GuardedRoute(APIRoute):
    """A route that authenticates, checks the scope and bounds the body before FastAPI reads anything."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's own handler."""
        handle = super().get_route_handler()
        extra = self.openapi_extra or {}
        scope, sends = extra["x-required-scope"], extra["x-sends"]

        async def handle_guarded(request: Request) -> Response:
            request.state.caller = await _authorize(request, scope)
            if not all(PATH_PARAMETER.fullmatch(value) for value in request.path_params.values()):
                raise Problem(problems.NOT_FOUND, "No resource has such an id.")
            limits = context_of(request).limits
            if sends == "json":
                _require_json(request)
            return await handle(Request(request.scope, _bounded(request, _max_bytes(sends, limits))))

        return handle_guarded


async def _authorize(request: Request, scope: str) -> Caller:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Problem(
            problems.UNAUTHENTICATED,
            "Send a token: 'Authorization: Bearer <JWT>'.",
            headers={"WWW-Authenticate": 'Bearer realm="runyard"'},
        )
    try:
        caller = await context_of(request).tokens.verify(token.strip())
    except TokenRefused as error:
        challenge = f'Bearer realm="runyard", error="invalid_token", error_description="{error}"'
        raise Problem(problems.UNAUTHENTICATED, f"{error}.", headers={"WWW-Authenticate": challenge}) from error
    except KeysUnavailable as error:
        raise problems.unavailable("The keys that sign tokens cannot be fetched right now.") from error
    if scope not in caller.scopes:
        challenge = f'Bearer realm="runyard", error="insufficient_scope", scope="{scope}"'
        raise Problem(
            problems.INSUFFICIENT_SCOPE,
            f"The token lacks the scope '{scope}'.",
            extra={"required_scope": scope},
            headers={"WWW-Authenticate": challenge},
        )
    return caller


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not re.fullmatch(r"application/(json|.+\+json)", media_type):
        raise Problem(problems.UNSUPPORTED_MEDIA_TYPE, "Send JSON, with 'Content-Type: application/json'.")


def _max_bytes(sends: Sends, limits: Limits) -> int:
    match sends:
        case "nothing" | "json":
            return limits.json_bytes
        case "asset":
            return limits.asset_bytes + MULTIPART_OVERHEAD_BYTES
        case "dataset":
            return limits.dataset_bytes


def _bounded(request: Request, max_bytes: int) -> Receive:
    """Count what really arrives; Content-Length is what the client says."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            await _drain(request, message)
            raise too_large(max_bytes)
        return message

    return receive


async def _drain(request: Request, message: Message) -> None:
    drained = 0
    while message.get("more_body") and drained < DRAINED_BYTES:
        message = await request.receive()
        drained += len(message.get("body", b""))


def too_large(max_bytes: int) -> Problem:
    """Make the problem of a body that is too large, with the limit named."""
    return Problem(problems.TOO_LARGE, f"At most {max_bytes} bytes.", extra={"limit_bytes": max_bytes})

"""Before a route runs: who calls, may they, and how much may they send, how fast. The body of a stranger is never read.

`guarded` says it all per route, for the code and for the OpenAPI document alike. Never looks at a resource.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Literal

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from services.api import problems
from services.api.context import Limits, context_of
from services.api.pace import Pace, TooSlow
from services.api.problems import Kind, Problem
from services.api.strict_json import read_strictly
from services.api.tokens import Caller, KeysUnavailable, TokenRefused

Scope = Literal["models:read", "models:write", "training:run", "audit:read"]
Sends = Literal["nothing", "json", "asset", "dataset"]
Returns = Literal["application/json", "application/octet-stream", "text/event-stream"]

PATH_PARAMETER = re.compile(r"[A-Za-z0-9._-]{1,128}")
MULTIPART_OVERHEAD_BYTES = 64 * 1024
FORM_LIMITS = {"max_files": 1, "max_fields": 4, "max_part_size": 4096}
"""An upload has one file and one field; a few fields more are named in the answer, each file more would cost memory."""
DRAINED_BYTES = 32 << 20
"""How much of a body that is too large is read and thrown away, so that its sender gets to read the answer."""
EVERYWHERE = (
    problems.UNAUTHENTICATED,
    problems.INSUFFICIENT_SCOPE,
    problems.VALIDATION_FAILED,
    problems.INTERNAL_ERROR,
    problems.UNAVAILABLE,
)
WITH_BODY = (problems.BAD_REQUEST, problems.TOO_SLOW, problems.TOO_LARGE, problems.UNSUPPORTED_MEDIA_TYPE)
KEYED = (problems.OUTCOME_UNKNOWN, problems.IDEMPOTENCY_KEY_REUSED)
WITH_JSON = (*WITH_BODY, *KEYED, problems.MALFORMED_JSON)

HEADERS_OF_STATUS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string", "pattern": "^Bearer "}}},
    403: {"WWW-Authenticate": {"required": True, "schema": {"type": "string", "pattern": "^Bearer "}}},
    503: {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}},
}
LOCATION = {"Location": {"required": True, "schema": {"type": "string", "format": "uri-reference"}}}
RAW_BYTES = {"type": "string", "format": "binary"}
SCHEMA_OF_RETURNS: dict[Returns, dict[str, Any]] = {
    "application/octet-stream": RAW_BYTES,
    "text/event-stream": {
        "type": "object",
        "description": "A server-sent event, with `follow=true`: `log` or `metric`, its cursor as id; last an `end`.",
        "required": ["event", "data"],
        "properties": {
            "event": {"enum": ["log", "metric", "end"]},
            "id": {"type": "string"},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
    },
}
REFUSALS_OF_BODY: dict[Sends, tuple[Kind, ...]] = {
    "nothing": (),
    "json": WITH_JSON,
    "asset": (*WITH_BODY, *KEYED),
    "dataset": (*WITH_BODY, problems.OUTCOME_UNKNOWN),
}


def guarded(
    scope: Scope,
    *kinds: Kind,
    sends: Sends = "nothing",
    returns: Returns = "application/json",
    located: int | None = None,
) -> dict[str, Any]:
    """Say what a route needs, what it may return, and how it may refuse: arguments for its decorator.

    `returns` is what else than JSON it may return, `located` the status whose answer says where the new resource is.
    """
    more = REFUSALS_OF_BODY[sends]
    extra: dict[str, Any] = {"x-required-scope": scope, "x-sends": sends, "security": [{"bearer": [scope]}]}
    if sends == "dataset":
        extra["requestBody"] = {"required": False, "content": {"application/octet-stream": {"schema": RAW_BYTES}}}
    responses = _documented((*EVERYWHERE, *more, *kinds))
    if returns != "application/json":
        responses[200] = {"description": "Success", "content": {returns: {"schema": SCHEMA_OF_RETURNS[returns]}}}
    if located is not None:
        responses[located] = {"headers": LOCATION}
    form = {"form_limits": FORM_LIMITS} if sends == "asset" else {}
    return {"openapi_extra": extra, "responses": responses, **form}


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
        if kind.status in HEADERS_OF_STATUS:
            response["headers"] = HEADERS_OF_STATUS[kind.status]
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
            if sends != "nothing":
                _require_media_type(request, sends)
            return await handle(_BoundedRequest(request, _max_bytes(sends, context_of(request).limits)))

        return handle_guarded


class _BoundedRequest(Request):
    """A request whose body is bounded in size and slowness, and whose JSON can be read in one way only."""

    def __init__(self, request: Request, max_bytes: int) -> None:
        super().__init__(request.scope, _bounded(request, max_bytes))

    async def json(self) -> Any:
        return read_strictly(await self.body())


async def _authorize(request: Request, scope: str) -> Caller:
    token = _bearer_token(request)
    try:
        caller = await context_of(request).tokens.verify(token)
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


def _bearer_token(request: Request) -> str:
    """Find the one token; of two a proxy before us might have believed the other."""
    found = request.headers.getlist("authorization")
    scheme, _, token = found[0].partition(" ") if len(found) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip(" "):
        raise Problem(
            problems.UNAUTHENTICATED,
            "Send one token: 'Authorization: Bearer <JWT>'.",
            headers={"WWW-Authenticate": 'Bearer realm="runyard"'},
        )
    return token.strip(" ")


def _require_media_type(request: Request, sends: Sends) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sends == "json" and not re.fullmatch(r"application/(json|.+\+json)", media_type):
        raise Problem(problems.UNSUPPORTED_MEDIA_TYPE, "Send JSON, with 'Content-Type: application/json'.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(  # RFC 9110, 15.5.16
            problems.UNSUPPORTED_MEDIA_TYPE,
            "Send the body as it is, without a Content-Encoding.",
            headers={"Accept-Encoding": "identity"},
        )


def _max_bytes(sends: Sends, limits: Limits) -> int:
    match sends:
        case "nothing" | "json":
            return limits.json_bytes
        case "asset":
            return limits.asset_bytes + MULTIPART_OVERHEAD_BYTES
        case "dataset":
            return limits.dataset_bytes


def _bounded(request: Request, max_bytes: int) -> Receive:
    """Count what really arrives, and when; Content-Length is what the client says."""
    limits = context_of(request).limits
    pace = Pace(request.receive, limits.patience_s, limits.body_bytes_per_s)

    async def receive() -> Message:
        try:
            message = await pace.receive()
            if pace.received > max_bytes:
                await _drain(pace, message, limits.patience_s)
                raise too_large(max_bytes)
        except TooSlow as error:
            raise too_slow(limits) from error
        return message

    return receive


async def _drain(pace: Pace, message: Message, patience_s: float) -> None:
    until = pace.received + DRAINED_BYTES
    with suppress(TimeoutError, TooSlow):
        async with asyncio.timeout(patience_s):
            while message.get("more_body") and pace.received < until:
                message = await pace.receive()


def too_large(max_bytes: int) -> Problem:
    """Make the problem of a body that is too large, with the limit named."""
    return Problem(problems.TOO_LARGE, f"At most {max_bytes} bytes.", extra={"limit_bytes": max_bytes})


def too_slow(limits: Limits) -> Problem:
    """Make the problem of a body that does not arrive; the rest of it is not waited for."""
    detail = f"After {limits.patience_s:g} s of waiting a body must arrive at {limits.body_bytes_per_s} bytes a second."
    return Problem(problems.TOO_SLOW, detail, headers={"Connection": "close"})

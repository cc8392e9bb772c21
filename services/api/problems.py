"""Errors as clients see them: RFC 9457 problem details, one shape everywhere, each kind with a stable `type`.

Owns the catalogue of kinds and how one is written. Never repeats what a client sent in a field that may hold a secret,
and never tells what went wrong inside.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

TYPE_PREFIX = "https://runyard.dev/problems/"
MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: its slug never changes its meaning."""

    slug: str
    status: int
    title: str


MALFORMED_JSON = Kind("malformed-json", 400, "The body is not JSON")
BAD_REQUEST = Kind("bad-request", 400, "The request cannot be read")
UNAUTHENTICATED = Kind("unauthenticated", 401, "A valid bearer token is needed")
INSUFFICIENT_SCOPE = Kind("insufficient-scope", 403, "The token lacks a scope")
NOT_FOUND = Kind("not-found", 404, "There is no such resource")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "The resource does not have this method")
TOO_SLOW = Kind("too-slow", 408, "The body does not arrive")
RUN_IN_PROGRESS = Kind("run-in-progress", 409, "A training run of this model is in progress")
RUN_ENDED = Kind("run-ended", 409, "The run has already ended")
TOO_LARGE = Kind("too-large", 413, "The body is larger than allowed")
UNSUPPORTED_MEDIA_TYPE = Kind("unsupported-media-type", 415, "The body has the wrong media type")
VALIDATION_FAILED = Kind("validation-failed", 422, "Some fields are wrong")
MODEL_NOT_CUSTOM = Kind("model-not-custom", 422, "Only custom models can be trained by a script")
NO_SCRIPT_ASSET = Kind("no-script-asset", 422, "The model has no script asset")
ENTRY_POINT_NOT_FOUND = Kind("entry-point-not-found", 422, "entry_point names no script asset of the model")
NO_DATASET = Kind("no-dataset", 422, "The model has no dataset")
DATASET_EMPTY = Kind("dataset-empty", 422, "The dataset has no content yet")
TOO_MANY_ASSETS = Kind("too-many-assets", 422, "The model has as many assets as it may have")
IDEMPOTENCY_KEY_REUSED = Kind("idempotency-key-reused", 422, "The Idempotency-Key was used for another request")
INTERNAL_ERROR = Kind("internal-error", 500, "Something went wrong on our side")
UNAVAILABLE = Kind("unavailable", 503, "A part of the service is not available right now")
OUTCOME_UNKNOWN = Kind("outcome-unknown", 503, "It is not known whether the request was accepted")

KINDS: tuple[Kind, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Kind))
KIND_OF_STATUS = {
    400: BAD_REQUEST,
    404: NOT_FOUND,
    405: METHOD_NOT_ALLOWED,
    413: TOO_LARGE,
    415: UNSUPPORTED_MEDIA_TYPE,
}

RETRY_AFTER_S = 5
MOST_ERRORS = 200
"""A body of a mebibyte can be wrong in a hundred thousand places; more than this many help nobody."""


class Problem(HTTPException):
    """A refusal, raised where it is noticed; `extra` are members of its own kind, such as `run_id`."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        extra: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(kind.status, detail, dict(headers or {}))
        self.kind = kind
        self.errors = list(errors)
        self.extra = dict(extra or {})


def wrong_field(pointer: str, message: str) -> Problem:
    """Make the problem of one wrong field of the body."""
    return Problem(VALIDATION_FAILED, "1 field is wrong.", errors=[{"pointer": pointer, "message": message}])


def unavailable(detail: str) -> Problem:
    """Make the problem of something that may go well in a moment."""
    return Problem(UNAVAILABLE, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def internal_error() -> Problem:
    """Make the problem of a bug of ours: it tells nothing but where to find it in the logs."""
    return Problem(INTERNAL_ERROR, "The error was logged under this response's X-Request-ID.")


def render(problem: Problem, instance: str) -> Response:
    """Write a problem as a response."""
    content: dict[str, object] = {
        "type": TYPE_PREFIX + problem.kind.slug,
        "title": problem.kind.title,
        "status": problem.kind.status,
        "detail": problem.detail,
        "instance": instance,
        **problem.extra,
    }
    if problem.errors:
        content["errors"] = problem.errors
    # ASCII only: a lone surrogate in what a client sent must not break the answer about it
    body = json.dumps(content, ensure_ascii=True)
    return Response(body, problem.kind.status, problem.headers, MEDIA_TYPE)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer with a problem of ours, or give the framework's own errors (404, 405, 400) the same shape."""
    assert isinstance(error, HTTPException)  # noqa: S101 - how handlers are registered
    if isinstance(error, Problem):
        return render(error, request.url.path)
    kind = KIND_OF_STATUS.get(error.status_code, BAD_REQUEST)
    return render(Problem(kind, str(error.detail), headers=error.headers), request.url.path)


async def on_invalid_request(request: Request, error: Exception) -> Response:
    """Answer with every field that is wrong."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - how handlers are registered
    return render(invalid_request(error.errors()), request.url.path)


def invalid_request(found: Sequence[Any]) -> Problem:
    """Turn what the validation found into a problem: JSON pointers for the body, names for parameters."""
    for item in found:
        if item["type"] == "json_invalid":
            place = f"at character {item['loc'][-1]}"
            return Problem(MALFORMED_JSON, f"The body is not JSON: {item['ctx']['error']} {place}.")
    errors = [_field_error(item) for item in found[:MOST_ERRORS]]
    words = "1 field is wrong." if len(found) == 1 else f"{len(found)} fields are wrong."
    if len(found) > MOST_ERRORS:
        words += f" These are the first {MOST_ERRORS}."
    return Problem(VALIDATION_FAILED, words, errors=errors)


def _field_error(item: Any) -> dict[str, str]:
    where, *path = (part for part in item["loc"] if part != "[key]")  # pydantic's mark of a wrong key
    message = str(item["msg"]).removeprefix("Value error, ")
    if where == "body":
        return {"pointer": "".join("/" + _escaped(str(part)) for part in path), "message": message}
    return {"parameter": ".".join(str(part) for part in path), "in": str(where), "message": message}


def _escaped(part: str) -> str:
    """Escape one reference token of a JSON pointer (RFC 6901), and keep it short."""
    return part[:200].replace("~", "~0").replace("/", "~1")

"""Versions of a model, and the artifacts that they are."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from fastapi.responses import StreamingResponse

from schemas.parts import PinnedObject
from services.api import problems
from services.api.context import Call, CurrentCall
from services.api.cursors import decode_cursor, encode_cursor
from services.api.downloads import stream_object
from services.api.guard import GuardedRoute, guarded
from services.api.parameters import DEFAULT_PAGE, LARGEST_INTEGER, Limit, NumberCursor
from services.api.problems import Problem
from services.api.resources import Page, Version
from services.api.routes_models import found_model
from services.api.store_runs import list_versions, select_version

router = APIRouter(prefix="/api/v1/models/{model_id}/versions", tags=["versions"], route_class=GuardedRoute)

VersionNumber = Annotated[int, Path(ge=1, le=LARGEST_INTEGER)]


@router.get("", summary="List versions", **guarded("models:read", problems.NOT_FOUND))
async def get_versions(
    model_id: str, call: CurrentCall, limit: Limit = DEFAULT_PAGE, cursor: NumberCursor = None
) -> Page[Version]:
    """List what training has produced, newest first."""
    await found_model(call, model_id)
    before = None if cursor is None else int(decode_cursor(cursor, int)[0])
    found = await list_versions(call.context.pool, model_id, before, limit + 1)
    items = found[:limit]
    following = encode_cursor(items[-1].version) if len(found) > limit else None
    return Page(items=items, next_cursor=following)


@router.get("/{version}", summary="Get a version", **guarded("models:read", problems.NOT_FOUND))
async def get_version(model_id: str, version: VersionNumber, call: CurrentCall) -> Version:
    """Get one version."""
    return await _found(call, model_id, version)


@router.get(
    "/{version}/artifact",
    summary="Download a version's artifact",
    response_class=StreamingResponse,
    **guarded("models:read", problems.NOT_FOUND, returns="application/octet-stream"),
)
async def get_artifact(model_id: str, version: VersionNumber, call: CurrentCall) -> Response:
    """Download what the script wrote: a file as it is, a folder as a tar. Never unpickle what you do not trust."""
    found = await _found(call, model_id, version)
    name = f"{model_id}-v{version}" + (".tar" if found.kind == "folder" else "")
    content = PinnedObject(filename=name, sha256=found.sha256, size_bytes=found.size_bytes)
    return await stream_object(call.context.objects, content)


async def _found(call: Call, model_id: str, number: int) -> Version:
    await found_model(call, model_id)
    version = await select_version(call.context.pool, model_id, number)
    if version is None:
        raise Problem(problems.NOT_FOUND, f"Model {model_id} has no version {number}.")
    return version

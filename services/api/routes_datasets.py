"""Datasets and their bytes."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from schemas.ids import OBJECT_TOKEN_HEX, dataset_id
from schemas.parts import PinnedObject
from services.api import problems
from services.api.answering import answer_with, create_once, now_utc, tokens
from services.api.bodies import DatasetBody, Filename
from services.api.context import Call, CurrentCall
from services.api.cursors import decode_place, encode_place
from services.api.downloads import stream_object
from services.api.guard import GuardedRoute, guarded, too_large
from services.api.idempotency import Answer
from services.api.parameters import DEFAULT_PAGE, IdempotencyKey, Limit, PlaceCursor
from services.api.problems import Problem
from services.api.resources import Dataset, Page
from services.api.store import transaction
from services.api.store_catalog import insert_dataset, list_datasets, select_dataset, update_content
from services.backbone.crash_points import crash_point
from services.backbone.objects import TooLarge
from services.backbone.postgres import Connection

router = APIRouter(prefix="/api/v1/datasets", tags=["datasets"], route_class=GuardedRoute)


@router.post(
    "",
    status_code=201,
    response_model=Dataset,
    summary="Create a dataset",
    **guarded("models:write", sends="json", located=201),
)
async def create_dataset(body: DatasetBody, call: CurrentCall, idempotency_key: IdempotencyKey = None) -> Response:
    """Create a dataset; upload its bytes with PUT to its `content`."""

    async def act(connection: Connection) -> Answer:
        for token in tokens(OBJECT_TOKEN_HEX):
            dataset = Dataset(dataset_id=dataset_id(token), name=body.name, created_at=now_utc())
            if await insert_dataset(connection, call.caller.tenant_id, dataset):
                return answer_with(201, dataset, f"/api/v1/datasets/{dataset.dataset_id}")
        raise problems.unavailable("No free id was found.")

    return await create_once(call, call.ticket(idempotency_key, body.model_dump()), act)


@router.get("", summary="List datasets", **guarded("models:read"))
async def get_datasets(call: CurrentCall, limit: Limit = DEFAULT_PAGE, cursor: PlaceCursor = None) -> Page[Dataset]:
    """List the tenant's datasets, newest first."""
    found = await list_datasets(call.context.pool, call.caller.tenant_id, decode_place(cursor), limit + 1)
    items = found[:limit]
    following = encode_place(items[-1].created_at, items[-1].dataset_id) if len(found) > limit else None
    return Page(items=items, next_cursor=following)


@router.get("/{dataset_id}", summary="Get a dataset", **guarded("models:read", problems.NOT_FOUND))
async def get_dataset(dataset_id: str, call: CurrentCall) -> Dataset:
    """Get one dataset."""
    return await _found(call, dataset_id)


@router.put(
    "/{dataset_id}/content",
    summary="Upload a dataset's bytes",
    **guarded("models:write", problems.NOT_FOUND, sends="dataset"),
)
async def put_content(dataset_id: str, filename: Filename, request: Request, call: CurrentCall) -> Dataset:
    """Give a dataset its bytes, in place of those it had; runs that were accepted keep what they pinned."""
    await _found(call, dataset_id)
    limit = call.context.limits.dataset_bytes
    try:
        stored = await call.context.objects.store_content(_body_of(request), limit)
    except TooLarge as error:
        raise too_large(limit) from error
    content = PinnedObject(filename=filename, sha256=stored.sha256, size_bytes=stored.size_bytes)
    async with transaction(call.context.pool) as connection:
        dataset = await update_content(connection, call.caller.tenant_id, dataset_id, content)
        crash_point("before_dataset_commit")
    crash_point("after_dataset_commit")
    return dataset or await _found(call, dataset_id)


@router.get(
    "/{dataset_id}/content",
    summary="Download a dataset's bytes",
    response_class=StreamingResponse,
    **guarded("models:read", problems.NOT_FOUND, returns="application/octet-stream"),
)
async def get_content(dataset_id: str, call: CurrentCall) -> Response:
    """Download what was uploaded, byte for byte."""
    dataset = await _found(call, dataset_id)
    if dataset.filename is None or dataset.sha256 is None or dataset.size_bytes is None:
        raise Problem(problems.NOT_FOUND, f"{dataset_id} has no content.")
    pinned = PinnedObject(filename=dataset.filename, sha256=dataset.sha256, size_bytes=dataset.size_bytes)
    return await stream_object(call.context.objects, pinned)


async def _found(call: Call, wanted: str) -> Dataset:
    dataset = await select_dataset(call.context.pool, call.caller.tenant_id, wanted)
    if dataset is None:
        raise Problem(problems.NOT_FOUND, f"There is no dataset {wanted}.")
    return dataset


async def _body_of(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        yield chunk

"""Models and their assets."""

import re
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, File, Form, Response, UploadFile
from pydantic import BaseModel, ConfigDict

from schemas.ids import OBJECT_TOKEN_HEX, asset_id, model_id
from schemas.parts import AssetType, MetricDefinition
from services.api import problems
from services.api.answering import answer_with, create_once, now_utc, tokens
from services.api.bodies import ModelBody, safe_filename
from services.api.context import Call, CurrentCall
from services.api.cursors import decode_place, encode_place
from services.api.guard import GuardedRoute, guarded, too_large
from services.api.idempotency import Answer
from services.api.parameters import DEFAULT_PAGE, IdempotencyKey, Limit, PlaceCursor
from services.api.problems import Problem, wrong_field
from services.api.resources import Asset, Model, Page
from services.api.store_catalog import (
    count_other_assets,
    delete_asset,
    insert_model,
    list_assets,
    list_models,
    lock_model,
    select_dataset,
    select_model,
    upsert_asset,
)
from services.backbone.objects import CHUNK_BYTES, StoredObject, TooLarge
from services.backbone.postgres import Connection

MAX_ASSETS = 100
DATASET_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

router = APIRouter(prefix="/api/v1/models", route_class=GuardedRoute)


class AssetForm(BaseModel):
    """A multipart upload of one file."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    asset_type: AssetType


@router.post(
    "",
    status_code=201,
    response_model=Model,
    tags=["models"],
    summary="Create a model",
    **guarded("models:write", sends="json", located=201),
)
async def create_model(body: ModelBody, call: CurrentCall, idempotency_key: IdempotencyKey = None) -> Response:
    """Create a model, linked to the dataset that its runs train on."""

    async def act(connection: Connection) -> Answer:
        await _require_dataset(connection, call, body.dataset_id)
        for token in tokens(OBJECT_TOKEN_HEX):
            model = Model(
                model_id=model_id(token),
                name=body.name,
                model_type=body.model_type,
                status="draft",
                dataset_id=body.dataset_id,
                metric_definitions=[MetricDefinition(**given.model_dump()) for given in body.metric_definitions],
                created_at=now_utc(),
            )
            if await insert_model(connection, call.caller.tenant_id, model):
                return answer_with(201, model, f"/api/v1/models/{model.model_id}")
        raise problems.unavailable("No free id was found.")

    return await create_once(call, call.ticket(idempotency_key, body.model_dump()), act)


@router.get("", tags=["models"], summary="List models", **guarded("models:read"))
async def get_models(call: CurrentCall, limit: Limit = DEFAULT_PAGE, cursor: PlaceCursor = None) -> Page[Model]:
    """List the tenant's models, newest first."""
    found = await list_models(call.context.pool, call.caller.tenant_id, decode_place(cursor), limit + 1)
    items = found[:limit]
    following = encode_place(items[-1].created_at, items[-1].model_id) if len(found) > limit else None
    return Page(items=items, next_cursor=following)


@router.get("/{model_id}", tags=["models"], summary="Get a model", **guarded("models:read", problems.NOT_FOUND))
async def get_model(model_id: str, call: CurrentCall) -> Model:
    """Get one model, with its status and its last run."""
    return await found_model(call, model_id)


@router.post(
    "/{model_id}/assets",
    status_code=201,
    response_model=Asset,
    tags=["assets"],
    summary="Upload an asset",
    **guarded("models:write", problems.NOT_FOUND, problems.TOO_MANY_ASSETS, sends="asset", located=201),
)
async def create_asset(
    model_id: str,
    form: Annotated[AssetForm, Form(media_type="multipart/form-data"), File()],
    call: CurrentCall,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Upload a script, a requirements file or data; the same type and file name again replaces what was there."""
    await found_model(call, model_id)
    filename = _accepted_filename(form.file.filename)
    stored = await _store(call, form.file)
    fields: dict[str, object] = {"asset_type": form.asset_type, "filename": filename, "sha256": stored.sha256}

    async def act(connection: Connection) -> Answer:
        await lock_model(connection, call.caller.tenant_id, model_id)
        asset = Asset(
            asset_id=asset_id(tokens(OBJECT_TOKEN_HEX)[-1]),
            model_id=model_id,
            asset_type=form.asset_type,
            filename=filename,
            size_bytes=stored.size_bytes,
            sha256=stored.sha256,
            created_at=now_utc(),
        )
        if await count_other_assets(connection, asset) >= MAX_ASSETS:
            raise Problem(problems.TOO_MANY_ASSETS, f"A model has at most {MAX_ASSETS} assets.")
        kept = await upsert_asset(connection, asset)
        return answer_with(201, kept, f"/api/v1/models/{model_id}/assets/{kept.asset_id}")

    return await create_once(call, call.ticket(idempotency_key, fields), act)


@router.get("/{model_id}/assets", tags=["assets"], summary="List assets", **guarded("models:read", problems.NOT_FOUND))
async def get_assets(
    model_id: str, call: CurrentCall, limit: Limit = DEFAULT_PAGE, cursor: PlaceCursor = None
) -> Page[Asset]:
    """List a model's assets, newest first."""
    await found_model(call, model_id)
    found = await list_assets(call.context.pool, model_id, decode_place(cursor), limit + 1)
    items = found[:limit]
    following = encode_place(items[-1].created_at, items[-1].asset_id) if len(found) > limit else None
    return Page(items=items, next_cursor=following)


@router.delete(
    "/{model_id}/assets/{asset_id}",
    status_code=204,
    tags=["assets"],
    summary="Delete an asset",
    **guarded("models:write", problems.NOT_FOUND),
)
async def remove_asset(model_id: str, asset_id: str, call: CurrentCall) -> None:
    """Delete an asset; a run that was accepted keeps what it pinned."""
    await found_model(call, model_id)
    if not await delete_asset(call.context.pool, model_id, asset_id):
        raise Problem(problems.NOT_FOUND, f"There is no asset {asset_id}.")


async def found_model(call: Call, wanted: str) -> Model:
    """Read a model of the caller's tenant; another tenant's is not there."""
    model = await select_model(call.context.pool, call.caller.tenant_id, wanted)
    if model is None:
        raise no_model(wanted)
    return model


def no_model(wanted: str) -> Problem:
    """Make the problem of a model that is not there."""
    return Problem(problems.NOT_FOUND, f"There is no model {wanted}.")


async def _require_dataset(connection: Connection, call: Call, wanted: str | None) -> None:
    if wanted is None:
        return
    if not DATASET_ID.fullmatch(wanted) or not await select_dataset(connection, call.caller.tenant_id, wanted):
        raise wrong_field("/dataset_id", "there is no such dataset")


def _accepted_filename(name: str | None) -> str:
    try:
        return safe_filename(name or "")
    except ValueError as error:
        raise wrong_field("/file", f"file name: {error}") from error


async def _store(call: Call, file: UploadFile) -> StoredObject:
    limit = call.context.limits.asset_bytes

    async def chunks() -> AsyncIterator[bytes]:
        while chunk := await file.read(CHUNK_BYTES):
            yield chunk

    try:
        return await call.context.objects.store_content(chunks(), limit)
    except TooLarge as error:
        raise too_large(limit) from error

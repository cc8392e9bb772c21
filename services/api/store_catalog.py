"""Rows of datasets, models and assets. Nothing but SQL and the values that it returns."""

from datetime import datetime

from asyncpg import Record
from pydantic import TypeAdapter

from schemas.parts import MetricDefinition, PinnedAsset, PinnedObject
from services.api.admission import ModelFacts
from services.api.resources import Asset, Dataset, LastRun, Model
from services.api.store import Executor
from services.backbone.postgres import Connection

Place = tuple[datetime | None, str | None]

DEFINITIONS = TypeAdapter(list[MetricDefinition])

INSERT_DATASET = """
INSERT INTO datasets (dataset_id, tenant_id, name, created_at) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING RETURNING true
"""


async def insert_dataset(connection: Connection, tenant_id: str, dataset: Dataset) -> bool:
    """Add a dataset; False when its id is taken."""
    return bool(
        await connection.fetchval(INSERT_DATASET, dataset.dataset_id, tenant_id, dataset.name, dataset.created_at)
    )


SELECT_DATASET = """
SELECT dataset_id, name, created_at, filename, sha256, size_bytes FROM datasets
WHERE dataset_id = $1 AND tenant_id = $2
"""


async def select_dataset(executor: Executor, tenant_id: str, dataset_id: str) -> Dataset | None:
    """Read one dataset of a tenant."""
    row = await executor.fetchrow(SELECT_DATASET, dataset_id, tenant_id)
    return None if row is None else Dataset(**row)


LIST_DATASETS = """
SELECT dataset_id, name, created_at, filename, sha256, size_bytes FROM datasets
WHERE tenant_id = $1 AND ($2::timestamptz IS NULL OR (created_at, dataset_id) < ($2, $3::text))
ORDER BY created_at DESC, dataset_id DESC LIMIT $4
"""


async def list_datasets(executor: Executor, tenant_id: str, place: Place, limit: int) -> list[Dataset]:
    """Read datasets behind a place, newest first."""
    return [Dataset(**row) for row in await executor.fetch(LIST_DATASETS, tenant_id, *place, limit)]


UPDATE_CONTENT = """
UPDATE datasets SET filename = $3, sha256 = $4, size_bytes = $5 WHERE dataset_id = $1 AND tenant_id = $2
RETURNING dataset_id, name, created_at, filename, sha256, size_bytes
"""


async def update_content(
    connection: Connection, tenant_id: str, dataset_id: str, content: PinnedObject
) -> Dataset | None:
    """Give a dataset its content, in place of what it had."""
    row = await connection.fetchrow(
        UPDATE_CONTENT, dataset_id, tenant_id, content.filename, content.sha256, content.size_bytes
    )
    return None if row is None else Dataset(**row)


INSERT_MODEL = """
INSERT INTO models (model_id, tenant_id, name, model_type, dataset_id, created_at, metric_definitions)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING RETURNING true
"""


async def insert_model(connection: Connection, tenant_id: str, model: Model) -> bool:
    """Add a model; False when its id is taken."""
    row = (model.model_id, tenant_id, model.name, model.model_type, model.dataset_id, model.created_at)
    definitions = DEFINITIONS.dump_json(model.metric_definitions).decode()
    return bool(await connection.fetchval(INSERT_MODEL, *row, definitions))


SELECT_MODEL = """
SELECT model_id, name, model_type, status, dataset_id, metric_definitions, created_at, latest_version, last_run
FROM shown_models
WHERE model_id = $1 AND tenant_id = $2
"""


async def select_model(executor: Executor, tenant_id: str, model_id: str) -> Model | None:
    """Read one model of a tenant."""
    row = await executor.fetchrow(SELECT_MODEL, model_id, tenant_id)
    return None if row is None else _model(row)


LIST_MODELS = """
SELECT model_id, name, model_type, status, dataset_id, metric_definitions, created_at, latest_version, last_run
FROM shown_models
WHERE tenant_id = $1 AND ($2::timestamptz IS NULL OR (created_at, model_id) < ($2, $3::text))
ORDER BY created_at DESC, model_id DESC LIMIT $4
"""


async def list_models(executor: Executor, tenant_id: str, place: Place, limit: int) -> list[Model]:
    """Read models behind a place, newest first."""
    return [_model(row) for row in await executor.fetch(LIST_MODELS, tenant_id, *place, limit)]


def _model(row: Record) -> Model:
    last, definitions = row["last_run"], DEFINITIONS.validate_json(row["metric_definitions"])
    last_run = None if last is None else LastRun.model_validate_json(last)
    return Model(**{**row, "metric_definitions": definitions, "last_run": last_run})


SELECT_FACTS = """
SELECT m.model_id, m.model_type, m.active_run_id, m.dataset_id, m.metric_definitions, d.filename, d.sha256, d.size_bytes
FROM models m LEFT JOIN datasets d USING (dataset_id)
WHERE m.model_id = $1 AND m.tenant_id = $2
"""
LOCK_MODEL = "SELECT true FROM models WHERE model_id = $1 AND tenant_id = $2 FOR NO KEY UPDATE"
SELECT_PINNED = """
SELECT asset_id, asset_type, filename, sha256, size_bytes FROM assets WHERE model_id = $1 ORDER BY asset_type, filename
"""


async def select_facts(executor: Executor, tenant_id: str, model_id: str) -> ModelFacts | None:
    """Read what admission must know of a model."""
    row = await executor.fetchrow(SELECT_FACTS, model_id, tenant_id)
    if row is None:
        return None
    content = None
    if row["sha256"] is not None:
        content = PinnedObject(filename=row["filename"], sha256=row["sha256"], size_bytes=row["size_bytes"])
    assets = tuple(PinnedAsset(**asset) for asset in await executor.fetch(SELECT_PINNED, model_id))
    return ModelFacts(
        model_id=row["model_id"],
        model_type=row["model_type"],
        active_run_id=row["active_run_id"],
        dataset_id=row["dataset_id"],
        content=content,
        assets=assets,
        metric_definitions=tuple(DEFINITIONS.validate_json(row["metric_definitions"])),
    )


async def lock_model(connection: Connection, tenant_id: str, model_id: str) -> bool:
    """Lock a model's row, so that its assets and its claim stand still; False when there is none."""
    return bool(await connection.fetchval(LOCK_MODEL, model_id, tenant_id))


UPSERT_ASSET = """
INSERT INTO assets (asset_id, model_id, asset_type, filename, sha256, size_bytes, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (model_id, asset_type, filename)
DO UPDATE SET sha256 = excluded.sha256, size_bytes = excluded.size_bytes, created_at = excluded.created_at
RETURNING asset_id, model_id, asset_type, filename, sha256, size_bytes, created_at
"""
COUNT_OTHER_ASSETS = """
SELECT count(*) FROM assets WHERE model_id = $1 AND (asset_type, filename) <> ($2::text, $3::text)
"""


async def count_other_assets(connection: Connection, asset: Asset) -> int:
    """Count a model's assets besides the one of this type and name."""
    count: int = await connection.fetchval(COUNT_OTHER_ASSETS, asset.model_id, asset.asset_type, asset.filename)
    return count


async def upsert_asset(connection: Connection, asset: Asset) -> Asset:
    """Add an asset, or replace the content of the one of this type and name, which keeps its id."""
    values = (asset.asset_type, asset.filename, asset.sha256, asset.size_bytes, asset.created_at)
    [row] = await connection.fetch(UPSERT_ASSET, asset.asset_id, asset.model_id, *values)
    return Asset(**row)


LIST_ASSETS = """
SELECT a.asset_id, a.model_id, a.asset_type, a.filename, a.sha256, a.size_bytes, a.created_at
FROM assets a WHERE a.model_id = $1 AND ($2::timestamptz IS NULL OR (a.created_at, a.asset_id) < ($2, $3::text))
ORDER BY a.created_at DESC, a.asset_id DESC LIMIT $4
"""


async def list_assets(executor: Executor, model_id: str, place: Place, limit: int) -> list[Asset]:
    """Read a model's assets behind a place, newest first."""
    return [Asset(**row) for row in await executor.fetch(LIST_ASSETS, model_id, *place, limit)]


DELETE_ASSET = "DELETE FROM assets WHERE model_id = $1 AND asset_id = $2 RETURNING true"


async def delete_asset(executor: Executor, model_id: str, asset_id: str) -> bool:
    """Remove an asset; runs that pinned it keep its bytes."""
    return bool(await executor.fetchval(DELETE_ASSET, model_id, asset_id))

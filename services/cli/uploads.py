"""From files on this machine to a model that can be trained: what is there already is used again.

Owns how models, datasets and assets are found by name. Never starts a run.
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.parts import AssetType
from services.cli.api_client import Api, Json
from services.cli.errors import UsageRefused


@dataclass(frozen=True, slots=True)
class Files:
    """What a run needs: its script, its data and whatever else lies beside them."""

    script: Path
    data: Path
    others: Sequence[Path] = ()

    def check(self) -> None:
        """Refuse, by UsageRefused, what is no readable file."""
        for file in (self.script, self.data, *self.others):
            if not file.is_file():
                raise UsageRefused(f"{file} is no file")


async def ready_model(api: Api, name: str, files: Files, definitions: Sequence[Json] = ()) -> Json:
    """Find or make a model of that name, with these files: dataset, script and other assets.

    Raises:
        UsageRefused: the model of that name has no dataset, or other metric definitions than are asked for.
    """
    model = await _custom_model(api, name)
    if model is None:
        dataset = await _dataset(api, name)
        await _fill(api, dataset, files.data)
        body = {"name": name, "model_type": "custom", "dataset_id": dataset["dataset_id"]}
        model = await api.post("/models", {**body, "metric_definitions": definitions} if definitions else body)
    else:
        _check(model, definitions)
        await _fill(api, await api.get(f"/datasets/{model['dataset_id']}"), files.data)
    await api.upload_asset(model["model_id"], files.script, "script")
    for other in files.others:
        await api.upload_asset(model["model_id"], other, asset_type_of(other.name))
    return model


def _check(model: Json, definitions: Sequence[Json]) -> None:
    """Refuse what cannot be changed of a model that is there."""
    lacks = None
    if model["dataset_id"] is None:
        lacks = "has no dataset"
    elif definitions and model.get("metric_definitions", []) != list(definitions):
        lacks = "has other metric definitions, which cannot be changed"
    if lacks is not None:
        raise UsageRefused(
            f"the model {model['name']!r} ({model['model_id']}) {lacks}: choose another name with --model"
        )


def asset_type_of(filename: str) -> AssetType:
    """Tell an asset's type from its name.

    >>> [asset_type_of(name) for name in ("layers.py", "requirements-gpu.txt", "words.txt")]
    ['script', 'requirements', 'data']
    """
    if filename.endswith(".py"):
        return "script"
    return "requirements" if re.fullmatch(r"requirements.*\.txt", filename) else "data"


async def _custom_model(api: Api, name: str) -> Json | None:
    async for model in api.pages("/models", limit=200):
        if model["name"] == name and model["model_type"] == "custom":
            return model
    return None


async def _dataset(api: Api, name: str) -> Json:
    async for dataset in api.pages("/datasets", limit=200):
        if dataset["name"] == name:
            return dataset
    return await api.post("/datasets", {"name": name})


async def _fill(api: Api, dataset: Json, file: Path) -> None:
    """Upload a dataset's bytes unless it has just these."""
    sha256 = await asyncio.to_thread(_sha256, file)
    if (dataset.get("filename"), dataset.get("sha256")) != (file.name, sha256):
        await api.upload_dataset(dataset["dataset_id"], file)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

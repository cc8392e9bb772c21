"""May this request become a run? Pure: what is known of the model goes in, a specification or a refusal comes out.

Owns the order in which refusals are told. Never looks anything up, and never sees a variable's value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from schemas.parts import (
    AssetType,
    Compute,
    MetricDefinition,
    PinnedAsset,
    PinnedDataset,
    PinnedObject,
    Runtime,
    TrainingSpec,
)


class RefusalKind(Enum):
    """Why a request cannot become a run."""

    MODEL_NOT_CUSTOM = "model_not_custom"
    RUN_IN_PROGRESS = "run_in_progress"
    NO_SCRIPT_ASSET = "no_script_asset"
    ENTRY_POINT_NOT_FOUND = "entry_point_not_found"
    NO_DATASET = "no_dataset"
    DATASET_EMPTY = "dataset_empty"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that cannot become a run, in words for the one who sent it."""

    kind: RefusalKind
    detail: str
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model when a request arrives. `content` is null for a dataset that has none."""

    model_id: str
    model_type: str
    active_run_id: str | None
    dataset_id: str | None
    content: PinnedObject | None
    assets: tuple[PinnedAsset, ...]
    metric_definitions: tuple[MetricDefinition, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """What was asked for, with every default in its place."""

    entry_point: str
    runtime: Runtime
    compute: Compute
    timeout_s: int
    run_label: str | None
    variable_names: tuple[str, ...]
    grace_s: int


def admit(facts: ModelFacts, request: TrainingRequest) -> TrainingSpec | Refusal:
    """Decide on a request: a specification that pins what the run will use, or the first reason against it."""
    if facts.model_type != "custom":
        return Refusal(
            RefusalKind.MODEL_NOT_CUSTOM,
            f"{facts.model_id} has model_type '{facts.model_type}'; this endpoint trains models of type 'custom'.",
        )
    if facts.active_run_id is not None:
        return Refusal(
            RefusalKind.RUN_IN_PROGRESS,
            f"{facts.active_run_id} is in progress; wait for its end or cancel it.",
            facts.active_run_id,
        )
    script_refusal = _refuse_scripts(facts.assets, request.entry_point)
    if script_refusal is not None:
        return script_refusal
    if facts.dataset_id is None:
        return Refusal(RefusalKind.NO_DATASET, "The model is linked to no dataset: make one with dataset_id.")
    if facts.content is None:
        detail = f"{facts.dataset_id} has no content: PUT it to /api/v1/datasets/{facts.dataset_id}/content."
        return Refusal(RefusalKind.DATASET_EMPTY, detail)
    return TrainingSpec(
        entry_point=request.entry_point,
        runtime=request.runtime,
        compute=request.compute,
        timeout_s=request.timeout_s,
        grace_s=request.grace_s,
        run_label=request.run_label,
        variable_names=request.variable_names,
        assets=facts.assets,
        dataset=PinnedDataset(dataset_id=facts.dataset_id, **facts.content.model_dump()),
        metric_definitions=facts.metric_definitions,
    )


def _refuse_scripts(assets: Sequence[PinnedAsset], entry_point: str) -> Refusal | None:
    script: AssetType = "script"
    scripts = [asset.filename for asset in assets if asset.asset_type == script]
    if not scripts:
        detail = "Upload the training script with asset_type 'script' first."
        return Refusal(RefusalKind.NO_SCRIPT_ASSET, detail)
    if entry_point not in scripts:
        detail = "The model's script assets are: " + ", ".join(sorted(scripts)) + "."
        return Refusal(RefusalKind.ENTRY_POINT_NOT_FOUND, detail)
    return None

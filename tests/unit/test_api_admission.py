"""Protects admission: each refusal, the order in which they are told, and what an accepted run pins."""

from dataclasses import replace

import pytest

from schemas.parts import Compute, MetricDefinition, PinnedAsset, PinnedObject, TrainingSpec
from services.api.admission import ModelFacts, Refusal, RefusalKind, TrainingRequest, admit

SCRIPT = PinnedAsset(asset_id="ast-1", asset_type="script", filename="train.py", sha256="a" * 64, size_bytes=1)
TABLE = PinnedAsset(asset_id="ast-2", asset_type="data", filename="table.py", sha256="b" * 64, size_bytes=2)
CONTENT = PinnedObject(filename="wine.csv", sha256="c" * 64, size_bytes=3)
FACTS = ModelFacts("mdl-1", "custom", None, "dts-1", CONTENT, (SCRIPT, TABLE))
COMPUTE = Compute(cpu_cores=2, memory_gb=8)
REQUEST = TrainingRequest("train.py", "python3.11", COMPUTE, 7200, "a label", ("EPOCHS",), 30)


def refused(facts: ModelFacts, request: TrainingRequest = REQUEST) -> Refusal:
    decision = admit(facts, request)
    assert isinstance(decision, Refusal)
    return decision


def test_an_admitted_request_pins_all_assets_and_the_dataset() -> None:
    spec = admit(FACTS, REQUEST)
    assert isinstance(spec, TrainingSpec)
    assert (spec.entry_point, spec.runtime, spec.timeout_s, spec.run_label) == (
        "train.py",
        "python3.11",
        7200,
        "a label",
    )
    assert spec.grace_s == 30
    assert spec.assets == (SCRIPT, TABLE)
    assert spec.variable_names == ("EPOCHS",)
    assert (spec.dataset.dataset_id, spec.dataset.filename, spec.dataset.sha256) == ("dts-1", "wine.csv", "c" * 64)


def test_an_admitted_request_pins_the_metric_definitions_of_the_model() -> None:
    definitions = (MetricDefinition(name="loss", regex="loss=(.*)"),)
    spec = admit(replace(FACTS, metric_definitions=definitions), REQUEST)
    assert isinstance(spec, TrainingSpec)
    assert spec.metric_definitions == definitions


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        (replace(FACTS, model_type="auto"), RefusalKind.MODEL_NOT_CUSTOM),
        (replace(FACTS, active_run_id="run-1"), RefusalKind.RUN_IN_PROGRESS),
        (replace(FACTS, assets=()), RefusalKind.NO_SCRIPT_ASSET),
        (replace(FACTS, assets=(TABLE,)), RefusalKind.NO_SCRIPT_ASSET),
        (replace(FACTS, dataset_id=None, content=None), RefusalKind.NO_DATASET),
        (replace(FACTS, content=None), RefusalKind.DATASET_EMPTY),
    ],
)
def test_each_reason_against_a_run_is_told(facts: ModelFacts, kind: RefusalKind) -> None:
    assert refused(facts).kind is kind


@pytest.mark.parametrize("entry_point", ["other.py", "table.py", "TRAIN.py", "./train.py", "train.py "])
def test_an_entry_point_must_be_a_script_assets_exact_name(entry_point: str) -> None:
    refusal = refused(FACTS, replace(REQUEST, entry_point=entry_point))
    assert refusal.kind is RefusalKind.ENTRY_POINT_NOT_FOUND
    assert "train.py" in refusal.detail
    assert "table.py" not in refusal.detail


def test_a_run_in_progress_is_named() -> None:
    assert refused(replace(FACTS, active_run_id="run-1")).run_id == "run-1"


def test_the_most_fundamental_reason_comes_first() -> None:
    worst = ModelFacts("mdl-1", "auto", "run-1", None, None, ())
    steps = [
        worst,
        worst := replace(worst, model_type="custom"),
        worst := replace(worst, active_run_id=None),
        worst := replace(worst, assets=(replace_name(SCRIPT),)),
        worst := replace(worst, assets=(SCRIPT,)),
        replace(worst, dataset_id="dts-1"),
    ]
    assert [refused(facts).kind for facts in steps] == [
        RefusalKind.MODEL_NOT_CUSTOM,
        RefusalKind.RUN_IN_PROGRESS,
        RefusalKind.NO_SCRIPT_ASSET,
        RefusalKind.ENTRY_POINT_NOT_FOUND,
        RefusalKind.NO_DATASET,
        RefusalKind.DATASET_EMPTY,
    ]


def replace_name(asset: PinnedAsset) -> PinnedAsset:
    return asset.model_copy(update={"filename": "other.py"})

"""Protects subscribers: committed documents are current, released schemas are not broken, our events fit them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from schemas.cloudevents import MODEL_OF, value_of
from schemas.compatibility import incompatibilities
from schemas.export import EXPORTED, TRAVELS_ON, asyncapi, data_schema, documents, written
from schemas.topics import TOPICS
from services.api.openapi import DOCUMENT, document
from tests import life_of_a_run as life

RELEASED = sorted((EXPORTED.parent / "released").glob("*/runyard.*.json"))


def test_committed_documents_are_current() -> None:
    for name, exported in documents().items():
        assert (EXPORTED / name).read_text() == written(exported), f"{name} has drifted: python -m schemas.export"
    assert DOCUMENT.read_text() == document(), "openapi.json has drifted: python -m services.api.openapi"


NEW_REASONS = {
    f"runyard.run.{name}.v1": ["data.reason: a value that older readers do not know: 'requirements_failed'"]
    for name in ("attempt_lost", "cancelled", "failed", "requeued", "revoked", "waiting")
}
"""Breaks that were decided on, with what readers have to know: decision 11."""


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_was_released_still_holds(path: Path) -> None:
    assert path.stem in MODEL_OF, "a released type is gone"
    found = incompatibilities(json.loads(path.read_text()), data_schema(path.stem))
    assert found == (NEW_REASONS.get(path.stem, []) if path.parent.name == "v0.1.0" else [])


STARTED = "runyard.run.started.v1"
BREAKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a field is gone": lambda s: s["properties"].pop("container_id"),
    "a field is optional now": lambda s: s["required"].remove("container_id"),
    "a field is required now": lambda s: (
        s["required"].append("node") or s["properties"].update(node={"type": "string"})
    ),
    "a field has another type": lambda s: s["properties"].update(container_id={"type": "integer"}),
    "a field has another format": lambda s: s["properties"]["started_at"].pop("format"),
}


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS.keys())
def test_a_break_is_found(broken: Callable[[dict[str, Any]], Any]) -> None:
    released = data_schema(STARTED)
    current = copy.deepcopy(released)
    broken(current)
    assert incompatibilities(released, current)


NARROWER: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a value is new": lambda s: s["$defs"]["Reason"]["enum"].append("bad_luck"),
    "a value is gone": lambda s: s["$defs"]["Reason"]["enum"].remove("disk_full"),
    "values are listed no more": lambda s: s["$defs"]["Reason"].pop("enum"),
    "a bound has moved": lambda s: s["properties"]["attempt"].update(minimum=2),
    "a bound is new": lambda s: s["properties"]["message"]["anyOf"][0].update(maxLength=80),
    "null is refused": lambda s: s["properties"]["message"]["anyOf"].pop(),
    "a part has lost a field": lambda s: s["$defs"]["Usage"]["properties"].pop("cpu_s"),
}


@pytest.mark.parametrize("broken", NARROWER.values(), ids=NARROWER.keys())
def test_a_narrower_or_wider_field_is_found_wherever_it_stands(broken: Callable[[dict[str, Any]], Any]) -> None:
    released = data_schema("runyard.run.failed.v1")
    current = copy.deepcopy(released)
    broken(current)
    assert len(incompatibilities(released, current)) == 1


def test_items_and_pairs_are_compared_too() -> None:
    released = data_schema("runyard.dead_letter.refused.v1")
    current = copy.deepcopy(released)
    current["properties"]["headers_base64"]["items"]["prefixItems"][0]["type"] = "integer"
    assert incompatibilities(released, current) == ["data.headers_base64[]: type was 'string' and is 'integer'"]


def test_a_new_optional_field_is_compatible() -> None:
    released = data_schema(STARTED)
    current = copy.deepcopy(released)
    current["properties"]["node"] = {"type": "string"}
    assert incompatibilities(released, current) == []


def test_events_fit_their_schemas() -> None:
    for event in (life.requested(), life.waiting(), life.queued(), life.started(), life.cancellation(), life.lost()):
        jsonschema.validate(json.loads(value_of(event)), data_schema(event.type))


def test_every_event_travels_on_a_topic_that_asyncapi_describes() -> None:
    described = asyncapi()
    assert set(described["channels"]) == {topic.name for topic in TOPICS}
    travelling = {model.model_fields["type"].default for models in TRAVELS_ON.values() for model in models}  # type: ignore[attr-defined]
    assert travelling == set(MODEL_OF) == set(described["components"]["messages"])

"""The contract as documents, by `python -m schemas.export`: JSON Schema for each event's data, AsyncAPI for the topics.

Written from the models and topics, committed to `schemas/exported/`, checked for drift with `--check`. Subscribers read
these; `schemas.compatibility` compares them with what was last released.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from schemas.cloudevents import CONTENT_TYPE, DATASCHEMA_PREFIX, MODEL_OF
from schemas.topics import TOPICS, TRAVELS_ON, Topic

EXPORTED = Path(__file__).parent / "exported"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def documents() -> dict[str, dict[str, Any]]:
    """Make every document, by file name."""
    schemas = {f"{name}.json": data_schema(name) for name in sorted(MODEL_OF)}
    return schemas | {"asyncapi.json": asyncapi()}


def data_schema(name: str) -> dict[str, Any]:
    """Describe the data of one type of event: what stands in a record's value."""
    schema = MODEL_OF[name].model_json_schema(mode="serialization")
    schema["properties"].pop("type")
    schema["required"] = [field for field in schema.get("required", ()) if field != "type"]
    return {"$schema": DIALECT, "$id": f"{DATASCHEMA_PREFIX}{name}.json", **_tolerant(schema)}


def _tolerant(schema: Any) -> Any:
    """Let subscribers accept fields that a newer producer adds, as our own consumers do."""
    if isinstance(schema, dict):
        return {key: _tolerant(value) for key, value in schema.items() if key != "additionalProperties"}
    if isinstance(schema, list):
        return [_tolerant(item) for item in schema]
    return schema


def asyncapi() -> dict[str, Any]:
    """Describe the topics and what travels on them (AsyncAPI 3.0)."""
    channels, operations = {}, {}
    for topic in TOPICS:
        names = [model.model_fields["type"].default for model in TRAVELS_ON[topic]]  # type: ignore[attr-defined]
        channels[topic.name] = {
            "address": topic.name,
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
            "bindings": {"kafka": {"partitions": topic.partitions, "topicConfiguration": _configuration(topic)}},
        }
        operations[f"subscribe {topic.name}"] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{topic.name}"},
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Runyard events",
            "version": "1.0.0",
            "description": "CloudEvents 1.0 in Kafka's binary mode: attributes in ce_* headers, JSON data as value.",
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": channels,
        "operations": operations,
        "components": {"messages": {name: _message(name) for name in sorted(MODEL_OF)}},
    }


def _configuration(topic: Topic) -> dict[str, Any]:
    if topic.compacted:
        return {"cleanup.policy": ["compact"]}
    kept = -1 if topic.retention is None else int(topic.retention.total_seconds() * 1000)
    return {"cleanup.policy": ["delete"], "retention.ms": kept}


def _message(name: str) -> dict[str, Any]:
    attributes = ("ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "ce_time", "content-type")
    return {
        "name": name,
        "summary": (MODEL_OF[name].__doc__ or "").strip().splitlines()[0],
        "headers": {
            "type": "object",
            "required": list(attributes),
            "properties": {
                **{attribute: {"type": "string"} for attribute in (*attributes, "ce_dataschema", "traceparent")},
                "ce_type": {"const": name},
            },
        },
        "payload": {"$ref": f"./{name}.json"},
    }


def written(document: dict[str, Any]) -> str:
    """Write a document as it is committed: sorted keys, two spaces, a newline."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the contract's documents, or check that the committed ones are current."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a document would change")
    checking = parser.parse_args().check
    EXPORTED.mkdir(exist_ok=True)
    drifted = []
    for name, document in documents().items():
        path = EXPORTED / name
        if not path.exists() or path.read_text() != written(document):
            drifted.append(name)
            if not checking:
                path.write_text(written(document))
    if checking and drifted:
        sys.exit(f"drifted: {', '.join(drifted)}. Run python -m schemas.export and commit schemas/exported")


if __name__ == "__main__":
    main()

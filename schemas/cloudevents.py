"""CloudEvents 1.0 in Kafka's binary content mode: attributes in `ce_*` headers, the JSON data alone as the value.

Source: the CloudEvents specification 1.0.2 and its Kafka protocol binding. Anyone with a Kafka client and a JSON parser
can read what `encode` writes; `decode` is strict about the attributes and tolerant about unknown fields and types.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, get_args
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from schemas.events import AnyEvent, Event
from schemas.parts import UtcTime, rfc3339

CONTENT_TYPE = "application/json"
DATASCHEMA_PREFIX = "https://runyard.dev/schemas/"

_TIME: TypeAdapter[datetime] = TypeAdapter(UtcTime)

Headers = Sequence[tuple[str, bytes | None]]


class MalformedEvent(ValueError):
    """A record that is no event of ours: an attribute is missing or wrong, or the data does not fit its type."""


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """An event with its attributes, as it travels."""

    id: UUID
    source: str
    subject: str
    time: datetime
    data: AnyEvent
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class UnknownEvent:
    """An event of a type, or of a newer version, that this code does not know."""

    id: UUID
    source: str
    type: str
    subject: str
    time: datetime
    value: bytes
    traceparent: str | None = None


def _models() -> dict[str, type[Event]]:
    union = get_args(AnyEvent)[0]
    return {model.model_fields["type"].default: model for model in get_args(union)}


MODEL_OF: dict[str, type[Event]] = _models()
"""The model of each type name."""


def encode(event: CloudEvent) -> tuple[list[tuple[str, bytes]], bytes]:
    """Write an event as Kafka headers and value."""
    return headers_of(event, event.data.type), value_of(event.data)


def headers_of(event: "CloudEvent | UnknownEvent", kind: str) -> list[tuple[str, bytes]]:
    """Write the attributes of an event of a type as Kafka headers."""
    attributes = {
        "ce_specversion": "1.0",
        "ce_id": str(event.id),
        "ce_source": event.source,
        "ce_type": kind,
        "ce_subject": event.subject,
        "ce_time": rfc3339(event.time),
        "ce_dataschema": f"{DATASCHEMA_PREFIX}{kind}.json",
        "content-type": CONTENT_TYPE,
    }
    if event.traceparent:
        attributes["traceparent"] = event.traceparent
    return [(name, text.encode()) for name, text in attributes.items()]


def value_of(data: Event) -> bytes:
    """Write an event's data as it stands in a record's value: compact JSON without `type`."""
    return data.model_dump_json(exclude={"type"}).encode()


def decode(headers: Headers, value: bytes | None) -> CloudEvent | UnknownEvent:
    """Read an event from a record.

    Raises:
        MalformedEvent: with a reason that names the attribute or field that is wrong.
    """
    attributes = _attributes(headers)
    if attributes.get("ce_specversion") != "1.0":
        raise MalformedEvent("ce_specversion is not 1.0")
    identity = _uuid(_required(attributes, "ce_id"))
    source, kind, subject = (_required(attributes, name) for name in ("ce_source", "ce_type", "ce_subject"))
    time = _time(_required(attributes, "ce_time"))
    if value is None:
        raise MalformedEvent("the record has no value")
    if kind not in MODEL_OF:
        return UnknownEvent(identity, source, kind, subject, time, value, attributes.get("traceparent"))
    return CloudEvent(identity, source, subject, time, data_of(kind, value), attributes.get("traceparent"))


def data_of(kind: str, value: bytes | str) -> AnyEvent:
    """Read the data of an event of a known type, ignoring fields that a newer producer added.

    Raises:
        MalformedEvent: if the JSON is broken, says a thing twice, or does not fit.
    """
    try:
        data = MODEL_OF[kind].model_validate_json(value, extra="ignore")
        _read_strictly(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "data"
        raise MalformedEvent(f"{kind}: {place}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise MalformedEvent(f"{kind}: data: Invalid JSON: {error}") from error
    return data  # type: ignore[return-value]


def _read_strictly(value: bytes | str) -> None:
    """Refuse what pydantic lets through: names that stand twice and numbers that are none, at any depth.

    Of two values of one name each parser takes another (RFC 8259, 4; RFC 7493, 2.3 forbids it), and readers of an event
    must not disagree; NaN and Infinity are no JSON at all.
    """
    json.loads(value, object_pairs_hook=_named_once, parse_constant=_no_number)


def _named_once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:100]!r} stands twice")


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _attributes(headers: Headers) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for name, raw in headers:
        if not name.startswith(("ce_", "content-type", "traceparent")):
            continue
        if raw is None:
            raise MalformedEvent(f"header {name} is null")
        if name in attributes:
            raise MalformedEvent(f"header {name} stands twice")
        try:
            attributes[name] = raw.decode()
        except UnicodeDecodeError as error:
            raise MalformedEvent(f"header {name} is not UTF-8") from error
    return attributes


def _required(attributes: dict[str, str], name: str) -> str:
    if not attributes.get(name):
        raise MalformedEvent(f"header {name} is missing")
    return attributes[name]


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise MalformedEvent("ce_id is not a UUID") from error


def _time(text: str) -> datetime:
    try:
        return _TIME.validate_python(text)
    except ValidationError as error:
        raise MalformedEvent("ce_time is not an RFC 3339 time with an offset") from error

"""Whether a schema may follow another one without a new version of the type. Pure.

Data that a newer producer writes must be readable by whoever knows the older schema: so nothing that was there may go,
become optional, change its type or get new values. Events are kept for ever, so a newer reader must take the older
data, too: nothing new may be required, no value may go, no bound may move. An optional field may be added.
"""

from typing import Any

Schema = dict[str, Any]

KINDS = ("type", "format", "const", "pattern")
LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
LENGTHS = ("minLength", "maxLength", "minItems", "maxItems")


def incompatibilities(released: Schema, current: Schema) -> list[str]:
    """Name what in the current schema of an event's data would break a reader of the released one, by path."""
    return _compare(released, current, released, current, "data")


def _compare(old: Schema, new: Schema, old_root: Schema, new_root: Schema, path: str) -> list[str]:
    old, new = _resolved(old, old_root), _resolved(new, new_root)
    found = [*_changed_kind(old, new, path), *_changed_fields(old, new, path)]
    for name in old.get("properties", {}).keys() & new.get("properties", {}).keys():
        place = f"{path}.{name}"
        found += _compare(old["properties"][name], new["properties"][name], old_root, new_root, place)
    if "items" in old and "items" in new:
        found += _compare(old["items"], new["items"], old_root, new_root, f"{path}[]")
    for word in ("anyOf", "prefixItems"):
        options = old.get(word, []), new.get(word, [])
        if len(options[0]) != len(options[1]):
            found.append(f"{path}: {word} has {len(options[1])} parts, and had {len(options[0])}")
        for before, after in zip(*options, strict=False):
            found += _compare(before, after, old_root, new_root, path)
    return found


def _resolved(schema: Schema, root: Schema) -> Schema:
    reference = schema.get("$ref", "")
    return root["$defs"][reference.removeprefix("#/$defs/")] if reference else schema


def _changed_kind(old: Schema, new: Schema, path: str) -> list[str]:
    found = [
        f"{path}: {word} was {old.get(word)!r} and is {new.get(word)!r}"
        for word in (*KINDS, *LIMITS, *LENGTHS)
        if old.get(word) != new.get(word)
    ]
    found += _changed_values(old, new, path)
    return found


def _changed_values(old: Schema, new: Schema, path: str) -> list[str]:
    if ("enum" in old) != ("enum" in new):
        return [f"{path}: its values are listed in one of both only"]
    before, after = (set(map(repr, schema.get("enum", ()))) for schema in (old, new))
    unknown = [f"{path}: a value that older readers do not know: {value}" for value in sorted(after - before)]
    gone = [f"{path}: a value that older data may hold is gone: {value}" for value in sorted(before - after)]
    return unknown + gone


def _changed_fields(old: Schema, new: Schema, path: str) -> list[str]:
    before, after = old.get("properties", {}), new.get("properties", {})
    gone = [f"{path}.{name}: is gone" for name in sorted(before.keys() - after.keys())]
    kept = set(old.get("required", ())) & after.keys()
    optional = [
        f"{path}.{name}: was always there, and is optional" for name in sorted(kept - set(new.get("required", ())))
    ]
    required = sorted(set(new.get("required", ())) - set(old.get("required", ())))
    demanded = [f"{path}.{name}: is required now; older data lacks it" for name in required]
    return [*gone, *optional, *demanded]

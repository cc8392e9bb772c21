"""Whether a schema may follow another one without a new version of the type. Pure.

Data that a newer producer writes must be readable by whoever knows the older schema: so nothing that was there may go,
become optional, change its type or get new values. Adding an optional field is compatible.
"""

from typing import Any

Schema = dict[str, Any]


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
    options = old.get("anyOf", []), new.get("anyOf", [])
    if options[0] and len(options[0]) == len(options[1]):
        for before, after in zip(*options, strict=True):
            found += _compare(before, after, old_root, new_root, path)
    return found


def _resolved(schema: Schema, root: Schema) -> Schema:
    reference = schema.get("$ref", "")
    return root["$defs"][reference.removeprefix("#/$defs/")] if reference else schema


def _changed_kind(old: Schema, new: Schema, path: str) -> list[str]:
    found = [
        f"{path}: {word} was {old.get(word)!r} and is {new.get(word)!r}"
        for word in ("type", "format", "const", "pattern")
        if old.get(word) != new.get(word)
    ]
    added = set(map(repr, new.get("enum", ()))) - set(map(repr, old.get("enum", ())))
    if "enum" in old and ("enum" not in new or added):
        found.append(f"{path}: values that a reader does not know: {', '.join(sorted(added)) or 'any'}")
    if len(old.get("anyOf", ())) != len(new.get("anyOf", ())):
        found.append(f"{path}: another choice of types")
    return found


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

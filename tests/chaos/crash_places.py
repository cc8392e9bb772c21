"""Where the code can be killed by name: every `crash_point("…")` of `services/`, found by reading the code itself.

Owns which services pass a point of the backbone. A point that is not a literal, is named twice, or stands in a module
whose services nobody has named is an error, so that no point can be forgotten.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SERVICES = Path(__file__).parents[2] / "services"
ALL = ("api", "scheduler", "runner", "auditor")
USERS: dict[str, tuple[str, ...]] = {
    "broker": ("api", "scheduler", "auditor"),
    "consumer": ALL,
    "dead_letters": ALL,
    "relay": ("api", "scheduler"),
    "objects": ("api",),
    "publisher": ALL,
}
"""Which services pass the points of a module of the backbone."""


class Unusable(Exception):
    """A crash point that no test could arm."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A point as one service passes it."""

    service: str
    point: str

    def __str__(self) -> str:
        return f"{self.service}/{self.point}"


def all_places(root: Path = SERVICES) -> list[Place]:
    """List every point of every service that passes it.

    Raises:
        Unusable: which point, and why.
    """
    named = [(path, point) for path in sorted(root.rglob("*.py")) for point in points_in(path)]
    twice = [point for point, count in Counter(point for _, point in named).items() if count > 1]
    if twice:
        raise Unusable(f"these names stand at several places: {', '.join(sorted(twice))}")
    return sorted(Place(service, point) for path, point in named for service in _services_of(path))


def points_in(path: Path) -> Iterator[str]:
    """Find the names of a module's points, in the order of its text.

    Raises:
        Unusable: a name is not a literal.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and _name(node.func) == "crash_point":
            match node.args:
                case [ast.Constant(value=str() as point)] if not node.keywords:
                    yield point
                case _:
                    raise Unusable(f"{path}:{node.lineno}: a crash point's name is one literal")


def _services_of(path: Path) -> tuple[str, ...]:
    if path.parent.name in ALL:
        return (path.parent.name,)
    if path.parent.name != "backbone" or path.stem not in USERS:
        raise Unusable(f"{path}: say in `USERS` which services pass its crash points")
    return USERS[path.stem]


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""

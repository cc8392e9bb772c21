"""Protects the house style: what neither ruff nor import-linter can see."""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.cloudevents import MODEL_OF
from schemas.run import TRANSITIONS

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path
    for folder in ("schemas", "services", "deploy", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MOST_LINES, MOST_TEST_LINES, MOST_BODY_LINES = 400, 500, 40
VAGUE = {"utils", "common", "helpers", "misc", "base", "manager", "util", "helper"}
SQL = re.compile(r"^\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|TRUNCATE)\s", re.MULTILINE)
SPEAKS_SQL = re.compile(
    r"(store|history|replay|verify|migrations|migrate|outbox|relay|broker|journal|embedded_postgres)[a-z_]*\.py"
)
SEVERAL_PRODUCERS = {
    "RunFailed": "the scheduler fails a run whose attempts are exhausted",
    "RunQueued": "the runner queues for itself, and tells nobody, what `runyard run-local` asks for",
    "RunCancelled": "the scheduler cancels a run that no attempt exists of",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


def test_no_file_is_more_than_one_room() -> None:
    limits = [(path, MOST_LINES) for path in CODE] + [(path, MOST_TEST_LINES) for path in TESTS]
    too_long = {name_of(path): n for path, limit in limits if (n := len(path.read_text().splitlines())) > limit}
    assert too_long == {}


def test_no_function_body_is_longer_than_a_page() -> None:
    too_long = {
        f"{name_of(path)}::{function.name}": n
        for path in CODE
        for function in functions(path)
        if (n := body_lines(function)) > MOST_BODY_LINES
    }
    assert too_long == {}


def test_every_module_says_what_it_owns_and_packages_hold_nothing_else() -> None:
    for path in CODE + TESTS:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
        if path.name == "__init__.py":
            assert len(tree.body) == 1, f"{name_of(path)} holds more than a docstring"


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name_of(path) for path in CODE if path.stem in VAGUE or VAGUE & set(path.stem.split("_"))] == []


def test_every_folder_of_tests_is_run() -> None:
    run = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"])
    folders = {name_of(path.parent) for path in TESTS if path.name.startswith("test_")} - {"tests"}
    assert folders | {"tests/test_house_style.py"} == run


def test_only_stores_speak_sql() -> None:
    speakers = set()
    for path in (ROOT / "services").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.match(node.value):
                speakers.add(path)
    assert [name_of(path) for path in speakers if not SPEAKS_SQL.fullmatch(path.name)] == []


def test_only_the_sandbox_knows_docker() -> None:
    importers = [
        path
        for path in CODE
        if path.is_relative_to(ROOT / "services")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "docker" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "docker")
    ]
    assert [name_of(path) for path in importers if not path.name.startswith("sandbox")] == []


def test_every_event_is_made_in_one_module_of_the_service_that_tells_it() -> None:
    names = {model.__name__ for model in MODEL_OF.values()}
    made_in: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "services").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (name := _constructed(node.func)) in names:
                made_in[name].add(name_of(path))
    assert set(made_in) == names, f"nobody tells {names - set(made_in)}"
    assert {event: paths for event, paths in made_in.items() if len(paths) > 1 and event not in SEVERAL_PRODUCERS} == {}
    for paths in made_in.values():
        assert len({Path(path).parts[1] for path in paths}) == len(paths), f"one module per service: {paths}"


def _constructed(function: ast.expr) -> str:
    """Name the class that a call makes: `RunQueued(…)` or `RunQueued.model_validate(…)`."""
    if isinstance(function, ast.Attribute) and function.attr == "model_validate":
        function = function.value
    return function.id if isinstance(function, ast.Name) else ""


LIFECYCLE = (ROOT / "docs" / "run-lifecycle.md").read_text()


@pytest.mark.parametrize(
    "mention", sorted(set(re.findall(r"`((?:schemas|services)/[\w/]+\.py(?:::\w+)?)`", LIFECYCLE)))
)
def test_the_lifecycle_page_names_real_files_and_functions(mention: str) -> None:
    path, _, function = mention.partition("::")
    assert (ROOT / path).exists()
    if function:
        assert function in {found.name for found in functions(ROOT / path)}


def test_the_lifecycle_page_shows_the_table_as_it_is() -> None:
    rows = {
        tuple(cell.strip() for cell in line.split("|")[1:4]) for line in LIFECYCLE.splitlines() if line.startswith("|")
    }
    order = ("queued", "starting", "running", "succeeded", "failed", "cancelled")
    for row in TRANSITIONS:
        sources = ", ".join(sorted(row.from_statuses, key=order.index))
        target = row.to_status or ("(same)" if len(row.from_statuses) > 1 else sources)
        assert (sources, str(target), row.event.__name__) in rows


def test_decisions_are_numbered_without_gaps_and_say_when_to_think_again() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for path in records:
        text = path.read_text()
        assert all(word in text for word in ("**Decision.**", "**Context.**", "**Rejected.**", "**Revisit")), path.name

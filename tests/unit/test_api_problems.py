"""Protects the shape of errors, the fingerprints of repeated requests, and how a followed stream ends."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import BaseModel

from schemas.reason import Reason, RunStatus
from schemas.run import Run
from services.api import problems
from services.api.following import Chapter, Entry, follow
from services.api.history import Position
from services.api.idempotency import Ticket, fingerprint, same_request, valid_key
from services.api.problems import Problem, invalid_request, render, unavailable
from tests.life_of_a_run import SPEC, at

DOCUMENT = json.loads((Path(__file__).parents[2] / "schemas" / "exported" / "openapi.json").read_text())


def test_every_kind_has_a_slug_of_its_own() -> None:
    slugs = [kind.slug for kind in problems.KINDS]
    assert len(slugs) == len(set(slugs)) > 15
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", slug) for slug in slugs)


@pytest.mark.parametrize("kind", problems.KINDS, ids=lambda kind: kind.slug)
def test_every_kind_is_written_with_the_members_of_rfc_9457(kind: problems.Kind) -> None:
    response = render(Problem(kind, "What happened.", extra={"run_id": "run-1"}), "/api/v1/models")
    assert response.media_type == "application/problem+json"
    assert response.status_code == kind.status
    assert json.loads(bytes(response.body)) == {
        "type": f"https://runyard.dev/problems/{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": "What happened.",
        "instance": "/api/v1/models",
        "run_id": "run-1",
    }


@pytest.mark.parametrize("kind", problems.KINDS, ids=lambda kind: kind.slug)
def test_every_kind_stands_in_the_document_but_those_of_no_route(kind: problems.Kind) -> None:
    shown = f"{problems.TYPE_PREFIX}{kind.slug}" in json.dumps(DOCUMENT)
    assert shown or kind is problems.METHOD_NOT_ALLOWED


def test_what_is_unavailable_says_when_to_come_back() -> None:
    response = render(unavailable("Later."), "/")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")


def test_every_wrong_field_has_its_pointer_or_parameter() -> None:
    found = [
        {"type": "missing", "loc": ("body", "compute", "cpu/cores~"), "msg": "Field required"},
        {"type": "value_error", "loc": ("query", "limit"), "msg": "Value error, too many"},
    ]
    problem = invalid_request(found)
    assert problem.kind is problems.VALIDATION_FAILED
    assert problem.errors == [
        {"pointer": "/compute/cpu~1cores~0", "message": "Field required"},
        {"parameter": "limit", "in": "query", "message": "too many"},
    ]


def test_half_a_character_of_a_client_does_not_break_the_answer_about_it() -> None:
    response = render(Problem(problems.NOT_FOUND, "There is no \ud800."), "/")
    assert json.loads(bytes(response.body))["detail"] == "There is no \ud800."


fields = some.dictionaries(some.text(max_size=5), some.text(max_size=5) | some.integers() | some.booleans())


@given(fields, fields)
def test_fingerprints_are_equal_for_equal_fields_in_any_order_alone(
    one: dict[str, object], other: dict[str, object]
) -> None:
    swapped = dict(reversed(one.items()))
    assert fingerprint(b"secret", one) == fingerprint(b"secret", swapped)
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(b"secret", one) == fingerprint(b"secret", other)) == same


def test_a_fingerprint_needs_the_secret_and_shows_nothing() -> None:
    canary = {"environment_vars": {"TOKEN": "canary"}}
    assert fingerprint(b"one", canary) != fingerprint(b"two", canary)
    assert b"canary" not in fingerprint(b"one", canary)


def test_a_request_is_recognised_by_the_secret_before_a_rotation() -> None:
    wanted = {"name": "wine"}
    ticket = Ticket("acme", "/", "key", (fingerprint(b"new", wanted), fingerprint(b"old", wanted)))
    assert same_request(ticket, fingerprint(b"new", wanted))
    assert same_request(ticket, fingerprint(b"old", wanted))
    assert not same_request(ticket, fingerprint(b"older", wanted))
    assert not same_request(ticket, fingerprint(b"new", {"name": "beer"}))


@pytest.mark.parametrize("key", ["k", "k" * 255, "!~", "6f1f4c52-5f0a-5c0e-9d4f-0c1d8a7b2e11"])
def test_keys_of_up_to_255_visible_characters_are_keys(key: str) -> None:
    assert valid_key(key)


@pytest.mark.parametrize("key", ["", "k" * 256, "two words", "tab\t", "é", "\x7f", "\0"])
def test_other_texts_are_no_keys(key: str) -> None:
    assert not valid_key(key)


class Line(BaseModel):
    text: str


def run(status: RunStatus, reason: Reason | None = None, version: int | None = None) -> Run:
    told = Run(run_id="run-1", tenant_id="acme", actor="ada", model_id="mdl-1", spec=SPEC, requested_at=at(0))
    return told.model_copy(update={"status": status, "reason": reason, "version": version})


def entries(*sequences: int) -> Sequence[Entry]:
    return [Entry(f"cursor-{number}", (1, number), Line(text=f"line {number}")) for number in sequences]


async def streamed(*chapters: Chapter) -> tuple[list[tuple[str | None, str | None, object]], list[Position]]:
    asked: list[Position] = []

    async def look(after: Position) -> Chapter:
        asked.append(after)
        return chapters[len(asked) - 1]

    events: list[Any] = [event async for event in follow("log", look, (0, 0), 0.001).body_iterator]
    return [(event.event, event.id, json.loads(event.data)) for event in events], asked


async def test_a_followed_stream_goes_on_behind_what_it_sent_and_ends_with_the_runs_end() -> None:
    sent, asked = await streamed(
        Chapter(run(RunStatus.RUNNING), entries(1, 2), complete=False),
        Chapter(run(RunStatus.RUNNING), (), complete=False),
        Chapter(run(RunStatus.SUCCEEDED, version=3), entries(5), complete=True),
    )
    assert asked == [(0, 0), (1, 2), (1, 2)]
    assert sent == [
        ("log", "cursor-1", {"text": "line 1"}),
        ("log", "cursor-2", {"text": "line 2"}),
        ("log", "cursor-5", {"text": "line 5"}),
        ("end", None, {"run_id": "run-1", "status": "succeeded", "reason": None, "version": 3}),
    ]


async def test_a_stream_of_an_ended_run_waits_until_all_its_output_is_stored() -> None:
    ended = run(RunStatus.CANCELLED, Reason.TIMEOUT)
    sent, asked = await streamed(Chapter(ended, (), complete=False), Chapter(ended, entries(1), complete=True))
    assert len(asked) == 2
    assert [name for name, _, _ in sent] == ["log", "end"]
    assert sent[-1][2] == {"run_id": "run-1", "status": "cancelled", "reason": "timeout", "version": None}

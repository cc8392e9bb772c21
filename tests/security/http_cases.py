"""Schemathesis on our own OpenAPI document: what it is told of the api, which checks it makes, and what it has found.

It generates requests that the document allows and that it forbids, sends them, and compares every answer with the
document. Ids of objects that are really there are put in by dictionaries.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis.core.failures import Failure
from schemathesis.engine import Status, events, from_schema

from tests.security.http_scene import DOCUMENT, OPERATIONS

TRAIN = "POST /api/v1/models/{model_id}/custom/train"
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "positive_data_acceptance", "unsupported_method"),
    *("allow_header_conformance", "missing_required_header", "ignored_auth"),
)
REQUEST_TIMEOUT_S = 10
SYSTEMATIC = 1_000
"""About how many cases of one pass follow from the document one by one."""
STREAM_EVENTS = 20
"""How much of a followed stream is read: one of a run in progress has no end."""
KNOWN = 0.6
"""How often a known value is put where one is known."""

BEYOND_THE_DOCUMENT = {
    "cursor": "a cursor is ours alone, and a text that we did not make is none",
    "after": "the same",
    "Last-Event-ID": "the same",
    "filename": "names that are paths or options are refused",
    "/file": "the same",
    "/dataset_id": "the dataset must be there",
    "/environment_vars": "names and values together are bounded",
    "/metric_definitions": "no name twice",
    "/metric_definitions/*/name": "what is printable is Unicode's to say",
    "/metric_definitions/*/regex": "it is one in RE2's syntax, with one group",
    "since": "the second 60 and years that UTC does not have are no times to us",
    "until": "the same",
}
"""Fields whose value may be wrong although the document's schema allows it, and why; `*` is any place in a list."""
NO_INTEGER = "Input should be a valid integer"
"""2.0 is an integer to JSON Schema, and none to us."""
NO_HTTP = b"Invalid HTTP request received."
"""What the server itself says of a made-up Transfer-Encoding: such a request reaches no endpoint."""
A_FILE_OF_ANOTHER_TYPE = "violates `type` at /properties/file"
"""The bytes of a file are a file, whether they spell a number or a text."""
BUSINESS = {
    *("no-script-asset", "entry-point-not-found", "no-dataset", "dataset-empty", "model-not-custom", "too-many-assets"),
    "idempotency-key-reused",
}
"""Refusals of well-formed requests by the state of things."""


@dataclass(frozen=True)
class Plan:
    """A pass over the api: where it is, whose token is used, how many cases, and the values that are known.

    A `systematic` pass also goes through every limit, missing field and method that the document has.
    """

    name: str
    address: str
    token: str
    cases: int
    seed: int
    known: dict[str, list[Any]]
    systematic: bool = True

    @property
    def drawn(self) -> int:
        """How many cases are drawn for each endpoint, besides those that follow from the document one by one."""
        return max(5, (self.cases - SYSTEMATIC * self.systematic) // len(OPERATIONS))


@dataclass
class Findings:
    """What came of it: answers by endpoint and status, how many cases they are of, and failures in words.

    There are more answers than cases: what succeeded is asked again without a token and with a wrong one.
    """

    answers: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    cases: int = 0
    unbelieved: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many requests were answered."""
        return sum(counter.total() for counter in self.answers.values())

    @property
    def at_the_door(self) -> bool:
        """Whether so many cases were turned away for their token that they tried nothing."""
        return self.unbelieved * 20 > self.cases

    def never_well(self) -> list[str]:
        """Endpoints that never answered with success: their objects were not met, so little was tried."""
        return [
            str(operation)
            for operation in OPERATIONS
            if not any(200 <= status < 300 for status in self.answers[str(operation)])
        ]


PARAMETERS = {
    "path.dataset_id": "dataset_id",
    "path.model_id": "model_id",
    "path.run_id": "run_id",
    "path.asset_id": "asset_id",
    "path.version": "version",
    "query.cursor": "cursor",
    "query.after": "after",
    "query.filename": "filename",
    "query.action": "action",
    "header.Last-Event-ID": "after",
    "header.Idempotency-Key": "key",
    "body.dataset_id": "dataset_id",
    "body.entry_point": "entry_point",
}


def configured(plan: Plan) -> schemathesis.Config:
    """Tell Schemathesis about a pass."""
    bound = {
        where: {"dictionary": name, "probability": KNOWN} for where, name in PARAMETERS.items() if plan.known.get(name)
    }
    trainable = (
        {"path.model_id": {"dictionary": "trainable", "probability": KNOWN}} if plan.known.get("trainable") else {}
    )
    return schemathesis.Config.from_dict(
        {
            "seed": plan.seed,
            "base-url": plan.address,
            "request-timeout": REQUEST_TIMEOUT_S,
            "max-stream-events": STREAM_EVENTS,
            "continue-on-failure": True,
            "suppress-health-check": ["all"],
            "auth": {"openapi": {"bearer": {"bearer": plan.token}}},
            "checks": {"enabled": False, **{name: {"enabled": True} for name in CHECKS}},
            "phases": {
                "stateful": {"enabled": False},
                "coverage": {"enabled": plan.systematic},
                "examples": {"enabled": plan.systematic},
            },
            "generation": {
                "max-examples": plan.drawn,
                "database": "none",
                "no-shrink": True,
                "with-security-parameters": False,
            },
            "dictionaries": {name: {"values": values} for name, values in plan.known.items() if values},
            "parameters": bound,
            "operations": [{"include-name": TRAIN, "parameters": trainable}],
        }
    )


def carry_out(plan: Plan, findings: Findings) -> None:
    """Make the requests of a pass and add to the findings."""
    schema = schemathesis.openapi.from_dict(json.loads(json.dumps(DOCUMENT)), config=configured(plan))
    schema.hook(filter_failure)
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _note(plan, event, findings)
        elif isinstance(event, events.NonFatalError):
            findings.failures.append(f"[{plan.name}] {event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            raise event.exception


def filter_failure(
    context: schemathesis.HookContext, failure: Failure, case: schemathesis.Case, response: schemathesis.Response
) -> bool:
    """Keep a failure unless the document could not have said better what happened."""
    if response.content == NO_HTTP:
        return False
    match type(failure).__name__:
        case "RejectedPositiveData" if response.status_code == 422:
            return not _foreseeable_only_by_us(response.json())
        case "AcceptedNegativeData":
            return A_FILE_OF_ANOTHER_TYPE not in failure.message
    return True


def _foreseeable_only_by_us(problem: dict[str, Any]) -> bool:
    """Whether a refusal of what the document allows is one that no document can announce."""
    if problem["type"].rpartition("/")[2] in BUSINESS:
        return True
    errors = [error for error in problem.get("errors", ()) if error["message"] != NO_INTEGER]
    fields = {re.sub(r"/\d+\b", "/*", error.get("parameter", error.get("pointer"))) for error in errors}
    return fields <= set(BEYOND_THE_DOCUMENT)


def _note(plan: Plan, event: events.ScenarioFinished, findings: Findings) -> None:
    recorder = event.recorder
    for case_id, interaction in recorder.interactions.items():
        if interaction.response is None:
            findings.failures.append(f"[{plan.name}] {recorder.label}: no answer to {interaction.request.uri}")
            continue
        status = interaction.response.status_code
        is_case = case_id in recorder.cases and recorder.cases[case_id].parent_id is None
        findings.answers[recorder.label][status] += 1
        findings.cases += is_case
        findings.unbelieved += is_case and status == 401
        findings.failures.extend(f"[{plan.name}] {text}" for text in _failed(recorder, case_id))


def _failed(recorder: Any, case_id: str) -> Iterator[str]:
    for check in recorder.checks.get(case_id, ()):
        if check.status == Status.FAILURE:
            failure, interaction = check.failure_info.failure, recorder.interactions[case_id]
            told = f"{failure.title}: {failure.message}\n    {check.failure_info.code_sample}"
            yield f"{recorder.label}: {told}\n    {(interaction.response.content or b'')[:500]!r}"

"""The promises, as they are checked when everything has come to rest. The expected is written from the documents.

I1 accepted runs are in the ledger; I2 each has one end; I4 one attempt decided it; I5 one start and a chain that
verifies; I6 one version, of the winning attempt; I7 numbers without gaps and legal transitions; I8 nothing unsent. I3
and the rest of I2 are the observer's (`watching`) and the caller's (`simulation`).
"""

from schemas.run import Run
from services.auditor.audit import STARTED, Head, entry_hash
from services.auditor.canonical import GENESIS
from services.auditor.history import StoredEvent, event_hash, fact_of
from tests.simulation.system import System
from tests.simulation.watching import Violation

LEGAL = {
    "RunWaiting": {"queued": "queued"},
    "RunQueued": {"queued": "starting"},
    "RunStarted": {"starting": "running"},
    "CancellationRequested": {"queued": "queued", "starting": "starting", "running": "running"},
    "AttemptLost": {"starting": "starting", "running": "running"},
    "RunRequeued": {"starting": "queued", "running": "queued"},
    "RunSucceeded": {"starting": "succeeded", "running": "succeeded"},
    "RunFailed": {"queued": "failed", "starting": "failed", "running": "failed"},
    "RunCancelled": {"queued": "cancelled", "starting": "cancelled", "running": "cancelled"},
    "ModelVersionCreated": {"succeeded": "succeeded"},
}
"""From docs/run-lifecycle.md, by hand: what an effective fact may do to a status."""

HASHED_RUNS = 1
"""Of so many runs the hashes of the events are computed anew; they are what takes the most time."""

AGREED = (
    "status",
    "reason",
    "message",
    "attempt",
    "runner_id",
    "started_at",
    "ended_at",
    "exit_code",
    "artifact",
    "output_sequence",
)


def check(system: System) -> None:
    """Check every promise.

    Raises:
        Violation: with the first that is broken.
    """
    for run_id in system.registry.runs:
        _check_run(system, run_id)
    for run_id, events in list(system.ledger.events.items())[:HASHED_RUNS]:
        _check_hashes(run_id, events)
    unknown = sorted(set(system.watch.accepted) - set(system.ledger.histories))
    _require(not unknown, f"accepted and not in the ledger: {unknown}")
    _check_chain(system)
    for name, outbox in (("api", system.registry.outbox), ("scheduler", system.scheduling.outbox)):
        _require(not outbox.unsent, f"unsent in the outbox of the {name}: {sorted(outbox.unsent)}")
    open_models = {model_id: run_id for model_id, run_id in system.registry.active.items() if run_id}
    _require(not open_models, f"claims without an open run: {open_models}")


def _check_run(system: System, run_id: str) -> None:
    history = system.ledger.histories.get(run_id)
    _require(history is not None and history.run is not None, f"{run_id} is not in the ledger")
    assert history is not None
    assert history.run is not None
    ledger, api = history.run, system.registry.runs[run_id]
    _require(ledger.status.is_end, f"{run_id} has not ended: {ledger.status}")
    row = system.scheduling.runs.get(run_id)
    _require(row is not None, f"the scheduler does not know {run_id}")
    assert row is not None
    for name, other in (("api", api), ("scheduler", row.folded.run)):
        told = {field: (getattr(ledger, field), getattr(other, field)) for field in AGREED}
        differing = {field: pair for field, pair in told.items() if pair[0] != pair[1]}
        _require(not differing, f"{run_id}: ledger and {name} differ: {differing}")
    held = [row for row in system.scheduling.assignments.values() if row.run_id == run_id and not row.over]
    _require(not held, f"{run_id} has ended and holds compute: {held}")
    _check_events(run_id, system.ledger.events[run_id])
    _check_version(system, run_id, ledger, api)


def _check_events(run_id: str, events: list[StoredEvent]) -> None:
    versions = [event.version for event in events]
    _require(versions == list(range(1, len(events) + 1)), f"{run_id}: versions are {versions}")
    status, attempt, ends = "", 0, 0
    for event in events:
        if event.stale is not None:
            continue
        fact = fact_of(event.arrival)
        kind = type(fact).__name__
        if kind == "TrainingRequested":
            _require(status == "", f"{run_id}: requested twice")
            status, attempt = "queued", 1
            continue
        _require(status in LEGAL[kind], f"{run_id}: {kind} took effect on {status or 'nothing'}")
        status = LEGAL[kind][status]
        told = getattr(fact, "attempt", attempt)
        attempt += kind == "RunRequeued"
        _require(told == attempt, f"{run_id}: {kind} of attempt {told} took effect on attempt {attempt}")
        ends += kind in ("RunSucceeded", "RunFailed", "RunCancelled")
    _require(ends == 1, f"{run_id} has {ends} ends")


def _check_hashes(run_id: str, events: list[StoredEvent]) -> None:
    previous = GENESIS
    for event in events:
        _require(event.hash == event_hash(previous, event), f"{run_id}: the hash of event {event.version} is wrong")
        previous = event.hash


def _check_version(system: System, run_id: str, ledger: Run, api: Run) -> None:
    version = system.registry.versions.get(run_id)
    made = [
        event for event in system.ledger.events[run_id] if event.stale is None and _kind(event) == "ModelVersionCreated"
    ]
    _require((version is None) == (ledger.artifact is None), f"{run_id}: version {version}, artifact {ledger.artifact}")
    _require(len(made) == (0 if version is None else 1), f"{run_id}: {len(made)} versions were told")
    if version is None or ledger.artifact is None:
        return
    _require(version.sha256 == ledger.artifact.sha256, f"{run_id}: its version is another attempt's artifact")
    _require(version.version == ledger.version == api.version, f"{run_id}: the version's number differs")
    lifetimes = [each for each in system.watch.lifetimes[run_id] if each.attempt == ledger.attempt]
    digests = [each.sha256 for each in lifetimes]
    _require(version.sha256 in digests, f"{run_id}: its version is no artifact of attempt {ledger.attempt}")


def _check_chain(system: System) -> None:
    head, started = Head(), dict[str, int]()
    for index in sorted(system.ledger.entries):
        link = system.ledger.entries[index]
        fits = link.index == head.index + 1 and link.previous_hash == head.hash
        _require(fits and link.hash == entry_hash(head, link.entry), f"the audit chain breaks at {index}")
        head = Head(link.index, link.hash)
        if link.entry.action == STARTED:
            started[link.entry.run_id] = started.get(link.entry.run_id, 0) + 1
    _require(head == system.ledger.head["head"], "the audit chain does not end at its head")
    _require(started == dict.fromkeys(system.registry.runs, 1), f"starts in the audit log: {started}")


def _kind(event: StoredEvent) -> str:
    return type(fact_of(event.arrival)).__name__


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)

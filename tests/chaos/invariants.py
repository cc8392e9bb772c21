"""The promises as invariants: one function each, over what a fault test has gathered, and `check`, which asks them all.

It believes the clients' own ledger, Docker's stamps, and what stands in topics and tables; it uses none of the code
that it checks (not `evolve`, not the transition table), so the rules stand here a second time. A function returns what
is wrong in words; nothing here reads a clock or a server.
"""

import base64
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from tests.chaos.evidence import Evidence, Lifetime, Outage, StoredEvent, Told

FACT = "runyard.run.{}.v1"
REQUESTED, QUEUED, STARTED, WAITING, LOST, REQUEUED, VERSIONED, CANCELLING = (
    FACT.format(kind)
    for kind in (
        *("training_requested", "queued", "started", "waiting", "attempt_lost", "requeued"),
        *("model_version_created", "cancellation_requested"),
    )
)
ENDS = {FACT.format(kind): kind for kind in ("succeeded", "failed", "cancelled")}
LEGAL: dict[str, tuple[set[str], str | None]] = {
    WAITING: ({"queued"}, None),
    QUEUED: ({"queued"}, "starting"),
    STARTED: ({"starting"}, "running"),
    CANCELLING: ({"queued", "starting", "running"}, None),
    LOST: ({"starting", "running"}, None),
    REQUEUED: ({"starting", "running"}, "queued"),
    FACT.format("succeeded"): ({"starting", "running"}, "succeeded"),
    FACT.format("failed"): ({"queued", "starting", "running"}, "failed"),
    FACT.format("cancelled"): ({"queued", "starting", "running"}, "cancelled"),
    VERSIONED: ({"succeeded"}, None),
}
STARTED_ACTION = "model.custom_training_started"
EXPECTED = {
    "model": ("succeeded", None),
    "talks": ("succeeded", None),
    "no_artifact": ("succeeded", "no_artifact"),
    "secret": ("succeeded", None),
    "fails": ("failed", "script_error"),
    "times_out": ("cancelled", "timeout"),
    "long": ("succeeded", None),
}
"""How each script of `submitting` ends when nobody stops it."""
ENGINE_REASONS = {"container_lost", "engine_unavailable"}
SIGNALLED = {137, 143}
SLACK_S = 3.0
"""How far two stamps of one moment may lie apart on a busy machine."""
CHUNK_BYTES = 1 << 20
GAP_BEATS = 4
"""A broker that is away for fewer heartbeats is no gap (3 of them are jitter): silence goes on counting meanwhile."""
DEAD = {"killed", "halted"}
"""A runner that is dead kills nothing; when it is back it may, before it says that it is ready, obey a revocation."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, and how."""

    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


async def check(evidence: Evidence) -> list[Violation]:
    """Ask every invariant; an empty list means that all of them hold."""
    return [Violation(name, what) for name, ask in INVARIANTS.items() for what in ask(evidence)]


def accepted_runs_exist(evidence: Evidence) -> Iterator[str]:
    """I1: every run that was answered 202 exists in the ledger; one key is one run, however often it was repeated.

    One that nobody was told of belongs to a training request that never got an answer, with a key of its own.
    """
    known = {event.run_id for event in evidence.stored if event.type == REQUESTED}
    runs_of: dict[str, set[str]] = defaultdict(set)
    for told in evidence.accepted:
        runs_of[told.key].add(str(told.run_id))
        if told.run_id not in known:
            yield f"{told.run_id} was accepted and is not in the ledger"
    for key, runs in runs_of.items():
        if len(runs) > 1:
            yield f"the key {key} was answered with different runs: {', '.join(sorted(runs))}"
    unanswered = _unanswered_keys(evidence)
    for model_id, untold in _untold_runs(evidence).items():
        if len(untold) > len(keys := unanswered[model_id]):
            yield f"{model_id}: nobody was told of {_some(untold)}, {len(keys)} keys were left without an answer"


def accepted_runs_end_once_and_in_time(evidence: Evidence) -> Iterator[str]:
    """I2: each reaches one end within (its limit + the lease) per attempt plus 60 s after the faults stop."""
    for told in _once(evidence.accepted):
        events = _effective(evidence, str(told.run_id))
        ends = [event for event in events if event.type in ENDS]
        if len(ends) != 1:
            yield f"{told.run_id} has {len(ends)} ends"
            continue
        attempts = 1 + sum(event.type == REQUEUED for event in events)
        allowed = attempts * (told.timeout_s + evidence.terms.lease_s) + evidence.terms.settle_s
        if ends[0].stored > evidence.faults_stopped + allowed:
            late = ends[0].stored - evidence.faults_stopped
            yield f"{told.run_id} ended {late:.1f} s after the faults, {allowed:.0f} s were allowed"


def containers_overlap_only_while_cut_off(evidence: Evidence) -> Iterator[str]:
    """I3: containers of one run overlap only if the first one's runner was dead or cut off, and for 30 s after that."""
    by_run: dict[str, list[Lifetime]] = defaultdict(list)
    for lifetime in evidence.lifetimes:
        by_run[lifetime.run_id].append(lifetime)
    for run_id, lifetimes in by_run.items():
        for first, second in combinations(sorted(lifetimes, key=lambda each: each.started), 2):
            if first.ended is None or first.ended > second.started:
                yield from _overlap(evidence, run_id, first, second)


def one_attempt_decides(evidence: Evidence) -> Iterator[str]:
    """I4: one attempt decided the outcome; facts of a replaced one changed nothing, in no service's table."""
    for run_id in _runs(evidence):
        attempt, end, expected = 1, None, ("queued", None)
        for event in evidence.events_of(run_id):
            replaced = event.type != REQUEUED and event.data.get("attempt", attempt) != attempt
            if event.stale is None and (replaced or (end is not None and event.type != VERSIONED)):
                yield f"{run_id}: {event.type} (version {event.version}) had an effect after it was replaced or ended"
            if event.stale is None and event.type == REQUEUED:
                attempt = event.data["attempt"]
            if event.stale is None and event.type in ENDS:
                end, expected = event, (ENDS[event.type], event.data.get("reason"))
        if end is not None:
            yield from _tables_agree(evidence, run_id, attempt, expected)


def training_started_is_audited_once(evidence: Evidence) -> Iterator[str]:
    """I5: exactly one `model.custom_training_started` per run, and the chain verifies."""
    counts = Counter(run_id for run_id, action in evidence.audit if action == STARTED_ACTION)
    wanted = {str(told.run_id) for told in evidence.accepted} | set(_runs(evidence))
    for run_id in sorted(wanted | set(counts)):
        if counts[run_id] != 1:
            yield f"{run_id} has {counts[run_id]} entries {STARTED_ACTION}"
    if evidence.chain_difference is not None:
        yield f"the ledger does not hold together: {evidence.chain_difference}"


def versions_are_the_winners(evidence: Evidence) -> Iterator[str]:
    """I6: at most one version per run, exactly one if it made an artifact, with the winning attempt's digest."""
    rows = defaultdict(list)
    for row in evidence.versions:
        rows[row.run_id].append(row)
    for run_id in sorted(set(_runs(evidence)) | set(rows)):
        made = _artifact(evidence, run_id)
        told = [event for event in _effective(evidence, run_id) if event.type == VERSIONED]
        found = [row.sha256 for row in rows[run_id]]
        if len(told) > 1 or found != ([made] if made else []) or len(told) != len(found):
            yield f"{run_id}: the winning attempt made {made}, the registry has {found}, {len(told)} versions were told"
        if made and evidence.objects.get(made) != made:
            yield f"{run_id}: the object store has {evidence.objects.get(made)} under {made}"
    numbers: dict[str, list[int]] = defaultdict(list)
    for row in evidence.versions:
        numbers[row.model_id].append(row.version)
    for model_id, found_numbers in numbers.items():
        if sorted(found_numbers) != list(range(1, len(found_numbers) + 1)):
            yield f"{model_id} has the versions {sorted(found_numbers)}"


def histories_are_gapless_and_legal(evidence: Evidence) -> Iterator[str]:
    """I7: versions of a run's events are 1…n without a gap, and every transition is legal."""
    for run_id in _runs(evidence):
        events = evidence.events_of(run_id)
        if [event.version for event in events] != list(range(1, len(events) + 1)):
            yield f"{run_id} has the event versions {[event.version for event in events]}"
        status = None
        for event in events:
            if event.stale is not None:
                continue
            if event.type == REQUESTED:
                legal, after = status is None, "queued"
            else:
                froms, to = LEGAL.get(event.type, (set(), None))
                legal, after = status in froms, to or str(status)
            if not legal:
                yield f"{run_id}: {event.type} (version {event.version}) came while it was {status}"
            status = after


def nothing_is_unsent_or_unstored(evidence: Evidence) -> Iterator[str]:
    """I8: at rest nothing in an outbox is unsent, and per broker epoch topic and ledger hold the same events."""
    for outbox, rows in evidence.unsent.items():
        if rows:
            yield f"{rows} rows of {outbox} are unsent"
    on_topic = {record.event_id for record in evidence.records if record.topic == "runyard.runs"} - {""}
    stored = {event.event_id for event in evidence.stored}
    of_this_broker = {event.event_id for event in evidence.stored if event.epoch == evidence.broker_epoch}
    if missing := on_topic - stored:
        yield f"{len(missing)} events of the topic are not in the ledger: {_some(missing)}"
    if extra := of_this_broker - on_topic:
        yield f"{len(extra)} events of the ledger are not on the topic: {_some(extra)}"
    for run_id in evidence.missing_output:
        yield f"{run_id}: its output is not stored up to where its end says"


def nobody_ends_for_want_of_kafka(evidence: Evidence) -> Iterator[str]:
    """I9: no attempt was ended only because its runner could not reach Kafka; every run ended as its script does."""
    stopped = {told.run_id for told in evidence.told if told.outcome == "cancelling"}
    for told in _once(evidence.accepted):
        end = _end(evidence, str(told.run_id))
        if end is None or told.script not in EXPECTED or told.run_id in stopped:
            continue
        outcome = (ENDS[end.type], end.data.get("reason"))
        if outcome not in (EXPECTED[told.script], ("failed", "attempts_exhausted")):
            yield f"{told.run_id} ({told.script}) ended {outcome}: {end.data.get('message')}"
    for event in evidence.stored:
        if event.type == LOST and not _explained(evidence, event):
            reason = event.data.get("reason")
            yield f"{event.run_id}: attempt {event.data.get('attempt')} was lost ({reason}) while its engine was there"
        if event.type == REQUEUED and event.stale is None and not _had_a_cause(evidence, event):
            yield f"{event.run_id}: attempt {event.data['attempt'] - 1} was replaced though nothing was wrong with it"
    for lifetime in evidence.lifetimes:
        yield from _died_of_silence(evidence, lifetime, stopped)


def nothing_is_left(evidence: Evidence) -> Iterator[str]:
    """I10: at rest no container, volume, mount, temporary folder or process of ours is left."""
    yield from evidence.leftovers


def no_canary_anywhere(evidence: Evidence) -> Iterator[str]:
    """I11: no canary secret stands anywhere, neither as it is nor in hexadecimal or Base64."""
    needles = [(canary, form) for canary in evidence.canaries for form in _forms(canary)]
    for place in evidence.places:
        for canary in {canary for canary, form in needles if form in place.content}:
            yield f"{canary} stands in {place.where}"
    for path in evidence.files:
        for canary in _in_file(path, needles):
            yield f"{canary} stands in {path}"


INVARIANTS: dict[str, Callable[[Evidence], Iterable[str]]] = {
    "I1": accepted_runs_exist,
    "I2": accepted_runs_end_once_and_in_time,
    "I3": containers_overlap_only_while_cut_off,
    "I4": one_attempt_decides,
    "I5": training_started_is_audited_once,
    "I6": versions_are_the_winners,
    "I7": histories_are_gapless_and_legal,
    "I8": nothing_is_unsent_or_unstored,
    "I9": nobody_ends_for_want_of_kafka,
    "I10": nothing_is_left,
    "I11": no_canary_anywhere,
}


def _once(told: Iterable[Told]) -> list[Told]:
    return list({each.run_id: each for each in told}.values())


def _untold_runs(evidence: Evidence) -> dict[str, set[str]]:
    """The runs that nobody was told of, by the model that they train."""
    told, untold = {str(each.run_id) for each in evidence.accepted}, defaultdict(set)
    for event in evidence.stored:
        if event.type == REQUESTED and event.run_id not in told:
            untold[str(event.data.get("model_id"))].add(event.run_id)
    return untold


def _unanswered_keys(evidence: Evidence) -> dict[str, set[str]]:
    """The keys of training requests that never got a definite answer, by the model that they were to train."""
    answered = {told.key for told in evidence.told if told.outcome in ("accepted", "refused")}
    unanswered: dict[str, set[str]] = defaultdict(set)
    for told in evidence.told:
        if told.outcome == "unknown" and told.key not in answered:
            unanswered[told.model_id].add(told.key)
    return unanswered


def _runs(evidence: Evidence) -> list[str]:
    return sorted({event.run_id for event in evidence.stored})


def _effective(evidence: Evidence, run_id: str) -> list[StoredEvent]:
    return [event for event in evidence.events_of(run_id) if event.stale is None]


def _end(evidence: Evidence, run_id: str) -> StoredEvent | None:
    return next((event for event in _effective(evidence, run_id) if event.type in ENDS), None)


def _artifact(evidence: Evidence, run_id: str) -> str | None:
    end = _end(evidence, run_id)
    artifact = end.data.get("artifact") if end is not None and ENDS[end.type] == "succeeded" else None
    return artifact["sha256"] if artifact else None


def _some(ids: set[str]) -> str:
    return ", ".join(sorted(ids)[:5])


def _tables_agree(evidence: Evidence, run_id: str, attempt: int, expected: tuple[str, object]) -> Iterator[str]:
    version = next((row.version for row in evidence.versions if row.run_id == run_id), None)
    for table, rows in evidence.tables.items():
        row = rows.get(run_id)
        if row is None or (row.status, row.reason, row.attempt) != (*expected, attempt):
            yield f"{run_id}: {table} has {row}, the events say {expected} by attempt {attempt}"
        elif row.version != version:
            yield f"{run_id}: {table} has version {row.version}, the registry made {version}"


def _overlap(evidence: Evidence, run_id: str, first: Lifetime, second: Lifetime) -> Iterator[str]:
    if first.attempt == second.attempt:
        yield f"{run_id}: two containers of attempt {first.attempt} overlap"
        return
    decided = _requeued_at(evidence, run_id, second)
    causes = _silenced(evidence, {_name_of(evidence, first.runner_id)}, decided, SLACK_S)
    pair = f"{run_id}: attempts {first.attempt} and {second.attempt} overlap"
    if not causes:
        yield f"{pair}, and the runner of the first was neither dead nor cut off"
        return
    returned = max(second.started, *(outage.ended for outage in causes))
    until = first.ended if first.ended is not None else evidence.faults_stopped + 3600
    quiet_s = _quiet_s(_needed_to_revoke(evidence, first), returned, until)
    if quiet_s > evidence.terms.return_s:
        yield f"{pair} for {quiet_s:.0f} s after the return of the first one's runner"


def _requeued_at(evidence: Evidence, run_id: str, second: Lifetime) -> float:
    for event in evidence.events_of(run_id):
        if event.type == REQUEUED and event.data.get("attempt") == second.attempt:
            return event.occurred
    return second.started


def _name_of(evidence: Evidence, runner_id: str) -> str:
    return next((name for name, found in evidence.runners.items() if found == runner_id), runner_id)


def _silenced(evidence: Evidence, runners: set[str], decided: float, slack_s: float) -> list[Outage]:
    """The outages by which one of some runners could not be heard for the lease before a decision.

    A broker that is down loses nobody: it is a cause only if a runner had not found back a whole lease after it did.
    """
    since = decided - evidence.terms.lease_s - slack_s
    own = [each for each in evidence.outages if each.part in runners and each.began <= decided and each.ended >= since]
    return own + [each for each in evidence.outages if each.part == "kafka" and _kept_silent(evidence, each, decided)]


def _kept_silent(evidence: Evidence, broker: Outage, decided: float) -> bool:
    back = broker.ended if broker.back is None else broker.back
    gap_s = GAP_BEATS * evidence.terms.heartbeat_s
    counted_from = back if back - broker.began > gap_s else back - gap_s
    lease_s = evidence.terms.lease_s
    return counted_from + lease_s - SLACK_S <= decided <= broker.ended + lease_s + SLACK_S


def _cut_off(evidence: Evidence, lifetime: Lifetime) -> list[Outage]:
    runner = _name_of(evidence, lifetime.runner_id)
    return [outage for outage in evidence.outages if outage.part in (runner, "kafka")]


def _needed_to_revoke(evidence: Evidence, lifetime: Lifetime) -> list[Outage]:
    needed = {_name_of(evidence, lifetime.runner_id), "kafka", "postgres", "scheduler", "engine"}
    return [outage for outage in evidence.outages if outage.part in needed]


def _quiet_s(outages: Iterable[Outage], began: float, ended: float) -> float:
    """Sum the time between two moments in which none of some outages went on."""
    quiet, at = 0.0, began
    for outage in sorted(outages, key=lambda each: each.began):
        if outage.ended <= at or outage.began >= ended:
            continue
        quiet += max(0.0, outage.began - at)
        at = outage.ended
    return quiet + max(0.0, ended - at)


def _explained(evidence: Evidence, lost: StoredEvent) -> bool:
    """Whether the engine failed between an attempt's assignment and its loss: nothing else here loses containers."""
    if lost.data.get("reason") not in ENGINE_REASONS:
        return False
    lifetimes = [
        each for each in evidence.lifetimes if (each.run_id, each.attempt) == (lost.run_id, lost.data.get("attempt"))
    ]
    assigned = [
        event.occurred
        for event in evidence.events_of(lost.run_id)
        if event.type == QUEUED and event.data.get("attempt") == lost.data.get("attempt")
    ]
    began = min([lost.occurred, *assigned, *(each.started for each in lifetimes)])
    return any(
        outage.part == "engine" and outage.began <= lost.occurred and outage.ended >= began - SLACK_S
        for outage in evidence.outages
    )


def _reached_again(evidence: Evidence, outage: Outage, lifetime: Lifetime) -> float:
    """When somebody may have told the runner to end a container: a revocation passes as soon as anything does."""
    replaced = any(
        event.type == REQUEUED and event.stale is None and event.data["attempt"] == lifetime.attempt + 1
        for event in evidence.events_of(lifetime.run_id)
        if lifetime.ended is not None and event.occurred < lifetime.ended
    )
    return outage.back if replaced and outage.back is not None else outage.ended


def _had_a_cause(evidence: Evidence, requeued: StoredEvent) -> bool:
    """Whether an attempt was replaced because its runner gave it up, or could not be heard for a lease."""
    attempt = requeued.data["attempt"] - 1
    before = [event for event in evidence.events_of(requeued.run_id) if event.data.get("attempt") == attempt]
    if any(event.type == LOST for event in before):
        return True
    runners = {_name_of(evidence, event.data.get("runner_id", "")) for event in before if event.type == QUEUED}
    return bool(_silenced(evidence, runners, requeued.occurred, evidence.terms.return_s))


def _died_of_silence(evidence: Evidence, lifetime: Lifetime, stopped: set[str | None]) -> Iterator[str]:
    """A container that a signal ended while its runner was away from Kafka, with nobody else to have sent it."""
    if lifetime.exit_code not in SIGNALLED or lifetime.ended is None or lifetime.run_id in stopped:
        return
    limit_s = next((told.timeout_s for told in evidence.accepted if told.run_id == lifetime.run_id), None)
    if limit_s is not None and lifetime.ended - lifetime.started >= limit_s - SLACK_S:
        return
    away = [
        outage
        for outage in _cut_off(evidence, lifetime)
        if outage.began < lifetime.ended < _reached_again(evidence, outage, lifetime)
        and (outage.part == "kafka" or outage.how not in DEAD)
    ]
    engine = [
        outage
        for outage in evidence.outages
        if outage.part == "engine" and outage.began - SLACK_S <= lifetime.ended <= outage.ended + SLACK_S
    ]
    if away and not engine:
        yield f"{lifetime.run_id}: attempt {lifetime.attempt} was killed while its runner could not reach Kafka"


def _forms(canary: str) -> list[bytes]:
    """Write a secret as it may turn up: itself, in hexadecimal, and inside Base64 at each of the three alignments."""
    raw = canary.encode()
    inner = [base64.b64encode(b"\0" * shift + raw)[4:-4] for shift in range(3)]
    return [raw, raw.hex().encode(), *inner]


def _in_file(path: Path, needles: list[tuple[str, bytes]]) -> set[str]:
    found: set[str] = set()
    overlap = max((len(form) for _, form in needles), default=1)
    try:
        with path.open("rb") as file:
            tail = b""
            while chunk := file.read(CHUNK_BYTES):
                window = tail + chunk
                found |= {canary for canary, form in needles if form in window}
                tail = window[-overlap:]
    except OSError:
        return found  # gone meanwhile: then it is read by nobody
    return found

"""Protects the order in which a lost broker's runs are told again: nothing that contradicts what somebody knows.

Three consumers had each folded some first part of the lost partition. Whatever stood there, and however far each of
them had come, all of them must agree once they have folded what is told again.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cloudevents import CloudEvent, decode, encode
from schemas.events import RunEnd, RunFact
from schemas.ids import event_id
from schemas.reason import Reason
from schemas.run import Run, end_of, evolve
from services.auditor.history import Arrival, Position
from services.backbone.outbox import OutboxRow
from services.cli.retelling import WITHIN_ATTEMPT, Known, retell
from tests import life_of_a_run as life

PLACE = Position(1, "runyard.runs", 0, 0)
SCHEDULERS_FAILURE = life.failed().model_copy(update={"reason": Reason.ATTEMPTS_EXHAUSTED, "exit_code": None})


def stands(fact: RunFact) -> CloudEvent:
    """A fact with its attributes; the scheduler's own ends have another id than the runner's."""
    is_schedulers = isinstance(fact, RunEnd) and fact.reason is Reason.ATTEMPTS_EXHAUSTED
    return life.told(fact, sequence=int(is_schedulers))


def stored(event: CloudEvent) -> Arrival:
    _, value = encode(event)
    return Arrival(
        life.RUN_ID, event.id, event.data.type, event.source, life.RUN_ID, event.time, value, event.traceparent, PLACE
    )


def kept(event: CloudEvent) -> OutboxRow:
    return OutboxRow(1, "runyard.runs", life.RUN_ID, None, *encode(event))


def folded(events: list[CloudEvent], run: Run | None = None) -> Run | None:
    for event in events:
        assert isinstance(event.data, RunFact)
        run = evolve(run, event.data, event.time).run
    return run


def told_again(known: Known) -> list[CloudEvent]:
    events = [decode(record.headers, record.value) for record in retell(known)]
    assert all(isinstance(event, CloudEvent) for event in events)
    return [event for event in events if isinstance(event, CloudEvent)]


def types(events: list[CloudEvent]) -> list[str]:
    return [event.data.type.split(".")[2] for event in events]


def test_the_ledgers_part_is_told_as_it_is_stored_and_what_was_decided_since_follows() -> None:
    history = [stands(fact) for fact in (life.requested(), life.waiting(), life.queued(), life.started())]
    known = Known(life.RUN_ID, [stored(each) for each in history[:2]], [kept(each) for each in history[:3]], [])
    assert told_again(known) == history[:3]


def test_an_end_that_only_the_api_has_folded_comes_before_the_requeue_that_it_made_stale() -> None:
    history = [stands(fact) for fact in (life.requested(), life.queued(), life.started(), life.succeeded())]
    requeue, version = stands(life.requeued()), stands(life.versioned())
    api = folded(history)
    assert api is not None
    decided = [history[0], history[1], requeue, version]
    known = Known(life.RUN_ID, [stored(each) for each in history[:2]], [kept(each) for each in decided], [api])
    again = told_again(known)
    assert types(again) == ["training_requested", "queued", "succeeded", "requeued", "model_version_created"]
    assert (again[2].id, again[2].data) == (history[3].id, history[3].data)


def test_a_runners_end_that_counted_comes_before_the_schedulers_of_the_same_attempt() -> None:
    history = [stands(fact) for fact in (life.requested(), life.queued(), life.cancelled())]
    api = folded(history)
    assert api is not None
    known = Known(life.RUN_ID, [], [kept(history[0]), kept(history[1]), kept(stands(SCHEDULERS_FAILURE))], [api])
    assert types(told_again(known)) == ["training_requested", "queued", "cancelled", "failed"]


def test_an_end_of_the_schedulers_own_is_not_told_in_the_runners_name() -> None:
    history = [stands(fact) for fact in (life.requested(), life.queued(), SCHEDULERS_FAILURE)]
    run = folded(history)
    assert run is not None
    again = told_again(Known(life.RUN_ID, [], [kept(each) for each in history], [run]))
    assert again == history


def test_every_fact_of_a_run_has_its_place() -> None:
    assert [fact for fact in get_args(RunFact) if not issubclass(fact, WITHIN_ATTEMPT)] == []


def test_an_event_of_an_unknown_type_is_told_byte_for_byte() -> None:
    arrival = Arrival(
        life.RUN_ID, event_id("x", 0, "y"), "runyard.run.paused.v7", "/s", life.RUN_ID, life.START, b"{}", None, PLACE
    )
    [record] = retell(Known(life.RUN_ID, [arrival], [], []))
    assert (dict(record.headers)["ce_type"], record.value) == (b"runyard.run.paused.v7", b"{}")


@pytest.mark.parametrize("end", [life.succeeded(), life.failed(), life.cancelled(), SCHEDULERS_FAILURE])
def test_an_end_can_be_written_again_from_the_folded_run(end: RunEnd) -> None:
    run = folded([stands(fact) for fact in (life.requested(), life.queued(), life.started(), end)])  # type: ignore[arg-type]
    assert run is not None
    assert end_of(run) == end.model_copy(update={"runner_id": life.RUNNER})


def test_a_run_that_goes_on_has_no_end_to_write() -> None:
    run = folded([stands(life.requested())])
    assert run is not None
    assert end_of(run) is None


@dataclass(frozen=True)
class Lost:
    """A lost partition, and how far each had read it: api, scheduler, auditor."""

    events: list[CloudEvent]
    read: tuple[int, int, int]


SCHEDULERS = {"run.waiting", "run.queued", "run.requeued"}


def is_decided(event: CloudEvent) -> bool:
    """Whether api or scheduler told it, so that it stands in an outbox."""
    kind = event.data.type.removeprefix("runyard.").removesuffix(".v1")
    of_api = kind in {"run.training_requested", "run.cancellation_requested", "run.model_version_created"}
    schedulers_end = isinstance(event.data, RunEnd) and event.data.reason is Reason.ATTEMPTS_EXHAUSTED
    return of_api or kind in SCHEDULERS or schedulers_end


def ends_of(attempt: int) -> list[RunFact]:
    """How a runner may tell that an attempt is over."""
    over = {"ended_at": life.at(60 + attempt), "runner_id": life.RUNNER}
    ends = (life.succeeded(attempt), life.failed(attempt), life.cancelled(attempt))
    return [*(end.model_copy(update=over) for end in ends), life.lost(attempt)]


def decisions(draw: st.DrawFn, attempts: int) -> list[RunFact]:
    """What api and scheduler decide about a run that takes so many attempts."""
    facts: list[RunFact] = [life.requested()]
    for attempt in range(1, attempts + 1):
        requeued = [life.requeued(attempt)] if attempt > 1 else []
        waits = [life.waiting(attempt)] if draw(st.booleans()) else []
        facts += [*requeued, *waits, life.queued(attempt)]
    given_up = SCHEDULERS_FAILURE.model_copy(update={"attempt": attempts})
    return [*facts, *([given_up] if draw(st.booleans()) else [])]


@st.composite
def lost_partitions(draw: st.DrawFn) -> Lost:
    """The scheduler's decisions in their order, and what runners told somewhere between them."""
    attempts = draw(st.integers(1, 3))
    facts = decisions(draw, attempts)
    for attempt in range(1, attempts + 1):
        place = facts.index(life.queued(attempt))
        told = [life.started(attempt), draw(st.sampled_from(ends_of(attempt)))]
        for fact in told[: draw(st.integers(0, 2))]:
            place = draw(st.integers(place + 1, len(facts)))
            facts.insert(place, fact)
    if draw(st.booleans()):
        facts.insert(draw(st.integers(1, len(facts))), life.cancellation())
    events = [stands(fact) for fact in facts]
    read = draw(st.tuples(st.integers(1, len(events)), *[st.integers(0, len(events))] * 2))
    run = folded(events[: read[0]])
    versions = [stands(life.versioned())] if run is not None and run.artifact is not None else []
    return Lost([*events, *versions], read)


@settings(max_examples=400, deadline=timedelta(seconds=2), derandomize=True)
@given(lost_partitions())
def test_all_agree_once_they_have_folded_what_is_told_again(lost: Lost) -> None:
    before = [folded(lost.events[:length]) for length in lost.read]
    api, scheduler, _ = before
    known = Known(
        life.RUN_ID,
        [stored(event) for event in lost.events[: lost.read[2]]],
        [kept(event) for event in lost.events if is_decided(event)],
        [run for run in (api, scheduler) if run is not None],
    )
    again = told_again(known)
    journals = [event for event in lost.events if not is_decided(event)]
    after = [folded([*again, *journals], run) for run in before]
    decisive = [(run.status, run.attempt, run.ended_at, run.artifact, run.version) for run in after if run is not None]
    assert len(decisive) == 3
    assert len(set(map(str, decisive))) == 1, decisive
    for run in before:
        if run is not None and run.status.is_end:
            assert decisive[0][:4] == (run.status, run.attempt, run.ended_at, run.artifact)

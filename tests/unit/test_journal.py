"""The runner's journal: what was written once is there after a crash, byte for byte."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from schemas.events import RunQueued
from schemas.parts import Compute, PinnedDataset, RunAttempt, TrainingSpec
from services.runner.events import Outgoing
from services.runner.journal import Journal, State
from services.runner.outcome import Cause

NOW = datetime(2026, 3, 13, 16, 10, tzinfo=UTC)
SPEC = TrainingSpec(
    entry_point="train.py",
    runtime="python3.11",
    compute=Compute(cpu_cores=1, memory_gb=1),
    timeout_s=60,
    assets=(),
    dataset=PinnedDataset(filename="wine.csv", sha256="ab" * 32, size_bytes=1, dataset_id="dts-00000000"),
)


def queued(run_id: str = "run-1", attempt: int = 1) -> RunQueued:
    return RunQueued(run_id=run_id, attempt=attempt, runner_id="rnr-1", tenant_id="acme", model_id="mdl-1", spec=SPEC)


def ref(run_id: str = "run-1", attempt: int = 1) -> RunAttempt:
    return RunAttempt(run_id=run_id, attempt=attempt)


def event(text: str) -> Outgoing:
    return Outgoing("runyard.runs", "run-1", [("ce_id", text.encode()), ("ce_type", b"t")], text.encode() + b"\xff")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "journal.db"


def test_the_runners_id_is_born_once_and_its_beats_never_repeat(path: Path) -> None:
    first = Journal(path)
    runner_id, beats = first.runner_id, [first.next_beat(), first.next_beat()]
    first.close()
    again = Journal(path)
    assert again.runner_id == runner_id
    assert [*beats, again.next_beat()] == [1, 2, 3]
    again.close()


def test_a_second_process_cannot_open_the_journal(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        Journal(path)
    journal.close()


def test_an_attempt_is_accepted_once_with_a_slot_of_its_own(path: Path) -> None:
    journal = Journal(path)
    assert journal.accept(queued("run-1"), "trace")
    assert not journal.accept(queued("run-1"), None)
    assert journal.accept(queued("run-2"), None)
    assert [(entry.ref.run_id, entry.seat) for entry in journal.unfinished()] == [("run-1", 0), ("run-2", 1)]
    journal.close()


def test_a_slot_is_nobody_elses_until_nothing_is_left_of_its_attempt_whoever_runs_meanwhile(path: Path) -> None:
    journal = Journal(path)
    journal.accept(queued("run-1"), None)
    journal.release_seat(ref("run-1"))  # too early: it has not ended
    journal.record_end(ref("run-1"), NOW, None)
    journal.close()
    again = Journal(path)
    again.accept(queued("run-2"), None)
    assert again.holding_seats() == [ref("run-1")]
    again.release_seat(ref("run-1"))
    again.accept(queued("run-3"), None)
    assert [(entry.ref.run_id, entry.seat) for entry in again.unfinished()] == [("run-2", 1), ("run-3", 0)]
    assert again.holding_seats() == []
    again.close()


def test_a_refused_attempt_never_had_anything_and_holds_no_slot(path: Path) -> None:
    journal = Journal(path)
    assert journal.refuse(ref("run-1"), Cause.USER_REQUEST, NOW, None)
    assert journal.holding_seats() == []
    journal.close()


@pytest.mark.parametrize(
    "older", ["DROP COLUMN seat_released", "RENAME COLUMN seat_released TO slot_released", "RENAME COLUMN seat TO slot"]
)
def test_a_journal_of_an_older_runner_is_brought_up_to_date_and_frees_no_seat_by_it(path: Path, older: str) -> None:
    journal = Journal(path)
    journal.accept(queued("run-1"), None)
    journal.accept(queued("run-2"), None)
    journal.record_end(ref("run-1"), NOW, None)
    journal.close()
    with closing(sqlite3.connect(path)) as sql:
        sql.execute(f"ALTER TABLE attempts {older}")
    journal = Journal(path)
    assert journal.holding_seats() == [ref("run-1")]
    assert [entry.seat for entry in journal.unfinished()] == [1]
    journal.close()


def test_what_was_accepted_survives_a_crash(path: Path) -> None:
    journal = Journal(path)
    journal.accept(queued(), "trace")
    journal.record_start(ref(), "container", NOW, event("started"))
    journal.begin_output(ref(), 4, 9)
    journal.close()
    again = Journal(path)
    (entry,) = again.unfinished()
    again.close()
    assert entry.queued == queued()
    assert (entry.state, entry.container_id, entry.started_at) == (State.RUNNING, "container", NOW)
    assert (entry.output_from, entry.output_to, entry.traceparent) == (4, 9, "trace")


def test_the_first_cause_wins(path: Path) -> None:
    journal = Journal(path)
    journal.accept(queued(), None)
    assert journal.set_cause(ref(), Cause.TIMEOUT) is Cause.TIMEOUT
    assert journal.set_cause(ref(), Cause.USER_REQUEST) is Cause.TIMEOUT
    entry = journal.entry(ref())
    assert entry is not None
    assert entry.cause is Cause.TIMEOUT
    journal.close()


def test_an_end_is_written_once_and_leaves_the_outbox_with_the_same_bytes_each_time(path: Path) -> None:
    journal = Journal(path)
    journal.accept(queued(), None)
    journal.record_start(ref(), "container", NOW, event("started"))
    journal.record_end(ref(), NOW, event("ended"))
    journal.record_end(ref(), NOW, event("another end"))
    waiting = journal.unpublished()
    assert [item.event for item in waiting] == [event("started"), event("ended")]
    journal.mark_published(item.position for item in waiting)
    assert journal.unpublished() == []
    journal.close()
    again = Journal(path)
    assert again.republish_end(ref())
    assert [item.event for item in again.unpublished()] == [event("ended")]
    again.close()


def test_a_start_is_told_once_even_if_it_is_recorded_again(path: Path) -> None:
    journal = Journal(path)
    journal.accept(queued(), None)
    journal.record_start(ref(), "container", NOW, event("started"))
    journal.record_start(ref(), "container", NOW, event("started"))
    assert len(journal.unpublished()) == 1
    journal.close()


def test_an_attempt_that_was_revoked_unseen_is_never_accepted(path: Path) -> None:
    journal = Journal(path)
    assert journal.refuse(ref(), Cause.USER_REQUEST, NOW, event("cancelled"))
    assert not journal.refuse(ref(), Cause.REPLACED, NOW, None)
    assert not journal.accept(queued(), None)
    assert journal.unfinished() == []
    assert [item.event for item in journal.unpublished()] == [event("cancelled")]
    journal.close()


def test_only_what_has_ended_and_was_published_is_forgotten(path: Path) -> None:
    journal = Journal(path)
    for run in ("told", "untold", "open"):
        journal.accept(queued(run), None)
    journal.record_end(ref("told"), NOW, event("told"))
    journal.mark_published(item.position for item in journal.unpublished())
    journal.record_end(ref("untold"), NOW, event("untold"))
    journal.forget(NOW + timedelta(seconds=1))
    assert journal.entry(ref("told")) is None
    assert journal.entry(ref("untold")) is not None
    assert journal.entry(ref("open")) is not None
    journal.close()


def test_what_has_ended_lately_is_listed_newest_first(path: Path) -> None:
    journal = Journal(path)
    for minutes, run in enumerate(("oldest", "middle", "newest")):
        journal.accept(queued(run), None)
        journal.record_end(ref(run), NOW + timedelta(minutes=minutes), None)
    assert journal.lately_ended(NOW + timedelta(seconds=1), 5) == [ref("newest"), ref("middle")]
    assert journal.lately_ended(NOW, 1) == [ref("newest")]
    journal.close()


def test_another_cluster_is_told_all_events_and_the_output_of_what_goes_on(path: Path) -> None:
    journal = Journal(path)
    assert journal.adopt_cluster("one")
    for run_id in ("run-1", "run-2"):
        journal.accept(queued(run_id), None)
        journal.record_start(ref(run_id), "c0ffee", NOW, event(f"{run_id} started"))
        journal.begin_output(ref(run_id), 5, 9)
    journal.record_end(ref("run-2"), NOW, event("run-2 ended"))
    journal.mark_published(waiting.position for waiting in journal.unpublished())
    assert journal.adopt_cluster("one")
    assert journal.unpublished() == []
    assert not journal.adopt_cluster("another")
    told = [waiting.event.value.removesuffix(b"\xff").decode() for waiting in journal.unpublished()]
    assert told == ["run-1 started", "run-2 started", "run-2 ended"]
    assert [(entry.ref.run_id, entry.output_from, entry.output_to) for entry in journal.unfinished()] == [
        ("run-1", 0, 0)
    ]
    assert journal.cluster_id() == "another"
    journal.close()


def test_the_first_cluster_is_told_nothing_again(path: Path) -> None:
    journal = Journal(path)
    assert journal.cluster_id() is None
    journal.accept(queued(), None)
    journal.record_start(ref(), "c0ffee", NOW, event("started"))
    journal.mark_published(waiting.position for waiting in journal.unpublished())
    assert journal.adopt_cluster("one")
    assert journal.unpublished() == []
    journal.close()

"""How an attempt ended: every cause with every kind of end record."""

import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.parts import Artifact, RunAttempt
from schemas.reason import Reason, RunStatus
from services.runner.artifact import Collected, NoArtifact, Refused
from services.runner.attempt import usage_of
from services.runner.events import Aftermath, Pen, attempt_lost, run_ended
from services.runner.frames import MOST, MOST_TEXT_BYTES, End, parse
from services.runner.outcome import Cause, Conclusion, Ended, Evidence, Exit, Lost, Replaced, conclude

GOOD_AT = datetime(2026, 3, 13, tzinfo=UTC)
GOOD = End(seq=9, exit_code=0, signal=None, ended_at=GOOD_AT)
BAD = replace(GOOD, exit_code=3)
SEGFAULT = replace(GOOD, exit_code=None, signal=11)
OOM = replace(GOOD, exit_code=None, signal=9, oom_kills=1)
TIMED_OUT = replace(GOOD, timed_out=True)
STOPPED = replace(GOOD, exit_code=None, signal=15, terminated=True)
FLOODED = replace(GOOD, exit_code=None, signal=15, output_quota_exceeded=True)
NOT_STARTED = replace(GOOD, exit_code=None, error="OSError: no such interpreter")
NONE = None

ENDS = {
    "good": GOOD,
    "bad": BAD,
    "segfault": SEGFAULT,
    "oom": OOM,
    "timed out": TIMED_OUT,
    "stopped": STOPPED,
    "flooded": FLOODED,
    "not started": NOT_STARTED,
    "no record": NONE,
}

BY_ITSELF = {
    "good": Reason.NO_ARTIFACT,
    "bad": Reason.SCRIPT_ERROR,
    "segfault": Reason.SCRIPT_ERROR,
    "oom": Reason.OUT_OF_MEMORY,
    "timed out": Reason.TIMEOUT,
    "stopped": Reason.CONTAINER_LOST,
    "flooded": Reason.LOG_QUOTA_EXCEEDED,
    "not started": Reason.SANDBOX_REFUSED,
    "no record": Reason.CONTAINER_LOST,
}

SHA = "ab" * 32

FORGED = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 1 << 64),
    st.floats(),
    st.text(max_size=20),
    st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
    st.sampled_from([0, 1, MOST - 1, MOST, 5e-324, "\0", "\ud800", "x" * MOST_TEXT_BYTES]),
)


def concluded(end: End | None, cause: Cause | None = None, exit_: Exit | None = None) -> Conclusion:
    return conclude(Evidence(cause, end, exit_ or Exit(exit_code=0)), NoArtifact())


@pytest.mark.parametrize("kind", ENDS)
def test_without_a_cause_the_end_record_decides(kind: str) -> None:
    conclusion = concluded(ENDS[kind])
    assert isinstance(conclusion, Ended | Lost)
    assert conclusion.reason is BY_ITSELF[kind]
    assert isinstance(conclusion, Lost) == (BY_ITSELF[kind] is Reason.CONTAINER_LOST)


@pytest.mark.parametrize("kind", ENDS)
def test_a_journaled_request_wins_over_whatever_the_script_did(kind: str) -> None:
    conclusion = concluded(ENDS[kind], Cause.USER_REQUEST)
    assert isinstance(conclusion, Ended)
    assert (conclusion.status, conclusion.reason) == (RunStatus.CANCELLED, Reason.USER_REQUEST)
    assert conclusion.artifact is None


@pytest.mark.parametrize("kind", ENDS)
def test_a_journaled_timeout_wins_over_an_exit_with_zero(kind: str) -> None:
    conclusion = concluded(ENDS[kind], Cause.TIMEOUT)
    assert isinstance(conclusion, Ended)
    assert (conclusion.status, conclusion.reason) == (RunStatus.CANCELLED, Reason.TIMEOUT)


@pytest.mark.parametrize("kind", ENDS)
def test_a_script_that_was_ended_for_what_it_kept_has_failed_as_one_that_found_its_folder_full(kind: str) -> None:
    conclusion = concluded(ENDS[kind], Cause.DISK_QUOTA)
    assert isinstance(conclusion, Ended)
    assert (conclusion.status, conclusion.reason) == (RunStatus.FAILED, Reason.SCRIPT_ERROR)
    assert str(conclusion.message).startswith("disk quota exceeded")


@pytest.mark.parametrize("kind", ENDS)
def test_a_replaced_attempt_tells_nothing(kind: str) -> None:
    assert concluded(ENDS[kind], Cause.REPLACED) == Replaced()


def test_a_cancelled_run_has_no_artifact_even_if_one_was_collected() -> None:
    collected = Collected(Path("private"), SHA, 4, "file")
    conclusion = conclude(Evidence(Cause.USER_REQUEST, GOOD, Exit(0)), collected)
    assert isinstance(conclusion, Ended)
    assert conclusion.artifact is None
    assert conclusion.exit_code == 0


def test_an_exit_with_zero_and_an_artifact_is_a_success_without_a_reason() -> None:
    conclusion = conclude(Evidence(None, GOOD, Exit(0)), Collected(Path("private"), SHA, 4, "folder"))
    artifact = Artifact(kind="folder", sha256=SHA, size_bytes=4)
    assert conclusion == Ended(RunStatus.SUCCEEDED, exit_code=0, artifact=artifact)


def test_an_artifact_that_was_refused_fails_the_run_with_the_reason() -> None:
    conclusion = conclude(Evidence(None, GOOD, Exit(0)), Refused("'model' is a symbolic link"))
    assert conclusion == Ended(RunStatus.FAILED, Reason.ARTIFACT_REFUSED, "'model' is a symbolic link", 0)


def test_a_container_that_the_engine_killed_for_memory_is_not_lost() -> None:
    conclusion = concluded(None, exit_=Exit(exit_code=137, oom_killed=True))
    assert isinstance(conclusion, Ended)
    assert conclusion.reason is Reason.OUT_OF_MEMORY


def test_exit_137_alone_is_no_lack_of_memory() -> None:
    assert concluded(None, exit_=Exit(exit_code=137)) == Lost(
        Reason.CONTAINER_LOST, "the container ended without an end record (exit code 137)"
    )


def test_an_oom_kill_of_a_child_does_not_fail_a_script_that_went_on_to_exit_with_zero() -> None:
    conclusion = concluded(replace(GOOD, oom_kills=1))
    assert isinstance(conclusion, Ended)
    assert conclusion.status is RunStatus.SUCCEEDED


def test_a_failed_script_is_quoted_with_its_last_words_within_bounds() -> None:
    conclusion = conclude(Evidence(None, BAD, Exit(3), "ValueError: " + "x" * 5000), NoArtifact())
    assert isinstance(conclusion, Ended)
    assert conclusion.message is not None
    assert conclusion.message.startswith("exit code 3: ValueError: xxx")
    assert len(conclusion.message) == 1024


def test_what_a_failed_script_says_of_itself_wins_over_its_last_words() -> None:
    failure = "the data has no column\nlabel"
    for end in (replace(BAD, failure=failure), replace(SEGFAULT, failure=failure)):
        conclusion = conclude(Evidence(None, end, Exit(3), "ValueError: no"), NoArtifact())
        assert isinstance(conclusion, Ended)
        assert (conclusion.reason, conclusion.message) == (Reason.SCRIPT_ERROR, failure)


def test_what_a_script_says_explains_no_end_that_is_not_its_own() -> None:
    for cause, end in ((Cause.TIMEOUT, BAD), (None, replace(BAD, oom_kills=1)), (None, GOOD)):
        conclusion = conclude(Evidence(cause, replace(end, failure="not me"), Exit(3), None), NoArtifact())
        assert isinstance(conclusion, Ended)
        assert "not me" not in str(conclusion.message)


def test_a_signal_is_called_by_its_name() -> None:
    conclusion = concluded(SEGFAULT)
    assert isinstance(conclusion, Ended)
    assert conclusion.message == "killed by SIGSEGV"
    assert conclusion.exit_code is None


@given(st.dictionaries(st.sampled_from([field.name for field in fields(End)]), FORGED, max_size=3), st.text())
@example({"failure": "a\0b"}, "")
@example({"failure": "\ud800"}, "")
@example({"error": "a\0b", "exit_code": None}, "")
@example({"peak_memory_bytes": -1}, "")
def test_whatever_end_record_is_a_frame_can_be_told_and_stored(forged: dict[str, object], last_words: str) -> None:
    """Nobody between the decoder and the broker may break on what a script has made up."""
    end = parse(json.dumps({"type": "end", "seq": 1, "exit_code": 3, "signal": None, **forged}).encode())
    if not isinstance(end, End):
        return
    conclusion = conclude(Evidence(None, end, Exit(3), last_words.replace("\0", "")), NoArtifact())
    pen = Pen("runner-1", RunAttempt(run_id="run-1", attempt=1))
    if isinstance(conclusion, Ended):
        aftermath = Aftermath(ended_at=end.ended_at or GOOD_AT, usage=usage_of(end), output_sequence=end.seq)
        told = run_ended(pen, conclusion, aftermath)
    else:
        assert isinstance(conclusion, Lost)
        told = attempt_lost(pen, conclusion, GOOD_AT)
    assert len(told.value) < 64 << 10
    assert b"\\u0000" not in told.value

"""Frames become batches: in order, bounded, and after a crash the very same ones again."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from schemas.cloudevents import data_of, decode
from schemas.events import LogsAppended, MetricsReported
from schemas.ids import event_id
from schemas.parts import RunAttempt
from services.runner.definitions import POINT_OVERHEAD_BYTES, Found, MeasuredLog
from services.runner.events import Pen
from services.runner.frames import Dropped, End, Frame, Log, Metric, Started, Timeout
from services.runner.output import MAX_BATCH_BYTES, MAX_BATCH_FRAMES, Batch, Batches, events_of

NOW = datetime(2026, 3, 13, 16, 10, tzinfo=UTC)
PEN = Pen("rnr-1", RunAttempt(run_id="run-1", attempt=2), None)


def line(seq: int, text: str = "hello", stream: str = "stdout") -> Log:
    return Log(seq=seq, stream=stream, text=text, at=NOW)


def metric(seq: int) -> Metric:
    return Metric(seq=seq, name="loss", value=0.5, step=1, at=NOW)


def added(batches: Batches, *frames: Frame) -> Batches:
    for frame in frames:
        batches.add(frame)
    return batches


def sequences(batches: Batches) -> list[list[int]]:
    found = []
    while (batch := batches.take()) is not None:
        found.append([frame.seq for frame in batch.frames])
    return found


LOG: list[Frame] = [Started(seq=1, at=NOW), *(line(seq) for seq in range(2, 8)), metric(8), line(9)]


def test_output_is_taken_once_and_in_order() -> None:
    batches = added(Batches(), *LOG, *LOG)
    assert sequences(batches) == [[2, 3, 4, 5, 6, 7, 8, 9]]
    assert added(batches, line(10)).take() == Batch((line(10),))


def test_a_batch_is_bounded_in_lines() -> None:
    batches = added(Batches(), *(line(seq) for seq in range(1, 2 * MAX_BATCH_FRAMES + 2)))
    assert [len(batch) for batch in sequences(batches)] == [MAX_BATCH_FRAMES, MAX_BATCH_FRAMES, 1]


def test_a_batch_is_bounded_in_bytes_and_never_empty() -> None:
    batches = added(Batches(), *(line(seq, "x" * 200_000) for seq in range(1, 6)), line(6, "y" * 900_000))
    assert sequences(batches) == [[1, 2], [3, 4], [5], [6]]


def test_a_runner_that_was_killed_repeats_the_batch_that_it_had_promised_and_goes_on_behind_it() -> None:
    batches = Batches(sent=3, promised=6)
    assert added(batches, *LOG[:4]).take() is None  # not all of the promised batch was read yet
    assert sequences(added(batches, *LOG)) == [[4, 5, 6], [7, 8, 9]]


def test_what_was_sent_before_counts_also_where_the_log_is_gone() -> None:
    assert Batches(sent=3, promised=6).last_output == 3
    assert added(Batches(sent=3, promised=6), *LOG).last_output == 9


def test_a_promised_batch_is_not_cut_by_today_s_limits() -> None:
    batches = added(Batches(sent=0, promised=3), *(line(seq, "x" * 300_000) for seq in range(1, 5)))
    assert sequences(batches) == [[1, 2, 3], [4]]


def test_repeated_events_have_the_same_ids_and_data() -> None:
    before = added(Batches(), *LOG).take()
    after = added(Batches(sent=0, promised=9), *LOG, line(10)).take()
    assert before is not None
    assert after is not None
    assert events_of(before, PEN, NOW) == events_of(after, PEN, NOW)


def test_lines_and_metrics_travel_in_events_of_their_own_with_ids_of_their_first_sequence() -> None:
    batch = added(Batches(), *LOG).take()
    assert batch is not None
    metrics, logs = events_of(batch, PEN, NOW)
    told = data_of("runyard.run.logs_appended.v1", logs.value)
    assert isinstance(told, LogsAppended)
    assert [entry.sequence for entry in told.lines] == [2, 3, 4, 5, 6, 7, 9]
    points = data_of("runyard.run.metrics_reported.v1", metrics.value)
    assert isinstance(points, MetricsReported)
    assert [(point.sequence, point.value) for point in points.points] == [(8, 0.5)]
    assert decode(logs.headers, logs.value).id == event_id("run-1", 2, "runyard.run.logs_appended.v1", 2)
    assert decode(metrics.headers, metrics.value).id == event_id("run-1", 2, "runyard.run.metrics_reported.v1", 8)
    assert (logs.topic, logs.key) == ("runyard.output", "run-1")


def test_the_event_with_the_last_sequence_goes_last_so_that_nobody_thinks_too_early_that_all_is_there() -> None:
    metric = next(frame for frame in LOG if isinstance(frame, Metric))
    batch = added(Batches(), *(frame for frame in LOG if frame.seq <= metric.seq)).take()
    assert batch is not None
    assert [event.topic for event in events_of(batch, PEN, NOW)] == ["runyard.output"] * 2
    last = data_of("runyard.run.metrics_reported.v1", events_of(batch, PEN, NOW)[-1].value)
    assert isinstance(last, MetricsReported)
    assert last.points[-1].sequence == batch.last


def test_dropped_lines_are_counted_and_told_at_their_place_in_the_log() -> None:
    batches = added(Batches(), Dropped(seq=4, lines=1234, bytes=56789, because="more than 2,000 lines a second"))
    batch = batches.take()
    assert batch is not None
    (event,) = events_of(batch, PEN, NOW)
    told = data_of("runyard.run.logs_appended.v1", event.value)
    assert isinstance(told, LogsAppended)
    [gap] = told.lines
    assert (gap.sequence, gap.stream, gap.truncated, told.dropped_lines) == (4, "stderr", True, 1234)
    assert gap.text == "[runyard] 1,234 lines (56,789 bytes) were dropped here: more than 2,000 lines a second"
    assert batches.last_output == 4


def test_lines_of_the_metrics_file_that_are_none_are_told_once_at_the_end_and_are_no_error_of_the_script() -> None:
    said = Log(seq=4, stream="stderr", text="the script's last word", at=NOW)
    end = End(seq=5, exit_code=1, signal=None, skipped_metrics=1234, ended_at=NOW)
    batches = added(Batches(), said, end)
    batch = batches.take()
    assert batch is not None
    (event,) = events_of(batch, PEN, NOW)
    told = data_of("runyard.run.logs_appended.v1", event.value)
    assert isinstance(told, LogsAppended)
    line = told.lines[-1]
    assert (line.sequence, line.stream, line.truncated, told.dropped_lines) == (5, "stderr", True, 0)
    assert line.text == "[runyard] 1,234 lines of METRICS_PATH left out: no JSON object with a name and a finite value"
    assert (batches.last_output, batches.last_error_line) == (5, "the script's last word")
    again = added(Batches(sent=5), said, end)
    assert (again.take(), again.last_output) == (None, 5)
    assert added(Batches(), said, dataclasses.replace(end, skipped_metrics=0)).last_output == 4


def measured(seq: int, *values: float) -> MeasuredLog:
    found = tuple(Found(place=place, name=f"m{place}", value=value) for place, value in enumerate(values, 1))
    return MeasuredLog(seq=seq, stream="stdout", text="hello", at=NOW, found=found)


def test_a_line_with_metrics_is_told_as_a_line_and_as_points_that_have_its_sequence() -> None:
    batch = added(Batches(), measured(1, 0.5, 0.25), metric(2), line(3), measured(4, 0.125)).take()
    assert batch is not None
    metrics, logs = events_of(batch, PEN, NOW)
    told = data_of("runyard.run.logs_appended.v1", logs.value)
    assert isinstance(told, LogsAppended)
    assert [entry.sequence for entry in told.lines] == [1, 3, 4]
    points = data_of("runyard.run.metrics_reported.v1", metrics.value)
    assert isinstance(points, MetricsReported)
    assert [(point.sequence, point.place, point.name, point.value, point.step) for point in points.points] == [
        (1, 1, "m1", 0.5, None),
        (1, 2, "m2", 0.25, None),
        (2, 0, "loss", 0.5, 1),
        (4, 1, "m1", 0.125, None),
    ]
    assert decode(metrics.headers, metrics.value).id == event_id("run-1", 2, "runyard.run.metrics_reported.v1", 1)
    assert decode(logs.headers, logs.value).id == event_id("run-1", 2, "runyard.run.logs_appended.v1", 1)


def test_a_last_line_with_metrics_is_told_after_its_points() -> None:
    batch = added(Batches(), metric(1), measured(2, 0.5)).take()
    assert batch is not None
    types = [decode(event.headers, event.value).data.type for event in events_of(batch, PEN, NOW)]
    assert types == ["runyard.run.metrics_reported.v1", "runyard.run.logs_appended.v1"]


def test_points_of_lines_count_in_a_batch_s_bytes_and_are_never_cut_from_their_line() -> None:
    many = [measured(seq, *([0.5] * 40)) for seq in range(1, MAX_BATCH_FRAMES + 1)]
    cut = sequences(added(Batches(), *many))
    size = 128 + 5 + 40 * (POINT_OVERHEAD_BYTES + 3) - 9  # nine of the names have two letters
    assert [len(batch) for batch in cut[:-1]] == [MAX_BATCH_BYTES // size] * (len(cut) - 1)
    assert [seq for batch in cut for seq in batch] == list(range(1, MAX_BATCH_FRAMES + 1))


def test_points_of_lines_are_the_same_when_a_batch_is_repeated() -> None:
    log = [measured(1, 0.5), line(2), measured(3, 0.25, 0.125), metric(4), measured(5, 1.0)]
    before = added(Batches(), *log[:4]).take()
    after = Batches(sent=0, promised=4)
    again = added(after, *log, *log).take()
    assert before is not None
    assert again is not None
    assert events_of(before, PEN, NOW) == events_of(again, PEN, NOW)
    assert sequences(after) == [[5]]


RAISED = ("Traceback (most recent call last):", '  File "train.py", line 1, in <module>', "    raise Refused")


@pytest.mark.parametrize(
    ("said", "last"),
    [
        ((*RAISED, "app.Refused: no", "a second line", "[W] 3 leaked objects"), "app.Refused: no"),
        ((*RAISED, "KeyError: 1", "", "During handling of the above:", *RAISED, "ValueError: 2"), "ValueError: 2"),
        (("warning: slow", "fatal: no data"), "fatal: no data"),
        (RAISED, "raise Refused"),
    ],
)
def test_the_last_exception_of_stderr_is_remembered_else_its_last_line(said: Sequence[str], last: str) -> None:
    batches = added(Batches(), *[line(number, text, "stderr") for number, text in enumerate(said, 1)])
    assert batches.last_error_line == last


def test_the_end_is_remembered_with_what_it_has_to_tell() -> None:
    end = End(seq=6, exit_code=1, signal=None)
    frames: list[Frame] = [line(1), line(2, "ValueError: no", "stderr"), line(3, " ", "stderr"), Timeout(seq=4, at=NOW)]
    batches = added(Batches(sent=3, promised=3), *frames, Dropped(seq=5, lines=1, bytes=1), end)
    assert batches.end == end
    assert batches.timed_out
    assert (batches.last_output, batches.last_error_line) == (5, "ValueError: no")
    assert sequences(batches) == [[5]]

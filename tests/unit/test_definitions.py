"""Protects metrics found in the log: the same log gives the same points, and strangers' lines cost a bounded sum."""

from datetime import UTC, datetime

import pytest

from schemas.parts import MetricDefinition
from services.runner.definitions import MOST_WORK, POINT_OVERHEAD_BYTES, Found, MeasuredLog, Meter
from services.runner.frames import Dropped, Log, Metric

NOW = datetime(2026, 3, 13, 16, 10, tzinfo=UTC)
PLENTY = 1 << 20
LOSS = MetricDefinition(name="loss", regex=r"loss=(\S+)")
ACCURACY = MetricDefinition(name="accuracy", regex=r"acc=(\S+)")
UNUSABLE = MetricDefinition(name="other", regex=r"(")


def line(text: str, seq: int = 1) -> Log:
    return Log(seq=seq, stream="stderr", text=text, at=NOW, truncated=True)


def found(meter: Meter, text: str) -> list[tuple[int, str, float]]:
    read = meter.read(line(text))
    assert isinstance(read, Log)
    assert (read.seq, read.stream, read.text, read.at, read.truncated) == (1, "stderr", text, NOW, True)
    return [(one.place, one.name, one.value) for one in read.found] if isinstance(read, MeasuredLog) else []


def test_each_definition_finds_one_value_in_a_line_and_keeps_its_place() -> None:
    meter = Meter([LOSS, ACCURACY], PLENTY)
    assert found(meter, "acc=0.5 loss=0.25 loss=0.125") == [(1, "loss", 0.25), (2, "accuracy", 0.5)]
    assert found(meter, "acc=1") == [(2, "accuracy", 1.0)]
    assert found(meter, "nothing") == []


@pytest.mark.parametrize(
    "text", ["loss=nan", "loss=inf", "loss=-Infinity", "loss=1e999", "loss=abc", "loss=1_0", "loss="]
)
def test_what_is_no_finite_number_is_no_metric(text: str) -> None:
    assert found(Meter([LOSS], PLENTY), text) == []


def test_a_definition_that_cannot_be_used_here_leaves_the_places_of_the_others_alone() -> None:
    assert found(Meter([UNUSABLE, LOSS], PLENTY), "loss=1") == [(2, "loss", 1.0)]


def test_other_frames_pass_as_they_are() -> None:
    meter = Meter([LOSS], PLENTY)
    for frame in (Dropped(seq=1, lines=1, bytes=1), Metric(seq=2, name="loss=1", value=1.0, at=NOW)):
        assert meter.read(frame) is frame
    without = line("loss=1")
    assert Meter((), PLENTY).read(without) is without


def test_a_log_that_is_read_again_gives_the_same_points() -> None:
    log = [line(f"loss={number} acc={number}", seq=number) for number in range(1, 200)]
    most = 100 * 2 * (POINT_OVERHEAD_BYTES + 6)
    first, again = Meter([LOSS, ACCURACY], most), Meter([LOSS, ACCURACY], most)
    read = [first.read(frame) for frame in log]
    assert read == [again.read(frame) for frame in log]
    assert isinstance(read[0], MeasuredLog)
    assert first.exhausted
    assert not isinstance(read[-1], MeasuredLog)


def test_points_may_take_so_many_bytes_and_not_one_more() -> None:
    one = Found(place=1, name="loss", value=1.0).size_bytes
    assert one == POINT_OVERHEAD_BYTES + 4
    enough, short = Meter([LOSS], 2 * one), Meter([LOSS], 2 * one - 1)
    assert [len(found(enough, "loss=1")) for _ in range(2)] == [1, 1]
    assert [len(found(short, "loss=1")) for _ in range(2)] == [1, 0]
    assert (enough.exhausted, short.exhausted) == (False, True)
    assert [len(found(enough, "loss=1")) for _ in range(2)] == [0, 0]
    assert enough.exhausted


def test_a_line_that_does_not_fit_the_bytes_whole_gives_its_first_points() -> None:
    meter = Meter([LOSS, ACCURACY], POINT_OVERHEAD_BYTES + 4)
    assert found(meter, "loss=1 acc=1") == [(1, "loss", 1.0)]
    assert meter.exhausted


def test_patterns_may_work_so_much_and_not_more() -> None:
    meter = Meter([LOSS], PLENTY)
    costs = meter._cost
    assert 5 < costs < 50
    meter._work_left = 2 * costs * len("loss=1")
    assert [len(found(meter, "loss=1")) for _ in range(3)] == [1, 1, 0]
    assert meter.exhausted
    assert MOST_WORK == 1 << 37

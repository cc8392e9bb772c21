"""The rate at which a script may write lines: what passes, what is counted, and when that is told."""

from services.runner.shim.rate import BURST_S, Rate

LINES, BYTES = 5, 1000


def passed(rate: Rate, count: int, now: float, size_bytes: int = 1) -> int:
    return sum(rate.admits(size_bytes, now) for _ in range(count))


def test_ten_seconds_worth_may_come_at_once_and_not_a_line_more() -> None:
    rate = Rate(LINES, BYTES, 0.0)
    assert passed(rate, BURST_S * LINES, 0.0) == BURST_S * LINES
    assert rate.dropped(0.0) == {}
    assert not rate.admits(1, 0.0)
    assert rate.dropped(0.0, at_once=True) == {"lines": 1, "bytes": 1, "because": "more than 5 lines a second"}


def test_what_is_written_at_the_rate_passes_for_ever() -> None:
    rate = Rate(LINES, BYTES, 0.0)
    assert all(passed(rate, LINES, float(second), 200) == LINES for second in range(1000))


def test_after_a_flood_nothing_passes_until_a_seconds_worth_is_there_and_then_it_is_told_once() -> None:
    rate = Rate(LINES, BYTES, 0.0)
    passed(rate, 50, 0.0)
    assert passed(rate, 3, 0.9, 2) == 3  # four and a half lines are there
    assert passed(rate, 7, 0.9, 2) == 1
    assert rate.dropped(0.95) == {}
    assert passed(rate, 4, 1.7, 2) == 0
    assert rate.dropped(1.95) == {"lines": 10, "bytes": 20, "because": "more than 5 lines a second"}
    assert rate.dropped(1.95) == {}
    assert passed(rate, 9, 1.95) == 5


def test_bytes_are_limited_like_lines_and_a_long_line_is_owed_not_refused() -> None:
    rate = Rate(LINES, BYTES, 0.0)
    assert rate.admits(BURST_S * BYTES - 1, 0.0)
    assert rate.admits(3 * BYTES, 0.0)
    assert not rate.admits(1, 2.9)
    assert rate.dropped(3.9) == {}
    assert rate.dropped(4.1) == {"lines": 1, "bytes": 1, "because": "more than 1,000 bytes a second"}


def test_a_clock_that_stands_still_gives_nothing() -> None:
    rate = Rate(LINES, BYTES, 5.0)
    passed(rate, 50, 5.0)
    assert passed(rate, 5, 4.0) == 0

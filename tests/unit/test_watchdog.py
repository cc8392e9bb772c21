"""Protects the decision that a part is stuck: only what could work and does not, in time that was really observed."""

import pytest

from services.backbone.errors import Stuck, TooMuchPoison
from services.backbone.health import Health
from services.backbone.service import why_it_stopped_itself
from services.backbone.watchdog import LONGEST_STEP_S, Seen, Standstill, Watchdog, stands_still


def after(*looks: Seen, every_s: float = 2.0) -> float:
    standstill = Standstill()
    for seen in looks:
        standstill = stands_still(standstill, seen, every_s)
    return standstill.for_s


WAITS, IDLE, EXCUSED = Seen(7, waiting=True), Seen(7, waiting=False), Seen(7, waiting=True, excused=True)


def test_time_counts_from_the_second_look_at_a_part_that_does_nothing_though_something_waits() -> None:
    assert after(WAITS) == 0
    assert after(WAITS, WAITS, WAITS, WAITS) == 6


def test_a_part_that_gets_something_done_begins_anew() -> None:
    assert after(WAITS, WAITS, Seen(8, waiting=True)) == 0
    assert after(WAITS, WAITS, Seen(8, waiting=True), Seen(8, waiting=True)) == 2


def test_a_part_that_has_nothing_to_do_is_not_stuck_however_long() -> None:
    assert after(*[IDLE] * 1000) == 0


def test_a_part_that_retries_or_whose_dependency_is_away_is_never_stuck() -> None:
    assert after(*[EXCUSED] * 1000) == 0
    assert after(WAITS, WAITS, WAITS, EXCUSED, WAITS) == 2


def test_a_process_that_was_stopped_for_an_hour_has_not_stood_still_for_an_hour() -> None:
    assert after(WAITS, WAITS, every_s=3600) == LONGEST_STEP_S == 4


def test_a_stuck_part_is_told_to_the_probes_before_it_ends_the_process() -> None:
    health = Health(stuck_after_s=-1)
    health.ok("relay")
    watchdog = Watchdog("relay", health)
    with pytest.raises(Stuck, match="relay has not got on for 0 s: a row waits"):
        watchdog.look(WAITS, "a row waits")
    assert health.stuck == "relay has not got on for 0 s: a row waits"
    assert not health.ready


def test_nobody_is_stuck_while_the_database_does_not_answer() -> None:
    health = Health(stuck_after_s=0)
    watchdog = Watchdog("api.runs", health)
    health.failing("postgres", "PostgreSQL does not answer")
    for _ in range(3):
        watchdog.look(WAITS, "3 records wait")
    assert health.stuck is None
    health.ok("postgres")
    with pytest.raises(Stuck):
        watchdog.look(WAITS, "3 records wait")


def test_what_a_service_did_on_purpose_is_found_among_all_that_ended_it() -> None:
    flood, stuck = TooMuchPoison("10 of the last 100"), Stuck("the relay")
    failure = ExceptionGroup("", [KeyError("a bug"), ExceptionGroup("", [flood]), stuck])
    assert why_it_stopped_itself(failure) == ["10 of the last 100", "the relay"]
    assert why_it_stopped_itself(KeyError("a bug")) == []

"""Protects the crash points' completeness: each can be armed, and some scenario passes it."""

from pathlib import Path

import pytest

from tests.chaos.crash_places import Place, Unusable, all_places, points_in
from tests.chaos.crash_scenarios import SCENARIOS, covered


def written(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_every_point_of_every_service_is_passed_by_a_scenario_and_no_scenario_waits_for_one_that_is_gone() -> None:
    assert set(all_places()) == covered()


def test_there_are_points_in_all_four_services() -> None:
    assert {place.service for place in all_places()} == {"api", "scheduler", "runner", "auditor"}
    assert len({place.point for place in all_places()}) >= 40


def test_names_are_words_that_say_the_side() -> None:
    for place in all_places():
        side, *words = place.point.split("_")
        assert side in ("before", "after"), place
        assert words, place


def test_scenarios_have_names_of_their_own() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


def test_a_point_of_the_backbone_counts_for_each_service_that_passes_it(tmp_path: Path) -> None:
    written(tmp_path, "backbone/relay.py", "crash_point('after_it')")
    written(tmp_path, "api/main.py", "from x import y\ny.crash_point('before_it')")
    assert all_places(tmp_path) == [Place("api", "after_it"), Place("api", "before_it"), Place("scheduler", "after_it")]


def test_a_name_that_is_no_literal_is_refused(tmp_path: Path) -> None:
    for call in ("crash_point(name)", "crash_point(f'after_{x}')", "crash_point()", "crash_point(name='after_it')"):
        with pytest.raises(Unusable, match="literal"):
            list(points_in(written(tmp_path, "api/main.py", call)))


def test_a_name_at_two_places_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "api/main.py", "crash_point('after_it')")
    written(tmp_path, "runner/main.py", "crash_point('after_it')")
    with pytest.raises(Unusable, match="after_it"):
        all_places(tmp_path)


def test_a_module_of_the_backbone_whose_services_nobody_named_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "backbone/outbox.py", "crash_point('after_it')")
    with pytest.raises(Unusable, match="USERS"):
        all_places(tmp_path)

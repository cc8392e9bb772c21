"""The suite itself: that it would see an escape, a wrong end, a changed sentinel, and that its catalogue is one."""

import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.events import RunFailed, RunSucceeded
from schemas.parts import LogLine
from schemas.reason import Reason
from services.runner.local_ear import End
from tests.security import sentinels
from tests.security.case import BLOCKED, Attack, Complaint, Probe, Seen, errors, script_of
from tests.security.catalogue import FAMILIES
from tests.security.judging import ENOUGH_S, Pace, judge_attack, judge_neighbour, judge_probes, pace_within
from tests.security.neighbour import began_at
from tests.security.waivers import ON_RUNSC, waived

NOW = datetime(2026, 3, 13, 16, 10, tzinfo=UTC)
WELL = RunSucceeded(run_id="r", attempt=1, ended_at=NOW, reason=Reason.NO_ARTIFACT, message="the script wrote nothing")
BADLY = RunFailed(run_id="r", attempt=1, ended_at=NOW, reason=Reason.SCRIPT_ERROR, message="exit code 3: canary")


def seen(*texts: str, end: End = WELL, inspected: str = "", artifact: Path | None = None) -> Seen:
    lines = [LogLine(sequence=n + 1, stream="stdout", text=text, at=NOW) for n, text in enumerate(texts)]
    return Seen(end, lines, (), artifact, inspected, 1.0)


def kinds(attack: Attack, found: Seen) -> list[str]:
    return [complaint.kind for complaint in judge_attack(attack, found, "x")]


def test_a_case_that_went_as_it_must_has_no_complaints() -> None:
    attack = Attack(name="x", script="", prints=("do.e",), never=("canary",), message="wrote nothing")
    assert kinds(attack, seen("done")) == []


def test_another_end_another_message_and_a_missing_line_are_wrong_ends() -> None:
    attack = Attack(name="x", script="", prints=("done",), message="nothing")
    assert kinds(attack, seen(end=BADLY)) == ["wrong end", "wrong end", "wrong end"]


def test_what_takes_too_long_is_a_wrong_end() -> None:
    assert kinds(Attack(name="x", script="", within_s=0.9), seen()) == ["wrong end"]
    assert kinds(Attack(name="x", script="", within_s=1.0), seen()) == []


def test_a_secret_is_an_escape_wherever_it_stands(tmp_path: Path) -> None:
    attack = Attack(name="x", script="", never=("canary",), reasons=(Reason.NO_ARTIFACT, Reason.SCRIPT_ERROR))
    (tmp_path / "model").write_bytes(b"\x00canary")
    assert kinds(attack, seen("a canary sings")) == ["escape"]
    assert kinds(attack, seen(end=BADLY)) == ["escape"]
    assert kinds(attack, seen(inspected='{"Env": "canary"}')) == ["escape"]
    assert kinds(attack, seen(artifact=tmp_path / "model")) == ["escape"]


def test_a_probe_that_got_something_is_an_escape_and_another_error_is_not() -> None:
    probes = [Probe(name=name, code="", outcomes=BLOCKED) for name in ("a", "b", "c", "d")]
    said = ['{"probe": "a", "outcome": "value 0"}', '{"probe": "b", "outcome": "EBADF"}', "noise"]
    found = judge_probes(probes, seen(*said, '{"probe": "c", "outcome": "EPERM"}'), "f: ")
    assert [(c.case, c.kind) for c in found] == [("f: a", "escape"), ("f: b", "wrong end"), ("f: d", "wrong end")]


ALONE = Pace(seconds=1.0, steps=40.0)


def harm(beside: Pace) -> list[tuple[str, str]]:
    return [(complaint.kind, complaint.text) for complaint in judge_neighbour(ALONE, beside, "x")]


def test_a_neighbour_that_was_not_attacked_for_long_enough_is_a_complaint_that_nothing_excuses() -> None:
    stamps = [step / 10 for step in range(50)]
    never = judge_neighbour(ALONE, pace_within(stamps, (4.9, 4.9)), "fork: a fork bomb")
    late = judge_neighbour(ALONE, pace_within(stamps, (4.0, 4.9)), "fork: a fork bomb")
    assert [complaint.kind for complaint in never + late] == ["suite broke", "suite broke"]
    assert "0.90 s after the attack had begun" in late[0].text
    assert waived("runsc", never[0]) is None


def test_a_neighbour_whose_pace_alone_is_not_known_is_a_complaint() -> None:
    assert [c.kind for c in judge_neighbour(Pace(), Pace(seconds=3.0, steps=100.0), "x")] == ["suite broke"]


def test_a_neighbour_that_is_slower_than_it_may_be_is_told_as_harmed() -> None:
    assert harm(Pace(seconds=3.0, steps=79.0)) == [("neighbour harmed", "a step took 1.52 times as long as alone")]
    assert harm(Pace(seconds=3.0, steps=80.0)) == []


def test_a_step_that_hangs_beyond_the_attack_counts_with_the_part_that_was_attacked() -> None:
    hung = pace_within([0.0, 0.5, 20.5, 21.0], (0.5, 2.5))
    assert hung == Pace(seconds=2.0, steps=0.1)
    assert harm(hung) == [("neighbour harmed", "a step took 800.00 times as long as alone")]


def test_several_trainings_count_together() -> None:
    shared = pace_within([0.0, 1.0, 2.0], (1.25, 1.75)) + pace_within([5.0, 6.0, 7.0], (5.5, 6.5))
    assert shared == Pace(seconds=1.5, steps=1.5)
    assert shared.seconds > ENOUGH_S


def test_an_attack_begins_with_its_own_first_stamp_and_without_a_stamp_never() -> None:
    assert began_at(seen("attack at 2.500000", "attack at 3.500000")) == 2.5
    assert began_at(seen("attack at 2.500000attack at 3.500000")) == 2.5
    assert began_at(seen("no stamp")) is None


def test_a_planted_file_that_changes_or_goes_is_seen(tmp_path: Path) -> None:
    sentinels.plant(tmp_path / "planted", other_uid=64_999)
    before = sentinels.take(tmp_path / "planted")
    assert sentinels.changes(before, sentinels.take(tmp_path / "planted")) == []
    (tmp_path / "planted" / "for-all").write_text("changed")
    (tmp_path / "planted" / "of-another").chmod(0o644)
    (tmp_path / "planted" / "for-root").unlink()
    (tmp_path / "planted" / "new").touch()
    assert len(sentinels.changes(before, sentinels.take(tmp_path / "planted"))) == 4


def test_a_waiver_is_for_one_runtime_and_excuses_neither_what_is_left_nor_a_changed_sentinel() -> None:
    case = "escape: unshare of users"
    assert waived("runsc", Complaint(case, "escape", "value 0")) is not None
    assert waived("runc", Complaint(case, "escape", "value 0")) is None
    assert waived("runsc", Complaint(case, "sentinel changed", "")) is None
    assert waived("runsc", Complaint(case, "suite broke", "")) is None
    assert waived("runsc", Complaint("fork: a fork bomb", "wrong end", "container_lost")) is not None
    assert waived("runsc", Complaint("fork: a fork bomb", "escape", "value 0")) is None
    assert waived("runsc", Complaint("escape: mount", "escape", "value 0")) is None


def test_every_waiver_is_for_a_case_of_the_catalogue() -> None:
    cases = [f"{f.name}: {c.name}" for f in FAMILIES for c in (*f.attacks, *f.probes, *f.checks)]
    assert [pattern for pattern in ON_RUNSC if not any(re.fullmatch(pattern, case) for case in cases)] == []


def test_an_error_that_does_not_exist_cannot_be_expected() -> None:
    with pytest.raises(ValueError, match="ENOSUCH"):
        errors("EPERM", "ENOSUCH")


def test_the_catalogue_has_enough_cases_each_with_a_name_of_its_own() -> None:
    for family in FAMILIES:
        names = Counter(case.name for case in (*family.attacks, *family.probes, *family.checks))
        assert [name for name, times in names.items() if times > 1] == [], family.name
    assert sum(family.size for family in FAMILIES if family.name != "exit codes") >= 400


def test_every_script_of_the_catalogue_is_a_program() -> None:
    for family in FAMILIES:
        for attack in family.attacks:
            compile(attack.text, attack.name, "exec")
        compile(script_of(family.probes), family.name, "exec")

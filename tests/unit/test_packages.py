"""Protects what a run is told of its requirements from a crash: it is written down, and told the same again."""

from datetime import UTC, datetime
from pathlib import Path

from services.runner.packages import Told, told_before, write_told
from services.runner.requirements import RequirementsFailed

NOW = datetime(2026, 3, 13, 16, 10, tzinfo=UTC)


def test_what_was_written_is_told_again_to_the_byte(tmp_path: Path) -> None:
    run = tmp_path / "run-1-1"
    assert told_before(run) is None
    told = write_told(run, RequirementsFailed("no", ("[runyard] pip said:", "ERROR: – \u2400")), NOW)
    assert told == Told("no", ("[runyard] pip said:", "ERROR: – \u2400"), NOW)
    assert told_before(run) == told
    assert [path.name for path in run.iterdir()] == ["requirements-failed.json"]


def test_a_failure_without_pip_s_words_is_still_a_line_of_the_log() -> None:
    assert RequirementsFailed("r.txt, line 3: no").lines == ("[runyard] r.txt, line 3: no",)

"""What runs scripts here, as far as it needs no engine: whose a folder is, and what the ear tells on."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.events import AttemptLost, RunFailed
from schemas.parts import LogLine, MetricPoint, RunAttempt
from schemas.reason import Reason, RunStatus
from services.runner import events
from services.runner.events import Aftermath, Pen
from services.runner.journal import Journal
from services.runner.local_ear import Ear
from services.runner.local_home import PREFIX, abandoned_homes, new_home
from services.runner.outcome import Ended, Lost

NOW = datetime(2026, 3, 13, 16, 10, tzinfo=UTC)
PEN = Pen("rnr-1", RunAttempt(run_id="run-1", attempt=1))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_abandoned_when_nobody_holds_it_any_more() -> None:
    with new_home() as home:
        assert list(abandoned_homes()) == []
    assert list(abandoned_homes()) == [home]


def test_a_folder_that_is_looked_after_is_held_meanwhile() -> None:
    with new_home():
        pass
    for _ in abandoned_homes():
        assert list(abandoned_homes()) == []


def test_what_has_no_lock_or_another_name_is_nobodys_business(temporary: Path) -> None:
    (temporary / f"{PREFIX}just-made").mkdir()
    (temporary / "others").mkdir()
    (temporary / "others" / "lock").touch()
    (temporary / f"{PREFIX}link").symlink_to("others")
    (temporary / "others" / "lock").unlink()
    (temporary / "others" / "lock").symlink_to("/etc/passwd")
    assert list(abandoned_homes()) == []


class Heard:
    """A listener."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def on_started(self, container_id: str) -> None:
        self.said.append(container_id)

    def on_line(self, line: LogLine) -> None:
        self.said.append(line.text)

    def on_point(self, point: MetricPoint) -> None:
        self.said.append((point.name, point.value))


@pytest.fixture
def ear(tmp_path: Path) -> Ear:
    return Ear(Journal(tmp_path / "journal.db"))


async def test_the_ear_tells_lines_and_points_to_the_runs_own_listener(ear: Ear) -> None:
    mine, other = Heard(), Heard()
    ear.listeners |= {"run-1": mine, "run-2": other}
    line = LogLine(sequence=1, stream="stdout", text="hello", at=NOW)
    point = MetricPoint(sequence=2, name="loss", value=0.5, at=NOW)
    await ear.publish([events.logs_appended(PEN, [line], 0, 1, NOW), events.metrics_reported(PEN, [point], NOW)])
    await ear.publish([events.run_started(PEN, "c1", NOW)])
    assert mine.said == ["hello", ("loss", 0.5), "c1"]
    assert other.said == []


async def test_the_ear_keeps_the_end_as_it_was_told(ear: Ear) -> None:
    failed = Ended(RunStatus.FAILED, Reason.SCRIPT_ERROR, "exit code 7", 7)
    await ear.publish([events.run_ended(PEN, failed, Aftermath(ended_at=NOW))])
    end = ear.ends["run-1"]
    assert isinstance(end, RunFailed)
    assert (end.reason, end.message, end.exit_code) == (Reason.SCRIPT_ERROR, "exit code 7", 7)
    await ear.publish([events.attempt_lost(PEN, Lost(Reason.DISK_FULL, "full"), NOW)])
    assert isinstance(ear.ends["run-1"], AttemptLost)

"""What the shim tells of a script: masked, at a bounded rate, and in the script's own words when it fails."""

from pathlib import Path

import pytest

from services.runner.frames import Dropped, Log
from tests.unit.shim_scene import Slot

KEY = "s3cret-key-0123456789"
SECRET = {"environment": {"KEY": KEY, "EPOCHS": "50"}, "secret_names": ["EPOCHS", "KEY"]}
SLOW = {"max_lines_per_s": 5, "max_bytes_per_s": 1_000_000}


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    return Slot(tmp_path)


def with_paths(slot: Slot) -> dict[str, object]:
    paths = {"METRICS_PATH": str(slot.folder / "metrics.jsonl"), "FAILURE_PATH": str(slot.folder / "failure")}
    return SECRET | {"environment": {**SECRET["environment"], **paths}}  # type: ignore[dict-item]


# -- masks


def test_values_of_variables_are_masked_on_every_way_out(slot: Slot) -> None:
    script = (
        "import json, os, sys\n"
        "key = os.environ['KEY']\n"
        "print('a', key, 'b', os.environ['EPOCHS'])\n"
        "print('c', key, file=sys.stderr)\n"
        "json.dump({'name': f'loss {key}', 'value': 1}, open(os.environ['METRICS_PATH'], 'w'))\n"
        "open(os.environ['FAILURE_PATH'], 'w').write(f'no login with {key}')\n"
        "raise ValueError(key)\n"
    )
    outcome = slot.run(script, **with_paths(slot))
    assert outcome.lines[:1] + outcome.lines[-1:] == ["a *** b 50", "ValueError: ***"]
    assert "c ***" in outcome.lines
    assert outcome.metrics == [("loss ***", 1.0, None)]
    assert outcome.end.failure == "no login with ***"
    assert KEY not in repr(outcome.frames)


def test_a_value_is_masked_however_its_bytes_are_written(slot: Slot) -> None:
    script = (
        "import os, time\n"
        "for byte in os.environb[b'KEY'] * 2: os.write(1, bytes([byte])); time.sleep(0.002)\n"
        "os.write(1, b'\\n' + os.environb[b'KEY'])\n"
    )
    assert slot.run(script, **SECRET).lines == ["***", "***"]


def test_a_line_that_is_cut_in_a_value_does_not_show_its_beginning(slot: Slot) -> None:
    script = "import os\nfor before in range(979, 1001): print('x' * before + os.environ['KEY'])"
    first, *others = slot.run(script, **SECRET).lines  # of 1,000 bytes at most: the value fits into the first one
    assert first == "x" * 979 + "***"
    assert others == ["x" * before for before in range(980, 1001)]


def test_what_keeps_a_script_from_starting_is_told_without_a_value(slot: Slot) -> None:
    outcome = slot.run("pass", argv=[f"/nowhere/{KEY}"], **SECRET)
    assert outcome.end.error is not None
    assert "/nowhere/***" in outcome.end.error


# -- the rate


def test_lines_above_the_rate_are_dropped_counted_and_told_in_their_place(slot: Slot) -> None:
    script = "import time\nfor n in range(60): print(n)\ntime.sleep(1.5)\nprint('later')"
    outcome = slot.run(script, **SLOW)
    kinds = [frame for frame in outcome.frames if isinstance(frame, Log | Dropped)]
    assert outcome.lines == [*(str(n) for n in range(50)), "later"]
    assert outcome.dropped == [(10, 20, "more than 5 lines a second")]
    assert isinstance(kinds[50], Dropped)
    assert not outcome.end.output_quota_exceeded


def test_lines_at_the_limit_all_pass(slot: Slot) -> None:
    outcome = slot.run("for n in range(50): print(n)", **SLOW)
    assert (len(outcome.lines), outcome.dropped) == (50, [])


def test_what_is_dropped_at_the_very_end_is_told_too(slot: Slot) -> None:
    assert slot.run("for n in range(51): print(n)", **SLOW).dropped == [(1, 2, "more than 5 lines a second")]


def test_bytes_above_the_rate_are_dropped_too(slot: Slot) -> None:
    outcome = slot.run("for _ in range(30): print('y' * 100)", max_lines_per_s=1000, max_bytes_per_s=200)
    assert outcome.lines == ["y" * 100] * 20
    assert outcome.dropped == [(10, 1000, "more than 200 bytes a second")]


def test_a_flood_spends_its_quota_even_where_the_rate_drops_it(slot: Slot) -> None:
    outcome = slot.run("while True: print('y')", **SLOW, max_output_bytes=200_000)
    assert (outcome.end.output_quota_exceeded, outcome.end.signal) == (True, 15)
    assert outcome.lines == ["y"] * 50
    assert [because for _, _, because in outcome.dropped] == ["more than 5 lines a second"]


def test_a_scripts_imitation_of_our_words_stays_a_line_of_the_script(slot: Slot) -> None:
    words = "[runyard] 9 lines (99 bytes) were dropped here: more than 2,000 lines a second"
    frame = '{"seq":2,"type":"dropped","lines":9,"bytes":99}'
    outcome = slot.run(f"print({words!r})\nprint({frame!r})")
    assert (outcome.lines, outcome.dropped) == ([words, frame], [])


# -- the failure's own words


def failing(slot: Slot, write: str, end: str = "raise SystemExit(3)") -> str | None:
    script = f"import os\npath = os.environ['FAILURE_PATH']\n{write}\n{end}"
    return slot.run(script, **with_paths(slot)).end.failure


@pytest.mark.parametrize("length", [1, 1024])
def test_what_a_failing_script_writes_is_its_failure(slot: Slot, length: int) -> None:
    assert failing(slot, f"open(path, 'w').write('é' * {length})") == "é" * length


def test_of_a_longer_failure_the_first_1024_characters_count(slot: Slot) -> None:
    assert failing(slot, "open(path, 'w').write('é' * 1025)") == "é" * 1024
    assert (
        failing(slot, "file = open(path, 'w')\nfile.write('x' * 1023 + 'é')\nfile.truncate(10**12)") == "x" * 1023 + "é"
    )


def test_a_failure_is_made_safe_and_keeps_its_lines(slot: Slot) -> None:
    found = failing(slot, "open(path, 'wb').write(b'\\n one\\x1b[31m\\r\\n\\ttwo \\xff\\n\\n')")
    assert found == "one␛[31m\n\ttwo \N{REPLACEMENT CHARACTER}"


def test_a_value_that_the_end_of_a_failure_cuts_is_not_shown(slot: Slot) -> None:
    assert failing(slot, "open(path, 'w').write('x' * 1010 + os.environ['KEY'])") == "x" * 1010 + "***"
    assert failing(slot, "open(path, 'w').write('\\n' * (16384 - 5) + os.environ['KEY'])") is None


@pytest.mark.parametrize(
    "write",
    [
        "pass",
        "open(path, 'w')",
        "open(path, 'w').write(' \\n')",
        "os.mkdir(path)",
        "os.mkfifo(path)",
        "os.symlink(__file__, path)",
        "os.symlink('/dev/zero', path)",
        "open(path, 'w').write('x')\nos.chmod(path, 0)\nos.geteuid() or os.unlink(path)",
    ],
)
def test_whatever_else_stands_there_is_no_failure(slot: Slot, write: str) -> None:
    assert failing(slot, write) is None


def test_a_script_that_succeeds_has_no_failure_and_one_that_is_killed_may_have(slot: Slot) -> None:
    assert failing(slot, "open(path, 'w').write('x')", "pass") is None
    assert failing(slot, "open(path, 'w').write('x')", "os.kill(os.getpid(), 9)") == "x"

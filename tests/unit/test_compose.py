"""Protects compose.yaml: valid, complete, with health checks, images by variable and no default secrets.

`make test-compose` brings it up for real; here it is read as Compose reads it, in milliseconds.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.runner.settings import PackageSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.mark.parametrize("name", ["api", "scheduler", "auditor", "runner"])
def test_each_service_runs_its_own_module_and_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["command"][-1] == f"services.{name}.main"
    assert (ROOT / "services" / name / "main.py").exists()
    assert "readyz" in " ".join(SERVICES[name]["healthcheck"]["test"])


@pytest.mark.parametrize("name", ["kafka", "postgres"])
def test_servers_have_health_checks_and_keep_their_data_in_volumes(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    volume = SERVICES[name]["volumes"][0].split(":")[0]
    assert volume in COMPOSE["volumes"]


def test_postgres_is_asked_by_tcp_since_the_server_that_makes_the_cluster_answers_at_its_socket() -> None:
    assert "-h 127.0.0.1" in SERVICES["postgres"]["healthcheck"]["test"][-1]


def test_subscribers_reach_kafka_where_it_says_that_it_is() -> None:
    [published] = SERVICES["kafka"]["ports"]
    outside, _, inside = published.rpartition(":")
    settings = SERVICES["kafka"]["environment"]
    assert f"PUBLISHED://:{inside}" in settings["KAFKA_LISTENERS"].split(",")
    assert f"PUBLISHED://{outside}" in settings["KAFKA_ADVERTISED_LISTENERS"].split(",")


def test_the_runner_stores_as_a_member_of_the_services_group() -> None:
    [group] = re.findall(r"^USER \d+:(\d+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert SERVICES["runner"]["user"] == f"0:{group}"


def test_what_the_operator_says_of_packages_reaches_the_runner_and_nothing_said_is_the_default() -> None:
    told = {name: value for name, value in SERVICES["runner"]["environment"].items() if "PACKAGE" in name}
    assert told.keys() <= {f"RUNYARD_PACKAGE_{name.upper()}" for name in PackageSettings.model_fields}
    assert told == {name: f"${{{name}:-}}" for name in told}


def test_every_image_name_comes_from_a_variable_with_a_default() -> None:
    for name, service in SERVICES.items():
        assert re.fullmatch(r"\$\{[A-Z_]+:-[a-z/]+:[a-z0-9.]+\}", service["image"]), name


def test_no_secret_has_a_default() -> None:
    secrets = set(re.findall(r"\$\{([A-Z_]*(?:PASSWORD|KEY|SECRET)[A-Z_]*)(:-[^}]+)?", TEXT))
    assert {name for name, _ in secrets} >= {"RUNYARD_SEALING_KEY", "RUNYARD_JWT_SECRET", "RUNYARD_API_DB_PASSWORD"}
    assert [name for name, default in secrets if default] == []


def test_the_example_environment_names_every_required_variable() -> None:
    required = set(re.findall(r"\$\{([A-Z_]+):\?", TEXT))
    example = (ROOT / "deploy" / "compose.env.example").read_text()
    assert required <= set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))


@pytest.mark.parametrize("name", ["RUNYARD_WORK_DIR", "RUNYARD_SLOTS_DIR"])
def test_the_runner_has_its_folders_at_the_same_paths_inside_and_outside(name: str) -> None:
    runner = SERVICES["runner"]
    outside, inside = re.findall(r"\$\{[^}]*\}", next(volume for volume in runner["volumes"] if name in volume))
    assert outside == inside
    assert runner["environment"][name].startswith(inside)

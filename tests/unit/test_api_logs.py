"""Protects the logs from secrets: what a request held never stands beside the traceback of its failure."""

import json

import pytest
import structlog

from services.backbone.telemetry import configure_logs


def fail(body: dict[str, str]) -> None:
    raise ValueError(f"{len(body)} is wrong")


def test_a_logged_failure_names_the_place_and_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("api", "info")
    try:
        fail({"TOKEN": "canary-8d1f0e"})
    except ValueError as error:
        structlog.get_logger().error("request_failed", exc_info=error)
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    written = capsys.readouterr().err
    [failure] = json.loads(written)["exception"]
    assert (failure["exc_value"], failure["frames"][-1]["name"]) == ("1 is wrong", "fail")
    assert "canary-8d1f0e" not in written

"""Protects attempts from what the engine's client raises: a broken connection is silence, a bug stays a bug."""

from typing import Any

import pytest

from services.runner.errors import EngineUnavailable
from services.runner.sandbox import Sandbox


class Client:
    """An engine's client of which every question fails."""

    def __init__(self, problem: Exception) -> None:
        self._problem = problem

    def inspect_container(self, _: str) -> Any:
        raise self._problem


def test_a_pooled_connection_whose_socket_was_closed_is_no_answer() -> None:
    closed = ValueError("file descriptor cannot be a negative integer (-1)")
    with pytest.raises(EngineUnavailable):
        Sandbox(Client(closed)).inspect("run-1")  # type: ignore[arg-type]


def test_any_other_wrong_value_is_a_bug_and_is_not_tried_again() -> None:
    with pytest.raises(ValueError, match="wrong"):
        Sandbox(Client(ValueError("wrong"))).inspect("run-1")  # type: ignore[arg-type]

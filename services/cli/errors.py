"""What the command tells its user instead of a traceback.

    CliError            anything the user can understand and act on; `exit_code` is the command's
    ├── ApiRefused      the API answered with a problem (RFC 9457)
    └── ApiUnreachable  nobody answers at the URL

Codes: 1 it failed, 2 the command line or the request is wrong, 4 the system cannot be reached.
"""

from collections.abc import Mapping
from typing import Any


class CliError(Exception):
    """A failure in words for the user."""

    exit_code = 1


class UsageRefused(CliError):
    """What was asked for makes no sense as it stands."""

    exit_code = 2


class ApiUnreachable(CliError):
    """Nobody answers at the URL, or not in time, or the answer is that something is wrong there."""

    exit_code = 4


class ApiRefused(CliError):
    """The API refused; `problem` is its problem document."""

    exit_code = 2

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(problem_text(status, problem))
        self.status = status
        self.problem = problem

    @property
    def kind(self) -> str:
        """The stable last word of the problem's type, such as `run-in-progress`."""
        return str(self.problem.get("type", "")).rpartition("/")[2]


def problem_text(status: int, problem: Mapping[str, Any]) -> str:
    """Write a problem for people, every wrong field on a line of its own.

    >>> wrong = {"pointer": "/runtime", "message": "unknown"}
    >>> print(problem_text(422, {"title": "Some fields are wrong", "errors": [wrong]}))
    Some fields are wrong (422)
      /runtime: unknown
    """
    title, detail = str(problem.get("title") or "The request was refused"), problem.get("detail")
    lines = [f"{title} ({status})" + (f": {detail}" if detail and detail != title else "")]
    for error in problem.get("errors", ()):
        place = error.get("pointer") or error.get("parameter") or "the body"
        lines.append(f"  {place}: {error.get('message')}")
    if problem.get("run_id"):
        lines.append(f"  run: {problem['run_id']}")
    return "\n".join(lines)

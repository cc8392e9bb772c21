"""Ids: how they look and how they are made. Pure: randomness and dates are arguments.

Run and model ids are as short as on the endpoint's page and grow when a shorter one is taken. Event ids are
deterministic (UUIDv5, RFC 9562), so that a producer that repeats itself after a crash repeats the same id.
"""

import re
from datetime import date
from uuid import UUID, uuid5

EVENT_NAMESPACE = UUID("6f1f4c52-5f0a-5c0e-9d4f-0c1d8a7b2e11")
"""Namespace of every event id of Runyard; it never changes, or repeated events would get new ids."""

RUN_TOKEN_HEX = 6
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
OBJECT_TOKEN_HEX = 8


def run_id(day: date, token: str) -> str:
    """Name a run by its day (UTC) and a lower-case hex token of at least 6 digits.

    >>> run_id(date(2026, 3, 13), "f7e2a1")
    'run-custom-20260313-f7e2a1'
    """
    return f"run-custom-{day:%Y%m%d}-{token}"


def model_id(token: str) -> str:
    """Name a model by a lower-case hex token of at least 8 digits.

    >>> model_id("7f3a19bc")
    'mdl-7f3a19bc'
    """
    return f"mdl-{token}"


def dataset_id(token: str) -> str:
    """Name a dataset by a lower-case hex token of at least 8 digits."""
    return f"dts-{token}"


def asset_id(token: str) -> str:
    """Name an asset by a lower-case hex token of at least 8 digits."""
    return f"ast-{token}"


def is_name(text: str) -> bool:
    """Whether a text can be the id of a run or runner: every folder, container, index and row can hold it as it is.

    >>> is_name("run-custom-20260313-f7e2a1"), is_name("../etc"), is_name("run-" + "a" * 125)
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None


def variables_key(run: str) -> str:
    """Name the object that holds a run's sealed variables, from its acceptance to its end."""
    return f"variables/{run}"


CHECKPOINTS = "checkpoints"
"""Where the checkpoints of all runs are kept, a folder for each run."""


def checkpoints_folder(run: str) -> str:
    """Name the folder of a run's checkpoints, from its first one to its end."""
    return f"{CHECKPOINTS}/{run}"


def checkpoint_key(run: str, attempt: int) -> str:
    """Name the object that holds the newest checkpoint of an attempt.

    >>> checkpoint_key("run-custom-20260313-f7e2a1", 2)
    'checkpoints/run-custom-20260313-f7e2a1/2'
    """
    return f"{checkpoints_folder(run)}/{attempt}"


def event_id(subject: str, attempt: int, kind: str, sequence: int = 0) -> UUID:
    """Derive the id of an event from what it says: the same fact always gets the same id.

    Args:
        subject: the run or runner that the event is about.
        attempt: the attempt that it belongs to; 0 for facts about the run as a whole.
        kind: the event's type name.
        sequence: which of several events of that kind in that attempt.
    """
    return uuid5(EVENT_NAMESPACE, f"{subject}/{attempt}/{kind}/{sequence}")

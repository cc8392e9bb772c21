"""JSON as RFC 8259 has it and no more: UTF-8, no NaN, names once per object, nesting within reason. Pure.

Two readers that understand a text differently are how a request passes one of them and harms the other; what can be
read in two ways is refused.
"""

import json
from typing import Any, NoReturn


def read_strictly(text: bytes) -> Any:
    """Read a JSON text.

    Raises:
        JSONDecodeError: with what is wrong and, where it is known, at which character.

    >>> read_strictly(b'{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    """
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_number)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError("Not UTF-8", "", error.start) from error
    except RecursionError as error:
        raise json.JSONDecodeError("Nested too deeply", "", 0) from error
    except ValueError as error:  # an integer of more digits than Python reads (4,300)
        raise json.JSONDecodeError("A number is too long", "", 0) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        raise json.JSONDecodeError("A name stands twice in one object", "", 0)
    return read


def _no_number(word: str) -> NoReturn:
    raise json.JSONDecodeError(f"{word} is no number", "", 0)

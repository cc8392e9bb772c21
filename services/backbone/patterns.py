"""Strangers' regular expressions on strangers' lines: RE2, whose matching is linear, within a bound of memory.

Python's own `re` would backtrack for ever (decision 13). Who accepts a pattern and who uses it compile it here, so that
what was accepted can be used. Owns the limits of a pattern; never knows what it is looked for in.
"""

from dataclasses import dataclass
from typing import Any

import re2

MOST_CHARACTERS = 256
MEMORY_BYTES = 256 << 10
"""RE2's `max_mem` (re2.h): for the compiled program, which may so have about 10,000 instructions, and the automata that
are built of it while it searches."""


class PatternRefused(ValueError):
    """The text is no pattern that can be used; says why."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern with one group."""

    _compiled: Any

    @property
    def size(self) -> int:
        """How many instructions it has: a line costs at most about 4 ns for each of its bytes and each of these."""
        size: int = self._compiled.programsize
        return size

    def find(self, line: bytes) -> bytes | None:
        """Return what the group caught in the first match; None when there is none. Lets other threads run."""
        match = self._compiled.search(line)
        caught: bytes | None = None if match is None else match[1]
        return caught


def compile_pattern(text: str) -> Pattern:
    r"""Compile a pattern that has exactly one group to catch with; `(?:…)` is none.

    >>> compile_pattern(r"loss=(\S+)").find(b"epoch 3 loss=0.25 ")
    b'0.25'

    Raises:
        PatternRefused: it is too long or too large, no pattern, or has another number of groups.
    """
    if len(text) > MOST_CHARACTERS:
        raise PatternRefused(f"a pattern has at most {MOST_CHARACTERS} characters")
    options = re2.Options()
    options.max_mem = MEMORY_BYTES
    options.log_errors = False
    try:
        compiled = re2.compile(text, options)
    except (re2.error, UnicodeEncodeError) as error:
        raise PatternRefused(f"not a pattern of RE2's syntax: {_words(error)}") from error
    if compiled.groups != 1:
        raise PatternRefused(f"a pattern has exactly one group in parentheses; this one has {compiled.groups}")
    return Pattern(compiled)


def _words(error: Exception) -> str:
    said = error.args[0]
    return said.decode(errors="replace") if isinstance(said, bytes) else str(error)

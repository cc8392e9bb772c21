"""The system calls that a container may make: a profile of our own, in Docker's format, with a comment for each group.

It is an allow-list derived from the engine's documented default; `docs/security.md` says what was left out of that. It
is always given explicitly, and nothing replaces it but an operator's own file: there is no word for "unconfined".
"""

import json
from functools import cache
from pathlib import Path

OWN = Path(__file__).with_name("seccomp.json")


@cache
def profile(path: Path = OWN) -> str:
    """Return a profile as the engine takes it: JSON without blanks.

    Raises:
        OSError: there is no such file.
        ValueError: it is no profile; `unconfined` is none.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "defaultAction" not in found or not found.get("syscalls"):
        raise ValueError(f"{path} is no seccomp profile: it needs a defaultAction and syscalls")
    return json.dumps(found, separators=(",", ":"))

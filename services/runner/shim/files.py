"""Opens what the script has written: without following a link, without waiting, and only if it is a regular file.

Owns the words of a failure, too, which are read once, when nobody writes any more.
"""

import os
import stat

from services.runner.shim.lines import safe_text
from services.runner.shim.masking import Mask

MOST_CHARACTERS = 1024
"""SageMaker's limit for the text of a failure file."""
MOST_BYTES = 16 * MOST_CHARACTERS


def open_regular(path: str) -> int | None:
    """Open a regular file to read it; None for whatever else stands there, or nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def failure_message(path: str, mask: Mask) -> str | None:
    """Read the first characters of what the script says about its failure; None if it says nothing."""
    descriptor = open_regular(path)
    if descriptor is None:
        return None
    try:
        found = os.pread(descriptor, MOST_BYTES + 1, 0)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    *lines, last = found[:MOST_BYTES].split(b"\n")
    ended = [*((line, False) for line in lines), (last, len(found) > MOST_BYTES)]
    text = "\n".join(safe_text(line, cut) for line, cut in mask.lines(ended))
    return text.strip()[:MOST_CHARACTERS] or None

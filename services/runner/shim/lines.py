"""Lines out of bytes: where they end, where they are cut, and what of them may be shown.

Pure. A script decides every byte, so nothing here holds more than one line's limit, or trusts that bytes are text.
"""

import codecs
import time
from collections.abc import Iterator

# Terminal control must not reach whoever reads the logs: C0 becomes its Unicode pictures, C1 is replaced.
HARMLESS = {code: 0x2400 + code for code in range(32) if code != 9} | dict.fromkeys(range(127, 160), 0xFFFD)


class LineSplitter:
    """Cuts a stream of bytes into lines; of a line above the limit only the beginning is kept, and marked."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held, self.skipping = b"", False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield each finished line without its newline, and whether it was cut."""
        *lines, self.held = (self.held + data).split(b"\n")
        for line in lines:
            if not self.skipping:
                yield line[: self.limit_bytes], len(line) > self.limit_bytes
            self.skipping = False
        if len(self.held) > self.limit_bytes and not self.skipping:
            yield self.held[: self.limit_bytes], True
            self.skipping = True
        if self.skipping:
            self.held = b""

    def finish(self) -> Iterator[tuple[bytes, bool]]:
        """Yield what stands after the last newline."""
        if self.held:
            yield from self.feed(b"\n")


def safe_text(line: bytes, cut: bool) -> str:
    """Decode a line of output so that it can be shown: no invalid UTF-8, no control characters but the tabulator."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(line, final=not cut)
    return text.removesuffix("\r").translate(HARMLESS)


def rfc3339(moment: float) -> str:
    """Write a time as RFC 3339 in UTC, to the millisecond."""
    millis = int(moment * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(millis // 1000)) + f".{millis % 1000:03d}Z"

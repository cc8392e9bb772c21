"""How many lines, and how many bytes of them, a script may write a second: two token buckets with one door.

Pure: the clock is an argument. Once a bucket is empty the door stays shut until both hold a second's worth again, so
that what is dropped is dropped in few pieces, each said once in its place.
"""

BURST_S = 10
"""How many seconds' worth may come at once."""


class Rate:
    """Lets lines through, or counts them."""

    def __init__(self, lines_per_s: int, bytes_per_s: int, now: float) -> None:
        self.lines_per_s, self.bytes_per_s = lines_per_s, bytes_per_s
        self.free_lines, self.free_bytes = float(BURST_S * lines_per_s), float(BURST_S * bytes_per_s)
        self.filled_at = now
        self.because = ""
        self.lines = self.bytes = 0

    def admits(self, size_bytes: int, now: float) -> bool:
        """Take one line's tokens; without them, or while the door is shut, the line is counted and refused."""
        if not self._is_open(now):
            self.lines += 1
            self.bytes += size_bytes
            return False
        self.free_lines -= 1
        self.free_bytes -= size_bytes
        return True

    def dropped(self, now: float, *, at_once: bool = False) -> dict[str, object]:
        """Tell what was refused, when lines may pass again or at once; empty if there is nothing to tell."""
        if not self.lines or not (at_once or self._is_open(now)):
            return {}
        told: dict[str, object] = {"lines": self.lines, "bytes": self.bytes, "because": self.because}
        self.lines = self.bytes = 0
        return told

    def _is_open(self, now: float) -> bool:
        if now > self.filled_at:
            self._fill(now)
        if self.lines:
            return self.free_lines >= self.lines_per_s and self.free_bytes >= self.bytes_per_s
        if self.free_lines >= 1 and self.free_bytes >= 1:
            return True
        most, what = (self.bytes_per_s, "bytes") if self.free_lines >= 1 else (self.lines_per_s, "lines")
        self.because = f"more than {most:,} {what} a second"
        return False

    def _fill(self, now: float) -> None:
        passed, self.filled_at = now - self.filled_at, now
        self.free_lines = min(self.free_lines + passed * self.lines_per_s, BURST_S * self.lines_per_s)
        self.free_bytes = min(self.free_bytes + passed * self.bytes_per_s, BURST_S * self.bytes_per_s)

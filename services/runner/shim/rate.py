"""How many lines, and how many bytes of them, a script may write a second: two token buckets with one door.

Pure: the clock is an argument. Once a bucket is empty the door stays shut until both hold a second's worth again, so
that what is dropped is dropped in few pieces, each said once in its place.
"""

BURST_S = 10
"""How many seconds' worth may come at once."""


class Rate:
    """Lets lines through, or counts them."""

    def __init__(self, lines_per_s: int, bytes_per_s: int, now: float) -> None:
        self.per_s = (lines_per_s, bytes_per_s)
        self.tokens = [float(BURST_S * most) for most in self.per_s]
        self.filled_at = now
        self.because = ""
        self.lines = self.bytes = 0

    def admits(self, size_bytes: int, now: float) -> bool:
        """Take one line's tokens; without them, or while the door is shut, the line is counted and refused."""
        if not self._is_open(now):
            self.lines += 1
            self.bytes += size_bytes
            return False
        for kind, amount in enumerate((1, size_bytes)):
            self.tokens[kind] -= amount
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
            passed, self.filled_at = now - self.filled_at, now
            full = [(held + passed * most, float(BURST_S * most)) for held, most in self._buckets()]
            self.tokens = [min(both) for both in full]
        shut = bool(self.lines)
        for kind, (held, most) in enumerate(self._buckets()):
            if held < (most if shut else 1):
                self.because = self.because if shut else f"more than {most:,} {('lines', 'bytes')[kind]} a second"
                return False
        return True

    def _buckets(self) -> list[tuple[float, int]]:
        return list(zip(self.tokens, self.per_s, strict=True))

"""Hides the values of the run's variables in whatever leaves the container: `***` stands for them.

Bytes are compared as they are, so a value that the script encodes, reverses or spreads over lines goes through: this
keeps an honest script's secrets out of the logs, and no more.
"""

import json
from collections.abc import Iterable, Iterator

MASK = b"***"
SHORTEST = 6
"""Values with fewer characters (`EPOCHS=50`) are not hidden: nothing could be read any more."""

Line = tuple[bytes, bool]


class Mask:
    """Hides some values, each line of them by itself."""

    def __init__(self, values: Iterable[str]) -> None:
        lines = {line.strip() for value in values for line in value.split("\n")}
        self.pieces = sorted({form.encode() for line in lines if len(line) >= SHORTEST for form in _forms(line)})

    def lines(self, lines: Iterable[Line]) -> Iterable[Line]:
        """Hide the values in finished lines. A cut one loses what may be the beginning of a value at its end."""
        return self._hidden(list(lines)) if self.pieces else lines

    def text(self, text: str) -> str:
        """Hide the values in a text of one or many lines."""
        return b"\n".join(
            line for line, _ in self.lines((line, False) for line in text.encode(errors="replace").split(b"\n"))
        ).decode()

    def _hidden(self, lines: list[Line]) -> Iterator[Line]:
        block = b"\n".join(line for line, _ in lines)
        # One search per value and block is seven times as fast as one pattern of all (measured with 100 values), and
        # no value can make it slow.
        present = [piece for piece in self.pieces if piece in block]
        for line, cut in lines:
            end = self._begins_at(line) if cut else len(line)
            yield _covered(line, present, end) if present else line[:end], cut

    def _begins_at(self, line: bytes) -> int:
        """Find where a value begins that the end of the line has cut off; the end itself if none does."""
        return min(_first_begun(line, piece) for piece in self.pieces)


def _forms(line: str) -> set[str]:
    """Write a value as scripts do: as it is, and as it stands in JSON and in a traceback."""
    quoted = (json.dumps(line), json.dumps(line, ensure_ascii=False), repr(line))
    return {line, *(form[1:-1] for form in quoted)}


def _first_begun(line: bytes, piece: bytes) -> int:
    position = line.find(piece[:1], max(0, len(line) - len(piece) + 1))
    while position >= 0:
        if piece.startswith(line[position:]):
            return position
        position = line.find(piece[:1], position + 1)
    return len(line)


def _covered(line: bytes, pieces: list[bytes], end: int) -> bytes:
    """Cover every place where one of the pieces stands, up to an end; those that overlap get one mask."""
    parts: list[bytes] = []
    shown = 0
    for start, stop in sorted(_places(line, pieces)):
        if start >= end:
            break
        if start > shown or not parts:
            parts += [line[shown:start], MASK]
        shown = max(shown, stop)
    return b"".join([*parts, line[shown:end]])


def _places(line: bytes, pieces: list[bytes]) -> Iterator[tuple[int, int]]:
    for piece in pieces:
        position = line.find(piece)
        while position >= 0:
            yield position, position + len(piece)
            position = line.find(piece, position + 1)

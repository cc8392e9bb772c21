"""The decoder of the shim's frames: any chunking, any garbage, nothing twice."""

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner.frames import (
    MAX_FRAME_BYTES,
    MOST,
    MOST_TEXT_BYTES,
    Dropped,
    End,
    FrameDecoder,
    Log,
    Metric,
    Started,
    Timeout,
    parse,
)

AT = datetime(2026, 3, 13, 16, 10, 0, 250_000, tzinfo=UTC)
LOG = (
    b'{"seq":1,"type":"started","at":"2026-03-13T16:10:00.250Z"}\n'
    b'{"seq":2,"type":"log","stream":"stdout","text":"caf\\u00e9","at":"2026-03-13T16:10:00.250Z","truncated":true}\n'
    b'{"seq":3,"type":"metric","name":"loss","value":0.5,"step":null,"at":"2026-03-13T16:10:00.250Z"}\n'
    b'{"seq":4,"type":"timeout","at":"2026-03-13T16:10:00.250Z"}\n'
    b'{"seq":5,"type":"dropped","lines":7,"bytes":70}\n'
    b'{"seq":6,"type":"end","exit_code":null,"signal":9,"timed_out":true,"oom_kills":1,"wall_seconds":2.5,'
    b'"ended_at":"2026-03-13T16:10:00.250Z","a_newer_field":1}\n'
)
FRAMES = [
    Started(seq=1, at=AT),
    Log(seq=2, stream="stdout", text="café", at=AT, truncated=True),
    Metric(seq=3, name="loss", value=0.5, at=AT),
    Timeout(seq=4, at=AT),
    Dropped(seq=5, lines=7, bytes=70),
    End(seq=6, exit_code=None, signal=9, timed_out=True, oom_kills=1, wall_seconds=2.5, ended_at=AT),
]


@given(st.lists(st.integers(0, len(LOG)), max_size=8))
def test_frames_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    decoder, edges = FrameDecoder(), [0, *sorted(cuts), len(LOG)]
    chunks = [LOG[start:end] for start, end in pairwise(edges)]
    assert [frame for chunk in chunks for frame in decoder.feed(chunk)] == FRAMES
    assert decoder.last_seq == 6


def test_a_log_that_is_followed_again_continues_after_the_known_sequence() -> None:
    assert FrameDecoder(after=4).feed(LOG) == FRAMES[4:]
    twice = FrameDecoder()
    assert twice.feed(LOG + LOG) == FRAMES


def test_garbage_between_frames_is_skipped_and_counted() -> None:
    decoder = FrameDecoder()
    first, *rest = LOG.splitlines(keepends=True)
    assert decoder.feed(first + b"\xff\xfe oops\n\n[1]\n" + b"".join(rest)) == FRAMES
    assert decoder.garbage_lines == 3


def test_a_line_that_never_ends_is_not_kept_and_costs_only_itself() -> None:
    decoder = FrameDecoder()
    for _ in range(3):
        assert decoder.feed(b"x" * MAX_FRAME_BYTES) == []
    assert decoder.feed(b"x\n" + LOG) == FRAMES
    assert decoder.garbage_lines == 1


def test_what_a_newer_shim_tells_is_read_and_what_an_older_one_did_not_tell_is_none() -> None:
    dropped = b'{"seq":5,"type":"dropped","lines":7,"bytes":70'
    assert parse(dropped + b"}") == Dropped(seq=5, lines=7, bytes=70, because=None)
    assert parse(dropped + b',"because":"too fast"}') == Dropped(seq=5, lines=7, bytes=70, because="too fast")
    end = b'{"seq":6,"type":"end","exit_code":1,"signal":null'
    assert parse(end + b"}") == End(seq=6, exit_code=1, signal=None, failure=None)
    assert parse(end + b',"failure":"no\\nlogin"}') == End(seq=6, exit_code=1, signal=None, failure="no\nlogin")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"{}",
        b'{"type":"unheard_of","seq":1}',
        b'{"type":["log"],"seq":1}',
        b'{"type":"dropped","seq":"1","lines":1,"bytes":1}',
        b'{"type":"dropped","seq":true,"lines":1,"bytes":1}',
        b'{"type":"timeout","seq":1,"at":"yesterday"}',
        b'{"type":"timeout","seq":1,"at":5}',
        b'{"type":"log","seq":1}',
        b"[" * 100_000,
        *[
            b'{"type":"end","seq":1,"exit_code":1,"signal":null,' + field + b"}"
            for field in (
                *(b'"peak_memory_bytes":-1', b'"cpu_seconds":-1', b'"cpu_seconds":1e999', b'"wall_seconds":NaN'),
                *(b'"ended_at":"2026-03-13T16:10:00"', b'"ended_at":"0001-01-01T00:00:00+23:00"', b'"oom_kills":true'),
                *(b'"failure":"\\ud800"', b'"failure":"a\\u0000"', b'"failure":5', b'"timed_out":1'),
            )
        ],
        *[
            b'{"seq":1,"at":"2026-03-13T16:10:00Z",' + fields + b"}"
            for fields in (
                b'"type":"log","stream":"stdout","text":5',
                b'"type":"metric","name":"loss","value":"5"',
                b'"type":"metric","name":"loss","value":1e999',
                b'"type":"metric","name":"loss","value":1' + b"0" * 400,
                b'"type":"metric","name":"loss","value":1,"step":9223372036854775808',
            )
        ],
        b'{"type":"dropped","seq":-1,"lines":1,"bytes":1}',
        b'{"type":"dropped","seq":%d,"lines":1,"bytes":1}' % MOST,
        b'{"type":"log","seq":1,"stream":"stdout","at":"2026-03-13T16:10:00Z","text":"%s"}'
        % (b"x" * (MOST_TEXT_BYTES + 1)),
    ],
)
def test_what_is_no_frame_is_none(line: bytes) -> None:
    """Whoever forges frames (gVisor lets a script do so) ends no runner and fills nobody's dead letters."""
    assert parse(line) is None


def test_what_is_just_within_the_limits_is_a_frame() -> None:
    at = b'"at":"2026-03-13T16:10:00Z"'
    assert parse(b'{"type":"dropped","seq":%d,"lines":0,"bytes":1}' % (MOST - 1)) is not None
    assert parse(b'{"type":"log","seq":1,"stream":"stdout",%s,"text":"%s"}' % (at, b"x" * MOST_TEXT_BYTES)) is not None
    step = 1 - 2**63
    found = parse(b'{"type":"metric","seq":1,"name":"loss","value":-1,"step":%d,%s}' % (step, at))
    assert found == Metric(seq=1, name="loss", value=-1, step=step, at=AT.replace(microsecond=0))

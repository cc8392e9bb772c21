"""The mask over the values of variables: what it covers, what it cannot, and that it stays quick."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner.shim.masking import Mask

KEY = "s3cret-key-0123456789"


def covered(line: str, *values: str, cut: bool = False) -> str:
    [(found, still_cut)] = Mask(values).lines([(line.encode(), cut)])
    assert still_cut == cut
    return found.decode()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (KEY, "***"),
        (f"token={KEY}.", "token=***."),
        (f"{KEY} and {KEY}", "*** and ***"),
        (f"x{KEY}{KEY}y", "x***y"),
        (f'{{"type":"log","text":"{KEY}"}}', '{"type":"log","text":"***"}'),
        (KEY[:-1], KEY[:-1]),
        (KEY.upper(), KEY.upper()),
        ("", ""),
    ],
)
def test_a_value_is_covered_wherever_it_stands_in_a_line(line: str, shown: str) -> None:
    assert covered(line, KEY) == shown


def test_five_characters_are_shown_and_six_are_not() -> None:
    assert covered("EPOCHS is 12345", "12345") == "EPOCHS is 12345"
    assert covered("EPOCHS is 123456", "123456") == "EPOCHS is ***"
    assert covered("schlüs schlüss", "schlü") == "schlüs schlüss"  # characters, not bytes
    assert covered("schlüs schlüss", "schlüs") == "*** ***s"
    assert covered("  1234   1234", "  1234 ") == "  1234   1234"  # blanks around a value hide nothing


def test_each_line_of_a_value_is_covered_if_it_is_long_enough() -> None:
    value = "-----BEGIN KEY-----\nMIIEvQIBADANBg\r\nshort\n\n-----END KEY-----\n"
    lines = [line.encode() for line in value.split("\n")]
    found = [line for line, _ in Mask([value]).lines((line, False) for line in lines)]
    assert found == [b"***", b"***\r", b"short", b"", b"***", b""]


def test_the_longest_of_several_values_counts_and_overlapping_ones_leave_nothing() -> None:
    assert covered("abcdefgh abcdef", "abcdef", "abcdefgh") == "*** ***"
    assert covered("-abcdefghijkl-", "abcdefgh", "efghijkl") == "-***-"
    assert covered("-abcdefghijkl-", "efghij", "abcdefghijkl") == "-***-"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"token={KEY[:-1]}", "token="),
        (f"token={KEY[:1]}", "token="),
        (f"token={KEY[:7]}s3c", f"token={KEY[:7]}"),
        (f"token={KEY}", "token=***"),
        (f"token={KEY}s3cr", "token=***"),
        ("token=no", "token=no"),
        (KEY[:-1], ""),
    ],
)
def test_the_end_of_a_cut_line_tells_no_beginning_of_a_value(line: str, shown: str) -> None:
    assert covered(line, KEY, cut=True) == shown


def test_a_cut_end_that_could_belong_to_two_values_loses_the_longer_beginning() -> None:
    assert covered("see abcabcab", "abcabcabX-", "abXYZ123", cut=True) == "see "
    assert covered("see xabcdef", "abcdefgh", "xabcdefz", cut=True) == "see "


@given(st.text("ab", min_size=6, max_size=9), st.text("abc", max_size=40), st.integers(0, 40))
def test_no_value_and_no_begun_value_is_ever_shown(value: str, text: str, limit: int) -> None:
    line = f"{text}{value}{text}"
    assert value not in covered(line, value)
    shown = covered(line[:limit], value, cut=True)
    assert value not in shown
    assert not any(shown.endswith(value[:length]) for length in range(1, len(value)) if line[:limit] == shown)


def test_a_value_is_covered_as_json_and_a_traceback_write_it() -> None:
    value = "pä\"ss\\wörd'\nof two lines"
    for written in (json.dumps(value), json.dumps(value, ensure_ascii=False), repr(value), repr([value])):
        shown = covered(f"config: {written}", value)
        assert [part for part in ("ss", "rd", "two") if part in shown] == []


def test_text_of_many_lines_is_covered_line_by_line() -> None:
    assert Mask([KEY]).text(f"ValueError: {KEY}\nat {KEY}:1") == "ValueError: ***\nat ***:1"
    assert Mask([]).text("as it is") == "as it is"
    assert Mask([KEY]).text("half a character: \ud800") == "half a character: ?"


def test_a_hundred_values_cost_a_block_of_output_little() -> None:
    values = [f"{number:03d}-{'kq7' * 10}" for number in range(100)]
    mask = Mask(values)
    block = [(b"epoch 7 loss 0.1234 accuracy 0.9876 learning rate 0.001", False)] * 1000
    began = time.process_time()
    for _ in range(20):
        assert list(mask.lines(block)) == block
    assert time.process_time() - began < 2  # 64 MB in less than two minutes on any machine; here it is two seconds


def test_a_value_that_repeats_itself_cannot_make_it_slow() -> None:
    mask = Mask(["a" * 16_000 + "b"])
    began = time.process_time()
    for _ in range(4):
        assert next(iter(mask.lines([(b"a" * 16_384, True)])))[0] == b"a" * 384
    assert time.process_time() - began < 2

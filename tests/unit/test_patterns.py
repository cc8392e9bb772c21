"""Protects services from strangers' patterns: what can be used, both sides of each limit, and none takes for ever."""

import pytest

from services.backbone.patterns import MEMORY_BYTES, MOST_CHARACTERS, PatternRefused, compile_pattern


@pytest.mark.parametrize(
    ("text", "line", "caught"),
    [
        (r"loss=([0-9.eE+-]+)", "epoch 3 loss=1.5e-3 acc=0.9", "1.5e-3"),
        (r"(?i)val[_ ]loss\s*[:=]\s*(?:about )?(?P<value>\S+)", "VAL LOSS: about 0.5", "0.5"),
        (r"größe (\d+)", "größe 7 µm", "7"),
        (r"\[(\d+)%\]", "[10%] [20%]", "10"),
        (r"a(x)?b", "ab", None),
        (r"loss=(\d+)", "nothing here", None),
    ],
)
def test_a_pattern_finds_what_its_group_catches_first(text: str, line: str, caught: str | None) -> None:
    assert compile_pattern(text).find(line.encode()) == (None if caught is None else caught.encode())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loss=.*", "this one has 0"),
        ("(?:loss)", "this one has 0"),
        ("(a)(b)", "this one has 2"),
        ("(loss", "missing"),
        ("(a{1001})", "repetition"),
        (r"(a)\1", "escape"),
        ("(?=a)(b)", "not a pattern"),
        ("(\ud800)", "not a pattern"),
        ("", "this one has 0"),
    ],
)
def test_other_texts_are_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(PatternRefused, match=words):
        compile_pattern(text)


def test_a_pattern_of_256_characters_is_taken_and_one_more_is_not() -> None:
    assert MOST_CHARACTERS == 256
    assert compile_pattern("é" * 253 + "(.)").find(("é" * 253 + "7").encode()) == b"7"
    with pytest.raises(PatternRefused, match="at most 256 characters"):
        compile_pattern("é" * 254 + "(.)")


def test_a_pattern_that_needs_more_memory_than_its_bound_is_refused() -> None:
    assert MEMORY_BYTES == 256 << 10
    assert compile_pattern(r"(\pL{8})").size < 10_000
    with pytest.raises(PatternRefused, match="too large"):
        compile_pattern(r"(\pL{20})")


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "text", [r"((?:a+)+)$", r"((?:a|aa)+)$", r"(?:a*)*(b)", r"^(?:(?:a?){30}){30}(a{30})$", r"(x+x+)+y"]
)
def test_no_pattern_makes_a_line_take_for_ever(text: str) -> None:
    """Each of them keeps a backtracking engine busy until the end of the universe."""
    compile_pattern(text).find(b"a" * 16_000 + b"!")

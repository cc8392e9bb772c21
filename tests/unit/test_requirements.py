"""Protects the operator's choice of index from what requirements assets say, and their owners from being misread."""

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from pip._internal.req.req_file import preprocess

from services.runner.package_index import destination
from services.runner.requirements import (
    MOST_BYTES,
    MOST_CHARACTERS,
    PackageSet,
    Policy,
    RequirementsFailed,
    package_set,
    read_requirements,
)

SHA = "a" * 64
BUILDS = Policy(builds_allowed=True, destinations=frozenset({destination("files.example")}))
WHEELS = Policy(destinations=frozenset({destination("files.example"), destination("other.example:8443")}))


@pytest.mark.parametrize(
    "line",
    [
        "six",
        "six==1.17.0",
        "six >= 1.16, <2",
        "six (>=1.16)",
        "requests[socks,security]>=2",
        "tomli ; python_version < '3.11'",
        'backports.zoneinfo>=0.2; python_version == "3.8" and sys_platform != "win32"',
        "torch==2.4.0+cpu",
        "six~=1.16.0",
        "six===1.16.0",
        "six!=1.15.*",
        f"six==1.17.0 --hash=sha256:{SHA}",
        f"six==1.17.0 --hash sha256:{SHA} --hash=sha512:{SHA}{SHA}",
        "--require-hashes",
        "--pre",
        "--only-binary=:all:",
        "six @ https://files.example/packages/six-1.17.0-py2.py3-none-any.whl",
        f"six @ https://other.example:8443/six.whl#sha256={SHA} ; python_version > '3'",
    ],
)
def test_what_names_packages_reaches_pip_as_it_is(line: str) -> None:
    assert read_requirements("r.txt", line.encode(), WHEELS) == line + "\n"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--index-url https://elsewhere.example/simple", "operator's choice"),
        ("-i https://elsewhere.example/simple", "operator's choice"),
        ("--extra-index-url=https://elsewhere.example/simple", "operator's choice"),
        ("--find-links /", "operator's choice"),
        ("--trusted-host files.example", "operator's choice"),
        ("--no-index", "operator's choice"),
        ("-r other.txt", "cannot include"),
        ("--requirement=/etc/passwd", "cannot include"),
        ("-c constraints.txt", "cannot include"),
        ("-e .", "from a folder"),
        ("--editable=git+https://files.example/x", "from a folder"),
        ("--no-binary :all:", "built from source"),
        ("--use-feature=fast-deps", "option is not allowed"),
        ("-ihttps://elsewhere.example", "option is not allowed"),
        (".", "not a package's name"),
        ("./six", "not a package's name"),
        ("/runyard/code/pip.zip", "not a package's name"),
        ("..\\six", "not a package's name"),
        ("pip.zip", "not a file"),
        ("six-1.17.0-py2.py3-none-any.WHL", "not a file"),
        ("https://files.example/six.whl", "not a package's name"),
        ("git+https://files.example/six.git", "not a package's name"),
        ("six @ git+https://files.example/six.git", "index's hosts only"),
        ("six @ http://files.example/six.whl", "index's hosts only"),
        ("six @ https://elsewhere.example/six.whl", "index's hosts only"),
        ("six @ https://files.example:8443/six.whl", "index's hosts only"),
        ("six @ https://files.example@elsewhere.example/six.whl", "index's hosts only"),
        ("six @ https://someone@files.example/six.whl", "index's hosts only"),
        ("six @ https://files.example.elsewhere.example/six.whl", "index's hosts only"),
        ("six @ https://169.254.169.254/six.whl", "index's hosts only"),
        ("six @ file:///runyard/code/pip.zip", "index's hosts only"),
        ("six @ https://files.example/${HOME}/six.whl", "index's hosts only"),
        ("six @ https://[files.example/six.whl", "no URL"),
        ("six @ https://files.example/six.tar.gz", "built from source"),
        ("six @ https://files.example/six.tar.gz#x.whl", "built from source"),
        ("${HOME}", "not a package's name"),
        ("six==${HOME}", "not a package's name"),
        ("six==1.17.0 --global-option=x", "no option but --hash"),
        ("six==1.17.0 --config-settings=x=y", "no option but --hash"),
        (f"six==1.17.0 --hash=md5:{'a' * 32}", "no option but --hash"),
        (f"six==1.17.0 --hash=sha256:{SHA} --index-url=https://elsewhere.example", "no option but --hash"),
        ("six\x00", "control characters"),
        ("six ; python_version > '\x1b[31m'", "control characters"),
    ],
)
def test_what_would_reach_elsewhere_is_refused_with_file_and_line(line: str, why: str) -> None:
    with pytest.raises(RequirementsFailed, match=rf"^r\.txt, line 3: .*{why}"):
        read_requirements("r.txt", f"six\n\n{line}\n".encode(), WHEELS)


def test_what_builds_from_source_is_allowed_where_the_operator_says_so() -> None:
    for line in ("--no-binary :all:", "--no-binary=six", "six @ https://files.example/six.tar.gz"):
        assert read_requirements("r.txt", line.encode(), BUILDS) == line + "\n"


def test_lines_stay_where_they_were_so_that_pip_names_the_right_one() -> None:
    content = (
        f"# ours\r\n\nsix==1.17.0 \\\n    --hash=sha256:{SHA} \\\n    # a comment ends it\ntomli#1\n  attrs  # no. 6\n"
    )
    with pytest.raises(RequirementsFailed, match="line 6"):
        read_requirements("r.txt", content.encode(), WHEELS)
    read = read_requirements("r.txt", content.replace("tomli#1", "tomli #1").encode(), WHEELS)
    assert read.split("\n") == ["", "", f"six==1.17.0 --hash=sha256:{SHA}", "", "", "tomli", "attrs", ""]


def test_a_comment_is_not_continued_however_far_it_is_indented() -> None:
    read = read_requirements("r.txt", b"  # note \\\nsix==1.17.0\nattrs\n", WHEELS)
    assert read.split("\n") == ["", "six==1.17.0", "attrs", ""]


def test_all_backslashes_at_the_end_of_a_continued_line_go() -> None:
    assert read_requirements("r.txt", b"si\\\\\nx\n", WHEELS) == "six\n\n"


@pytest.mark.parametrize(
    "line",
    [
        r"six @ https://files.example/x.whl?\ # c",
        r"six @ https://files.example/x.whl\ # c",
        r"six \ # c",
        r"--pre \ #",
    ],
)
def test_a_line_that_pip_would_join_with_the_next_is_refused(line: str) -> None:
    with pytest.raises(RequirementsFailed, match="line 2: it ends in a backslash"):
        read_requirements("r.txt", f"attrs\n{line}\ntomli\n".encode(), BUILDS)


def as_pip_reads(content: str) -> list[tuple[int, str]]:
    return [(number, " ".join(line.split())) for number, line in preprocess(content)]


WORDS = (
    "six",
    "attrs==1",
    "--pre",
    "tomli @ https://files.example/a.whl",
    "?",
    "#",
    " #",
    "\\",
    "\\ #",
    "\\\n",
    " ",
    "\t",
    "\n",
    "\r\n",
    "\x0c",
)


@given(some.lists(some.sampled_from(WORDS), max_size=12).map("".join))
@settings(max_examples=1000, deadline=None)
def test_pip_reads_a_file_and_what_we_make_of_it_as_the_same_lines(content: str) -> None:
    try:
        ours = read_requirements("r.txt", content.encode(), BUILDS)
    except RequirementsFailed:
        return
    assert as_pip_reads(ours) == as_pip_reads(content)


def test_a_continuation_cannot_hide_an_option_nor_can_the_end_of_the_file() -> None:
    for text in ("six\\\n --index-url=https://elsewhere.example", "--index-\\\nurl https://elsewhere.example", "-e \\"):
        with pytest.raises(RequirementsFailed, match="line 1"):
            read_requirements("r.txt", text.encode(), WHEELS)


def test_other_encodings_are_not_read_in_a_way_that_pip_would_not() -> None:
    assert read_requirements("r.txt", "\N{ZERO WIDTH NO-BREAK SPACE}six\n".encode(), WHEELS) == "six\n"
    hidden = "--index-url https://elsewhere.example".encode("utf-7").decode()
    assert read_requirements("r.txt", b"# -*- coding: utf-7 -*-\nsix\n", WHEELS) == "\nsix\n"
    for content in ("six".encode("utf-16"), f"# coding: utf-7\n+AC0{hidden}".encode(), b"six\xff"):
        with pytest.raises(RequirementsFailed):
            read_requirements("r.txt", content, WHEELS)
    with pytest.raises(RequirementsFailed, match="line 2"):
        read_requirements("r.txt", "six\N{LINE SEPARATOR}-e .".encode(), WHEELS)


def test_size_and_length_are_limited_on_both_sides() -> None:
    fits = b"six\n" + b"#" * (MOST_BYTES - 4)
    assert read_requirements("r.txt", fits, WHEELS).startswith("six\n")
    with pytest.raises(RequirementsFailed, match="larger than"):
        read_requirements("r.txt", fits + b"#", WHEELS)
    longest = "s" * MOST_CHARACTERS
    assert read_requirements("r.txt", longest.encode(), WHEELS) == longest + "\n"
    with pytest.raises(RequirementsFailed, match="longer than"):
        read_requirements("r.txt", longest.encode() + b"s", WHEELS)


@pytest.mark.parametrize(
    "content",
    [
        b" " * MOST_BYTES,
        b"a\\\n" * (MOST_BYTES // 3),
        b"a" * 1000 + b"!",
        b"six --" * (MOST_BYTES // 6),
        b"\n" * MOST_BYTES,
    ],
    ids=["blanks", "continued", "almost", "options", "lines"],
)
def test_no_content_takes_the_runner_s_time(content: bytes) -> None:
    began = time.process_time()
    with contextlib.suppress(RequirementsFailed):
        read_requirements("r.txt", content, WHEELS)
    assert time.process_time() - began < 5


def a_set(image: str = "sha256:1", policy: Policy = WHEELS, index: str = "index", **files: bytes) -> PackageSet:
    found = package_set(image, files, policy, (index, "26.3"))
    assert found is not None
    return found


def test_the_key_follows_image_contents_index_and_policy_and_not_names_nor_their_order() -> None:
    first = a_set(a=b"six\n", b=b"attrs\n")
    assert a_set(c=b"attrs\n", d=b"six\n").key == first.key
    others = [
        a_set(a=b"six\n"),
        a_set(a=b"six\n", b=b"attrs==1\n"),
        a_set("sha256:2", a=b"six\n", b=b"attrs\n"),
        a_set(index="another", a=b"six\n", b=b"attrs\n"),
        a_set(policy=BUILDS, a=b"six\n", b=b"attrs\n"),
    ]
    assert len({first.key, *(other.key for other in others)}) == 6


def test_what_pip_is_not_told_makes_no_other_set() -> None:
    """Each comment made a set of its own: one tenant could fill the cache with copies of the same packages."""
    first = a_set(a=b"six\nattrs\n")
    alike = [b"# mine\nsix\n\nattrs", b"six # 1\r\n  attrs\n", b"six\\\n\nattrs\n# the end"]
    assert {a_set(a=each).key for each in alike} == {first.key}
    assert a_set(a=b"six\nattrs\n", b=b"# nothing\n", c=b"six\nattrs\n# again").key == first.key
    assert a_set(a=b"six\n", b=b"attrs\n").key != first.key
    assert a_set(a=b"attrs\nsix\n").key != first.key


def test_nothing_is_installed_for_files_without_a_requirement() -> None:
    assert package_set("sha256:1", {"r.txt": b"# nothing yet\n\n--require-hashes\n"}, WHEELS, ("index",)) is None
    assert package_set("sha256:1", {}, WHEELS, ("index",)) is None

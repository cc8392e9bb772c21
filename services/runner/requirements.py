"""What a requirements asset may say, decided line by line, and which installed set it asks for: pure.

pip is given exactly the lines that were decided on, written anew in one encoding, so that both cannot read a file
differently. Names, versions, markers and hashes are the script owner's; where packages come from is the operator's.
It must never ask the index anything: whether a package exists is pip's to say.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from services.runner.package_index import Destination

MOST_BYTES = 1 << 20
MOST_CHARACTERS = 1000
"""Of one requirement without its hashes."""
REVISION = 1
"""Raise it when the same requirements shall be installed anew, since the way of installing has changed."""

INDEX_OPTIONS = frozenset(
    {"-i", "--index-url", "--extra-index-url", "--no-index", "-f", "--find-links", "--trusted-host"}
)
FILE_OPTIONS = frozenset(("-r", "--requirement", "-c", "--constraint"))
FOLDER_OPTIONS = frozenset(("-e", "--editable"))
ARCHIVES = (".whl", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".tbz", ".xz", ".txz", ".lz", ".tlz", ".lzma")

_COMMENT = re.compile(r"(?:^|(?<=\s))#.*$")
_WHOLE_COMMENT = re.compile(r"\s*#")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_EXTRAS = r"(?: ?\[[A-Za-z0-9._, -]*\])?"
_MARKER = r"(?: ?;[\w .<>=!~'\"(),*+-]+)?"
# PEP 508's two forms; what is no letter of a version (a slash, a colon, a dollar) is in neither.
_VERSIONED = re.compile(rf"({_NAME}){_EXTRAS}[\w .<>=!~(),*+-]*{_MARKER}", re.ASCII)
_DIRECT = re.compile(rf"{_NAME}{_EXTRAS} ?@ ?(\S+)(?: ;[\w .<>=!~'\"(),*+-]+)?", re.ASCII)
_HASH = re.compile(r"--hash[= ](sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})")
_SETTING = re.compile(rf"--require-hashes|--pre|--prefer-binary|--only-binary[= ](?::all:|{_NAME})", re.ASCII)
_BUILD_SETTING = re.compile(rf"--no-binary[= ](?::all:|{_NAME})", re.ASCII)


class RequirementsFailed(Exception):
    """The requirements cannot be installed, and that is for the script's owner to mend; `lines` is the log's part."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.lines = tuple(lines) or (f"[runyard] {message}",)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator allows: whether packages may be built from source, and where files may come from."""

    builds_allowed: bool = False
    destinations: frozenset[Destination] = frozenset()


@dataclass(frozen=True, slots=True)
class PackageSet:
    """One set of packages to install: for which image, from which files (name → text for pip)."""

    key: str
    image: str
    files: Mapping[str, str] = field(repr=False)


def package_set(
    image: str, contents: Mapping[str, bytes], policy: Policy, identity: Sequence[str]
) -> PackageSet | None:
    """Decide what a model's requirements assets ask for; None when they ask for nothing.

    The key is made of what pip is told: neither names of files nor comments, blanks or copies make another set.

    Args:
        image: the runtime image's id.
        contents: the assets, file name → bytes.
        policy: what the operator allows.
        identity: what else makes another set of it: the index, pip's version.

    Raises:
        RequirementsFailed: a line is not allowed; the message names file and line.
    """
    for name in contents:
        if name in ("", ".", "..") or "/" in name or not name.isprintable():
            raise RequirementsFailed(f"not a plain file name: {name!r}")
    files = {name: read_requirements(name, content, policy) for name, content in sorted(contents.items())}
    said = sorted({lines for text in files.values() if (lines := tuple(filter(None, text.split("\n"))))})
    if all(line.startswith("-") for lines in said for line in lines):
        return None
    words = [REVISION, image, said, policy.builds_allowed, *identity]
    return PackageSet(hashlib.sha256(json.dumps(words).encode()).hexdigest(), image, files)


def read_requirements(filename: str, content: bytes, policy: Policy) -> str:
    r"""Return a requirements file as pip gets it: comments gone, one requirement per line, at the line where it stood.

    >>> read_requirements("requirements.txt", b"# ours\nsix == 1.17.0  # pinned\n", Policy())
    '\nsix == 1.17.0\n'

    Raises:
        RequirementsFailed: it is no text, or a line is not allowed.
    """
    if len(content) > MOST_BYTES:
        raise RequirementsFailed(f"{filename}: it is larger than {MOST_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RequirementsFailed(f"{filename}: it is not UTF-8") from None
    physical = text.splitlines()
    kept = [""] * len(physical)
    for number, line in _logical(physical):
        if (refusal := _refusal(line, policy)) is not None:
            raise RequirementsFailed(f"{filename}, line {number}: {refusal}: {line[:200]!r}")
        kept[number - 1] = line
    return "".join(f"{line}\n" for line in kept)


def _logical(physical: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Join what a backslash continues and drop comments, as pip does; lines are numbered where they begin.

    Source: `join_lines` and `ignore_comments` in pip._internal.req.req_file, which a test compares this with.
    """
    held: list[str] = []
    began = 0
    for number, line in enumerate([*physical, ""], 1):
        comment = _WHOLE_COMMENT.match(line) is not None
        began = began if held else number
        if line.endswith("\\") and not comment:
            held.append(line.strip("\\"))
            continue
        whole = " ".join(_COMMENT.sub("", "".join((*held, " " if comment else "", line))).split())
        if whole:
            yield began, whole
        held.clear()


def _refusal(line: str, policy: Policy) -> str | None:
    """Say why a line is not allowed; None when it is."""
    if not line.isprintable():
        return "it holds control characters"
    if line.endswith("\\"):  # left by a comment; pip would join it with the next line that it gets
        return "it ends in a backslash"
    if line.startswith("-"):
        return _option_refusal(line, policy)
    requirement, *options = re.split(r" (?=--)", line)
    if len(requirement) > MOST_CHARACTERS:
        return f"it is longer than {MOST_CHARACTERS} characters"
    for option in options:
        if _HASH.fullmatch(option) is None:
            return "a requirement takes no option but --hash with sha256, sha384 or sha512"
    return _package_refusal(requirement, policy)


def _package_refusal(requirement: str, policy: Policy) -> str | None:
    """Try the one form that it can have: no version holds an at sign, and a try that fails takes long."""
    if "@" in requirement and (direct := _DIRECT.fullmatch(requirement)) is not None:
        return _url_refusal(direct[1], policy)
    if "@" not in requirement and (versioned := _VERSIONED.fullmatch(requirement)) is not None:
        return "a package, not a file, is to be named" if versioned[1].lower().endswith(ARCHIVES) else None
    return "it is not a package's name with versions, extras and markers (PEP 508)"


def _option_refusal(line: str, policy: Policy) -> str | None:
    if _SETTING.fullmatch(line) or (policy.builds_allowed and _BUILD_SETTING.fullmatch(line)):
        return None
    name = re.split(r"[= ]", line)[0]
    if name in INDEX_OPTIONS:
        return "the package index is the operator's choice"
    if name in FILE_OPTIONS:
        return "a file cannot include another one; every requirements asset of the model is installed"
    if name in FOLDER_OPTIONS:
        return "nothing is installed from a folder"
    return "nothing is built from source here" if name == "--no-binary" else "this option is not allowed"


def _url_refusal(url: str, policy: Policy) -> str | None:
    try:
        parts = urlsplit(url)
        place = Destination("https", parts.hostname or "", parts.port or 443)
    except ValueError:
        return "that is no URL"
    if parts.scheme != "https" or parts.username is not None or place not in policy.destinations or "$" in url:
        return "files come from the package index's hosts only"
    if not policy.builds_allowed and not parts.path.endswith(".whl"):
        return "nothing is built from source here"
    return None

"""Protects script owners from being blamed for an index that is away, and runners from retrying what pip refuses."""

import dataclasses
from typing import Any

import pytest

from schemas.reason import Reason
from services.runner.frames import End
from services.runner.outcome import Lost
from services.runner.package_outcome import InstallEvidence, InstallLimits, judge
from services.runner.requirements import RequirementsFailed

LIMITS = InstallLimits(timeout_s=600, max_bytes=8, memory_bytes=2, builds_allowed=False, oci_runtime=None)
SAID = (
    "Collecting six==99",
    "ERROR: Could not find a version that satisfies the requirement six==99",
    "ERROR: No matching distribution found for six==99",
)
AWAY = ("index.example:443: no answer",)


def evidence(exit_code: int | None = 0, **known: Any) -> InstallEvidence:
    end = End(seq=9, exit_code=exit_code, signal=None if exit_code is not None else 9, **known.pop("end", {}))
    return dataclasses.replace(InstallEvidence(end=end, limits=LIMITS, lines=SAID), **known)


def test_pip_s_success_is_one_whatever_the_network_did_meanwhile() -> None:
    assert judge(evidence(0)) is None
    assert judge(evidence(0, unreachable=AWAY, refused=("x",))) is None


def test_what_pip_refuses_is_told_in_pip_s_words() -> None:
    found = judge(evidence(1))
    assert isinstance(found, RequirementsFailed)
    assert found.message == f"the requirements could not be installed: {SAID[1]} {SAID[2]}"
    assert found.lines == ("[runyard] the requirements could not be installed; pip said:", *SAID)


def test_a_host_that_may_not_be_reached_is_named_and_not_tried_again() -> None:
    found = judge(evidence(75, refused=("CONNECT files.example:443 is not the package index",)))
    assert isinstance(found, RequirementsFailed)
    assert "files.example:443" in found.message
    assert found.lines[-1] == "[runyard] refused: CONNECT files.example:443 is not the package index"


@pytest.mark.parametrize(
    "seen",
    [
        evidence(75),
        evidence(75, unreachable=AWAY, refused=("x",)),
        evidence(1, unreachable=AWAY),
        evidence(None, end={"timed_out": True}, unreachable=AWAY),
    ],
)
def test_an_index_that_does_not_answer_is_nobody_s_fault(seen: InstallEvidence) -> None:
    found = judge(seen)
    assert isinstance(found, Lost)
    assert found.reason is Reason.FETCH_FAILED


NO_SPACE = ("ERROR: Could not install packages: [Errno 28] No space left on device",)


def test_a_full_disk_is_the_runner_s() -> None:
    found = judge(evidence(1, lines=NO_SPACE, disk_short=True))
    assert isinstance(found, Lost)
    assert found.reason is Reason.DISK_FULL


def test_a_build_that_fills_its_own_scratch_space_is_not_tried_again() -> None:
    found = judge(evidence(1, lines=NO_SPACE))
    assert isinstance(found, RequirementsFailed)
    assert "No space left" in found.message


def test_a_short_disk_alone_is_no_reason() -> None:
    assert isinstance(judge(evidence(1, disk_short=True)), RequirementsFailed)
    assert judge(evidence(0, disk_short=True)) is None


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        (evidence(None, end={"timed_out": True}), "not within 600 s"),
        (evidence(0, too_large=True), "more than 8 bytes"),
        (evidence(None, end={"oom_kills": 1}), "more than 2 bytes of memory"),
        (evidence(1, oom_killed=True), "more than 2 bytes of memory"),
        (evidence(1, lines=("odd",)), "installed: odd"),
        (evidence(1, lines=()), "pip said nothing"),
    ],
)
def test_what_takes_more_than_it_may_has_failed(seen: InstallEvidence, word: str) -> None:
    found = judge(seen)
    assert isinstance(found, RequirementsFailed)
    assert word in found.message


@pytest.mark.parametrize(
    "seen",
    [
        InstallEvidence(end=None, limits=LIMITS),
        evidence(None, end={"terminated": True}),
        evidence(None, end={"error": "OSError"}),
    ],
)
def test_a_container_that_somebody_else_ended_is_lost(seen: InstallEvidence) -> None:
    found = judge(seen)
    assert isinstance(found, Lost)
    assert found.reason is Reason.CONTAINER_LOST

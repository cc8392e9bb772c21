"""Whether a case went as it must: pure, from what was seen to what is wrong."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from schemas.events import AttemptLost
from tests.security.case import Attack, Complaint, Kind, Probe, Seen

MOST = 1.5
"""How many times as long as alone a step of the neighbour may take (issue 5)."""
ENOUGH_S = 1.0
"""For how long the neighbour must have gone on after the attack had begun for its pace to mean something."""


@dataclass(frozen=True)
class Pace:
    """How many steps a training made in how many seconds; parts of a step count."""

    seconds: float = 0.0
    steps: float = 0.0

    def __add__(self, other: "Pace") -> "Pace":
        """Take two measurements together."""
        return Pace(self.seconds + other.seconds, self.steps + other.steps)

    @property
    def step_s(self) -> float:
        """How long a step took."""
        return self.seconds / self.steps


def judge_attack(attack: Attack, seen: Seen, name: str) -> list[Complaint]:
    """Judge one script by its end, its lines and what must not be known."""
    return [Complaint(name, kind, text) for kind, text in _wrong_with(attack, seen)]


def judge_probes(probes: Sequence[Probe], seen: Seen, prefix: str) -> list[Complaint]:
    """Judge every probe of a container; one that said nothing is wrong, too."""
    outcomes = dict(_outcomes(seen))
    complaints = []
    for probe in probes:
        outcome = outcomes.get(probe.name, f"nothing was said ({seen.end.reason}: {seen.end.message})")
        if outcome not in probe.outcomes:
            kind: Kind = "escape" if outcome.startswith("value ") else "wrong end"
            text = f"{outcome} instead of {' or '.join(sorted(probe.outcomes))}"
            complaints.append(Complaint(f"{prefix}{probe.name}", kind, text))
    return complaints


def pace_within(stamps: Sequence[float], span: tuple[float, float]) -> Pace:
    """Measure what of a training lies within a span of seconds, by the stamps between its steps.

    A step that lies partly within counts with that part, so that one which hung is not left out.

    >>> pace_within([0.0, 1.0, 2.0, 4.0], (1.0, 3.0))
    Pace(seconds=2.0, steps=1.5)
    """
    pace = Pace()
    for began, ended in pairwise(stamps):
        seconds = max(0.0, min(ended, span[1]) - max(began, span[0]))
        pace += Pace(seconds, seconds / (ended - began) if seconds else 0.0)
    return pace


def judge_neighbour(alone: Pace, beside: Pace, name: str) -> list[Complaint]:
    """Judge what a neighbour suffered by how long its steps took; where it was hardly attacked, that says nothing."""
    if beside.seconds < ENOUGH_S or not alone.steps:
        text = f"the neighbour went on for {beside.seconds:.2f} s after the attack had begun, instead of {ENOUGH_S}"
        return [Complaint(name, "suite broke", text)]
    factor = beside.step_s / alone.step_s
    if factor > MOST:
        return [Complaint(name, "neighbour harmed", f"a step took {factor:.2f} times as long as alone")]
    return []


def _outcomes(seen: Seen) -> list[tuple[str, str]]:
    found = []
    for line in seen.texts:
        if line.startswith('{"probe"'):
            said = json.loads(line)
            found.append((said["probe"], said["outcome"]))
    return found


def _wrong_with(attack: Attack, seen: Seen) -> list[tuple[Kind, str]]:
    end, wrong = seen.end, list[tuple[Kind, str]]()
    if isinstance(end, AttemptLost) or end.reason not in attack.reasons:
        wrong.append(("wrong end", f"{end.reason}: {end.message}; the last lines: {seen.texts[-3:]}"))
    if not re.search(attack.message, end.message or ""):
        wrong.append(("wrong end", f"{end.message!r} does not say {attack.message!r}"))
    if seen.seconds > attack.within_s:
        wrong.append(("wrong end", f"over after {seen.seconds:.1f} s instead of {attack.within_s}"))
    texts = seen.texts
    for pattern in attack.prints:
        if not any(re.fullmatch(pattern, text) for text in texts):
            wrong.append(("wrong end", f"nothing like {pattern!r} was printed; the last lines: {texts[-3:]}"))
    for secret in attack.never:
        wrong += [("escape", f"{secret!r} stands in {where}") for where in _places_of(secret, seen)]
    if attack.judge is not None:
        wrong += [("escape", text) for text in attack.judge(seen)]
    return wrong


def _places_of(secret: str, seen: Seen) -> list[str]:
    places = {
        "the log": any(secret in text for text in seen.texts),
        "the message": secret in (seen.end.message or ""),
        "the container's inspection": secret in seen.inspected,
        "the metrics": any(secret in point.name for point in seen.points),
        "the artifact": seen.artifact is not None and secret.encode() in seen.artifact.read_bytes(),
    }
    return [place for place, there in places.items() if there]

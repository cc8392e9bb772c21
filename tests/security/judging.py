"""Whether a case went as it must: pure, from what was seen to what is wrong."""

import json
import re
from collections.abc import Sequence

from schemas.events import AttemptLost
from tests.security.case import Attack, Complaint, Kind, Probe, Seen


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

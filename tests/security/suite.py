"""The whole hostile suite, on each OCI runtime of this host: `python -m tests.security.suite`, `make security`.

A `runsc` that is installed, but not known to the engine, is played on an engine of its own (`on_gvisor`).

Prints counts per family and what is wrong; exits 1 unless there is no escape, no sentinel changed, nothing left and
every end the right one. The pytest tests of this folder and the HTTP fuzzing belong to it.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from typing import get_args

from docker.errors import DockerException

from services.backbone.telemetry import configure_logs
from tests.chaos.private_engine import possible
from tests.security.case import Complaint, Family, Kind
from tests.security.catalogue import FAMILIES
from tests.security.on_gvisor import RUNSC
from tests.security.playing import Played, Player
from tests.security.stage import Stage, a_stage, oci_runtimes
from tests.security.waivers import waived

KINDS = get_args(Kind)
FAST_SUBSET = ["-m", "pytest", "-q", "tests/security"]
HTTP = ["-m", "tests.security.http_fuzz", "--cases", "20000"]


def main() -> int:
    """Run the command line; the exit code is 1 when anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.security.suite", description=__doc__)
    parser.add_argument("--runtime", action="append", help="only on this OCI runtime; repeatable")
    names = [family.name for family in FAMILIES]
    parser.add_argument("--family", action="append", choices=names, help="only this family; repeatable")
    parser.add_argument("--alone", action="store_true", help="neither the pytest tests nor the HTTP fuzzing")
    asked = parser.parse_args()
    configure_logs("security", "error")
    began = time.monotonic()
    families = [family for family in FAMILIES if not asked.family or family.name in asked.family]
    try:
        known = oci_runtimes()
    except DockerException as problem:
        sys.exit(f"no engine answers, so nothing can be played: {problem}")
    if not (asked.runtime or known):
        sys.exit("the engine has neither runc nor runsc, so nothing can be played")
    wrong = [runtime for runtime in asked.runtime or known if not asyncio.run(played_well(runtime, families))]
    if not asked.runtime and "runsc" not in known and not _well_on_gvisor(families):
        wrong.append("runsc")
    if not (asked.alone or asked.family):
        wrong += _pytest_and_http()
    say(f"\n{'WRONG: ' + ', '.join(wrong) if wrong else 'all is well'}, after {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


async def played_well(oci_runtime: str, families: list[Family]) -> bool:
    """Play families on a runtime and tell what came of it; True when nothing is wrong."""
    say(f"\n{oci_runtime}: {sum(family.size for family in families)} cases in {len(families)} families")
    async with a_stage(oci_runtime) as stage:
        complaints = await _played(stage, families, oci_runtime)
        excused = {c.case: reason for c in complaints if (reason := waived(oci_runtime, c)) is not None}
        complaints = [c for c in complaints if waived(oci_runtime, c) is None]
        left = len([what for what in await stage.leftovers() if what.startswith("container")])
    for reason in dict.fromkeys(excused.values()):
        say(f"  cannot hold on {oci_runtime}, for {reason}:")
        say("    " + "; ".join(case for case, why in excused.items() if why == reason))
    counts = {kind: sum(c.kind == kind for c in complaints) for kind in KINDS}
    say(f"  {', '.join(f'{kind}: {count}' for kind, count in counts.items())}; containers left: {left}")
    return not complaints and not left


async def _played(stage: Stage, families: list[Family], oci_runtime: str) -> list[Complaint]:
    def tell(complaint: Complaint) -> None:
        if waived(oci_runtime, complaint) is None:
            say(f"    {complaint.kind}: {complaint.case}: {complaint.text}")

    player, complaints = Player.on(stage, tell), list[Complaint]()
    for family in families:
        began = time.monotonic()
        played: Played = await player.play(family)
        complaints += played.complaints
        wrong = {c.case for c in played.complaints if waived(oci_runtime, c) is None}
        excused = {c.case for c in played.complaints} - wrong
        counts = f"{played.cases:4} cases, {len(wrong):3} wrong, {len(excused):3} that cannot hold here"
        say(f"  {family.name:12} {counts}, {time.monotonic() - began:6.1f} s")
    for name in player.neighbourhood.unjudged:
        say(f"  not judged, since this machine has other work: the neighbour beside {name}")
    return complaints


def _well_on_gvisor(families: list[Family]) -> bool:
    if RUNSC is None:
        say("\nrunsc: not played, since this host has none (Debian: apt-get install runsc)")
        return True
    if not possible():
        say("\nrunsc: not played: the engine does not know it, and one of our own needs root and dockerd")
        return True
    chosen = [word for family in families for word in ("--family", family.name)]
    suite = [sys.executable, "-m", "tests.security.suite", "--alone", "--runtime", "runsc", *chosen]
    return _well("runsc, on an engine of its own", ["-m", "tests.security.on_gvisor", *suite])


def _pytest_and_http() -> list[str]:
    """Run both at once, since each takes one core for minutes and no neighbour is judged; name what is wrong."""
    with tempfile.TemporaryFile("w+") as told:
        generated = subprocess.Popen([sys.executable, *HTTP], stdout=told)
        try:
            wrong = [] if _well("the fast subset and what belongs to it", FAST_SUBSET) else ["the fast subset"]
            say(f"\nHTTP: {' '.join(HTTP)}")
            wrong += ["HTTP"] if generated.wait() else []
        finally:
            generated.terminate()
            generated.wait()
        told.seek(0)
        say(told.read())
    return wrong


def _well(what: str, words: list[str]) -> bool:
    say(f"\n{what}: {' '.join(words)}")
    return subprocess.run([sys.executable, *words], check=False).returncode == 0


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

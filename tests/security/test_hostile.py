"""The fast subset of the hostile suite, on each OCI runtime: what is quick, and all probes."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from tests.security.case import Family
from tests.security.catalogue import FAMILIES
from tests.security.playing import Player
from tests.security.stage import Stage, a_stage, oci_runtimes
from tests.security.waivers import waived


def fast(family: Family) -> Family:
    """Leave of a family what is quick; heavy attacks without their neighbour."""
    short = [replace(a, heavy=False, timeout_s=min(a.timeout_s, 3)) if a.heavy else a for a in family.attacks]
    attacks = [attack for attack in short if attack.fast]
    return replace(family, attacks=attacks, checks=[check for check in family.checks if check.fast])


@pytest_asyncio.fixture(scope="module", params=oci_runtimes())
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """One runner for all families of a runtime."""
    async with a_stage(request.param) as opened:
        yield opened


@pytest.mark.parametrize("family", [fast(family) for family in FAMILIES], ids=lambda family: str(family.name))
async def test_nothing_comes_of_a_hostile_family(stage: Stage, family: Family) -> None:
    played = await Player.on(stage).play(family)
    wrong = [c for c in played.complaints if waived(stage.oci_runtime, c) is None]
    assert wrong == [], "\n".join(f"{c.kind}: {c.case}: {c.text}" for c in wrong)

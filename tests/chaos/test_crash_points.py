"""Protects every promise from a kill at every named crash point of every service: once each, in one running system."""

from collections import Counter
from pathlib import Path

import pytest
import pytest_asyncio

from tests.chaos.crash_places import Place, all_places
from tests.chaos.crash_points import Outcome, campaign

pytestmark = pytest.mark.timeout(480)


@pytest_asyncio.fixture(scope="module")
async def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What came of playing every scenario once."""
    folder = Path(tmp_path_factory.mktemp("crash-points"))
    return await campaign(folder, rounds=1)


async def test_every_promise_holds_whatever_was_killed_where(outcome: Outcome) -> None:
    assert list(outcome.wrong) == []
    assert outcome.runs >= 25


@pytest.mark.parametrize("place", all_places(), ids=str)
async def test_a_service_died_there_and_was_back(outcome: Outcome, place: Place) -> None:
    assert Counter(kill.place for kill in outcome.kills)[place] >= 1

"""Protects the promise that the loss of the whole broker loses nothing accepted: a short `make broker-loss`."""

from pathlib import Path

import pytest

from tests.chaos.broker_loss import LossOptions, lose_the_broker


@pytest.mark.timeout(300)
async def test_a_lost_broker_and_groups_at_offset_0_change_nothing(tmp_path: Path) -> None:
    outcome = await lose_the_broker(LossOptions(runs=24, losses=1, open_at_least=12, seed=7, folder=tmp_path))
    assert outcome.violations == []
    assert outcome.open_at_losses[0] >= 12
    assert outcome.open_at_reset >= 3
    assert outcome.retold[0].replaced
    assert outcome.retold[0].events >= 12

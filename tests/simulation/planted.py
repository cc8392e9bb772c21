"""Bugs to plant: each breaks one rule of the protocol, so that a test can see the simulation catch it."""

from collections.abc import Sequence

from schemas.run import Run
from tests.simulation.database import Outbox, OutboxRow, Transaction
from tests.simulation.moving import BATCH_ROWS
from tests.simulation.registry import Tables
from tests.simulation.world import STEP, Steps


def claim_unguarded(tables: Tables, transaction: Transaction, run: Run) -> Steps[bool]:
    """Look first and update later, without a guard: two requests may both have seen a free model."""
    if tables.active[run.model_id] is not None:
        return False
    yield STEP
    transaction.put(tables.active, run.model_id, run.run_id)
    return True


def beyond_the_last(outbox: Outbox) -> Sequence[OutboxRow]:
    """Relay what has a higher id than whatever was sent last: what commits late is never found."""
    return [outbox.rows[number] for number in sorted(outbox.rows) if number > outbox.last_sent_id][:BATCH_ROWS]

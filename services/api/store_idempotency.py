"""Rows of idempotency keys: written in the transaction of what they stand for, so there is no pending state."""

from dataclasses import dataclass

from services.api.idempotency import KEPT_FOR, Answer, Ticket
from services.api.store import Executor
from services.backbone.postgres import Connection


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The first answer of a key, and the fingerprint of what was asked."""

    fingerprint: bytes
    answer: Answer


SELECT_KEY = """
SELECT fingerprint, status, body, location FROM idempotency_keys
WHERE tenant_id = $1 AND path = $2 AND key = $3 AND created_at > now() - $4::interval
"""


async def select_answer(executor: Executor, ticket: Ticket) -> KeptAnswer | None:
    """Read the first answer of a key."""
    row = await executor.fetchrow(SELECT_KEY, ticket.tenant_id, ticket.path, ticket.key, KEPT_FOR)
    if row is None:
        return None
    return KeptAnswer(row["fingerprint"], Answer(row["status"], row["body"], row["location"], replayed=True))


RESERVE_KEY = """
INSERT INTO idempotency_keys AS kept (tenant_id, path, key, fingerprint) VALUES ($1, $2, $3, $4)
ON CONFLICT (tenant_id, path, key)
DO UPDATE SET fingerprint = excluded.fingerprint, created_at = now() WHERE kept.created_at <= now() - $5::interval
RETURNING true
"""


async def reserve_key(connection: Connection, ticket: Ticket) -> bool:
    """Take a key for this transaction; waits for another that has it, and returns False if that one commits."""
    values = (ticket.tenant_id, ticket.path, ticket.key, ticket.fingerprints[0])
    return bool(await connection.fetchval(RESERVE_KEY, *values, KEPT_FOR))


KEEP_ANSWER = """
UPDATE idempotency_keys SET status = $4, body = $5, location = $6 WHERE tenant_id = $1 AND path = $2 AND key = $3
"""


async def keep_answer(connection: Connection, ticket: Ticket, answer: Answer) -> None:
    """Keep the answer of a key that this transaction has taken."""
    identity = (ticket.tenant_id, ticket.path, ticket.key)
    await connection.execute(KEEP_ANSWER, *identity, answer.status, answer.body, answer.location)

"""Answering a POST once: the work, its idempotency key and its answer in one transaction, then the HTTP response.

Only what was committed is ever repeated; a refusal is not kept. Never knows what the work is.
"""

import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from fastapi import Response
from pydantic import BaseModel

from services.api import problems
from services.api.context import Call
from services.api.idempotency import HEADER, Answer, Ticket, same_request
from services.api.problems import Problem
from services.api.store import CommitUnknown, transaction
from services.api.store_idempotency import keep_answer, reserve_key, select_answer
from services.backbone.crash_points import crash_point
from services.backbone.postgres import Connection

ID_TRIES = 4

Act = Callable[[Connection], Awaitable[Answer]]


class KeyTaken(Exception):
    """Another request with this key was faster; its answer can be read now."""


def now_utc() -> datetime:
    """Tell the time to the millisecond, which is what travels on the wire."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def tokens(hex_digits: int) -> list[str]:
    """Draw random tokens for an id: as short as they may be first, longer for when a shorter one is taken."""
    return [secrets.token_hex(hex_digits // 2 + extra) for extra in range(ID_TRIES)]


async def first_answer(call: Call, ticket: Ticket | None) -> Answer | None:
    """Find the answer that this key already got.

    Raises:
        Problem: the key was used for another request.
    """
    kept = await select_answer(call.context.pool, ticket) if ticket else None
    if ticket is None or kept is None:
        return None
    if not same_request(ticket, kept.fingerprint):
        raise Problem(
            problems.IDEMPOTENCY_KEY_REUSED, "Use a new key for a new request, or repeat the first one unchanged."
        )
    return kept.answer


async def act_once(call: Call, ticket: Ticket | None, act: Act) -> Answer:
    """Do the work in a transaction, or return the answer of the request that did it before.

    Raises:
        CommitUnknown: the work may be done, or not.
    """
    while (answer := await first_answer(call, ticket)) is None:
        try:
            return await _act(call, ticket, act)
        except KeyTaken:
            continue
    return answer


async def _act(call: Call, ticket: Ticket | None, act: Act) -> Answer:
    async with transaction(call.context.pool) as connection:
        if ticket is not None and not await reserve_key(connection, ticket):
            raise KeyTaken
        answer = await act(connection)
        if ticket is not None:
            await keep_answer(connection, ticket, answer)
        crash_point("before_answer_commit")
    crash_point("after_answer_commit")
    return answer


async def create_once(call: Call, ticket: Ticket | None, act: Act) -> Response:
    """Do the work once and answer; an unknown outcome becomes a problem that says how to find out."""
    try:
        return respond(await act_once(call, ticket, act))
    except CommitUnknown as error:
        raise outcome_unknown({}) from error


def outcome_unknown(extra: dict[str, object]) -> Problem:
    """Make the problem of a commit that was not answered."""
    detail = f"Look whether it is there, or repeat the request with the same {HEADER}."
    return Problem(problems.OUTCOME_UNKNOWN, detail, extra=extra, headers={"Retry-After": str(problems.RETRY_AFTER_S)})


def answer_with(status: int, resource: BaseModel, location: str | None = None) -> Answer:
    """Write a resource as an answer."""
    return Answer(status, resource.model_dump_json(), location)


def respond(answer: Answer) -> Response:
    """Write an answer as a response."""
    headers = {}
    if answer.location is not None:
        headers["Location"] = answer.location
    if answer.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(answer.body, answer.status, headers, "application/json")

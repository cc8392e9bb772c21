"""Accepting a request to train: seal, then key, claim, run and event in one transaction, and only then the answer.

Owns the order of these steps and what happens when one of them fails or does not say how it ended. What may be accepted
is decided by `admission`.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import structlog

from schemas.estimate import estimate_start
from schemas.ids import RUN_TOKEN_HEX, run_id
from schemas.parts import Compute, Demand, TrainingSpec
from schemas.run import Run
from services.api.admission import Refusal, TrainingRequest, admit
from services.api.answering import act_once, answer_with, first_answer, now_utc, outcome_unknown, tokens
from services.api.bodies import TrainBody
from services.api.context import Call
from services.api.events import training_requested
from services.api.idempotency import Answer, Ticket
from services.api.problems import unavailable
from services.api.resources import show_run
from services.api.store import CommitUnknown, Executor
from services.api.store_catalog import lock_model, select_facts
from services.api.store_runs import RunIdTaken, claim_model, insert_run, select_run
from services.backbone.crash_points import crash_point
from services.backbone.errors import ObjectExists, ObjectUnavailable, is_transient
from services.backbone.outbox import enqueue, to_its_topic
from services.backbone.postgres import Connection

LOOK_FOR_S = 5.0
"""How long an unknown commit is looked for before the client is told that nobody knows."""
LOOK_PAUSE_S = 0.25

log = structlog.get_logger()


class ModelMissing(Exception):
    """The caller's tenant has no such model."""


class Refused(Exception):
    """The request cannot become a run."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Submission:
    """A request to train one model."""

    call: Call
    model_id: str
    body: TrainBody
    ticket: Ticket | None

    @property
    def request(self) -> TrainingRequest:
        """What is asked for, as admission sees it."""
        body = self.body
        return TrainingRequest(
            entry_point=body.entry_point,
            runtime=body.runtime,
            compute=Compute(**body.compute.model_dump()),
            timeout_s=body.timeout_seconds,
            run_label=body.run_label,
            variable_names=tuple(sorted(body.environment_vars)),
            grace_s=body.grace_period_seconds,
        )


async def submit(submission: Submission) -> Answer:
    """Accept a request, or return the answer that its key already got. The answer holds no variable's value.

    Raises:
        ModelMissing: there is no such model.
        Refused: with the reason.
        Problem: the key was used otherwise, no id is free, or the commit's outcome is unknown.
    """
    answer = await first_answer(submission.call, submission.ticket)
    if answer is not None:
        return answer
    try:
        return await _submit(submission)
    except Refused:  # perhaps because the same request was accepted a moment ago
        answer = await first_answer(submission.call, submission.ticket)
        if answer is None:
            raise
        return answer


async def _submit(submission: Submission) -> Answer:
    await _admitted(submission, submission.call.context.pool)  # so that a refusal costs no sealing
    for token in tokens(RUN_TOKEN_HEX):
        with suppress(RunIdTaken, ObjectExists):
            return await _accept_as(submission, run_id(now_utc().date(), token))
    raise unavailable("No free id was found.")


async def _accept_as(submission: Submission, identity: str) -> Answer:
    call, variables = submission.call, submission.body.environment_vars

    async def act(connection: Connection) -> Answer:
        return await _write(submission, identity, connection)

    if variables:
        await call.context.variables.create(identity, variables)
        crash_point("after_variables_sealed")
    try:
        answer = await act_once(call, submission.ticket, act)
    except CommitUnknown:
        answer = await _look(submission, identity)
    except Exception:
        await _forget(submission, identity)
        raise
    crash_point("after_acceptance_commit")
    if answer.replayed:
        await _forget(submission, identity)
    return answer


async def _write(submission: Submission, identity: str, connection: Connection) -> Answer:
    call = submission.call
    await lock_model(connection, call.caller.tenant_id, submission.model_id)
    spec = await _admitted(submission, connection)
    run = _begin(submission, identity, spec)
    if not await claim_model(connection, run):
        raise RuntimeError("a locked model without a run could not be claimed")
    await insert_run(connection, run)
    await enqueue(connection, [to_its_topic(training_requested(run, call.request_id, call.traceparent))])
    crash_point("before_acceptance_commit")
    log.info("run_accepted", run_id=identity, model_id=run.model_id, tenant_id=run.tenant_id)
    return _answer(run)


async def _admitted(submission: Submission, executor: Executor) -> TrainingSpec:
    facts = await select_facts(executor, submission.call.caller.tenant_id, submission.model_id)
    if facts is None:
        raise ModelMissing(submission.model_id)
    decision = admit(facts, submission.request)
    if isinstance(decision, Refusal):
        raise Refused(decision)
    return decision


def _begin(submission: Submission, identity: str, spec: TrainingSpec) -> Run:
    caller, now = submission.call.caller, now_utc()
    demand = Demand(compute=spec.compute, runtime=spec.runtime, expected_s=spec.timeout_s)
    return Run(
        run_id=identity,
        tenant_id=caller.tenant_id,
        actor=caller.actor,
        model_id=submission.model_id,
        spec=spec,
        requested_at=now,
        estimated_start_at=estimate_start(submission.call.context.load.newest, demand, now),
    )


def _answer(run: Run) -> Answer:
    return answer_with(202, show_run(run, None), f"/api/v1/models/{run.model_id}/runs/{run.run_id}")


async def _look(submission: Submission, identity: str) -> Answer:
    """Find out whether a commit that was not answered is durable; not finding it proves nothing."""
    call = submission.call
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_FOR_S):
            while (run := await _looked_up(submission, identity)) is None:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_PAUSE_S)
            return _answer(run)
    log.warning("commit_outcome_unknown", run_id=identity, model_id=submission.model_id)
    raise outcome_unknown({"run_id": identity, "location": f"{call.path.removesuffix('custom/train')}runs/{identity}"})


async def _looked_up(submission: Submission, identity: str) -> Run | None:
    call = submission.call
    try:
        return await select_run(call.context.pool, call.caller.tenant_id, submission.model_id, identity)
    except Exception as error:
        if not is_transient(error):
            raise
        return None


async def _forget(submission: Submission, identity: str) -> None:
    """Remove the variables of a run that is none; what this misses, the sweep finds."""
    if submission.body.environment_vars:
        with suppress(ObjectUnavailable):
            await submission.call.context.variables.delete(identity)

"""Runs: the training endpoint, a model's runs, and stopping one."""

import json
from dataclasses import replace

import structlog
from fastapi import APIRouter, Response

from schemas.run import Run
from services.api import problems
from services.api.admission import Refusal, RefusalKind
from services.api.answering import act_once, answer_with, now_utc, outcome_unknown, respond
from services.api.bodies import TrainBody
from services.api.context import Call, CurrentCall
from services.api.cursors import decode_place, encode_place
from services.api.events import cancellation_requested
from services.api.guard import KEYED, GuardedRoute, guarded
from services.api.idempotency import Answer
from services.api.parameters import DEFAULT_PAGE, IdempotencyKey, Limit, PlaceCursor
from services.api.problems import Kind, Problem
from services.api.resources import CustomTrainingRun, Page, show_run
from services.api.routes_models import found_model, no_model
from services.api.store import CommitUnknown
from services.api.store_runs import list_runs, lock_run, select_run, update_run
from services.api.submission import ModelMissing, Refused, Submission, submit
from services.backbone.outbox import enqueue, to_its_topic
from services.backbone.postgres import Connection

log = structlog.get_logger()

router = APIRouter(prefix="/api/v1/models/{model_id}", tags=["training"], route_class=GuardedRoute)

KIND_OF_REFUSAL: dict[RefusalKind, Kind] = {
    RefusalKind.MODEL_NOT_CUSTOM: problems.MODEL_NOT_CUSTOM,
    RefusalKind.RUN_IN_PROGRESS: problems.RUN_IN_PROGRESS,
    RefusalKind.NO_SCRIPT_ASSET: problems.NO_SCRIPT_ASSET,
    RefusalKind.ENTRY_POINT_NOT_FOUND: problems.ENTRY_POINT_NOT_FOUND,
    RefusalKind.NO_DATASET: problems.NO_DATASET,
    RefusalKind.DATASET_EMPTY: problems.DATASET_EMPTY,
}


@router.post(
    "/custom/train",
    status_code=202,
    response_model=CustomTrainingRun,
    summary="Train a custom model",
    **guarded("training:run", problems.NOT_FOUND, *KIND_OF_REFUSAL.values(), sends="json", located=202),
)
async def train(model_id: str, body: TrainBody, call: CurrentCall, idempotency_key: IdempotencyKey = None) -> Response:
    """Run the model's script on its dataset, in a sandbox. Poll the run, its logs or its metrics by `run_id`.

    Needs at least one asset of type `script`. The script reads the dataset at `DATASET_PATH` and writes the model to
    `MODEL_OUTPUT_PATH`; without that no version is created. One run per model at a time.
    """
    ticket = call.ticket(idempotency_key, body.model_dump())
    try:
        answer = await submit(Submission(call, model_id, body, ticket))
    except ModelMissing as error:
        raise no_model(model_id) from error
    except Refused as error:
        raise _problem_of(error.refusal) from error
    return respond(_with_values(answer, body.environment_vars))


def _with_values(answer: Answer, values: dict[str, str]) -> Answer:
    """Show the values of variables in an answer; they are never kept with it."""
    shown = json.loads(answer.body)
    shown["environment_vars"] = {name: values.get(name) for name in shown["environment_vars"]}
    return replace(answer, body=json.dumps(shown, ensure_ascii=False))


def _problem_of(refusal: Refusal) -> Problem:
    extra = {} if refusal.run_id is None else {"run_id": refusal.run_id}
    return Problem(KIND_OF_REFUSAL[refusal.kind], refusal.detail, extra=extra)


@router.get("/runs", summary="List a model's runs", **guarded("models:read", problems.NOT_FOUND))
async def get_runs(
    model_id: str, call: CurrentCall, limit: Limit = DEFAULT_PAGE, cursor: PlaceCursor = None
) -> Page[CustomTrainingRun]:
    """List a model's runs, newest first."""
    await found_model(call, model_id)
    found = await list_runs(call.context.pool, model_id, decode_place(cursor), limit + 1)
    runs = found[:limit]
    following = encode_place(runs[-1].requested_at, runs[-1].run_id) if len(found) > limit else None
    return Page(items=[await _shown(call, run) for run in runs], next_cursor=following)


@router.get("/runs/{run_id}", summary="Get a run", **guarded("models:read", problems.NOT_FOUND))
async def get_run(model_id: str, run_id: str, call: CurrentCall) -> CustomTrainingRun:
    """Get one run: its status, why it waits or why it ended, what it used and what it made."""
    return await _shown(call, await found_run(call, model_id, run_id))


@router.post(
    "/runs/{run_id}/cancel",
    status_code=202,
    response_model=CustomTrainingRun,
    summary="Cancel a run",
    **guarded("training:run", problems.NOT_FOUND, problems.RUN_ENDED, *KEYED),
)
async def cancel_run(model_id: str, run_id: str, call: CurrentCall, idempotency_key: IdempotencyKey = None) -> Response:
    """Ask a run to stop; asking again changes nothing. It has stopped when its status says so."""
    await found_run(call, model_id, run_id)

    async def act(connection: Connection) -> Answer:
        run = await _request_cancellation(connection, call, run_id)
        return answer_with(202, show_run(run, None))

    try:
        answer = await act_once(call, call.ticket(idempotency_key, {}), act)
    except CommitUnknown as error:
        raise outcome_unknown({"run_id": run_id}) from error
    return respond(_with_values(answer, await call.context.variables.read(run_id) or {}))


async def _request_cancellation(connection: Connection, call: Call, run_id: str) -> Run:
    run = await lock_run(connection, run_id)
    if run is None:
        raise Problem(problems.NOT_FOUND, f"There is no run {run_id}.")
    if run.status.is_end:
        raise Problem(
            problems.RUN_ENDED, f"{run_id} has ended: {run.status}.", extra={"run_id": run_id, "run_status": run.status}
        )
    if run.cancellation_requested:
        return run
    event = cancellation_requested(run, call.caller.actor, call.request_id, now_utc(), call.traceparent)
    stopping = run.model_copy(update={"cancellation_requested": True})  # what folding the event will say, told at once
    await update_run(connection, stopping)
    await enqueue(connection, [to_its_topic(event)])
    log.info("cancellation_requested", run_id=run_id, model_id=run.model_id, tenant_id=run.tenant_id)
    return stopping


async def found_run(call: Call, model_id: str, run_id: str) -> Run:
    """Read a run of the caller's tenant; another tenant's, or another model's, is not there."""
    run = await select_run(call.context.pool, call.caller.tenant_id, model_id, run_id)
    if run is None:
        raise Problem(problems.NOT_FOUND, f"There is no run {run_id} of model {model_id}.")
    return run


async def _shown(call: Call, run: Run) -> CustomTrainingRun:
    held = run.spec.variable_names and not run.status.is_end
    return show_run(run, await call.context.variables.read(run.run_id) if held else None)

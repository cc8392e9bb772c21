"""The events that the api emits, each constructed here and nowhere else."""

from datetime import datetime

from schemas.cloudevents import CloudEvent
from schemas.events import CancellationRequested, ModelVersionCreated, RunFact, TrainingRequested
from schemas.ids import event_id
from schemas.run import Run

SOURCE = "/runyard/api"


def training_requested(run: Run, request_id: str, traceparent: str) -> CloudEvent:
    """Tell that a request was accepted; its time is the run's."""
    data = TrainingRequested(
        run_id=run.run_id,
        tenant_id=run.tenant_id,
        actor=run.actor,
        request_id=request_id,
        model_id=run.model_id,
        spec=run.spec,
        estimated_start_at=run.estimated_start_at,
    )
    return _event(data, run.requested_at, traceparent)


def cancellation_requested(run: Run, actor: str, request_id: str, now: datetime, traceparent: str) -> CloudEvent:
    """Tell that somebody asked to stop a run."""
    data = CancellationRequested(
        run_id=run.run_id, tenant_id=run.tenant_id, model_id=run.model_id, actor=actor, request_id=request_id
    )
    return _event(data, now, traceparent)


def model_version_created(run: Run, version: int, now: datetime, traceparent: str | None) -> CloudEvent:
    """Tell that the artifact of a run became a version; the run must have one."""
    if run.artifact is None:
        raise ValueError(f"{run.run_id} has no artifact")
    data = ModelVersionCreated(
        run_id=run.run_id,
        tenant_id=run.tenant_id,
        model_id=run.model_id,
        version=version,
        artifact=run.artifact,
    )
    return _event(data, now, traceparent)


def _event(data: RunFact, time: datetime, traceparent: str | None) -> CloudEvent:
    return CloudEvent(event_id(data.run_id, 0, data.type), SOURCE, data.run_id, time, data, traceparent)

"""What comes in on this runner's partition of `runyard.dispatch`: runs to take and attempts to stop.

A handler only writes to the journal and wakes somebody: the offset is committed when it returns, and nothing slow
stands before that. Every message may come again, late, or before the one that it is about. What neither the journal nor
a folder can hold is poison before it is written down, or every start of the runner would stumble over it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from schemas.cloudevents import CloudEvent
from schemas.events import RunQueued, RunRevoked
from schemas.ids import is_name
from schemas.parts import RunAttempt
from schemas.reason import Reason, status_of
from services.backbone.consumer import Received
from services.backbone.crash_points import crash_point
from services.backbone.errors import PoisonError
from services.runner.events import Aftermath, Pen, run_ended
from services.runner.journal import Journal, State
from services.runner.outcome import Cause, Ended
from services.runner.roster import Roster

MOST = 2**31 - 1
"""What an attempt's number, its seconds and its compute may be at most: what every database can hold."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Handlers:
    """Handlers of one runner; `changed` wakes its outbox and its heart."""

    journal: Journal
    roster: Roster
    changed: Callable[[], None]

    def on_run_queued(self, queued: RunQueued, traceparent: str | None) -> None:
        """Take the run; one that was taken before is let alone, or its end is told again."""
        ref = RunAttempt(run_id=queued.run_id, attempt=queued.attempt)
        crash_point("before_attempt_journaled")
        if self.journal.accept(queued, traceparent):
            log.info("run_accepted", run_id=ref.run_id, attempt=ref.attempt)
        crash_point("after_attempt_journaled")
        entry = self.journal.entry(ref)
        if entry is not None and entry.state is not State.ENDED:
            self.roster.launch(entry)
        elif self.journal.republish_end(ref):
            log.info("end_republished", run_id=ref.run_id, attempt=ref.attempt)
        self.changed()

    def on_run_revoked(self, revoked: RunRevoked, traceparent: str | None) -> None:
        """Stop the attempt; one that was never seen will never start, and a cancelled one is told as ended."""
        ref = RunAttempt(run_id=revoked.run_id, attempt=revoked.attempt)
        cause = Cause.USER_REQUEST if revoked.reason is Reason.USER_REQUEST else Cause.REPLACED
        now, told = datetime.now(UTC), None
        if cause is Cause.USER_REQUEST:
            ended = Ended(status_of(Reason.USER_REQUEST), Reason.USER_REQUEST, "stopped on request")
            told = run_ended(Pen(self.journal.runner_id, ref, traceparent), ended, Aftermath(ended_at=now))
        if self.journal.refuse(ref, cause, now, told):
            crash_point("after_refusal_journaled")
        else:
            crash_point("before_cause_journaled")
            counts = self.journal.set_cause(ref, cause)
            crash_point("after_cause_journaled")
            log.info("run_revoked", run_id=ref.run_id, attempt=ref.attempt, cause=counts)
            self.roster.stop(ref)
            self._tell_end_again(ref)
        self.changed()

    async def handle(self, batch: Sequence[Received]) -> None:
        """Handle a batch in order; what is addressed to another runner of the partition is none of ours."""
        for received in batch:
            if not isinstance(received.event, CloudEvent):
                continue
            data, traceparent = received.event.data, received.event.traceparent
            if not isinstance(data, RunQueued | RunRevoked) or data.runner_id != self.journal.runner_id:
                continue
            _refuse_impossible(data)
            if isinstance(data, RunQueued):
                self.on_run_queued(data, traceparent)
            else:
                self.on_run_revoked(data, traceparent)

    def _tell_end_again(self, ref: RunAttempt) -> None:
        """Whoever revokes an attempt that has ended has not heard of its end."""
        entry = self.journal.entry(ref)
        if entry is not None and entry.state is State.ENDED:
            self.journal.republish_end(ref)


def _refuse_impossible(data: RunQueued | RunRevoked) -> None:
    if not is_name(data.run_id):
        raise PoisonError(f"{data.run_id[:100]!r} cannot be the id of a run")
    numbers = [data.attempt]
    if isinstance(data, RunQueued):
        numbers += [data.spec.timeout_s, data.spec.grace_s, data.spec.compute.cpu_cores, data.spec.compute.memory_gb]
    if max(numbers) > MOST:
        raise PoisonError(f"an attempt, its time limit or its compute is above {MOST}")

"""The api's part: accepting, cancelling and folding, with the service's own decisions on the model's tables.

As in `services/api`: key, claim, run and event are one transaction; end, version, release and event are one, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from schemas.events import RunFact
from schemas.ids import run_id
from schemas.parts import Compute, PinnedAsset, PinnedObject, TrainingSpec
from schemas.run import Run, evolve
from services.api.admission import ModelFacts, Refusal, RefusalKind, TrainingRequest, admit
from services.api.events import cancellation_requested, model_version_created, training_requested
from services.backbone.outbox import to_its_topic
from tests.simulation.bus import Record
from tests.simulation.database import CommitUnknown, ConstraintBroken, Outbox, Postgres, Transaction
from tests.simulation.world import STEP, Process, Steps, World

TENANT = "acme"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SCRIPT = PinnedAsset(asset_id="ast-1", asset_type="script", filename="train.py", sha256="a" * 64, size_bytes=812)
CONTENT = PinnedObject(filename="wine.csv", sha256="b" * 64, size_bytes=11157)


@dataclass(frozen=True, slots=True)
class Version:
    """A row of `versions`."""

    model_id: str
    version: int
    run_id: str
    sha256: str


@dataclass(slots=True)
class Tables:
    """The schema `registry`. `active` and `latest` are columns of `models`."""

    active: dict[str, str | None] = field(default_factory=dict)
    latest: dict[str, int] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    versions: dict[str, Version] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    outbox: Outbox = field(default_factory=Outbox)
    cluster: dict[str, int] = field(default_factory=lambda: {"id": 1})


class Refused(Exception):
    """The request cannot become a run: the refusal's kind."""


class OutcomeUnknown(Exception):
    """Nobody knows whether the run was accepted; it would have this id."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What a client asks for."""

    model_id: str
    request: TrainingRequest
    key: str | None


Claim = Callable[[Tables, Transaction, Run], Steps[bool]]


def claim_model(tables: Tables, transaction: Transaction, run: Run) -> Steps[bool]:
    """Give a run its model by one guarded UPDATE: it waits for the row, and then looks at what is committed."""
    yield from transaction.lock(("model", run.model_id))
    if tables.active[run.model_id] is not None:
        return False
    transaction.put(tables.active, run.model_id, run.run_id)
    return True


@dataclass(slots=True)
class Registry:
    """One api process at the tables."""

    world: World
    postgres: Postgres
    tables: Tables
    process: Process
    claim: Claim = claim_model

    def submit(self, wanted: Submission) -> Steps[str]:
        """Accept a request; returns the run's id, which is the answer 202.

        Raises:
            Refused: with the kind of the refusal.
            OutcomeUnknown: with the run's id.
            Unavailable: nothing was written.
        """
        self.postgres.check()
        if (kept := self._kept(wanted)) is not None:
            return kept
        yield STEP
        identity = run_id(self.world.moment.date(), f"{self.world.random.getrandbits(24):06x}")
        try:
            self._admit(wanted, self.tables.active[wanted.model_id])
            return (yield from self._accept(wanted, identity))
        except CommitUnknown:
            return (yield from self._look(identity))
        except Refused:  # perhaps because the same request was accepted a moment ago
            if (kept := self._kept(wanted)) is not None:
                return kept
            raise

    def _accept(self, wanted: Submission, identity: str) -> Steps[str]:
        transaction = self.postgres.begin(self.process)
        if wanted.key is not None:
            yield from transaction.lock(("key", wanted.key))
            if (kept := self._kept(wanted)) is not None:
                transaction.rollback()
                return kept
            transaction.put(self.tables.keys, wanted.key, identity)
        yield STEP
        run = self._begin(wanted, identity)
        if not (yield from self.claim(self.tables, transaction, run)):
            transaction.rollback()
            raise Refused(RefusalKind.RUN_IN_PROGRESS)
        transaction.put(self.tables.runs, identity, run)
        transaction.enqueue(self.tables.outbox, [to_its_topic(training_requested(run, "req-1", TRACE))])
        yield from transaction.commit()
        self.world.say(self.process.name, "accepts", identity[-6:], wanted.model_id)
        return identity

    def cancel(self, identity: str) -> Steps[None]:
        """Ask a run to stop; nothing happens to one that has ended.

        Raises:
            Unavailable: it may or may not have been asked for.
        """
        transaction = self.postgres.begin(self.process)
        yield from transaction.lock(("registry", identity))
        run = self.tables.runs.get(identity)
        if run is None or run.status.is_end or run.cancellation_requested:
            transaction.rollback()
            return
        event = cancellation_requested(run, "bob", "req-2", self.world.moment, TRACE)
        stopping = run.model_copy(update={"cancellation_requested": True})
        transaction.put(self.tables.runs, identity, stopping)
        transaction.enqueue(self.tables.outbox, [to_its_topic(event)])
        yield from transaction.commit()
        self.world.say(self.process.name, "is asked to cancel", identity[-6:])

    def on_runs(self, batch: Sequence[Record]) -> Steps[None]:
        """Fold a batch, each fact in a transaction of its own."""
        for record in batch:
            yield from self._fold(record)

    def _fold(self, record: Record) -> Steps[None]:
        event, fact = record.event, record.event.data
        if not isinstance(fact, RunFact):
            return
        transaction = self.postgres.begin(self.process)
        yield from transaction.lock(("registry", fact.run_id))
        before = self.tables.runs.get(fact.run_id)
        evolution = evolve(before, fact, event.time)
        after = evolution.run
        if before is None or after is None or evolution.stale is not None:
            transaction.rollback()
            return
        if after.status.is_end and not before.status.is_end:
            after = yield from self._end(transaction, after, event.traceparent)
        transaction.put(self.tables.runs, fact.run_id, after)
        yield from transaction.commit()

    def _end(self, transaction: Transaction, run: Run, traceparent: str | None) -> Steps[Run]:
        tables = self.tables
        yield from transaction.lock(("model", run.model_id))
        if tables.active[run.model_id] == run.run_id:
            transaction.put(tables.active, run.model_id, None)
        if run.artifact is None:
            return run
        version = tables.latest[run.model_id] + 1
        if run.run_id in tables.versions:
            raise ConstraintBroken(f"{run.run_id} has a version already")
        transaction.put(tables.latest, run.model_id, version)
        transaction.put(tables.versions, run.run_id, Version(run.model_id, version, run.run_id, run.artifact.sha256))
        event = model_version_created(run, version, self.world.moment, traceparent)
        transaction.enqueue(tables.outbox, [to_its_topic(event)])
        return run.model_copy(update={"version": version})

    def _kept(self, wanted: Submission) -> str | None:
        return None if wanted.key is None else self.tables.keys.get(wanted.key)

    def _admit(self, wanted: Submission, active_run_id: str | None) -> TrainingSpec:
        facts = ModelFacts(wanted.model_id, "custom", active_run_id, "dts-1", CONTENT, (SCRIPT,))
        decision = admit(facts, wanted.request)
        if isinstance(decision, Refusal):
            raise Refused(decision.kind)
        return decision

    def _begin(self, wanted: Submission, identity: str) -> Run:
        return Run(
            run_id=identity,
            tenant_id=TENANT,
            actor="ada",
            model_id=wanted.model_id,
            spec=self._admit(wanted, None),
            requested_at=self.world.moment,
        )

    def _look(self, identity: str) -> Steps[str]:
        """Find out whether a commit that was not answered is durable; not finding it proves nothing."""
        for _ in range(3):
            if not self.postgres.is_down and identity in self.tables.runs:
                return identity
            yield 1.0
        raise OutcomeUnknown(identity)


def request_for(compute: Compute, timeout_s: int) -> TrainingRequest:
    """A request to train."""
    return TrainingRequest("train.py", "python3.11", compute, timeout_s, None, (), 10)

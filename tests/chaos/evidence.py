"""What a fault test has seen and kept: plain data, so that the checker can be tested by hand-made evidence.

All times are seconds of this machine's wall clock (Docker stamps its containers with the same one). Owns nothing and
judges nothing: `gathering` fills it, `invariants` reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Told:
    """One answer that a client got: `accepted`, `refused` or `unknown` to a submission, `cancelling` to a cancellation.

    `unanswered` are requests beside them (models, assets, cancellations) whose outcome nobody knows: no run is theirs.
    `script` names what was submitted (see `submitting.SCRIPTS`); `key` is the Idempotency-Key that it went under.
    """

    at: float
    outcome: str
    key: str
    script: str = ""
    status: int | None = None
    run_id: str | None = None
    model_id: str = ""
    timeout_s: int = 60
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A container of a run by Docker's own stamps; `ended` is None while it runs.

    `exit_code` is None where the engine forgot the container before anybody asked: then `ended` is when it was last
    seen alive.
    """

    run_id: str
    attempt: int
    runner_id: str
    container_id: str
    started: float
    ended: float | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Outage:
    """A part that could not work: a service, `postgres`, `kafka` or `engine`; `how`: `killed`, `halted`, `cut_off`.

    It ended when all that needs it was well again; a server itself answered, or a link was there again, at `back`
    already (None: only then).
    """

    part: str
    how: str
    began: float
    ended: float
    back: float | None = None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A row of the ledger."""

    run_id: str
    version: int
    event_id: str
    type: str
    data: Mapping[str, Any]
    stale: str | None = None
    occurred: float = 0.0
    stored: float = 0.0
    epoch: int = 1


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """A record as it stands on a topic of the current broker."""

    topic: str
    partition: int
    offset: int
    event_id: str
    type: str
    subject: str


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of a model, as the registry has it."""

    model_id: str
    version: int
    run_id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as one service's table tells it."""

    status: str
    reason: str | None
    attempt: int
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Something that strangers may read, and what stands there."""

    where: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Terms:
    """The bounds that the system was given."""

    lease_s: float = 7.0
    heartbeat_s: float = 1.0
    max_attempts: int = 3
    settle_s: float = 60.0
    return_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one fault test.

    Attributes:
        runners: each runner's id by the name of its service.
        tables: the runs as each service has them: `registry`, `scheduling`, `ledger`.
        audit: (run id, action) of each entry of the audit log.
        chain_difference: what `runyard verify` found, None if nothing.
        broker_epoch: the ledger's number for the broker that `records` come from.
        objects: by digest that is asked for, the digest of what is stored under it; None for nothing.
        unsent: outbox rows that nobody has sent, by outbox.
        missing_output: runs whose log is not stored up to where their end says.
        leftovers: containers, volumes, mounts, folders, processes that should be gone, each in words.
    """

    terms: Terms = Terms()
    told: Sequence[Told] = ()
    lifetimes: Sequence[Lifetime] = ()
    outages: Sequence[Outage] = ()
    faults_stopped: float = 0.0
    runners: Mapping[str, str] = field(default_factory=dict)
    stored: Sequence[StoredEvent] = ()
    tables: Mapping[str, Mapping[str, RunRow]] = field(default_factory=dict)
    audit: Sequence[tuple[str, str]] = ()
    chain_difference: str | None = None
    versions: Sequence[VersionRow] = ()
    records: Sequence[TopicRecord] = ()
    broker_epoch: int = 1
    objects: Mapping[str, str | None] = field(default_factory=dict)
    unsent: Mapping[str, int] = field(default_factory=dict)
    missing_output: Sequence[str] = ()
    leftovers: Sequence[str] = ()
    canaries: Sequence[str] = ()
    places: Sequence[Place] = ()
    files: Sequence[Path] = ()

    @property
    def accepted(self) -> list[Told]:
        """What clients were told to be accepted."""
        return [told for told in self.told if told.outcome == "accepted"]

    @property
    def stored_ids(self) -> set[tuple[str, int, str]]:
        """Run, version and id of every stored event."""
        return {(event.run_id, event.version, event.event_id) for event in self.stored}

    def events_of(self, run_id: str) -> list[StoredEvent]:
        """A run's events in the order of their versions."""
        return sorted((event for event in self.stored if event.run_id == run_id), key=lambda event: event.version)

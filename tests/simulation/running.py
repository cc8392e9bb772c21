"""One runner process: its dispatch, its heart, its delivery. What it remembers is in the journal.

Mirrors `services/runner/{handlers,dispatch,heartbeat,delivery,sweep}.py`; the life of an attempt is in `attempting`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from schemas.cloudevents import CloudEvent
from schemas.events import RunnerHeartbeat, RunQueued, RunRevoked
from schemas.ids import event_id
from schemas.parts import Capacity, RunAttempt
from schemas.reason import Reason, status_of
from schemas.topics import DISPATCH, RUNNERS
from services.runner.events import Aftermath, Pen, run_ended
from services.runner.journal import State
from services.runner.outcome import Cause, Ended
from tests.simulation.attempting import Attempt, Surroundings
from tests.simulation.bus import PARTITIONS, Bus, PublishFailed, Record
from tests.simulation.joining import CHECK_EVERY_S, LOOK_EVERY_S
from tests.simulation.journal import Journal
from tests.simulation.leading import HEARTBEAT_S, Announcement
from tests.simulation.moving import Consumer
from tests.simulation.watching import Watch
from tests.simulation.world import PARKED, STEP, Exit, Nap, Process, Steps, Task, World

ENDED_FOR = timedelta(hours=1)
SWEEP_S = 20.0


@dataclass(slots=True)
class Offer:
    """What the runner announces."""

    capacity: Capacity
    dispatch_partition: int


@dataclass(slots=True)
class Runner:
    """One life of a runner's process; a new one begins with nothing but the journal."""

    world: World
    bus: Bus
    process: Process
    offer: Offer
    around: Surroundings
    watch: Watch
    reads_to_the_end: bool = True
    alive: dict[RunAttempt, Attempt] = field(default_factory=dict)
    heart: Task | None = None
    delivery: Task | None = None
    gatekeeper: Task | None = None
    connected: bool = False
    cut_off: bool = False
    must_read_anew: bool = False

    @property
    def journal(self) -> Journal:
        """What survives."""
        return self.around.journal

    def boot(self) -> None:
        """Start every part."""
        self.watch.on_connected(self.journal.runner_id)
        self.around.changed = self.changed
        for entry in self.journal.unfinished():
            self.launch(entry.ref)
        self.process.spawn("sweep", self._sweep())
        self.process.spawn("cluster", self._work())

    def _begin(self) -> None:
        self.delivery = self.process.spawn("delivery", self._deliver())
        self.heart = self.process.spawn("heart", self._beat())
        self.gatekeeper = self.process.spawn("dispatch", self._listen())

    def _work(self) -> Steps[None]:
        """Wait for a cluster that has all topics; if it is another one, tell it everything after a new start.

        Raises:
            Exit: another cluster answers now.
        """
        while not self.bus.reachable(self.process) or not self.bus.topics >= set(PARTITIONS):
            yield LOOK_EVERY_S
        if not self.journal.adopt_cluster(self.bus.cluster):
            raise Exit
        self._begin()
        while True:
            yield CHECK_EVERY_S
            if self.bus.reachable(self.process) and self.journal.cluster != self.bus.cluster:
                raise Exit

    def changed(self) -> None:
        """Wake whoever tells the world."""
        for task in (self.heart, self.delivery):
            if task is not None:
                self.world.wake(task)

    def launch(self, ref: RunAttempt) -> None:
        """Let an unfinished attempt live, unless it does already."""
        entry = self.journal.entry(ref)
        if entry is None or entry.queued is None or ref in self.alive:
            return
        attempt = Attempt(entry, self.around)
        self.alive[ref] = attempt
        attempt.task = self.process.spawn("attempt", self._live(attempt))

    def on_dispatch(self, batch: Sequence[Record]) -> Steps[None]:
        """Handle a batch in order; what is addressed to another runner of the partition is none of ours."""
        for record in batch:
            data, trace = record.event.data, record.event.traceparent
            if isinstance(data, RunQueued) and data.runner_id == self.journal.runner_id:
                self.on_run_queued(data, trace)
                yield STEP
            elif isinstance(data, RunRevoked) and data.runner_id == self.journal.runner_id:
                self.on_run_revoked(data, trace)
                yield STEP

    def on_run_queued(self, queued: RunQueued, trace: str | None) -> None:
        """Take the run; one that was taken before is let alone, or its end is told again."""
        ref = RunAttempt(run_id=queued.run_id, attempt=queued.attempt)
        self.journal.accept(queued, trace)
        entry = self.journal.entry(ref)
        if entry is not None and entry.state is not State.ENDED:
            self.launch(ref)
        else:
            self.journal.republish_end(ref)
        self.changed()

    def on_run_revoked(self, revoked: RunRevoked, trace: str | None) -> None:
        """Stop the attempt; one that was never seen will never start, and a cancelled one is told as ended."""
        ref = RunAttempt(run_id=revoked.run_id, attempt=revoked.attempt)
        cause = Cause.USER_REQUEST if revoked.reason is Reason.USER_REQUEST else Cause.REPLACED
        told = None
        if cause is Cause.USER_REQUEST:
            ended = Ended(status_of(Reason.USER_REQUEST), Reason.USER_REQUEST, "stopped on request")
            told = run_ended(Pen(self.journal.runner_id, ref, trace), ended, Aftermath(ended_at=self.world.moment))
        if not self.journal.refuse(ref, cause, self.world.moment, told):
            self.journal.set_cause(ref, cause)
            if ref in self.alive:
                self.alive[ref].stop(self.world)
            entry = self.journal.entry(ref)
            if entry is not None and entry.state is State.ENDED:
                self.journal.republish_end(ref)
        self.changed()

    def _live(self, attempt: Attempt) -> Steps[None]:
        yield from attempt.run()
        del self.alive[attempt.ref]

    def _deliver(self) -> Steps[None]:
        """Empty the journal's outbox, for ever."""
        while True:
            waiting = self.journal.unpublished()
            if not waiting:
                yield Nap(HEARTBEAT_S)
                continue
            try:
                yield from self.bus.publish(self.process, waiting)
            except PublishFailed:
                yield 1.0
            else:
                self.journal.mark_published(waiting)

    def _beat(self) -> Steps[None]:
        while True:
            event = self._heartbeat()
            try:
                yield from self.bus.publish(self.process, [Announcement(RUNNERS.name, event.subject, event)])
            except PublishFailed:
                self.connected, self.cut_off, self.must_read_anew = False, True, True
                self._gate(may_start=False)
            else:
                self.watch.on_heard(self.journal.runner_id)
                if self.cut_off:
                    self.watch.on_connected(self.journal.runner_id)
                self.connected, self.cut_off = True, False
            if self.gatekeeper is not None:
                self.world.wake(self.gatekeeper)
            yield Nap(HEARTBEAT_S)

    def _heartbeat(self) -> CloudEvent:
        journal, now = self.journal, self.world.moment
        unfinished = journal.unfinished()
        data = RunnerHeartbeat.model_construct(
            runner_id=journal.runner_id,
            beat=journal.next_beat(),
            capacity=self.offer.capacity,
            runtimes=("python3.11",),
            dispatch_partition=self.offer.dispatch_partition,
            accepted=tuple(entry.ref for entry in unfinished if entry.state is State.ACCEPTED),
            running=tuple(entry.ref for entry in unfinished if entry.state is State.RUNNING),
            ended=tuple(journal.lately_ended(now - ENDED_FOR)),
        )
        identity = event_id(journal.runner_id, 0, data.type, data.beat)
        return CloudEvent(identity, f"/runyard/runner/{journal.runner_id}", journal.runner_id, now, data)

    def _listen(self) -> Steps[None]:
        """Read dispatch; the gate opens when it was read to its end, and closes when the runner was cut off."""
        while True:
            self.must_read_anew = False
            consumer = self._consumer()
            consumer.on_caught_up = self.gatekeeper
            reading = consumer.listen()
            while self.reads_to_the_end and not consumer.caught_up:
                yield PARKED
            self._gate(may_start=not self.must_read_anew)
            while not self.must_read_anew:
                yield PARKED
            reading.cancel()
            while not self.connected:
                yield PARKED

    def _consumer(self) -> Consumer:
        runner_id, partition = self.journal.runner_id, self.offer.dispatch_partition
        return Consumer(
            "reading",
            DISPATCH.name,
            self.bus,
            self.process,
            self.on_dispatch,
            runner_id,
            partition,
        )

    def _gate(self, *, may_start: bool) -> None:
        self.around.may_start = may_start
        for attempt in self.alive.values():
            if attempt.task is not None:
                self.world.wake(attempt.task)

    def _sweep(self) -> Steps[None]:
        """Remove containers that belong to no unfinished attempt."""
        while True:
            names = list(self.around.engine.containers)
            yield STEP
            unfinished = {f"run-{entry.ref.run_id}-{entry.ref.attempt}" for entry in self.journal.unfinished()}
            for name in names:
                if name not in unfinished:
                    self.around.engine.remove(name)
            yield SWEEP_S

"""The operator's step after a broker that lost its data: all leave, the runs are told again, the cluster is named.

Mirrors `services/cli/republish.py`; the order in which one run is told is its own `retelling.retell`. May be killed
anywhere, and is then done again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.cloudevents import CloudEvent, decode, encode
from schemas.topics import RUNS
from services.backbone.outbox import OutboxRow as Kept
from services.cli.retelling import Known, retell
from tests.simulation.bus import PUBLISH_TIMEOUT_S, Bus, PublishFailed
from tests.simulation.database import Outbox, OutboxRow, Postgres, Unavailable
from tests.simulation.leading import Announcement
from tests.simulation.tables import Tables
from tests.simulation.world import STEP, Process, Steps

SCHEMAS = ("registry", "scheduling", "ledger")
BATCH = 6
PATIENCE_LOOKS = 60

Keep = Callable[[Outbox], Sequence[OutboxRow]]


def whatever_was_decided(outbox: Outbox) -> Sequence[OutboxRow]:
    """Take all rows: what is not marked may have been there all the same."""
    return [row for row in outbox.rows.values() if row.topic == RUNS.name]


@dataclass(slots=True)
class Operator:
    """`runyard replay --open-runs`, as it is done when another cluster answers."""

    postgres: Postgres
    bus: Bus
    tables: Tables
    process: Process
    keep: Keep = whatever_was_decided

    def run(self) -> Steps[None]:
        """Do it, again and again until it is done."""
        while self.tables.named["registry"]["id"] != self.bus.cluster:
            try:
                yield from self._republish()
            except (Unavailable, PublishFailed):
                self.postgres.forget(self.process)
                yield 2.0
        self.postgres.forget(self.process)

    def _republish(self) -> Steps[None]:
        if not self.bus.reachable(self.process):
            raise Unavailable
        cluster, world = self.bus.cluster, self.process.world
        for schema in SCHEMAS:
            yield from self._wait_until_left(schema)
        yield 2 * PUBLISH_TIMEOUT_S
        self.bus.topics.add(RUNS.name)
        world.say("operator", "tells cluster", cluster)
        yield STEP
        for run_id in self._run_ids():
            told = retell(self._known(run_id))
            yield STEP
            yield from self._tell(run_id, [decode(record.headers, record.value) for record in told])
        self.bus.make_topics()
        yield STEP
        transaction = self.postgres.begin(self.process)
        for named in self.tables.named.values():
            transaction.put(named, "id", cluster)
        yield from transaction.commit()
        world.say("operator", "names cluster", cluster)

    def _wait_until_left(self, schema: str) -> Steps[None]:
        for _ in range(PATIENCE_LOOKS):
            self.postgres.check()
            if self.postgres.take(schema, self.process):
                return
            yield 1.0
        raise Unavailable

    def _tell(self, run_id: str, events: Sequence[object]) -> Steps[None]:
        for at in range(0, len(events), BATCH):
            batch = [Announcement(RUNS.name, run_id, e) for e in events[at : at + BATCH] if isinstance(e, CloudEvent)]
            while True:
                try:
                    yield from self.bus.publish(self.process, batch)
                except PublishFailed:
                    yield 1.0
                else:
                    break

    def _run_ids(self) -> Sequence[str]:
        """Name the runs that anybody takes for open, and those of which the ledger has not stored all that was told."""
        tables = self.tables
        found = [run_id for run_id, run in tables.registry.runs.items() if not run.status.is_end]
        found += [run_id for run_id, row in tables.scheduling.runs.items() if row.ended_at is None]
        found += [run_id for run_id, h in tables.ledger.histories.items() if h.run is None or not h.run.status.is_end]
        for outbox in (tables.registry.outbox, tables.scheduling.outbox):
            found += [row.event.subject for row in self.keep(outbox) if row.event.id not in tables.ledger.known]
        return sorted(dict.fromkeys(found))

    def _known(self, run_id: str) -> Known:
        tables = self.tables
        rows = [row for o in (tables.registry.outbox, tables.scheduling.outbox) for row in self.keep(o)]
        kept = [
            Kept(row.id, row.topic, row.key, row.partition, *encode(row.event))
            for row in rows
            if row.event.subject == run_id
        ]
        scheduled = tables.scheduling.runs.get(run_id)
        folded = [tables.registry.runs[run_id]] if run_id in tables.registry.runs else []
        folded += [scheduled.folded.run] if scheduled is not None else []
        return Known(run_id, [event.arrival for event in tables.ledger.events.get(run_id, ())], kept, folded)

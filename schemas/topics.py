"""The topics: what travels where, by which key, and how long it is kept. Data; `backbone.topics` creates them.

Partition counts are fixed at creation: the order of a run is the order of its partition.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import assert_never, get_args

from schemas.events import (
    AnyEvent,
    DeadLetterRetried,
    DeadLettersEvent,
    DispatchEvent,
    LogsAppended,
    MessageRefused,
    MetricsReported,
    OutputEvent,
    RunEvent,
    RunFact,
    RunnerHeartbeat,
    RunnersEvent,
    RunRevoked,
    SchedulerBeacon,
    SchedulerLoad,
)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is created. `retention` None keeps records for ever; compacted topics keep the last of each key."""

    name: str
    partitions: int
    retention: timedelta | None
    compacted: bool = False


RUNS = Topic("runyard.runs", partitions=6, retention=None)
DISPATCH = Topic("runyard.dispatch", partitions=12, retention=timedelta(days=7))
OUTPUT = Topic("runyard.output", partitions=6, retention=timedelta(days=3))
RUNNERS = Topic("runyard.runners", partitions=1, retention=None, compacted=True)
LOAD = Topic("runyard.load", partitions=1, retention=None, compacted=True)
DEAD_LETTERS = Topic("runyard.dead-letters", partitions=1, retention=timedelta(days=30))

TOPICS: tuple[Topic, ...] = (RUNS, DISPATCH, OUTPUT, RUNNERS, LOAD, DEAD_LETTERS)

TRAVELS_ON: dict[Topic, tuple[type, ...]] = {
    RUNS: get_args(RunFact),
    DISPATCH: get_args(DispatchEvent),
    OUTPUT: get_args(OutputEvent),
    RUNNERS: get_args(RunnersEvent),
    LOAD: (SchedulerLoad,),
    DEAD_LETTERS: get_args(DeadLettersEvent),
}

BEACON_KEY = "scheduler"
LOAD_KEY = "load"


def belongs_on(event: AnyEvent, topic_name: str) -> bool:
    """Whether an event may stand on a topic; on a topic that is none of the contract's anything may."""
    return not any(topic.name == topic_name and type(event) not in types for topic, types in TRAVELS_ON.items())


def address_of(event: AnyEvent) -> tuple[Topic, str]:
    """Tell the topic that an event belongs to, and its key there.

    RunQueued belongs to `runyard.runs`; the copy on `runyard.dispatch` is addressed by the scheduler, which knows the
    runner's partition.
    """
    match event:
        case RunRevoked():
            return DISPATCH, event.runner_id
        case LogsAppended() | MetricsReported():
            return OUTPUT, event.run_id
        case RunnerHeartbeat():
            return RUNNERS, event.runner_id
        case SchedulerBeacon():
            return RUNNERS, BEACON_KEY
        case SchedulerLoad():
            return LOAD, LOAD_KEY
        case MessageRefused() | DeadLetterRetried():
            return DEAD_LETTERS, event.topic
        case RunEvent():
            return RUNS, event.run_id
        case _:
            assert_never(event)

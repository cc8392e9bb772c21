"""The demo's subscriber: a run's events from Kafka, read as any stranger could, shown as they arrive."""

from datetime import datetime

from aiokafka import AIOKafkaConsumer
from rich.console import Console
from rich.text import Text

from schemas.cloudevents import CloudEvent, decode
from schemas.events import (
    AnyEvent,
    ModelVersionCreated,
    RunCancelled,
    RunFailed,
    RunQueued,
    RunStarted,
    RunSucceeded,
    RunWaiting,
)
from schemas.run import Run, evolve
from schemas.topics import RUNS
from services.cli.display import STYLE


async def show_events(bootstrap_servers: str, run_id: str, console: Console) -> None:
    """Print a run's events, from its first to its last, each with the status that it leads to."""
    consumer = AIOKafkaConsumer(RUNS.name, bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest")
    run: Run | None = None
    await consumer.start()
    try:
        async for record in consumer:
            event = decode(record.headers, record.value)
            if event.subject != run_id or not isinstance(event, CloudEvent):
                continue
            run = evolve(run, event.data, event.time).run  # type: ignore[arg-type]
            console.print(_line(event.time, event.data, run), soft_wrap=True)
            if _is_last(event.data):
                return
    finally:
        await consumer.stop()


def _line(time: datetime, data: AnyEvent, run: Run | None) -> Text:
    status = run.status.value if run else "queued"
    text = Text(f"  {time:%H:%M:%S} ", "dim").append("● ", STYLE[status]).append(f"{status:<10}", STYLE[status])
    return text.append(f" {type(data).__name__:<20}").append(_details(data), "dim")


def _details(data: AnyEvent) -> str:
    match data:
        case RunWaiting():
            return data.message
        case RunQueued():
            return f"attempt {data.attempt} on {data.runner_id}"
        case RunStarted():
            return f"container {data.container_id[:12]}"
        case RunSucceeded():
            return f"exit code {data.exit_code}, {data.artifact.size_bytes if data.artifact else 0:,} bytes of artifact"
        case RunFailed() | RunCancelled():
            return f"{data.reason}: {data.message}"
        case ModelVersionCreated():
            return f"version {data.version}"
        case _:
            return ""


def _is_last(data: AnyEvent) -> bool:
    if isinstance(data, RunSucceeded):
        return data.artifact is None
    return isinstance(data, RunFailed | RunCancelled | ModelVersionCreated)

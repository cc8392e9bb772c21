"""What is done to a system so that it passes its crash points: runs of every kind, poison, repeated and late messages.

Each scene drives one thing to its one right end and checks it, as a client sees it, while services die under it at
whatever points are armed. It never arms anything itself, and the promises that hold for all runs are `invariants`'.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import docker
import httpx
from aiokafka import AIOKafkaConsumer

from schemas.cloudevents import CloudEvent, encode
from schemas.events import RunQueued, RunRevoked
from schemas.ids import checkpoints_folder, event_id
from schemas.reason import Reason
from schemas.topics import DEAD_LETTERS, DISPATCH, RUNS
from services.backbone.publisher import Outgoing, Publisher
from services.runner.dispatch import partition_of
from services.runner.sandbox import RUN_LABEL
from tests.chaos.crash_arming import Armory
from tests.chaos.evidence import Outage, Told
from tests.chaos.harness import RUNNERS, Chaos
from tests.chaos.submitting import Book, Order, Submitter

DEADLINE_S = 120.0
POLL_S = 0.05
ENDS = ("succeeded", "failed", "cancelled")
PACKAGE = "yardsmall"
"""What the campaign's own index has."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A system with what a scene needs beside it."""

    chaos: Chaos
    armory: Armory
    book: Book
    canary: str
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @contextlib.asynccontextmanager
    async def submitter(self) -> AsyncIterator[Submitter]:
        """A client of its own, which uploads a dataset of its own."""
        client = Submitter(self.chaos.api_url, self.chaos.token, self.book)
        client.give_up_at(time.monotonic() + DEADLINE_S)
        try:
            yield client
        finally:
            await client.close()

    def order(self, script: str) -> Order:
        """A submission of one of the scripts, with a variable that is a secret."""
        number = next(self._numbers)
        return Order(number, f"crash-{os.getpid()}-{number}", script, {"API_KEY": self.canary})


async def eventually(what: str, ask: Callable[[], Any]) -> Any:
    """Ask, by a function or a coroutine function, until the answer is true."""
    answer: Any = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    asked = ask()
                    answer = await asked if asyncio.iscoroutine(asked) else asked
                    if answer:
                        return answer
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {DEADLINE_S:.0f} s; the last answer was {answer}") from None


async def until_status(client: Submitter, told: Told, *statuses: str) -> dict[str, Any]:
    """Wait until a run has one of these statuses, or has ended."""

    async def ask() -> dict[str, Any] | None:
        answer = await client.get(f"/api/v1/models/{told.model_id}/runs/{told.run_id}")
        run: dict[str, Any] = answer.json()
        return run if answer.is_success and run["status"] in (*statuses, *ENDS) else None

    run: dict[str, Any] = await eventually(f"{told.run_id} is to be {' or '.join(statuses)}", ask)
    return run


async def ends(client: Submitter, told: Told, status: str, reason: str | None) -> dict[str, Any]:
    """Wait for a run's end, and check that it is the right one."""
    assert told.outcome == "accepted", told
    run = await until_status(client, told, *ENDS)
    assert (run["status"], run["reason"]) == (status, reason), run
    return run


# -- runs


async def plain(stage: Stage) -> None:
    """A run with variables, metrics and an artifact: all that its last attempt wrote arrives, once.

    There may be others before: a machine that is busy enough lets a lease run out.
    """
    async with stage.submitter() as client:
        told = await client.submit(stage.order("talks"))
        run = await ends(client, told, "succeeded", None)
        assert run["version"] == 1, run
        path = f"/api/v1/models/{told.model_id}"

        async def log() -> list[str] | None:
            answer = (await client.get(f"{path}/runs/{told.run_id}/logs")).json()
            last = [line["text"] for line in answer["items"] if line["attempt"] == run["attempt"]]
            return last if answer.get("complete") else None

        lines = await eventually("the log is to be complete", log)
        assert lines == [f"step {step}" for step in range(20)], lines

        async def metrics() -> dict[str, Any] | None:
            answer = await client.get(f"{path}/runs/{told.run_id}/metrics")
            return answer.json() if answer.is_success else None

        [series] = (await eventually("metrics are to be shown", metrics))["series"]
        steps = [point["step"] for point in series["points"] if point["attempt"] == run["attempt"]]
        assert steps == list(range(20)), steps

        async def artifact() -> bytes | None:
            answer = await client.get(f"{path}/versions/1/artifact")
            return answer.content if answer.is_success else None

        assert await eventually("the artifact is to be there", artifact) == str(told.run_id).encode()

        async def variables() -> bool:
            answer = await client.get(f"{path}/runs/{told.run_id}")
            return answer.is_success and answer.json()["environment_vars"] == {"API_KEY": None}

        await eventually("the variables' values are to be gone", variables)


async def packaged(stage: Stage) -> None:
    """A run with requirements, which no run before it had."""
    async with stage.submitter() as client:
        order = stage.order("model")
        order = replace(order, requirements=f"{PACKAGE}!=0.{order.number}\n")
        await ends(client, await client.submit(order), "succeeded", None)


async def cancelled(stage: Stage) -> None:
    """A run that is stopped while it runs."""
    async with stage.submitter() as client:
        order = stage.order("cancelled")
        told = await client.submit(order)
        await until_status(client, told, "running")
        await client.cancel(order, told)
        await ends(client, told, "cancelled", "user_request")


async def cancelled_before_it_starts(stage: Stage) -> None:
    """A run that is stopped before the scheduler has ever seen it."""
    async with stage.submitter() as client:
        order = stage.order("cancelled")
        with stage.chaos.holding("scheduler"):
            death = asyncio.create_task(stage.armory.kill("scheduler"))
            await eventually("the scheduler is to be dead", lambda: stage.chaos.services["scheduler"].pid is None)
            told = await client.submit(order)
            await client.cancel(order, told)
        await death
        await ends(client, told, "cancelled", "user_request")


async def timed_out(stage: Stage) -> None:
    """A run that is over its time limit."""
    async with stage.submitter() as client:
        await ends(client, await client.submit(stage.order("times_out")), "cancelled", "timeout")


async def stuck(stage: Stage) -> None:
    """A run over its time limit whose shim does not move, so that only the runner's own deadline ends it."""
    async with stage.submitter() as client:
        told = await client.submit(stage.order("times_out"))
        await until_status(client, told, "running")
        with contextlib.closing(docker.from_env()) as engine:
            [container] = engine.containers.list(filters={"label": f"{RUN_LABEL}={told.run_id}"})
            os.kill(container.attrs["State"]["Pid"], signal.SIGSTOP)
        await ends(client, told, "cancelled", "timeout")


async def container_lost(stage: Stage) -> None:
    """A run whose container somebody else kills: its next attempt succeeds."""
    async with stage.submitter() as client:
        told = await client.submit(stage.order("long"))
        await until_status(client, told, "running")
        with contextlib.closing(docker.from_env()) as engine:
            [container] = engine.containers.list(filters={"label": f"{RUN_LABEL}={told.run_id}"})
            began = time.time()
            container.kill()
        stage.armory.halts.append(Outage("engine", "killed", began, time.time()))
        run = await ends(client, told, "succeeded", None)
        assert run["attempt"] >= 2, run


async def went_on(stage: Stage) -> None:
    """A run that waits, once it has kept a checkpoint, for its container to be killed: its next attempt goes on."""
    async with stage.submitter() as client:
        told = await client.submit(stage.order("goes_on"))
        kept = stage.chaos.data_dir.path / "objects" / checkpoints_folder(str(told.run_id))
        await eventually(
            "a checkpoint is to be kept", lambda: [path for path in kept.glob("*") if "#" not in path.name]
        )
        began = time.time()
        with contextlib.closing(docker.from_env()) as engine:
            for container in engine.containers.list(filters={"label": f"{RUN_LABEL}={told.run_id}"}):
                container.kill()
        stage.armory.halts.append(Outage("engine", "killed", began, time.time()))
        run = await ends(client, told, "succeeded", None)
        assert run["attempt"] >= 2, run


async def runner_lost(stage: Stage) -> None:
    """A run whose runner hangs beyond its lease: the next attempt succeeds, the first is stopped when it wakes up."""
    async with stage.submitter() as client:
        told = await client.submit(stage.order("long"))
        run = await until_status(client, told, "running")
        name = await _runner_of(stage, told, run["attempt"])
        began = time.time()
        stage.chaos.halt(name)
        try:
            await eventually("it is to be tried again", lambda: _attempt_is(client, told, run["attempt"] + 1))
        finally:
            stage.chaos.go_on(name)
            stage.armory.halts.append(Outage(name, "halted", began, time.time()))
        await ends(client, told, "succeeded", None)
        await eventually("the replaced container is to be gone", lambda: not _containers_of(told))


# -- services and messages


async def restarted(stage: Stage) -> None:
    """Each service that does something once at its start is started again."""
    async with asyncio.TaskGroup() as group:
        for name in ("api", "scheduler", "runner", "auditor"):
            group.create_task(stage.armory.kill(name))


async def poisoned(stage: Stage) -> None:
    """Records that nobody can read, for every consumer: each is set aside, once, and what comes behind is handled."""
    runners = sorted(stage.chaos.runner_ids().values())
    dispatches = [Outgoing(DISPATCH.name, each, [], b"\xff", partition_of(each)) for each in runners]
    await _publish(stage, [Outgoing(RUNS.name, "poison", [], b"\xff"), *dispatches])

    poison = [each async for headers, each in _records(stage, RUNS.name) if not headers]

    async def letters() -> dict[str, set[str]] | None:
        found: dict[str, set[str]] = {}
        async for headers, _ in _records(stage, DEAD_LETTERS.name):
            found.setdefault(headers["ce_source"].rpartition("/")[2], set()).add(headers["ce_id"])
        wanted = {"api.runs": len(poison), "scheduler.runs": len(poison), "auditor.runs": len(poison)}
        wanted["dispatch"] = len(poison) * len(runners)
        return found if {name: len(ids) for name, ids in found.items()} == wanted else None

    await eventually("every consumer is to have set each poison aside once", letters)


async def repeated(stage: Stage) -> None:
    """The RunQueued of a run that has ended comes again: its end is told again, and changes nothing."""
    async with stage.submitter() as client:
        told = await client.submit(stage.order("model"))
        before = await ends(client, told, "succeeded", None)
        again = [outgoing async for outgoing in _queued(stage, told)]
        await _publish(stage, again)
        await eventually("the end is to be put back", lambda: _logged(stage, "end_republished", told))
        assert await ends(client, told, "succeeded", None) == before


async def revoked_unseen(stage: Stage) -> None:
    """An attempt is revoked that its runner has never seen: it is written down, and nothing is told."""
    async with stage.submitter() as client:
        told = await client.submit(stage.order("model"))
        before = await ends(client, told, "succeeded", None)
        [queued] = [outgoing async for outgoing in _queued(stage, told)][:1]
        said = RunRevoked(run_id=str(told.run_id), attempt=99, runner_id=queued.key, reason=Reason.RUNNER_LOST)
        event = CloudEvent(event_id(said.run_id, 99, said.type), "/tests", said.run_id, datetime.now(UTC), said)
        await _publish(stage, [Outgoing(DISPATCH.name, queued.key, *encode(event), queued.partition)])
        await plain(stage)  # some time, and one more proof that dispatch goes on
        assert await ends(client, told, "succeeded", None) == before


async def _publish(stage: Stage, records: list[Outgoing]) -> None:
    publisher = Publisher({"bootstrap_servers": stage.chaos.kafka.bootstrap_servers})
    try:
        await publisher.publish(records)
    finally:
        await publisher.close()


async def _records(stage: Stage, topic: str) -> AsyncIterator[tuple[dict[str, str], Outgoing]]:
    """Read a topic from its beginning to where it ends now."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=stage.chaos.kafka.bootstrap_servers, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        for partition, end in (await consumer.end_offsets(list(consumer.assignment()))).items():
            while await consumer.position(partition) < end:
                for record in (await consumer.getmany(partition, timeout_ms=1000)).get(partition, []):
                    headers = {name: raw.decode() for name, raw in record.headers if raw is not None}
                    key = (record.key or b"").decode(errors="replace")
                    yield headers, Outgoing(topic, key, list(record.headers), record.value, record.partition)
    finally:
        await consumer.stop()


async def _queued(stage: Stage, told: Told) -> AsyncIterator[Outgoing]:
    """Find what the runners were told of a run."""
    async for headers, outgoing in _records(stage, DISPATCH.name):
        if (
            headers.get("ce_subject") == told.run_id
            and headers.get("ce_type") == RunQueued.model_fields["type"].default
        ):
            yield outgoing


async def _runner_of(stage: Stage, told: Told, attempt: int) -> str:
    outgoing = [outgoing async for outgoing in _queued(stage, told)][-1]
    assert f'"attempt":{attempt}' in outgoing.value.decode(), outgoing
    names = {runner_id: name for name, runner_id in stage.chaos.runner_ids().items()}
    return names[outgoing.key]


async def _attempt_is(client: Submitter, told: Told, attempt: int) -> bool:
    answer = await client.get(f"/api/v1/models/{told.model_id}/runs/{told.run_id}")
    return answer.is_success and answer.json()["attempt"] >= attempt


def _containers_of(told: Told) -> list[str]:
    with contextlib.closing(docker.from_env()) as engine:
        found = engine.containers.list(all=True, filters={"label": f"{RUN_LABEL}={told.run_id}"})
        return [str(container.name) for container in found]


def _logged(stage: Stage, event: str, told: Told) -> bool:
    for name in RUNNERS:
        for line in stage.chaos.services[name].log_path.read_text(errors="replace").splitlines():
            if f'"{event}"' in line and str(told.run_id) in line:
                return True
    return False

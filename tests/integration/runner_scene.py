"""A real runner as a process of its own, against the real broker and engine, with a test in the scheduler's place."""

import asyncio
import base64
import hashlib
import io
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import docker

from schemas.cloudevents import CloudEvent, encode
from schemas.events import (
    AnyEvent,
    AttemptEvent,
    LogsAppended,
    MetricsReported,
    RunEnd,
    RunnerHeartbeat,
    RunQueued,
    RunRevoked,
)
from schemas.ids import event_id, variables_key
from schemas.parts import Compute, PinnedAsset, PinnedDataset, RunAttempt, TrainingSpec
from schemas.reason import Reason
from schemas.topics import DISPATCH, OUTPUT, RUNNERS, RUNS
from services.backbone.consumer import Consumer, Received, Subscription
from services.backbone.health import Health
from services.backbone.kafka import client_options
from services.backbone.objects import Objects, content_key
from services.backbone.publisher import Publisher
from services.backbone.sealing import SealingKey, seal
from services.backbone.settings import ServiceSettings
from services.runner import quota
from services.runner.dispatch import partition_of
from services.runner.events import Outgoing
from services.runner.journal import Journal
from services.runner.sandbox import RUNNER_LABEL
from services.runner.settings import RunnerSettings
from services.runner.slot import slots_folder

PATIENCE_S = 60.0
DATASET = b"a,b\n1,2\n"

Found = TypeVar("Found")


@dataclass
class Scene:
    """One runner's surroundings: its folder, its object store, what it publishes."""

    folder: Path
    kafka: ServiceSettings
    publisher: Publisher
    objects: Objects
    runner_id: str
    key: SealingKey
    received: list[CloudEvent] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    @asynccontextmanager
    async def runner(self, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run the service; it is stopped by SIGTERM at the end of the block unless it is gone already."""
        work = {
            "RUNYARD_WORK_DIR": str(self.folder / "work"),
            "RUNYARD_OBJECTS_URL": f"file://{self.folder}/objects",
            "RUNYARD_SEALING_KEY": f"{self.key.key_id}:{base64.b64encode(self.key.secret).decode()}",
            "RUNYARD_KAFKA_BOOTSTRAP_SERVERS": self.kafka.kafka_bootstrap_servers,
            "RUNYARD_HEARTBEAT_S": "1",
        }
        with (self.folder / "runner.log").open("ab") as said:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.runner.main", env={**os.environ, **work, **settings}, stderr=said
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                await process.wait()

    async def queue(
        self,
        script: str,
        *,
        variables: dict[str, str] | None = None,
        timeout_s: int = 60,
        requirements: dict[str, str] | None = None,
    ) -> RunQueued:
        """Make a run of one script, as the scheduler would queue it; nothing is sent yet."""
        run_id = f"run-custom-20260313-{secrets.token_hex(6)}"
        if variables:
            sealed = seal(self.key, run_id, json.dumps(variables).encode())
            await self.objects.put(variables_key(run_id), sealed)
        code, data = await self._store(script.encode()), await self._store(DATASET)
        asset = PinnedAsset(
            filename="train.py", asset_type="script", asset_id="ast-00000000", sha256=code, size_bytes=len(script)
        )
        spec = TrainingSpec(
            entry_point="train.py",
            runtime="python3.11",
            compute=Compute(cpu_cores=1, memory_gb=1),
            timeout_s=timeout_s,
            grace_s=1,
            variable_names=tuple(variables or ()),
            assets=(asset, *[await self._requirements(*file) for file in (requirements or {}).items()]),
            dataset=PinnedDataset(filename="wine.csv", dataset_id="dts-00000000", sha256=data, size_bytes=len(DATASET)),
        )
        return RunQueued(
            run_id=run_id, attempt=1, runner_id=self.runner_id, tenant_id="acme", model_id="mdl-00000000", spec=spec
        )

    async def dispatch(self, event: RunQueued | RunRevoked) -> None:
        """Send an event to the runner."""
        identity = event_id(event.run_id, event.attempt, event.type)
        headers, value = encode(CloudEvent(identity, "/runyard/test", event.run_id, datetime.now(UTC), event))
        partition = partition_of(self.runner_id)
        await self.publisher.publish([Outgoing(DISPATCH.name, self.runner_id, headers, value, partition)])

    def revocation(self, queued: RunQueued, reason: Reason = Reason.USER_REQUEST) -> RunRevoked:
        return RunRevoked(run_id=queued.run_id, attempt=queued.attempt, runner_id=self.runner_id, reason=reason)

    async def collect(self, batch: Sequence[Received]) -> None:
        """Take in what was published; the handler of the scene's own consumer."""
        async with self._news:
            self.received += [item.event for item in batch if isinstance(item.event, CloudEvent)]
            self._news.notify_all()

    def events(self, queued: RunQueued) -> list[CloudEvent]:
        """All that was published about a run, each repetition, too."""
        return [event for event in self.received if getattr(event.data, "run_id", None) == queued.run_id]

    def lines(self, queued: RunQueued) -> list[str]:
        """The text of all log lines in order of arrival."""
        return [line.text for e in self.events(queued) if isinstance(e.data, LogsAppended) for line in e.data.lines]

    async def until(self, condition: Callable[[], Found | None]) -> Found:
        """Wait until something is true of what was published; fails with the runner's log."""
        try:
            async with asyncio.timeout(PATIENCE_S), self._news:
                while not (found := condition()):
                    await self._news.wait()
                return found
        except TimeoutError as late:
            log = (self.folder / "runner.log").read_text()
            raise AssertionError(f"not within {PATIENCE_S} s; the runner said:\n{log[-4000:]}") from late

    async def until_ended(self, queued: RunQueued) -> Any:
        """Wait for the end or the loss of an attempt, and for all output before an end: another topic, so no order."""
        end = await self.until(lambda: next(iter(self.ends(queued)), None))
        if isinstance(end, RunEnd):
            await self.until(lambda: self._last_output(queued) >= end.output_sequence)
        return end

    def _last_output(self, queued: RunQueued) -> int:
        told = [event.data for event in self.events(queued)]
        lines = [line.sequence for data in told if isinstance(data, LogsAppended) for line in data.lines]
        points = [point.sequence for data in told if isinstance(data, MetricsReported) for point in data.points]
        return max([0, *lines, *points])

    def ends(self, queued: RunQueued) -> list[AnyEvent]:
        """Each end that was told, repetitions too."""
        about = [event.data for event in self.events(queued)]
        return [data for data in about if isinstance(data, RunEnd) or data.type == "runyard.run.attempt_lost.v1"]

    async def until_line(self, queued: RunQueued, text: str) -> None:
        await self.until(lambda: text in self.lines(queued))

    def heartbeats(self) -> list[RunnerHeartbeat]:
        told = [event.data for event in self.received]
        return [data for data in told if isinstance(data, RunnerHeartbeat) and data.runner_id == self.runner_id]

    async def until_nothing_is_left(self) -> None:
        """Wait until neither a container nor a folder of a run exists."""
        async with asyncio.timeout(PATIENCE_S):
            while self.leftovers():  # noqa: ASYNC110 - a folder has no event
                await asyncio.sleep(0.1)

    def leftovers(self) -> list[str]:
        runs = self.folder / "work" / "runs"
        return [*self.containers(), *(path.name for place in (self.slots, runs) for path in place.glob("*"))]

    @property
    def slots(self) -> Path:
        """Where the secrets of this runner's runs lie."""
        return slots_folder(RunnerSettings.model_fields["slots_dir"].default, self.folder / "work")

    def containers(self) -> list[str]:
        client = docker.from_env()
        try:
            found = client.api.containers(all=True, filters={"label": f"{RUNNER_LABEL}={self.runner_id}"})
            return [container["Names"][0].removeprefix("/") for container in found]
        finally:
            client.close()

    def remove_containers(self) -> None:
        """Remove what a failed test has left."""
        client = docker.from_env()
        for name in self.containers():
            client.api.remove_container(name, force=True)
        client.close()

    def stored(self, sha256: str) -> bytes:
        return (self.folder / "objects" / content_key(sha256)).read_bytes()

    async def _requirements(self, filename: str, text: str) -> PinnedAsset:
        sha256 = await self._store(text.encode())
        return PinnedAsset(
            filename=filename, asset_type="requirements", asset_id="ast-1", sha256=sha256, size_bytes=len(text.encode())
        )

    async def _store(self, content: bytes) -> str:
        async def chunks() -> AsyncIterator[bytes]:
            yield io.BytesIO(content).read()

        await self.objects.store_content(chunks(), 1 << 20)
        return hashlib.sha256(content).hexdigest()


def ref(queued: RunQueued) -> RunAttempt:
    return RunAttempt(run_id=queued.run_id, attempt=queued.attempt)


def attempt_events(scene: Scene, queued: RunQueued, kind: type[AttemptEvent]) -> list[CloudEvent]:
    return [event for event in scene.events(queued) if isinstance(event.data, kind)]


@asynccontextmanager
async def a_scene(kafka: ServiceSettings, folder: Path) -> AsyncIterator[Scene]:
    """Set a scene; the runner's id is born in its journal before it starts."""
    journal = Journal(folder / "work" / "journal.db")
    runner_id = journal.runner_id
    journal.close()
    publisher = Publisher(client_options(kafka))
    objects = Objects(f"file://{folder}/objects")
    scene = Scene(folder, kafka, publisher, objects, runner_id, SealingKey("k1", secrets.token_bytes(32)))
    topics = (RUNS.name, OUTPUT.name, RUNNERS.name)
    consumer = Consumer(kafka, Subscription(f"scene-{runner_id}", topics, scene.collect), publisher, Health())
    reading = asyncio.create_task(consumer.run())
    try:
        await consumer.wait_until_caught_up()
        yield scene
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await publisher.close()
        scene.remove_containers()
        quota.detach(folder)  # of runners that were killed for good
        shutil.rmtree(scene.slots, ignore_errors=True)

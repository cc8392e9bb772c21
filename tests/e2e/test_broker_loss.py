"""Protects runs from the loss of the whole broker: its data gone, offsets gone, runs in every state.

`runyard up` starts Kafka again on the empty folder and tells it the open runs from PostgreSQL by itself.
"""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.auditor.verify import verify
from services.cli.system import RunningSystem, SystemOptions, running_system
from tests.e2e.test_faults import PatientClient

pytestmark = pytest.mark.own_parts

TRAINS = """
import os, pathlib, time
for step in range(60):
    print("step", step, flush=True)
    time.sleep(0.1)
pathlib.Path(os.environ["MODEL_OUTPUT_PATH"]).write_text("weights")
"""


@pytest_asyncio.fixture
async def system(tmp_path: Path) -> AsyncIterator[RunningSystem]:
    """A system of this test's own, with room for two runs at a time."""
    environment = {"RUNYARD_HEARTBEAT_S": "1", "RUNYARD_LEASE_S": "15", "RUNYARD_BROKER_CHECK_S": "1"}
    options = SystemOptions(data_dir=tmp_path, cpu_cores=2, memory_gb=4, environment=environment)
    async with running_system(options) as running:
        yield running


@pytest_asyncio.fixture
async def client(system: RunningSystem) -> AsyncIterator[PatientClient]:
    headers = {"Authorization": f"Bearer {system.token()}"}
    async with httpx.AsyncClient(base_url=system.api_url, headers=headers, timeout=30) as http:
        yield PatientClient(http)


async def history(client: PatientClient, model_id: str, run_id: str) -> list[Any]:
    page = await client.get(f"/api/v1/models/{model_id}/runs/{run_id}/events")
    items: list[Any] = page["items"]
    return items


async def test_a_broker_that_lost_everything_loses_no_run(system: RunningSystem, client: PatientClient) -> None:
    ended_model, ended = await client.trained("print('before')")
    runs = []
    for _ in range(5):
        model_id = await client.model(TRAINS)
        runs.append((model_id, await client.started(model_id)))
    await client.until(*runs[0], "running")
    system.kafka.kill()
    shutil.rmtree(system.data_dir.kafka / "data")
    for model_id, run_id in runs:
        run = await client.ended(model_id, run_id)
        assert (run["status"], run["attempt"], run["version"]) == ("succeeded", 1, 1), run
        assert await client.log(model_id, run_id) == "\n".join(f"step {step}" for step in range(60))
        path = f"/api/v1/models/{model_id}/runs/{run_id}/events"
        told = await client.eventually(path, lambda page: any("version" in e["type"] for e in page["items"]))
        effective = [event["type"].split(".")[2] for event in told["items"] if event["stale"] is None]
        without_waits = [kind for kind in effective if kind != "waiting"]
        assert without_waits == ["training_requested", "queued", "started", "succeeded", "model_version_created"]
    assert (await client.get(f"/api/v1/models/{ended_model}/runs/{ended['run_id']}"))["status"] == "succeeded"
    assert (await verify(system.postgres.admin_url)).first_difference is None

"""Protects runs from what happens to the machine: services killed, servers gone and back, in the middle of a run.

The session's system starts its dead parts again, as `runyard up` does.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from services.cli.system import RunningSystem
from tests.e2e.conftest import Client

pytestmark = pytest.mark.own_parts

STEPS = 120
COUNTS = f"""
import json, os, pathlib, time
with open(os.environ["METRICS_PATH"], "a") as metrics:
    for step in range({STEPS}):
        print("step", step, flush=True)
        print(json.dumps({{"name": "loss", "value": 1.0, "step": step}}), file=metrics, flush=True)
        time.sleep(0.1)
pathlib.Path(os.environ["MODEL_OUTPUT_PATH"]).write_text("weights")
"""


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - processes have no event to wait for
            await asyncio.sleep(0.05)


async def restarted(system: RunningSystem, service: str, old_pid: int | None) -> None:
    """Wait until a service that was killed has been started again and is ready."""
    process = system.processes[service]
    await until(lambda: process.pid not in (None, old_pid))
    await process.wait_until_ready()


class PatientClient(Client):
    """A submitter that asks again while the api, or what it stands on, is away."""

    async def get(self, path: str, **parameters: Any) -> Any:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    response = await self.http.get(path, params=parameters)
                    if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                        assert response.status_code == 200, response.text
                        return response.json()
                await asyncio.sleep(0.1)


@pytest.fixture
def patient(client: Client) -> PatientClient:
    return PatientClient(client.http)


async def begun(client: Client) -> tuple[str, str]:
    """Start the counting script; returns once its first lines are stored."""
    model_id = await client.model(COUNTS)
    run_id = await client.started(model_id)
    path = f"/api/v1/models/{model_id}/runs/{run_id}/logs"
    await client.eventually(path, lambda found: found["items"])
    return model_id, run_id


async def assert_undisturbed(client: Client, model_id: str, run_id: str) -> None:
    """The run succeeded once, at its first attempt, with all of its output and its history exactly once."""
    run = await client.ended(model_id, run_id)
    assert (run["status"], run["attempt"], run["version"]) == ("succeeded", 1, 1), run
    assert await client.log(model_id, run_id) == "\n".join(f"step {step}" for step in range(STEPS))
    metrics = await client.get(f"/api/v1/models/{model_id}/runs/{run_id}/metrics")
    [series] = metrics["series"]
    assert [point["step"] for point in series["points"]] == list(range(STEPS))
    assert len(await client.versions(model_id)) == 1
    history = await client.eventually(
        f"/api/v1/models/{model_id}/runs/{run_id}/events", lambda found: len(found["items"]) >= 5
    )
    told: list[Any] = history["items"]
    assert [event["version"] for event in told] == list(range(1, len(told) + 1))
    effective = [event["type"].split(".")[2] for event in told if event["stale"] is None]
    assert effective == ["training_requested", "queued", "started", "succeeded", "model_version_created"]
    audit = await client.get("/api/v1/audit-log", run_id=run_id, action="model.custom_training_started")
    assert len(audit["items"]) == 1


async def test_kill_9_of_each_service_in_turn_in_the_middle_of_a_run(
    system: RunningSystem, patient: PatientClient
) -> None:
    model_id, run_id = await begun(patient)
    for service in ("api", "scheduler", "runner", "auditor"):
        pid = system.processes[service].pid
        system.processes[service].kill()
        await restarted(system, service, pid)
    await assert_undisturbed(patient, model_id, run_id)


@pytest.mark.parametrize("server", ["kafka", "postgres"])
async def test_a_server_that_goes_away_and_comes_back(
    system: RunningSystem, patient: PatientClient, server: str
) -> None:
    model_id, run_id = await begun(patient)
    embedded = {"kafka": system.kafka, "postgres": system.postgres}[server]
    embedded.kill()
    await assert_undisturbed(patient, model_id, run_id)


async def test_services_wait_for_servers_that_are_not_up_yet(system: RunningSystem, patient: PatientClient) -> None:
    system.kafka.kill()
    system.postgres.kill()
    pids = {service: process.pid for service, process in system.processes.items()}
    for process in system.processes.values():
        process.kill()
    for service, pid in pids.items():
        await restarted(system, service, pid)
    _, run = await patient.trained("print('after all')")
    assert run["status"] == "succeeded"

"""Protects long trainings from a lost machine: the next attempt goes on where the last checkpoint stands.

A system of its own with two runners, none of which is started again.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from schemas.ids import checkpoint_key
from services.runner.sandbox import RUN_LABEL, RUNNER_LABEL
from tests.chaos.harness import Chaos, ChaosOptions, chaos_system
from tests.e2e.test_faults import PatientClient

pytestmark = pytest.mark.own_parts

EPOCHS, HALF = 20, 10
TRAINS = f"""
import json, os, pathlib, time
state = pathlib.Path(os.environ["CHECKPOINT_PATH"]) / "state"
done = int(state.read_text()) if os.environ["RESUME"] == "1" else 0
with open(os.environ["METRICS_PATH"], "a") as metrics:
    for epoch in range(done + 1, {EPOCHS + 1}):
        print(json.dumps({{"name": "loss", "value": 1 / epoch, "step": epoch}}), file=metrics, flush=True)
        state.with_suffix(".new").write_text(f"{{epoch:04}}")
        state.with_suffix(".new").replace(state)
        if epoch == {HALF} and os.environ["ATTEMPT"] == "1":
            time.sleep(300)  # until the machine is lost
pathlib.Path(os.environ["MODEL_OUTPUT_PATH"]).write_text("weights")
"""


def lose(chaos: Chaos, run_id: str) -> str:
    """Take a run's machine away: the runner is killed, its container removed; returns the id of the runner."""
    with contextlib.closing(docker.from_env()) as engine:
        [container] = engine.containers.list(filters={"label": f"{RUN_LABEL}={run_id}"})
        runner_id: str = container.labels[RUNNER_LABEL]
        [name] = [name for name, each in chaos.runner_ids().items() if each == runner_id]
        chaos.services[name].kill()
        container.remove(force=True)
    return runner_id


async def metric_steps(client: PatientClient, model_id: str, run_id: str, count: int) -> list[Any]:
    """The attempt and the step of each point, once so many are shown."""
    path = f"/api/v1/models/{model_id}/runs/{run_id}/metrics"
    shown = await client.eventually(path, lambda page: [len(s["points"]) for s in page["series"]] == [count])
    [series] = shown["series"]
    return [(point["attempt"], point["step"]) for point in series["points"]]


async def test_a_run_whose_machine_was_lost_goes_on_elsewhere_and_repeats_no_step(tmp_path: Path) -> None:
    environment = {"RUNYARD_CHECKPOINT_EVERY_S": "0.5"}
    async with chaos_system(tmp_path, ChaosOptions(restart=False, environment=environment)) as chaos:
        headers = {"Authorization": f"Bearer {chaos.token()}"}
        async with httpx.AsyncClient(base_url=chaos.api_url, headers=headers, timeout=30) as http:
            client = PatientClient(http)
            model_id = await client.model(TRAINS)
            run_id = await client.started(model_id)
            first_half = [(1, step) for step in range(1, HALF + 1)]
            assert await metric_steps(client, model_id, run_id, HALF) == first_half
            kept = tmp_path / "objects" / checkpoint_key(run_id, 1)
            async with asyncio.timeout(60):
                while not (kept.exists() and f"{HALF:04}".encode() in kept.read_bytes()):  # noqa: ASYNC110 - a file
                    await asyncio.sleep(0.05)
            lost = lose(chaos, run_id)
            run = await client.ended(model_id, run_id)
            assert (run["status"], run["attempt"], run["version"]) == ("succeeded", 2, 1), run
            second_half = [(2, step) for step in range(HALF + 1, EPOCHS + 1)]
            assert await metric_steps(client, model_id, run_id, EPOCHS) == first_half + second_half
            history = await client.get(f"/api/v1/models/{model_id}/runs/{run_id}/events")
            queued = [event["data"]["runner_id"] for event in history["items"] if ".queued." in event["type"]]
            assert queued[0] == lost
            assert len(set(queued)) == 2
            async with asyncio.timeout(60):
                while list((tmp_path / "objects/checkpoints").glob("*/*")):  # noqa: ASYNC110 - a folder has no event
                    await asyncio.sleep(0.05)

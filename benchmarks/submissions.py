"""How fast runs are accepted, and how soon a script's first line is there, as ratios against limits of the machine.

Run with `make benchmark`. Starts a whole system on a temporary folder, talks to it through REST on loopback, prints a
table and stops everything. Nothing here is a test: figures depend on the machine, ratios less so.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from rich.console import Console
from rich.table import Table

from services.cli.system import RunningSystem, SystemOptions, running_system

CLIENTS = 16
SUBMISSIONS = 640
STARTS = 20
SCRIPT = "import time\nprint(repr(time.time()), flush=True)\n"
FOR_EVER_WAITING = {"entry_point": "train.py", "runtime": "python3.11", "compute": {"gpu": True}}
SMALL = {"entry_point": "train.py", "runtime": "python3.11", "compute": {"cpu_cores": 1, "memory_gb": 1}}


async def rate(calls: int, call: Callable[[int], Awaitable[None]]) -> float:
    """Make calls from 16 clients side by side; returns calls per second."""
    numbers = iter(range(calls))

    async def client() -> None:
        for number in numbers:
            await call(number)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return calls / (time.perf_counter() - began)


class Submitter:
    """A client of the REST API that makes models to train."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def post(self, path: str, **request: Any) -> Any:
        """Post and read the answer; any refusal ends the benchmark."""
        response = await self.http.post(path, **request)
        response.raise_for_status()
        return response.json()

    async def dataset(self) -> str:
        """Make a small dataset."""
        dataset_id: str = (await self.post("/api/v1/datasets", json={"name": "numbers"}))["dataset_id"]
        url = f"/api/v1/datasets/{dataset_id}/content?filename=numbers.csv"
        (await self.http.put(url, content=b"a,b\n1,2\n")).raise_for_status()
        return dataset_id

    async def model(self, dataset_id: str) -> str:
        """Make a model with the one-line script."""
        body = {"name": "m", "model_type": "custom", "dataset_id": dataset_id}
        model_id: str = (await self.post("/api/v1/models", json=body))["model_id"]
        files = {"file": ("train.py", SCRIPT.encode())}
        await self.post(f"/api/v1/models/{model_id}/assets", files=files, data={"asset_type": "script"})
        return model_id

    async def first_line_s(self, model_id: str) -> float:
        """Submit a run and wait for its end; returns seconds from the request to the script's first line."""
        began = time.time()
        run_id = (await self.post(f"/api/v1/models/{model_id}/custom/train", json=SMALL))["run_id"]
        path = f"/api/v1/models/{model_id}/runs/{run_id}"
        while True:
            logs = (await self.http.get(f"{path}/logs")).json()
            if logs["complete"]:
                return float(logs["items"][0]["text"]) - began
            await asyncio.sleep(0.05)


async def measure(system: RunningSystem) -> Table:
    """Take all figures from a running system."""
    headers = {"Authorization": f"Bearer {system.token()}"}
    limits = httpx.Limits(max_connections=CLIENTS)
    table = Table("what", "figure", "limit, same run", "ratio")
    async with httpx.AsyncClient(base_url=system.api_url, headers=headers, timeout=60, limits=limits) as http:
        submitter = Submitter(http)
        dataset_id = await submitter.dataset()
        models = [await submitter.model(dataset_id) for _ in range(SUBMISSIONS)]

        async def submit(number: int) -> None:
            await submitter.post(f"/api/v1/models/{models[number]}/custom/train", json=FOR_EVER_WAITING)

        async def healthz(_: int) -> None:
            (await http.get("/healthz")).raise_for_status()

        starts = sorted([await submitter.first_line_s(await submitter.model(dataset_id)) for _ in range(STARTS)])
        http_limit = await rate(SUBMISSIONS, healthz)
        submissions = await rate(SUBMISSIONS, submit)
    commits = await commit_rate(system.postgres.admin_url)
    table.add_row(
        "submissions/s, 16 clients",
        f"{submissions:.0f}",
        f"{http_limit:.0f} GET /healthz",
        f"{submissions / http_limit:.2f}",
    )
    table.add_row("", "", f"{commits:.0f} single-row commits", f"{submissions / commits:.2f}")
    p50, worst = statistics.median(starts), starts[-1]
    table.add_row("submit → first line, p50 ms", f"{p50 * 1000:.0f}", "", "")
    table.add_row(f"submit → first line, worst of {STARTS}, ms", f"{worst * 1000:.0f}", "", f"{worst / p50:.2f} × p50")
    return table


async def commit_rate(admin_url: str) -> float:
    """Commit single rows from 16 connections of a pool; returns commits per second."""
    async with asyncpg.create_pool(admin_url, min_size=CLIENTS, max_size=CLIENTS) as pool:
        await pool.execute("CREATE TABLE benchmark (number int)")

        async def insert(number: int) -> None:
            await pool.execute("INSERT INTO benchmark VALUES ($1)", number)

        commits = await rate(SUBMISSIONS * 4, insert)
        await pool.execute("DROP TABLE benchmark")
    return commits


async def main() -> None:
    """Start a system, measure it, print, stop it."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_system(SystemOptions(Path(folder)), lambda line: print(line, file=sys.stderr)) as system:
            table = await measure(system)
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())

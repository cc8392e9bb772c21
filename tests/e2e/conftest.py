"""The whole system, as `runyard up` runs it, and a client that knows nothing but the REST API.

With `--system-at` the system is one that is up already (`make test-compose`). Tests that kill its parts, or start
systems of their own, are marked `own_parts` and cannot do that there.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import docker
import httpx
import pytest
import pytest_asyncio

from services.cli.data_dir import DataDir
from services.cli.system import SystemOptions, running_system
from services.cli.tokens import Claims, mint
from services.runner.sandbox import RUN_LABEL

RUN_DEADLINE_S = 90
ENDS = {"succeeded", "failed", "cancelled"}

PRINT_AND_WRITE = """
import os, pathlib
print("training on", os.environ["DATASET_PATH"])
pathlib.Path(os.environ["MODEL_OUTPUT_PATH"]).write_text("weights")
"""


class System(Protocol):
    """What a test knows of the system that it tries."""

    @property
    def data_dir(self) -> DataDir: ...

    @property
    def api_url(self) -> str: ...

    @property
    def kafka_bootstrap_servers(self) -> str: ...

    def token(self, claims: Claims | None = None) -> str: ...


@dataclass(frozen=True)
class StandingSystem:
    """A system that somebody else has started and will stop, as its data folder tells of it."""

    data_dir: DataDir

    @property
    def api_url(self) -> str:
        url = self.data_dir.last_url()
        assert url is not None, f"{self.data_dir.path} tells of no system"
        return url

    @property
    def kafka_bootstrap_servers(self) -> str:
        return f"127.0.0.1:{(self.data_dir.kafka / 'port').read_text()}"

    def token(self, claims: Claims | None = None) -> str:
        return mint(self.data_dir, claims)


@pytest_asyncio.fixture(scope="session")
async def system(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """One system for the session, whose runner announces what the page's example asks for: 4 cores and 16 GB."""
    standing: Path | None = pytestconfig.getoption("--system-at")
    if standing is not None:
        yield StandingSystem(DataDir.at(standing))
        assert containers_of(standing.absolute()) == [], "a test left its container behind"
        return
    options = SystemOptions(
        data_dir=tmp_path_factory.mktemp("system"),
        cpu_cores=4,
        memory_gb=16,
        environment={"RUNYARD_HEARTBEAT_S": "1", "RUNYARD_MAX_OUTPUT_BYTES": str(4 << 20)},
    )
    async with running_system(options) as running:
        yield running
    assert containers_of(options.data_dir) == [], "a test left its container behind"


def containers_of(data_dir: Path) -> list[str]:
    """Name the containers, running or not, that mount something of a system's folder."""
    with contextlib.closing(docker.from_env()) as client:
        found = client.containers.list(all=True, filters={"label": RUN_LABEL})
        return [c.name for c in found if any(m["Source"].startswith(str(data_dir)) for m in c.attrs["Mounts"])]


class Client:
    """A submitter: REST and nothing else."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def get(self, path: str, **parameters: Any) -> Any:
        response = await self.http.get(path, params=parameters)
        assert response.status_code == 200, response.text
        return response.json()

    async def dataset(self, content: bytes = b"a,b\n1,2\n", filename: str = "data.csv") -> str:
        created = await self.http.post("/api/v1/datasets", json={"name": "numbers"})
        assert created.status_code == 201, created.text
        dataset_id: str = created.json()["dataset_id"]
        stored = await self.http.put(
            f"/api/v1/datasets/{dataset_id}/content", params={"filename": filename}, content=content
        )
        assert stored.is_success, stored.text
        return dataset_id

    async def bare_model(self, model_type: str = "custom", dataset_id: str | None = None) -> str:
        body = {"name": "classifier", "model_type": model_type, "dataset_id": dataset_id or await self.dataset()}
        created = await self.http.post("/api/v1/models", json=body)
        assert created.status_code == 201, created.text
        model_id: str = created.json()["model_id"]
        return model_id

    async def asset(self, model_id: str, filename: str, content: str, asset_type: str = "script") -> httpx.Response:
        return await self.http.post(
            f"/api/v1/models/{model_id}/assets",
            files={"file": (filename, content.encode())},
            data={"asset_type": asset_type},
        )

    async def model(self, script: str = PRINT_AND_WRITE, filename: str = "train.py") -> str:
        """A model that can be trained: a dataset and one script."""
        model_id = await self.bare_model()
        uploaded = await self.asset(model_id, filename, script)
        assert uploaded.status_code == 201, uploaded.text
        return model_id

    async def train(self, model_id: str, **body: Any) -> httpx.Response:
        compute = {"cpu_cores": 1, "memory_gb": 1}
        request = {"entry_point": "train.py", "runtime": "python3.11", "compute": compute} | body
        return await self.http.post(f"/api/v1/models/{model_id}/custom/train", json=request)

    async def started(self, model_id: str, **body: Any) -> str:
        accepted = await self.train(model_id, **body)
        assert accepted.status_code == 202, accepted.text
        run_id: str = accepted.json()["run_id"]
        return run_id

    async def eventually(self, path: str, fits: Callable[[Any], object], **parameters: Any) -> Any:
        """Ask until the answer fits."""
        async with asyncio.timeout(RUN_DEADLINE_S):
            while not fits(answer := await self.get(path, **parameters)):  # noqa: ASYNC110 - a client polls
                await asyncio.sleep(0.05)
        return answer

    async def until(self, model_id: str, run_id: str, *statuses: str) -> Any:
        """Wait until a run has one of these statuses, or has ended."""
        path = f"/api/v1/models/{model_id}/runs/{run_id}"
        run = await self.eventually(path, lambda found: found["status"] in ENDS | set(statuses))
        assert run["status"] in statuses, run
        return run

    async def ended(self, model_id: str, run_id: str) -> Any:
        return await self.until(model_id, run_id, *ENDS)

    async def trained(self, script: str, **body: Any) -> tuple[str, Any]:
        """Train a new model with a script to the end; returns the model's id and the run."""
        model_id = await self.model(script)
        run_id = await self.started(model_id, **body)
        return model_id, await self.ended(model_id, run_id)

    async def cancel(self, model_id: str, run_id: str) -> None:
        await self.http.post(f"/api/v1/models/{model_id}/runs/{run_id}/cancel")
        await self.ended(model_id, run_id)

    async def log(self, model_id: str, run_id: str) -> str:
        """A run's whole log, once it is stored whole."""
        page = await self.eventually(f"/api/v1/models/{model_id}/runs/{run_id}/logs", lambda found: found["complete"])
        return "\n".join(line["text"] for line in page["items"])

    async def versions(self, model_id: str) -> list[Any]:
        page = await self.get(f"/api/v1/models/{model_id}/versions")
        items: list[Any] = page["items"]
        return items


@pytest_asyncio.fixture
async def client(system: System) -> AsyncIterator[Client]:
    """A submitter with every scope."""
    headers = {"Authorization": f"Bearer {system.token()}"}
    async with httpx.AsyncClient(base_url=system.api_url, headers=headers, timeout=30) as http:
        yield Client(http)


@pytest_asyncio.fixture
async def stranger(system: System) -> AsyncIterator[Client]:
    """A submitter of another tenant."""
    headers = {"Authorization": f"Bearer {system.token(Claims(tenant='another'))}"}
    async with httpx.AsyncClient(base_url=system.api_url, headers=headers, timeout=30) as http:
        yield Client(http)

"""The real api on a test's own database, called through ASGI, with a test in the place of scheduler and runner."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import jwt
from pydantic import SecretStr

from schemas.cloudevents import CloudEvent
from schemas.events import RunFact, SchedulerLoad
from schemas.ids import event_id
from schemas.parts import Artifact, Capacity, RunnerLoad
from services.api.application import make_application
from services.api.context import Context
from services.api.handlers import Handlers
from services.api.main import make_context
from services.api.settings import ApiSettings
from services.api.sweep import Sweeper
from services.auditor import store as ledger_store
from services.auditor.handlers import Handlers as AuditorHandlers
from services.backbone.consumer import Received
from services.backbone.health import Health
from services.backbone.postgres import open_pool
from tests import life_of_a_run as life
from tests.integration.conftest import Database

SECRET = "a secret of the tests, long enough for HS256"
EVERY_SCOPE = "models:read models:write training:run audit:read"
SEALING_KEY = "k1:" + "A" * 43 + "="


def token(tenant: str = "acme", scope: str = EVERY_SCOPE, **claims: Any) -> str:
    """A token that the api of the scene accepts, unless `claims` say otherwise."""
    now = int(time.time())
    told = {"iss": "runyard", "aud": "runyard", "sub": "ada", "tenant": tenant, "scope": scope, "iat": now}
    return jwt.encode(told | {"exp": now + 600} | claims, SECRET, algorithm="HS256")


@dataclass
class Scene:
    """An api, a client of it, and what happens to runs."""

    context: Context
    handlers: Handlers
    sweeper: Sweeper
    http: httpx.AsyncClient
    auditor: AuditorHandlers
    admin: asyncpg.Connection
    objects_folder: Path

    async def dataset(self, content: bytes | None = b"a,b\n1,2\n") -> str:
        """A dataset, with content unless it is None."""
        created = await self.http.post("/api/v1/datasets", json={"name": "numbers"})
        assert created.status_code == 201, created.text
        dataset_id: str = created.json()["dataset_id"]
        if content is not None:
            path = f"/api/v1/datasets/{dataset_id}/content?filename=data.csv"
            assert (await self.http.put(path, content=content)).status_code == 200
        return dataset_id

    async def bare_model(self, **body: Any) -> str:
        """A model without assets."""
        created = await self.http.post("/api/v1/models", json={"name": "m", "model_type": "custom"} | body)
        assert created.status_code == 201, created.text
        model_id: str = created.json()["model_id"]
        return model_id

    async def asset(self, model_id: str, filename: str = "train.py", **form: Any) -> httpx.Response:
        """Upload an asset."""
        content = form.pop("content", b"print()")
        data = {"asset_type": "script"} | form.pop("data", {})
        path = f"/api/v1/models/{model_id}/assets"
        return await self.http.post(path, files={"file": (filename, content)}, data=data, **form)

    async def model(self) -> str:
        """A model that can be trained."""
        model_id = await self.bare_model(dataset_id=await self.dataset())
        assert (await self.asset(model_id)).status_code == 201
        return model_id

    async def train(self, model_id: str, key: str | None = None, **body: Any) -> httpx.Response:
        """Ask for a training."""
        headers = {} if key is None else {"Idempotency-Key": key}
        request = {"entry_point": "train.py", "runtime": "python3.11"} | body
        return await self.http.post(f"/api/v1/models/{model_id}/custom/train", json=request, headers=headers)

    async def accepted(self, model_id: str, **body: Any) -> str:
        """Train, and expect that it is accepted."""
        answer = await self.train(model_id, **body)
        assert answer.status_code == 202, answer.text
        run_id: str = answer.json()["run_id"]
        return run_id

    async def get(self, path: str, **parameters: Any) -> Any:
        """Read something that is there."""
        answer = await self.http.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def happen(self, *facts: RunFact) -> None:
        """Let the api hear of events."""
        await self.handlers.on_run_facts(life.batch(*facts))

    async def succeed(self, run_id: str, artifact: Artifact | None = None) -> None:
        """Let a run start and succeed, its artifact in the object store."""
        made = artifact or await self.artifact(b"weights")
        end = life.succeeded(run_id=run_id).model_copy(update={"artifact": made})
        await self.happen(life.queued(run_id=run_id), life.started(run_id=run_id), end)

    async def artifact(self, content: bytes) -> Artifact:
        """Store what a script wrote."""

        async def chunks() -> AsyncIterator[bytes]:
            yield content

        stored = await self.context.objects.store_content(chunks(), 8 << 20)
        return Artifact(kind="file", sha256=stored.sha256, size_bytes=stored.size_bytes)

    async def outbox(self) -> list[str]:
        """The events that the api has decided on, as `run/kind`."""
        rows = await self.admin.fetch("SELECT subject, headers ->> 3 AS type FROM registry.outbox ORDER BY id")
        return [f"{row['subject']}/{row['type'].split('.')[2]}" for row in rows]

    def with_limits(self, **limits: int) -> "Scene":
        """The same scene, with other limits."""
        context = replace(self.context, limits=replace(self.context.limits, **limits))
        return replace(self, context=context, http=client_of(context))


def client_of(context: Context, authorization: str | None = None) -> httpx.AsyncClient:
    """A client of an application; faults come back as answers, as over the network."""
    app = make_application(context, context.health)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": authorization or f"Bearer {token()}"}
    return httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers)


@asynccontextmanager
async def scene_on(database: Database, folder: Path) -> AsyncIterator[Scene]:
    """Open a scene on a database and a folder."""
    settings = ApiSettings(
        postgres_url=SecretStr(database.api_url),
        objects_url=f"file://{folder}",
        sealing_key=SecretStr(SEALING_KEY),
        jwt_secret=SecretStr(SECRET),
        follow_poll_s=0.02,
    )
    pool = await open_pool(database.api_url, "registry", 8)
    ledger = await open_pool(database.auditor_url, "ledger", 2)
    admin = await asyncpg.connect(database.admin_url)
    async with ledger.acquire() as connection:
        epoch = await ledger_store.epoch_of(connection, "cluster-1")
    async with httpx.AsyncClient() as client:
        context = make_context(settings, pool, Health(), client)
        async with client_of(context) as http:
            yield Scene(
                context=context,
                handlers=Handlers(pool, context.variables, context.objects),
                sweeper=Sweeper(pool, context.objects, context.variables),
                http=http,
                auditor=AuditorHandlers(ledger, epoch),
                admin=admin,
                objects_folder=folder,
            )
    await admin.close()
    await ledger.close()
    await pool.close()


def published_load(free_cores: int, epoch: int = 1) -> Received:
    """What the scheduler published: one runner without a GPU, with so many free cores and nothing waiting."""
    room = Capacity(cpu_cores=free_cores, memory_gb=64)
    runner = RunnerLoad(runner_id="rnr-01", capacity=room, free=room, runtimes=("python3.11",))
    data = SchedulerLoad(epoch=epoch, runners=(runner,), occupied=(), queue=())
    event = CloudEvent(event_id("load", 0, data.type, epoch), "/runyard/scheduler", "load", life.START, data)
    return Received("runyard.load", 0, epoch, event)

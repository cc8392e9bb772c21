"""`python -m tests.security.http_fuzz --cases 20000`: generated requests to a real api process on a real PostgreSQL.

Prints how many were answered how at each endpoint, and every answer that breaks the OpenAPI document; exit code 1 if
there is one, or an endpoint of which nothing was seen to work. Needs no Kafka: decisions wait in the outbox.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from services.backbone.telemetry import configure_logs
from services.cli.embedded_postgres import EmbeddedPostgres
from services.cli.embedded_process import free_port
from tests.integration.api_scene import SEALING_KEY, SECRET, Scene, scene_on, token
from tests.integration.conftest import Database
from tests.security.http_cases import Findings, Plan, carry_out
from tests.security.http_scene import OPERATIONS, furnish, migrated_database

STARTS_WITHIN_S = 60.0
TOKENS_LAST_S = 86_400
TRAINABLE = 40
SPARE_ASSETS = 40
MOST_SHOWN = 40


async def known_values(scene: Scene) -> dict[str, list[Any]]:
    """Furnish a tenant, and list what can be asked for."""
    has = await furnish(scene, "acme")
    model_id, run_id = has.ended["model_id"], has.ended["run_id"]
    assets = [(await scene.asset(model_id, f"spare-{number}.py")).json()["asset_id"] for number in range(SPARE_ASSETS)]
    cursors = [
        (await scene.get(f"/api/v1/{part}", limit=1))["next_cursor"] for part in ("datasets", "models", "audit-log")
    ]
    cursors.append((await scene.get(f"/api/v1/models/{model_id}/runs/{run_id}/events", limit=1))["next_cursor"])
    return {
        **{name: [has.ended[name], has.busy[name]] for name in ("dataset_id", "model_id", "run_id")},
        "asset_id": [has.ended["asset_id"], *assets],
        "trainable": [await scene.model() for _ in range(TRAINABLE)],
        "version": [1],
        "cursor": cursors,
        "after": [(await scene.get(f"/api/v1/models/{model_id}/runs/{run_id}/logs", limit=1))["next_cursor"]],
        "filename": ["data.csv", "größe.csv"],
        "action": ["model.custom_training_started"],
        "key": ["key-1", "key-2"],
        "entry_point": ["train.py"],
    }


@asynccontextmanager
async def api_process(database: Database, folder: Path) -> AsyncIterator[str]:
    """Run the api as it is run everywhere, but for a Kafka that does not answer; yields its address."""
    port = free_port()
    settings = {
        "RUNYARD_POSTGRES_URL": database.api_url,
        "RUNYARD_OBJECTS_URL": f"file://{folder / 'objects'}",
        "RUNYARD_SEALING_KEY": SEALING_KEY,
        "RUNYARD_JWT_SECRET": SECRET,
        "RUNYARD_API_PORT": str(port),
        "RUNYARD_FOLLOW_POLL_S": "0.05",
        "RUNYARD_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
    }
    with (folder / "api.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.api.main", stdout=log, stderr=log, env=os.environ | settings
        )
        try:
            address = f"http://127.0.0.1:{port}"
            await _answering(address)
            yield address
            if process.returncode is not None:
                raise RuntimeError(f"the api ended with {process.returncode}")
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _answering(address: str) -> None:
    async with asyncio.timeout(STARTS_WITHIN_S), httpx.AsyncClient() as client:
        while True:
            try:
                if (await client.get(f"{address}/healthz")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.1)


def plans(address: str, cases: int, seed: int, known: dict[str, list[Any]]) -> list[Plan]:
    """Divide the cases: most by a token that may everything, some by one that may read, some by another tenant's."""
    expiry = int(time.time()) + TOKENS_LAST_S
    everything = Plan("everything", address, token(exp=expiry), cases * 8 // 10, seed, known)
    drawn = replace(everything, cases=cases // 10, systematic=False)
    reader = replace(drawn, name="reader", token=token(scope="models:read", exp=expiry))
    stranger = replace(drawn, name="stranger", token=token("rival", exp=expiry))
    return [everything, reader, stranger]


async def fuzz(cases: int, seed: int, folder: Path) -> Findings:
    """Set everything up, make so many cases or some more, and take everything down."""
    server, findings = EmbeddedPostgres(folder / "postgres", durable=False), Findings()
    await server.start()
    try:
        async with migrated_database(server) as database:
            async with scene_on(database, folder / "objects") as scene:
                known = await known_values(scene)
            async with api_process(database, folder) as address:
                while findings.cases < cases:
                    first = findings.cases == 0
                    for plan in plans(address, cases - findings.cases, seed, known):
                        await asyncio.to_thread(
                            carry_out, replace(plan, systematic=plan.systematic and first), findings
                        )
                        sys.stderr.write(f"after the token for {plan.name}: {findings.cases} cases\n")
                    seed += 1
        if findings.at_the_door:
            findings.failures.append(f"{findings.unbelieved} cases were a 401: their token was not believed")
        findings.failures.extend(_logged(folder / "api.log"))
    finally:
        await server.stop()
    return findings


def _logged(log: Path) -> list[str]:
    """What the api itself called an error."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if "request_failed" in line]
    return [f"logged: {line[:2000]}" for line in lines]


def report(findings: Findings, took_s: float) -> list[str]:
    """Tell what was found, in lines for the terminal."""
    lines = []
    for operation in OPERATIONS:
        counted = findings.answers[str(operation)]
        by_status = "  ".join(f"{status}: {count}" for status, count in sorted(counted.items()))
        lines.append(f"{counted.total():6}  {operation!s:60} {by_status}")
    lines += [f"FAILED {failure}" for failure in findings.failures[:MOST_SHOWN]]
    lines += [f"FAILED {operation}: never seen to work" for operation in findings.never_well()]
    return [
        *lines,
        f"{findings.cases} cases, {findings.requests} requests in {took_s:.0f} s, {len(findings.failures)} failures",
    ]


def main() -> None:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    configure_logs("http_fuzz", "warning")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="runyard-fuzz-") as folder:
        findings = asyncio.run(fuzz(chosen.cases, chosen.seed, Path(folder)))
    sys.stdout.write("\n".join(report(findings, time.monotonic() - began)) + "\n")
    sys.exit(1 if findings.failures or findings.never_well() else 0)


if __name__ == "__main__":
    main()

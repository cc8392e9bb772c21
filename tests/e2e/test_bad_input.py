"""Protects the system from what clients and scripts do wrong: a clear answer or a clear end, and nothing lost."""

import asyncio
import json
from typing import Any

import jwt
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from schemas.cloudevents import decode
from schemas.topics import DEAD_LETTERS, DISPATCH, LOAD, OUTPUT, RUNNERS, RUNS
from tests.e2e.conftest import PRINT_AND_WRITE, Client, System

PROBLEM = "application/problem+json"


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000])
async def test_malformed_json_is_a_problem_and_not_a_crash(client: Client, body: bytes) -> None:
    model_id = await client.model()
    headers = {"content-type": "application/json"}
    refused = await client.http.post(f"/api/v1/models/{model_id}/custom/train", content=body, headers=headers)
    assert refused.status_code in (400, 422)
    assert refused.headers["content-type"] == PROBLEM


async def test_every_wrong_field_is_named_at_once(client: Client) -> None:
    model_id = await client.model()
    wrong = {"runtime": "python2", "timeout_seconds": "60", "compute": {"cpu_cores": 0, "disk": 1}, "extra": True}
    refused = await client.http.post(f"/api/v1/models/{model_id}/custom/train", json=wrong)
    assert refused.status_code == 422
    pointers = {error["pointer"] for error in refused.json()["errors"]}
    expected = {"/entry_point", "/runtime", "/timeout_seconds", "/compute/cpu_cores", "/compute/disk", "/extra"}
    assert pointers == expected


async def test_100_kb_of_variables_are_refused_and_64_kb_arrive(client: Client) -> None:
    model_id = await client.model("import os\nprint(len(os.environ['BIG']))")
    refused = await client.train(model_id, environment_vars={"BIG": "x" * 100_000})
    assert refused.status_code == 422
    assert "environment_vars" in refused.text
    run_id = await client.started(model_id, environment_vars={"BIG": "x" * 65_000})
    await client.ended(model_id, run_id)
    assert await client.log(model_id, run_id) == "65000"


@pytest.mark.parametrize(
    "name", ["A\nB", "A B", "1A", "A=B", "", "A-B", "LD_PRELOAD", "PYTHONPATH", "DATASET_PATH", "PATH"]
)
async def test_malformed_and_reserved_variable_names_are_refused(client: Client, name: str) -> None:
    assert (await client.train(await client.model(), environment_vars={name: "x"})).status_code == 422


async def test_a_variable_with_nul_is_refused(client: Client) -> None:
    assert (await client.train(await client.model(), environment_vars={"A": "a\0b"})).status_code == 422


@pytest.mark.parametrize("filename", ["../train.py", "a/b.py", "a\\b.py", "-rf.py", "..", "x" * 256 + ".py"])
async def test_file_names_that_are_paths_or_options_are_refused(client: Client, filename: str) -> None:
    refused = await client.asset(await client.bare_model(), filename, "print()")
    assert refused.status_code in (400, 422)
    assert refused.headers["content-type"] == PROBLEM


@pytest.mark.parametrize("kind", ["expired", "none", "foreign", "no-tenant", "other-audience"])
async def test_tokens_that_are_not_ours_are_refused(client: Client, system: System, kind: str) -> None:
    good = jwt.decode(system.token(), options={"verify_signature": False})
    secret = system.data_dir.secrets().jwt_secret
    claims: dict[str, Any] = {
        "expired": good | {"exp": 1},
        "none": good,
        "foreign": good,
        "no-tenant": {name: value for name, value in good.items() if name != "tenant"},
        "other-audience": good | {"aud": "another"},
    }[kind]
    if kind == "none":
        token = jwt.encode(claims, None, algorithm="none")
    else:
        token = jwt.encode(claims, "f" * 64 if kind == "foreign" else secret, algorithm="HS256")
    refused = await client.http.get("/api/v1/models", headers={"Authorization": f"Bearer {token}"})
    assert refused.status_code == 401


async def test_another_tenants_objects_are_not_there(client: Client, stranger: Client) -> None:
    model_id, run = await client.trained(PRINT_AND_WRITE)
    model, run_path = f"/api/v1/models/{model_id}", f"/api/v1/models/{model_id}/runs/{run['run_id']}"
    reads = [model, f"{model}/assets", f"{model}/runs", f"{model}/versions", f"{model}/versions/1/artifact", run_path]
    reads += [f"{run_path}/{part}" for part in ("logs", "metrics", "events")]
    for path in reads:
        assert (await stranger.http.get(path)).status_code == 404, path
    assert (await stranger.http.post(f"{run_path}/cancel")).status_code == 404
    assert (await stranger.asset(model_id, "train.py", "print()")).status_code == 404
    assert (await stranger.get("/api/v1/audit-log", run_id=run["run_id"]))["items"] == []


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        ("raise SystemExit(3)", "failed", "script_error"),
        ("import os\nos.symlink('/etc/passwd', os.environ['MODEL_OUTPUT_PATH'])", "failed", "artifact_refused"),
        ("import os\nos.mkfifo(os.environ['MODEL_OUTPUT_PATH'])", "failed", "artifact_refused"),
        ("held = []\nwhile True: held.append(bytearray(50_000_000))", "failed", "out_of_memory"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "failed", "script_error"),
        ("print('x' * 100 + '\\n', end='')", "succeeded", "no_artifact"),
    ],
)
async def test_scripts_that_misbehave_end_with_their_reason(
    client: Client, script: str, status: str, reason: str
) -> None:
    _, run = await client.trained(script)
    assert (run["status"], run["reason"], run["version"]) == (status, reason, None), run


async def test_a_script_that_forks_without_end_is_contained(client: Client) -> None:
    script = """
import os, time
children = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(600)
        children += 1
except OSError:
    print("stopped at", children, flush=True)
"""
    model_id, run = await client.trained(script)
    assert run["status"] == "succeeded"
    stopped_at = int((await client.log(model_id, run["run_id"])).split()[-1])
    assert 10 < stopped_at < 2000


async def test_a_script_that_floods_its_log_is_stopped(client: Client) -> None:
    _, run = await client.trained("while True: print('y' * 10_000)", timeout_seconds=120)
    assert (run["status"], run["reason"]) == ("failed", "log_quota_exceeded")


async def test_a_script_that_ignores_sigterm_is_killed_after_the_grace_period(client: Client) -> None:
    script = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    _, run = await client.trained(script, timeout_seconds=1, grace_period_seconds=3)
    assert (run["status"], run["reason"], run["grace_period_seconds"]) == ("cancelled", "timeout", 3)
    assert 1 + 3 <= run["usage"]["wall_seconds"] < 30


async def test_a_script_that_ignores_sigterm_with_no_grace_period_is_killed_at_once(client: Client) -> None:
    script = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    _, run = await client.trained(script, timeout_seconds=1, grace_period_seconds=0)
    assert (run["status"], run["reason"]) == ("cancelled", "timeout")
    assert 0.5 < run["usage"]["wall_seconds"] < 5


async def test_poison_on_every_topic_is_set_aside_and_the_rest_goes_on(client: Client, system: System) -> None:
    mark = "poison-of-this-test"
    producer = AIOKafkaProducer(bootstrap_servers=system.kafka_bootstrap_servers)
    await producer.start()
    topics = (RUNS, OUTPUT, RUNNERS, LOAD, DISPATCH)
    for topic in topics:
        for partition in range(topic.partitions):
            await producer.send_and_wait(topic.name, b"{", key=mark.encode(), partition=partition)
    await producer.stop()
    _, run = await client.trained(PRINT_AND_WRITE)
    assert run["status"] == "succeeded"
    letters = AIOKafkaConsumer(
        DEAD_LETTERS.name, bootstrap_servers=system.kafka_bootstrap_servers, auto_offset_reset="earliest"
    )
    await letters.start()
    told: set[str] = set()
    async with asyncio.timeout(60):
        while told != {topic.name for topic in topics}:
            record = await letters.getone()
            if record.key == mark.encode():
                told.add(json.loads(record.value)["topic"])
                assert "ce_specversion" in decode(record.headers, record.value).data.reason  # type: ignore[union-attr]
    await letters.stop()


async def test_duplicate_deliveries_change_nothing(client: Client, system: System) -> None:
    model_id, run = await client.trained(PRINT_AND_WRITE)
    run_id = run["run_id"]
    path = f"/api/v1/models/{model_id}/runs/{run_id}"
    history = (await client.eventually(f"{path}/events", lambda found: len(found["items"]) == 5))["items"]
    reader = AIOKafkaConsumer(bootstrap_servers=system.kafka_bootstrap_servers, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=system.kafka_bootstrap_servers)
    reader.subscribe([RUNS.name, OUTPUT.name])
    await reader.start()
    await producer.start()
    again = 0
    async with asyncio.timeout(60):
        while again < 6:  # five facts and at least one piece of output
            record = await reader.getone()
            if record.key == run_id.encode():
                await producer.send_and_wait(record.topic, record.value, key=record.key, headers=list(record.headers))
                again += 1
    await reader.stop()
    await producer.stop()
    _, later = await client.trained(PRINT_AND_WRITE)
    assert later["status"] == "succeeded"
    assert (await client.get(f"{path}/events"))["items"] == history
    assert await client.get(path) == run
    assert len(await client.versions(model_id)) == 1
    assert (await client.log(model_id, run_id)).startswith("training on")

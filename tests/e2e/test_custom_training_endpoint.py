"""Protects the endpoint's page: one test for each of its sentences, named after it, against the whole system."""

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from services.cli.tokens import Claims
from tests.e2e.conftest import PRINT_AND_WRITE, Client, System

EXAMPLE: dict[str, Any] = {
    "entry_point": "train.py",
    "runtime": "python3.11",
    "environment_vars": {"LEARNING_RATE": "0.001", "EPOCHS": "50"},
    "compute": {"cpu_cores": 4, "memory_gb": 16, "gpu": False},
    "run_label": "custom-run-experiment-1",
    "timeout_seconds": 14400,
}
SLEEP = "import time\nprint('here', flush=True)\ntime.sleep(600)\n"
WRITES_NOTHING = "print('nothing to keep')\n"


async def test_this_endpoint_is_only_applicable_to_models_with_model_type_custom(client: Client) -> None:
    model_id, run = await client.trained(PRINT_AND_WRITE)
    assert run["model_type"] == "custom"
    assert (await client.get(f"/api/v1/models/{model_id}"))["model_type"] == "custom"


async def test_it_is_not_available_for_automl_models(client: Client) -> None:
    refused = await client.train(await client.bare_model("auto"))
    other = await client.train(await client.bare_model("custom"))
    assert refused.status_code == 422
    assert refused.headers["content-type"].startswith("application/problem+json")
    assert refused.json()["type"] != other.json()["type"]


async def test_triggers_a_pipeline_executing_the_script_against_the_linked_dataset(client: Client) -> None:
    script = "import os\nprint(open(os.environ['DATASET_PATH']).read().strip(), 'was read')\n"
    dataset_id = await client.dataset(b"x,y\n7,8\n")
    model_id = await client.bare_model(dataset_id=dataset_id)
    await client.asset(model_id, "train.py", script)
    run_id = await client.started(model_id)
    assert (await client.ended(model_id, run_id))["status"] == "succeeded"
    assert "7,8 was read" in await client.log(model_id, run_id)


async def test_within_a_sandboxed_execution_environment(client: Client) -> None:
    script = """
import os, socket
print("uid is root:", os.getuid() == 0)
try:
    socket.create_connection(("127.0.0.1", 9092), timeout=2); print("network: yes")
except OSError:
    print("network: no")
try:
    open("/opt/x", "w"); print("root writable: yes")
except OSError:
    print("root writable: no")
print([line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "NoNewPrivs"))])
"""
    model_id, run = await client.trained(script)
    log = await client.log(model_id, run["run_id"])
    assert "uid is root: False" in log
    assert "network: no" in log
    assert "root writable: no" in log
    assert "['0000000000000000', '1']" in log


async def test_base_path_and_path_and_method_are_as_written(client: Client) -> None:
    model_id = await client.model(SLEEP)
    path = f"/api/v1/models/{model_id}/custom/train"
    assert (await client.http.get(path)).status_code == 405
    accepted = await client.http.post(path, json={"entry_point": "train.py", "runtime": "python3.11"})
    assert accepted.status_code == 202
    assert accepted.headers["location"].endswith(f"/api/v1/models/{model_id}/runs/{accepted.json()['run_id']}")
    await client.cancel(model_id, accepted.json()["run_id"])


@pytest.mark.parametrize("header", [None, "Bearer nonsense", "Basic dXNlcjpwYXNz", "Bearer"])
async def test_requires_a_valid_bearer_token(client: Client, system: System, header: str | None) -> None:
    model_id = await client.model()
    async with httpx.AsyncClient(base_url=system.api_url) as http:
        headers = {} if header is None else {"Authorization": header}
        refused = await http.post(f"/api/v1/models/{model_id}/custom/train", json=EXAMPLE, headers=headers)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")


async def test_a_token_without_the_scope_is_forbidden(client: Client, system: System) -> None:
    model_id = await client.model()
    token = system.token(Claims(scopes=("models:read",)))
    headers = {"Authorization": f"Bearer {token}"}
    refused = await client.http.post(f"/api/v1/models/{model_id}/custom/train", json=EXAMPLE, headers=headers)
    assert refused.status_code == 403
    assert "training:run" in refused.text


async def test_model_id_is_the_unique_identifier_of_the_custom_model(client: Client, stranger: Client) -> None:
    assert re.fullmatch(r"mdl-[0-9a-f]{8,}", model_id := await client.model())
    assert (await client.train("mdl-00000000")).status_code == 404
    assert (await stranger.train(model_id)).status_code == 404


async def test_the_request_body_of_the_page_is_accepted_unchanged_and_the_run_succeeds(client: Client) -> None:
    script = "import os\nassert os.environ['LEARNING_RATE'] == '0.001' and os.environ['EPOCHS'] == '50'\n"
    model_id = await client.model(script + PRINT_AND_WRITE)
    accepted = await client.http.post(f"/api/v1/models/{model_id}/custom/train", json=EXAMPLE)
    assert accepted.status_code == 202, accepted.text
    run = await client.ended(model_id, accepted.json()["run_id"])
    assert (run["status"], run["version"]) == ("succeeded", 1)


@pytest.mark.parametrize("entry_point", ["missing.py", "notes.txt", "../train.py", "/train.py", "TRAIN.PY", ""])
async def test_entry_point_must_match_an_uploaded_script_asset(client: Client, entry_point: str) -> None:
    model_id = await client.model()
    await client.asset(model_id, "notes.txt", "no script", asset_type="data")
    refused = await client.train(model_id, entry_point=entry_point)
    assert refused.status_code == 422
    assert "entry_point" in refused.text


async def test_entry_point_is_the_script_that_is_executed_beside_its_siblings(client: Client) -> None:
    model_id = await client.model("raise SystemExit('the wrong one')", filename="other.py")
    await client.asset(model_id, "settings.py", "WORD = 'sibling'")
    await client.asset(model_id, "main.py", "import settings\nprint(settings.WORD)")
    run_id = await client.started(model_id, entry_point="main.py")
    assert (await client.ended(model_id, run_id))["status"] == "succeeded"
    assert await client.log(model_id, run_id) == "sibling"


@pytest.mark.parametrize("runtime", ["python3.10", "python3.11", "python3.12"])
async def test_runtime_is_the_interpreter_that_executes(client: Client, runtime: str) -> None:
    script = "import sys, numpy, pandas, sklearn\nprint('python%d.%d' % sys.version_info[:2])"
    model_id, run = await client.trained(script, runtime=runtime)
    assert run["status"] == "succeeded", run
    assert await client.log(model_id, run["run_id"]) == runtime


@pytest.mark.parametrize("runtime", ["python3.9", "python3.13", "python", 3.11, None])
async def test_other_runtimes_are_refused(client: Client, runtime: object) -> None:
    assert (await client.train(await client.model(), runtime=runtime)).status_code == 422


async def test_environment_vars_are_key_value_variables_passed_to_the_script(client: Client) -> None:
    tricky = {"SIMPLE": "1", "SPACES": "  a  ", "LINES": "a\nb", "QUOTES": "\"'`$HOME", "EMPTY": "", "UNICODE": "é漢😀"}
    names = " ".join(tricky)
    script = (  # their digest: values do not show in a log
        "import hashlib, json, os\n"
        f"found = json.dumps({{name: os.environ[name] for name in '{names}'.split()}})\n"
        "print(hashlib.sha256(found.encode()).hexdigest())"
    )
    model_id, run = await client.trained(script, environment_vars=tricky)
    assert await client.log(model_id, run["run_id"]) == hashlib.sha256(json.dumps(tricky).encode()).hexdigest()
    assert run["environment_vars"].keys() == tricky.keys()


async def test_compute_defaults_to_2_cores_8_gb_and_no_gpu(client: Client) -> None:
    model_id = await client.model()
    body = {"entry_point": "train.py", "runtime": "python3.11"}
    accepted = await client.http.post(f"/api/v1/models/{model_id}/custom/train", json=body)
    assert accepted.json()["compute"] == {"cpu_cores": 2, "memory_gb": 8, "gpu": False}
    await client.ended(model_id, accepted.json()["run_id"])


@pytest.mark.parametrize(
    ("field", "most", "over"),
    [("cpu_cores", 32, 33), ("memory_gb", 128, 129), ("cpu_cores", 1, 0), ("memory_gb", 1, 0)],
)
async def test_compute_has_maxima_of_32_cores_and_128_gb(client: Client, field: str, most: int, over: int) -> None:
    model_id = await client.model()
    refused = await client.train(model_id, compute={"cpu_cores": 1, "memory_gb": 1, field: over})
    assert refused.status_code == 422
    assert field in refused.text
    run_id = await client.started(model_id, compute={"cpu_cores": 1, "memory_gb": 1, field: most})
    await client.cancel(model_id, run_id)


async def test_if_gpu_is_true_a_gpu_worker_is_requested_subject_to_availability(client: Client) -> None:
    model_id = await client.model()
    accepted = await client.train(model_id, compute={"cpu_cores": 1, "memory_gb": 1, "gpu": True})
    run_id = accepted.json()["run_id"]
    assert accepted.json()["estimated_start_time"] is None
    run = await client.eventually(f"/api/v1/models/{model_id}/runs/{run_id}", lambda found: found["reason"] is not None)
    assert (run["status"], run["reason"]) == ("queued", "no_gpu_runner")
    assert "GPU" in run["message"]
    await client.cancel(model_id, run_id)


async def test_run_label_is_a_human_readable_label(client: Client) -> None:
    model_id = await client.model()
    assert (await client.train(model_id, run_label="x" * 257)).status_code == 422
    accepted = await client.train(model_id, run_label="x" * 256)
    assert accepted.json()["run_label"] == "x" * 256
    await client.ended(model_id, accepted.json()["run_id"])


async def test_timeout_seconds_defaults_to_7200_and_has_a_maximum_of_86400(client: Client) -> None:
    model_id = await client.model()
    for wrong in (86401, 0, -1, "60", 1.5):
        assert (await client.train(model_id, timeout_seconds=wrong)).status_code == 422
    run_id = await client.started(model_id, timeout_seconds=86400)
    assert (await client.ended(model_id, run_id))["timeout_seconds"] == 86400
    run_id = await client.started(model_id)
    assert (await client.ended(model_id, run_id))["timeout_seconds"] == 7200


async def test_grace_period_seconds_defaults_to_10_and_has_a_maximum_of_600(client: Client) -> None:
    model_id = await client.model()
    for wrong in (601, -1, "60", 1.5, None):
        assert (await client.train(model_id, grace_period_seconds=wrong)).status_code == 422
    for told, shown in (({}, 10), ({"grace_period_seconds": 0}, 0), ({"grace_period_seconds": 600}, 600)):
        run_id = await client.started(model_id, **told)
        assert (await client.ended(model_id, run_id))["grace_period_seconds"] == shown


async def test_timeout_seconds_is_the_max_execution_time_before_auto_cancellation(client: Client) -> None:
    _, run = await client.trained(SLEEP, timeout_seconds=2)
    assert (run["status"], run["reason"], run["version"]) == ("cancelled", "timeout", None)
    assert 2 <= run["usage"]["wall_seconds"] < 2 + 10


async def test_requires_at_least_one_script_asset_and_returns_422_if_none_exist(client: Client) -> None:
    model_id = await client.bare_model()
    await client.asset(model_id, "train.py", "print()", asset_type="data")
    refused = await client.train(model_id)
    assert refused.status_code == 422
    assert "script" in refused.json()["detail"]


async def test_it_receives_the_linked_dataset_path_via_dataset_path(client: Client) -> None:
    script = """
import os, pandas
path = os.environ["DATASET_PATH"]
print(os.path.basename(path), pandas.read_csv(path).shape)
"""
    dataset_id = await client.dataset(b"a,b\n1,2\n3,4\n", filename="wine data.csv")
    model_id = await client.bare_model(dataset_id=dataset_id)
    await client.asset(model_id, "train.py", script)
    run_id = await client.started(model_id)
    await client.ended(model_id, run_id)
    assert await client.log(model_id, run_id) == "wine data.csv (2, 2)"


async def test_what_is_written_to_model_output_path_becomes_a_version(client: Client) -> None:
    model_id, run = await client.trained(PRINT_AND_WRITE)
    assert run["version"] == 1
    artifact = await client.http.get(f"/api/v1/models/{model_id}/versions/1/artifact")
    assert artifact.content == b"weights"
    [version] = await client.versions(model_id)
    assert version["run_id"] == run["run_id"]
    assert version["size_bytes"] == len(b"weights")
    assert (await client.get(f"/api/v1/models/{model_id}"))["status"] == "trained"


async def test_otherwise_no_version_is_created_upon_completion(client: Client) -> None:
    model_id, run = await client.trained(WRITES_NOTHING)
    assert (run["status"], run["reason"], run["version"]) == ("succeeded", "no_artifact", None)
    assert await client.versions(model_id) == []
    assert (await client.get(f"/api/v1/models/{model_id}"))["status"] == "draft"


async def test_model_status_transitions_to_training_immediately_upon_a_successful_submission(client: Client) -> None:
    model_id = await client.model(SLEEP)
    run_id = await client.started(model_id)
    assert (await client.get(f"/api/v1/models/{model_id}"))["status"] == "training"
    await client.cancel(model_id, run_id)
    assert (await client.get(f"/api/v1/models/{model_id}"))["status"] == "draft"


async def test_returns_409_if_a_training_run_is_already_in_progress(client: Client) -> None:
    model_id = await client.model(SLEEP)
    run_id = await client.started(model_id)
    refused = await client.train(model_id)
    assert refused.status_code == 409
    assert refused.json()["run_id"] == run_id
    await client.cancel(model_id, run_id)
    await client.cancel(model_id, await client.started(model_id))


async def test_an_audit_log_entry_is_written_with_action_model_custom_training_started(client: Client) -> None:
    _, run = await client.trained(PRINT_AND_WRITE)
    parameters = {"action": "model.custom_training_started", "run_id": run["run_id"]}
    page = await client.eventually("/api/v1/audit-log", lambda found: found["items"], **parameters)
    [entry] = page["items"]
    assert (entry["model_id"], entry["run_id"]) == (run["model_id"], run["run_id"])
    assert entry["actor"]


async def test_poll_progress_via_get_metrics_or_get_logs_using_the_returned_run_id(client: Client) -> None:
    script = """
import json, os, time
with open(os.environ["METRICS_PATH"], "a") as metrics:
    for step in range(3):
        print(json.dumps({"name": "loss", "value": 1 / (step + 1), "step": step}), file=metrics, flush=True)
print("still here", flush=True)
time.sleep(600)
"""
    model_id = await client.model(script)
    run_id = await client.started(model_id)
    path = f"/api/v1/models/{model_id}/runs/{run_id}"
    logs = await client.eventually(f"{path}/logs", lambda found: found["items"])
    assert [line["text"] for line in logs["items"]] == ["still here"]
    metrics = await client.eventually(
        f"{path}/metrics", lambda found: sum(len(series["points"]) for series in found["series"]) == 3
    )
    assert (await client.get(path))["status"] == "running"
    [series] = metrics["series"]
    assert series["name"] == "loss"
    assert [point["step"] for point in series["points"]] == [0, 1, 2]
    await client.cancel(model_id, run_id)


async def test_returns_a_custom_training_run_object(client: Client) -> None:
    model_id = await client.model()
    before = datetime.now(UTC)
    accepted = await client.http.post(
        f"/api/v1/models/{model_id}/custom/train", json=EXAMPLE | {"compute": {"cpu_cores": 1, "memory_gb": 1}}
    )
    run = accepted.json()
    assert re.fullmatch(rf"run-custom-{before:%Y%m%d}-[0-9a-f]{{6,}}", run["run_id"])
    expected = {
        "model_id": model_id,
        "model_type": "custom",
        "status": "queued",
        "entry_point": "train.py",
        "runtime": "python3.11",
        "compute": {"cpu_cores": 1, "memory_gb": 1, "gpu": False},
        "run_label": "custom-run-experiment-1",
    }
    assert {name: run[name] for name in expected} == expected
    for name in ("created_at", "estimated_start_time"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", run[name]), name
    await client.ended(model_id, run["run_id"])

"""No answer of the API shows the value of a variable that a script has told in every way that it has."""

from tests.e2e.conftest import Client

CANARY = "canary-of-the-api-31c5e8"
TATTLES = """
import json, os, sys
key = os.environ["KEY"]
print("my key is", key)
with open(os.environ["METRICS_PATH"], "a") as metrics:
    print(json.dumps({"name": f"loss of {key}", "value": 1}), file=metrics)
with open(os.environ["FAILURE_PATH"], "w") as failure:
    failure.write(f"no login with {key}")
raise ValueError(key)
"""


async def test_a_value_that_a_script_tells_is_shown_by_no_answer(client: Client) -> None:
    model_id, run = await client.trained(TATTLES, environment_vars={"KEY": CANARY, "EPOCHS": "50"})
    assert (run["status"], run["reason"]) == ("failed", "script_error")
    assert run["message"] == "no login with ***"
    log = await client.log(model_id, run["run_id"])
    assert log.splitlines()[0] == "my key is ***"
    assert log.splitlines()[-1] == "ValueError: ***"
    model = f"/api/v1/models/{model_id}"
    about = f"{model}/runs/{run['run_id']}"
    paths = (model, f"{model}/runs", about, *(f"{about}/{part}" for part in ("logs", "metrics", "events")))
    for path in (*paths, f"/api/v1/audit-log?model_id={model_id}", "/metrics", "/readyz"):
        answer = await client.http.get(path)
        assert answer.status_code == 200, path
        assert CANARY not in answer.text, path
    found = await client.eventually(f"{about}/metrics", lambda told: told["series"])
    assert [series["name"] for series in found["series"]] == ["loss of ***"]

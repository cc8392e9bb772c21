"""Protects scripts that need more than the image has, from the upload to the model, and to pip's words when it fails.

The index is the one that the host's pip is configured with, which a system in containers cannot always reach.
"""

import pytest

from tests.e2e.conftest import Client

pytestmark = pytest.mark.own_parts

TRAINS = """
import os, pathlib, socket
import tabulate
try:
    socket.getaddrinfo("index.example", 443)
except OSError:
    print("no network")
pathlib.Path(os.environ["MODEL_OUTPUT_PATH"]).write_text(tabulate.tabulate([[1, 2]], tablefmt="plain"))
"""


async def test_a_run_with_a_requirements_asset_trains_without_a_network_and_makes_a_version(client: Client) -> None:
    model_id = await client.model(TRAINS)
    uploaded = await client.asset(model_id, "requirements.txt", "tabulate==0.9.0\n", "requirements")
    assert uploaded.status_code == 201, uploaded.text
    for version in (1, 2):
        run_id = await client.started(model_id)
        run = await client.ended(model_id, run_id)
        assert (run["status"], run["reason"], run["version"]) == ("succeeded", None, version), run
        assert await client.log(model_id, run_id) == "no network"
    artifact = await client.http.get(f"/api/v1/models/{model_id}/versions/1/artifact")
    assert artifact.text == "1  2"


async def test_a_wrong_hash_ends_the_run_with_pip_s_own_words_and_frees_the_model(client: Client) -> None:
    model_id = await client.model(TRAINS)
    line = f"tabulate==0.9.0 --hash=sha256:{'0' * 64}\n"
    await client.asset(model_id, "requirements.txt", line, "requirements")
    run_id = await client.started(model_id)
    run = await client.ended(model_id, run_id)
    assert (run["status"], run["reason"], run["started_at"]) == ("failed", "requirements_failed", None), run
    assert "DO NOT MATCH THE HASHES" in await client.log(model_id, run_id)
    await client.asset(model_id, "requirements.txt", "tabulate==0.9.0\n", "requirements")
    assert (await client.ended(model_id, await client.started(model_id)))["status"] == "succeeded"

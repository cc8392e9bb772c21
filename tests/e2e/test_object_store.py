"""Protects what the api and the runner share: each can read, replace and remove what the other has stored.

They are two users where the system runs as containers, and files of one user in folders of another are how that fails.
"""

import hashlib
from itertools import count
from secrets import token_hex

from tests.e2e.conftest import Client


def in_the_same_folder_as(digest: str) -> bytes:
    """Content that the object store puts into the folder of that digest."""
    texts = (f"{digest} {number}".encode() for number in count())
    return next(text for text in texts if hashlib.sha256(text).hexdigest()[:2] == digest[:2])


async def test_the_api_stores_beside_what_the_runner_has_stored(client: Client) -> None:
    for _ in range(5):  # the first two digits decide the folder, and the api may have made that one before
        script = f"import os\nopen(os.environ['MODEL_OUTPUT_PATH'], 'w').write({token_hex(8)!r})"
        model_id, _ = await client.trained(script)
        [version] = await client.versions(model_id)
        artifact = await client.http.get(f"/api/v1/models/{model_id}/versions/1/artifact")
        assert hashlib.sha256(artifact.content).hexdigest() == version["sha256"]
        await client.dataset(in_the_same_folder_as(version["sha256"]))


async def test_variables_go_both_ways(client: Client) -> None:
    model_id = await client.model("import os\nprint(os.environ['WORD'])")
    run_id = await client.started(model_id, environment_vars={"WORD": "seal"})
    run = await client.ended(model_id, run_id)
    assert await client.log(model_id, run_id) == "seal"
    path = f"/api/v1/models/{model_id}/runs/{run_id}"
    gone = await client.eventually(path, lambda found: found["environment_vars"] == {"WORD": None})
    assert gone["status"] == run["status"] == "succeeded"

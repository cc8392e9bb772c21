"""Protects the rest of the REST interface: tenants, uploads and their limits, paging, and one shape of error."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.api.settings import MIB
from tests.integration.api_scene import EVERY_SCOPE, Scene, client_of, scene_on, token
from tests.integration.conftest import Database

PROBLEMS = "https://runyard.dev/problems/"


@pytest.fixture
async def scene(database: Database, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_on(database, tmp_path) as opened:
        yield opened


def slug_of(answer: httpx.Response) -> str:
    """The slug of a problem, after a look at its shape."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= problem.keys()
    assert problem["status"] == answer.status_code
    assert answer.headers["x-request-id"]
    return str(problem["type"].removeprefix(PROBLEMS))


async def test_every_route_needs_a_token_and_its_scope(scene: Scene) -> None:
    document = (await scene.http.get("/openapi.json")).json()
    operations = [
        (path, method, operation["x-required-scope"])
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) >= 22
    for path, method, scope in operations:
        others = " ".join(word for word in EVERY_SCOPE.split() if word != scope)
        url = path.replace("{version}", "1").replace("{", "").replace("}", "")
        async with client_of(scene.context, f"Bearer {token(scope=others)}") as client:
            forbidden = await client.request(method, url)
            nobody = await client.request(method, url, headers={"Authorization": "Basic eDp5"})
        assert (forbidden.status_code, slug_of(forbidden)) == (403, "insufficient-scope"), (method, path)
        assert f'scope="{scope}"' in forbidden.headers["www-authenticate"]
        assert forbidden.json()["required_scope"] == scope
        assert (nobody.status_code, slug_of(nobody)) == (401, "unauthenticated"), (method, path)
        assert nobody.headers["www-authenticate"].startswith("Bearer")


async def test_errors_of_the_framework_have_the_same_shape(scene: Scene) -> None:
    assert slug_of(await scene.http.get("/nowhere")) == "not-found"
    assert slug_of(await scene.http.patch("/api/v1/models")) == "method-not-allowed"
    assert slug_of(await scene.http.get("/api/v1/models/a%00b")) == "not-found"
    assert slug_of(await scene.http.get("/api/v1/models?limit=0")) == "validation-failed"
    assert slug_of(await scene.http.get("/api/v1/models?limit=201")) == "validation-failed"
    assert slug_of(await scene.http.get("/api/v1/models?cursor=nonsense")) == "validation-failed"
    assert slug_of(await scene.http.get("/api/v1/audit-log?actor=%00")) == "validation-failed"
    assert slug_of(await scene.http.get("/api/v1/audit-log?since=2026-01-01T00:00:00")) == "validation-failed"
    form = await scene.http.post("/api/v1/models", data={"name": "m"})
    assert slug_of(form) == "unsupported-media-type"


@pytest.mark.parametrize("body", ["{", "", "[" * 100_000, '{"name": NaN', "1" * 5000])
async def test_what_is_no_json_is_a_400_or_422_and_never_a_crash(scene: Scene, body: str) -> None:
    answer = await scene.http.post("/api/v1/datasets", content=body, headers={"Content-Type": "application/json"})
    assert slug_of(answer) in {"malformed-json", "bad-request", "validation-failed"}


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "x" * 257, 7, None, "\ud800"])
async def test_names_that_cannot_be_are_refused(scene: Scene, name: object) -> None:
    body = json.dumps({"name": name})
    answer = await scene.http.post("/api/v1/datasets", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, slug_of(answer)) == (422, "validation-failed")
    assert answer.json()["errors"][0]["pointer"] == "/name"


async def test_json_bodies_end_at_a_mebibyte_however_they_are_sent(scene: Scene) -> None:
    async def chunks(size: int) -> AsyncIterator[bytes]:
        yield b'{"name": "d"'
        yield b" " * (size - 13)
        yield b"}"

    headers = {"Content-Type": "application/json"}
    fits = await scene.http.post("/api/v1/datasets", content=chunks(MIB), headers=headers)
    over = await scene.http.post("/api/v1/datasets", content=chunks(MIB + 1), headers=headers)
    assert fits.status_code == 201
    assert (over.status_code, slug_of(over), over.json()["limit_bytes"]) == (413, "too-large", MIB)


async def test_uploads_end_at_their_limits(scene: Scene) -> None:
    small = scene.with_limits(asset_bytes=1000, dataset_bytes=1000)
    async with small.http:
        model_id = await small.bare_model()
        assert (await small.asset(model_id, content=b"x" * 1000)).status_code == 201
        for size in (1001, 500_000):
            over = await small.asset(model_id, "big.py", content=b"x" * size)
            assert (over.status_code, slug_of(over)) == (413, "too-large")
        dataset_id = await small.dataset(b"x" * 1000)
        over = await small.http.put(f"/api/v1/datasets/{dataset_id}/content?filename=a.csv", content=b"x" * 1001)
        assert (over.status_code, over.json()["limit_bytes"]) == (413, 1000)
    assert [asset["filename"] for asset in (await scene.get(f"/api/v1/models/{model_id}/assets"))["items"]] == [
        "train.py"
    ]
    assert not list(scene.objects_folder.glob("uploads/*"))


async def test_another_tenants_objects_are_not_there(scene: Scene) -> None:
    model_id = await scene.model()
    dataset_id = (await scene.get("/api/v1/datasets"))["items"][0]["dataset_id"]
    run_id = await scene.accepted(model_id)
    model = f"/api/v1/models/{model_id}"
    paths = [model, f"{model}/assets", f"{model}/runs", f"{model}/versions", f"/api/v1/datasets/{dataset_id}"]
    paths += [f"{model}/runs/{run_id}{room}" for room in ("", "/logs", "/metrics", "/events")]
    other = await scene.model()
    assert (await scene.http.get(f"/api/v1/models/{other}/runs/{run_id}")).status_code == 404
    async with client_of(scene.context, f"Bearer {token(tenant='other')}") as stranger:
        for path in paths:
            assert (await stranger.get(path)).status_code == 404, path
        assert (await stranger.post(f"{model}/runs/{run_id}/cancel")).status_code == 404
        linked = await stranger.post(
            "/api/v1/models", json={"name": "m", "model_type": "custom", "dataset_id": dataset_id}
        )
        assert linked.json()["errors"][0]["pointer"] == "/dataset_id"
        assert (await stranger.get("/api/v1/models")).json()["items"] == []


async def test_lists_are_paged_without_gaps_or_repeats(scene: Scene) -> None:
    made = [await scene.dataset(None) for _ in range(5)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await scene.get("/api/v1/datasets", limit=2, **cursor)
        seen += [dataset["dataset_id"] for dataset in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == made[::-1]


async def test_content_comes_back_byte_for_byte(scene: Scene) -> None:
    content = bytes(range(256)) * 9000
    dataset_id = await scene.dataset(content)
    dataset = await scene.get(f"/api/v1/datasets/{dataset_id}")
    assert (dataset["filename"], dataset["size_bytes"]) == ("data.csv", len(content))
    answer = await scene.http.get(f"/api/v1/datasets/{dataset_id}/content")
    assert answer.content == content
    empty = await scene.dataset(None)
    assert (await scene.http.get(f"/api/v1/datasets/{empty}/content")).status_code == 404


async def test_assets_are_replaced_by_type_and_name_and_deleted(scene: Scene) -> None:
    model_id = await scene.bare_model()
    first = (await scene.asset(model_id)).json()
    data = (await scene.asset(model_id, data={"asset_type": "data"})).json()
    again = (await scene.asset(model_id, content=b"other")).json()
    assert again["asset_id"] == first["asset_id"] != data["asset_id"]
    path = f"/api/v1/models/{model_id}/assets"
    assert len((await scene.get(path))["items"]) == 2
    assert (await scene.http.delete(f"{path}/{first['asset_id']}")).status_code == 204
    assert (await scene.http.delete(f"{path}/{first['asset_id']}")).status_code == 404
    assert (await scene.asset(model_id, data={"asset_type": "other"})).status_code == 422
    assert (await scene.asset(model_id, data={"surprise": "x"})).status_code == 422


DEFINED = [{"name": "loss", "regex": "loss=([0-9.eE+-]+)"}, {"name": "größe/µm", "regex": r"\\bsize: (\\d+)"}]


async def test_metric_definitions_are_shown_as_they_were_given_and_pinned_by_runs(scene: Scene) -> None:
    model_id = await scene.bare_model(dataset_id=await scene.dataset(), metric_definitions=DEFINED)
    assert (await scene.get(f"/api/v1/models/{model_id}"))["metric_definitions"] == DEFINED
    without = await scene.bare_model()
    assert [model["metric_definitions"] for model in (await scene.get("/api/v1/models"))["items"]] == [[], DEFINED]
    assert (await scene.get(f"/api/v1/models/{without}"))["metric_definitions"] == []
    await scene.asset(model_id)
    run_id = await scene.accepted(model_id)
    told = await scene.admin.fetchval("SELECT value FROM registry.outbox WHERE subject = $1", run_id)
    assert json.loads(told)["spec"]["metric_definitions"] == DEFINED


async def test_wrong_metric_definitions_are_refused_each_by_its_place(scene: Scene) -> None:
    given = [
        DEFINED[0],
        {"name": "a\nb", "regex": "(a)"},
        {"name": "c", "regex": "(a)(b)"},
        {"name": "d", "regex": "("},
    ]
    body = {"name": "m", "model_type": "custom", "metric_definitions": given}
    answer = await scene.http.post("/api/v1/models", json=body)
    assert (answer.status_code, slug_of(answer)) == (422, "validation-failed")
    assert [error["pointer"] for error in answer.json()["errors"]] == [
        "/metric_definitions/1/name",
        "/metric_definitions/2/regex",
        "/metric_definitions/3/regex",
    ]
    for number, status in ((40, 201), (41, 422)):
        many = [{"name": f"m{place}", "regex": "(a)"} for place in range(number)]
        assert (await scene.http.post("/api/v1/models", json=body | {"metric_definitions": many})).status_code == status


async def test_a_key_covers_metric_definitions_too(scene: Scene) -> None:
    headers = {"Idempotency-Key": "model-1"}
    body = {"name": "m", "model_type": "custom", "metric_definitions": DEFINED}
    first = await scene.http.post("/api/v1/models", json=body, headers=headers)
    again = await scene.http.post("/api/v1/models", json=body, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    for other in (DEFINED[:1], DEFINED[::-1], []):
        refused = await scene.http.post("/api/v1/models", json=body | {"metric_definitions": other}, headers=headers)
        assert slug_of(refused) == "idempotency-key-reused"


async def test_an_upload_with_a_key_is_compared_by_its_bytes(scene: Scene) -> None:
    model_id = await scene.bare_model()
    headers = {"Idempotency-Key": "upload-1"}
    first = await scene.asset(model_id, headers=headers)
    again = await scene.asset(model_id, headers=headers)
    other = await scene.asset(model_id, content=b"other", headers=headers)
    assert (first.status_code, again.json(), slug_of(other)) == (201, first.json(), "idempotency-key-reused")


async def test_a_database_that_takes_no_connections_is_a_503_and_comes_back(scene: Scene, database: Database) -> None:
    name = database.admin_url.rpartition("/")[2]
    await scene.admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    await scene.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'runyard_api'")
    while (away := await scene.http.get("/api/v1/models")).status_code == 200:
        pass  # a pooled connection may answer once more before it is gone
    assert slug_of(away) == "unavailable"
    assert away.status_code == 503
    assert int(away.headers["retry-after"]) > 0
    await scene.admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
    assert (await scene.http.get("/api/v1/models")).status_code == 200


async def test_health_metrics_and_documents_need_no_token(scene: Scene) -> None:
    async with client_of(scene.context, "none") as nobody:
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/asyncapi"):
            assert (await nobody.get(path)).status_code == 200, path

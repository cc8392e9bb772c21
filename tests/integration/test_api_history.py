"""Protects what clients read of a run: its artifact, and its history, whole and in order, however the ledger lags."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from schemas.parts import LogLine
from tests import life_of_a_run as life
from tests.integration.api_scene import Scene, client_of, scene_on, token
from tests.integration.conftest import Database


@pytest.fixture
async def scene(database: Database, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_on(database, tmp_path) as opened:
        yield opened


async def test_two_instances_that_hear_the_same_end_make_one_version(scene: Scene) -> None:
    model_id = await scene.model()
    run_id = await scene.accepted(model_id)
    await asyncio.gather(*(scene.happen(*life.whole_life(run_id)) for _ in range(4)))
    assert len((await scene.get(f"/api/v1/models/{model_id}/versions"))["items"]) == 1
    assert len(await scene.outbox()) == 2


async def test_an_artifact_is_downloaded_byte_for_byte_with_its_digest(scene: Scene) -> None:
    model_id = await scene.model()
    artifact = await scene.artifact(b"w" * 3_000_000)
    await scene.succeed(await scene.accepted(model_id), artifact)
    answer = await scene.http.get(f"/api/v1/models/{model_id}/versions/1/artifact")
    assert answer.content == b"w" * 3_000_000
    assert answer.headers["content-length"] == "3000000"
    assert answer.headers["etag"] == f'"{artifact.sha256}"'
    assert answer.headers["repr-digest"].startswith("sha-256=:")
    assert f"{model_id}-v1" in answer.headers["content-disposition"]
    assert (await scene.http.get(f"/api/v1/models/{model_id}/versions/2/artifact")).status_code == 404


async def test_while_the_ledger_lags_history_is_empty_and_not_missing(scene: Scene) -> None:
    model_id = await scene.model()
    run_id = await scene.accepted(model_id)
    path = f"/api/v1/models/{model_id}/runs/{run_id}"
    logs, metrics = await scene.get(f"{path}/logs"), await scene.get(f"{path}/metrics")
    assert (logs["items"], logs["complete"]) == ([], False)
    assert (metrics["series"], metrics["complete"]) == ([], False)
    assert await scene.get(f"{path}/events") == {"items": [], "next_cursor": None}
    assert await scene.get("/api/v1/audit-log") == {"items": [], "next_cursor": None}


async def trained_with_output(scene: Scene) -> str:
    """A run that has ended with three lines and a point, none of which is stored yet; returns its path."""
    model_id = await scene.model()
    run_id = await scene.accepted(model_id)
    await scene.succeed(run_id)
    life_told = life.whole_life(run_id)
    await scene.auditor.on_runs(life.batch(*life_told))
    return f"/api/v1/models/{model_id}/runs/{run_id}"


async def test_logs_are_complete_only_when_all_output_is_stored(scene: Scene) -> None:
    path = await trained_with_output(scene)
    run_id = path.rpartition("/")[2]
    await scene.auditor.on_output([life.received(life.logs("one", "two", run_id=run_id))])
    part = await scene.get(f"{path}/logs")
    assert ([line["text"] for line in part["items"]], part["complete"]) == (["one", "two"], False)
    await scene.auditor.on_output([life.received(life.logs("three", first=3, run_id=run_id), sequence=1)])
    await scene.auditor.on_output([life.received(life.metrics(0.5, first=4, run_id=run_id))])
    rest = await scene.get(f"{path}/logs", after=part["next_cursor"])
    assert ([line["text"] for line in rest["items"]], rest["complete"]) == (["three"], True)
    page = await scene.get(f"{path}/logs", limit=2)
    assert ([line["text"] for line in page["items"]], page["complete"]) == (["one", "two"], False)
    last = await scene.get(f"{path}/logs", tail=2)
    assert ([line["text"] for line in last["items"]], last["complete"]) == (["two", "three"], True)
    none = await scene.get(f"{path}/logs", stream="stderr")
    assert (none["items"], none["complete"]) == ([], True)


async def followed(scene: Scene, path: str, **headers: str) -> list[dict[str, str]]:
    """Follow a stream to its end; returns its events by field."""
    answer = await scene.http.get(path, params={"follow": "true"}, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block for block in answer.text.replace("\r\n", "\n").split("\n\n") if block.strip()]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


async def test_a_followed_stream_goes_on_behind_the_last_event_id_and_ends(scene: Scene) -> None:
    path = await trained_with_output(scene)
    run_id = path.rpartition("/")[2]
    following = asyncio.create_task(followed(scene, f"{path}/logs"))
    stderr = LogLine(sequence=3, stream="stderr", text='{"a": "ü\\n"}', at=life.at(3))
    lines = (*life.logs("one", "two").lines, stderr)
    await scene.auditor.on_output(
        [life.received(life.logs(run_id=run_id).model_copy(update={"lines": lines}))],
    )
    await scene.auditor.on_output([life.received(life.metrics(0.5, first=4, run_id=run_id))])
    events = await following
    assert [event["event"] for event in events] == ["log", "log", "log", "end"]
    assert [json.loads(event["data"])["text"] for event in events[:3]] == ["one", "two", '{"a": "ü\\n"}']
    ended = {"run_id": run_id, "status": "succeeded", "reason": None, "version": 1}
    assert json.loads(events[-1]["data"]) == ended
    rest = await followed(scene, f"{path}/logs", **{"Last-Event-ID": events[1]["id"]})
    assert [event["event"] for event in rest] == ["log", "end"]
    measured = await followed(scene, f"{path}/metrics")
    assert [(event["event"], json.loads(event["data"]).get("value")) for event in measured] == [
        ("metric", 0.5),
        ("end", None),
    ]
    wrong = await scene.http.get(f"{path}/logs", headers={"Last-Event-ID": "nonsense"})
    assert wrong.status_code == 422


async def test_metrics_come_as_series_and_long_ones_keep_their_extremes(scene: Scene) -> None:
    path = await trained_with_output(scene)
    run_id = path.rpartition("/")[2]
    values = [1.0] * 500 + [9.0] + [1.0] * 300 + [-9.0] + [1.0] * 198
    await scene.auditor.on_output([life.received(life.metrics(*values, run_id=run_id))])
    whole = await scene.get(f"{path}/metrics")
    assert [(series["name"], series["total_points"]) for series in whole["series"]] == [("loss", 1000)]
    assert len(whole["series"][0]["points"]) == 1000
    few = (await scene.get(f"{path}/metrics", max_points=10, name="loss"))["series"][0]
    assert len(few["points"]) <= 10
    assert {9.0, -9.0} <= {point["value"] for point in few["points"]}
    assert [few["points"][0]["step"], few["points"][-1]["step"]] == [0, 999]
    assert whole["complete"] is True
    after = await scene.get(f"{path}/metrics", after=whole["next_cursor"])
    assert (after["series"], after["next_cursor"]) == ([], whole["next_cursor"])


async def test_several_points_of_one_line_are_one_of_each_series_and_a_reader_may_stop_between_them(
    scene: Scene,
) -> None:
    path = await trained_with_output(scene)
    run_id = path.rpartition("/")[2]
    points = (*life.found(2, 0.5, 0.25).points, *life.metrics(9.0, first=3).points, *life.found(4, 1.5, 1.25).points)
    told = life.metrics(run_id=run_id).model_copy(update={"points": points})
    await scene.auditor.on_output([life.received(told)])
    assert (await scene.get(f"{path}/metrics"))["complete"] is False
    await scene.auditor.on_output([life.received(life.logs("a", "b", first=2, run_id=run_id))])
    await scene.auditor.on_output([life.received(life.logs("c", first=4, run_id=run_id), sequence=1)])
    page = await scene.get(f"{path}/metrics")
    values = {series["name"]: [point["value"] for point in series["points"]] for series in page["series"]}
    assert (values, page["complete"]) == ({"m1": [0.5, 1.5], "m2": [0.25, 1.25], "loss": [9.0]}, True)
    events = await followed(scene, f"{path}/metrics")
    shown = [(json.loads(event["data"])["name"], json.loads(event["data"])["value"]) for event in events[:-1]]
    assert shown == [("m1", 0.5), ("m2", 0.25), ("loss", 9.0), ("m1", 1.5), ("m2", 1.25)]
    assert len({event["id"] for event in events[:-1]}) == 5
    for place, event in enumerate(events[:-1], 1):
        rest = await followed(scene, f"{path}/metrics", **{"Last-Event-ID": event["id"]})
        assert rest == events[place:]
        after = await scene.get(f"{path}/metrics", after=event["id"])
        assert sum(series["total_points"] for series in after["series"]) == 5 - place
    assert page["next_cursor"] == events[-2]["id"]
    assert (await scene.get(f"{path}/metrics", after=page["next_cursor"]))["next_cursor"] == page["next_cursor"]
    lines = await scene.get(f"{path}/logs", after=events[0]["id"])
    assert [line["text"] for line in lines["items"]] == ["b", "c"]


async def test_a_runs_events_are_paged_in_their_order(scene: Scene) -> None:
    path = await trained_with_output(scene)
    first = await scene.get(f"{path}/events", limit=3)
    rest = await scene.get(f"{path}/events", limit=3, cursor=first["next_cursor"])
    told = [event["type"].split(".")[2] for event in first["items"] + rest["items"]]
    assert told == ["training_requested", "queued", "started", "succeeded", "model_version_created"]
    assert [event["version"] for event in first["items"]] == [1, 2, 3]
    assert rest["next_cursor"] is None


async def test_the_audit_log_is_filtered_and_belongs_to_the_tenant(scene: Scene) -> None:
    path = await trained_with_output(scene)
    run_id = path.rpartition("/")[2]
    action = "model.custom_training_started"
    [entry] = (await scene.get("/api/v1/audit-log", action=action, run_id=run_id))["items"]
    assert (entry["actor"], entry["model_id"], entry["request_id"]) == ("ada", life.MODEL, "req-1")
    everything = (await scene.get("/api/v1/audit-log"))["items"]
    assert [later["previous_hash"] for later in everything[:-1]] == [earlier["hash"] for earlier in everything[1:]]
    page = await scene.get("/api/v1/audit-log", limit=1)
    assert page["items"] == everything[:1]
    following = await scene.get("/api/v1/audit-log", limit=1, cursor=page["next_cursor"])
    assert following["items"] == everything[1:2]
    started = entry["occurred_at"]
    none: list[dict[str, str]] = [{"action": "other"}, {"actor": "bob"}, {"until": started}, {"model_id": "mdl-0"}]
    for wanted in none:
        assert (await scene.get("/api/v1/audit-log", **{"action": action} | wanted))["items"] == []
    assert len((await scene.get("/api/v1/audit-log", action=action, since=started))["items"]) == 1
    async with client_of(scene.context, f"Bearer {token(tenant='other')}") as stranger:
        assert (await stranger.get("/api/v1/audit-log")).json()["items"] == []

"""The table of walls: what is asked for, and that an answer that differs anywhere names the control.

`tests/security/test_controls.py` does the same with what a real engine answers.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.runner.folder import Owner, RunFolder
from services.runner.sandbox_walls import ENTRY, SandboxSpec, binds, request, unconfirmed

SPEC = SandboxSpec(
    run_id="run-1",
    attempt=2,
    runner_id="rnr-1",
    image="sha256:abc",
    folder=RunFolder(Path("/work/runs/run-1-2")),
    owner=Owner(64001, 64001),
    cpu_cores=1.5,
    memory_bytes=512 << 20,
    pids_limit=100,
    scratch_bytes=64 << 20,
    oci_runtime="runsc",
    seccomp_profile="{}",
    own_user=True,
)


def answer(spec: SandboxSpec) -> dict[str, Any]:
    """Answer as an engine does that has made exactly what it was asked for."""
    asked = request(spec)
    mounts = [{"Type": "bind", "Source": b.source, "Destination": b.target, "RW": not b.read_only} for b in binds(spec)]
    return {
        "Config": {key: value for key, value in asked.items() if key != "HostConfig"},
        "HostConfig": {
            **asked["HostConfig"],
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "DeviceRequests": [
                {"Driver": "", "DeviceIDs": None, "Options": {}, **d} for d in asked["HostConfig"]["DeviceRequests"]
            ],
        },
        "NetworkSettings": {"Networks": {"none": {"IPAddress": ""}}},
        "Mounts": mounts[::-1],
        "Image": spec.image,
        "Path": ENTRY[0],
        "Args": ENTRY[1:],
    }


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, gpu=True), replace(SPEC, own_user=False)])
def test_an_engine_that_did_what_it_was_asked_is_confirmed_however_it_writes_nothing(spec: SandboxSpec) -> None:
    assert list(unconfirmed(spec, answer(spec))) == []


def test_the_script_sees_four_folders_of_its_own_run_and_writes_into_one() -> None:
    roundabout = replace(SPEC, folder=RunFolder(Path("/work/elsewhere/../runs/run-1-2")))
    assert binds(roundabout) == binds(SPEC)  # an engine shows them so, and is asked for no other
    assert [(bind.source, bind.target, bind.read_only) for bind in binds(SPEC)] == [
        ("/work/runs/run-1-2/slot", "/runyard/slot", True),
        ("/work/runs/run-1-2/code", "/runyard/code", True),
        ("/work/runs/run-1-2/data", "/runyard/data", True),
        ("/work/runs/run-1-2/out", "/runyard/out", False),
    ]


def test_processes_are_bounded_by_user_only_where_the_user_is_nobody_elses() -> None:
    asked = request(SPEC)["HostConfig"]["Ulimits"]
    assert {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in asked} == {
        "nofile": (4096, 4096),
        "fsize": (16 << 30, 16 << 30),
        "core": (0, 0),
        "nproc": (100, 100),
    }
    shared = request(replace(SPEC, own_user=False))["HostConfig"]["Ulimits"]
    assert [limit["Name"] for limit in shared] == ["nofile", "fsize", "core"]


def test_a_runtime_that_nobody_named_is_left_to_the_engine() -> None:
    spec = replace(SPEC, oci_runtime=None)
    assert "Runtime" not in request(spec)["HostConfig"]
    found = answer(spec)
    found["HostConfig"]["Runtime"] = "whatever"
    assert list(unconfirmed(spec, found)) == []


def test_what_is_not_confirmed_is_named_with_what_was_asked_and_what_is_there() -> None:
    found = answer(SPEC)
    found["HostConfig"] |= {"NetworkMode": "host", "Privileged": True}
    del found["HostConfig"]["PidsLimit"]
    assert list(unconfirmed(SPEC, found)) == [
        "network: asked for 'none', the container has 'host'",
        "privileges: asked for False, the container has True",
        "processes: asked for 100, the container has None",
    ]


def test_a_long_difference_is_cut() -> None:
    found = answer(SPEC)
    found["HostConfig"]["SecurityOpt"] = ["seccomp=" + "x" * 10_000]
    (told,) = unconfirmed(SPEC, found)
    assert told.startswith("security options: ")
    assert len(told) < 500

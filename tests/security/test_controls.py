"""Taking any one control out of a container's configuration is noticed: by its confirmation, and by a probe inside.

The table is `controls`; a control that is not in it fails here.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.runner.errors import EngineRefused
from services.runner.sandbox import Sandbox
from services.runner.sandbox_walls import SIGHTS, WALLS, SandboxSpec, request, unconfirmed
from tests.security.controls import NAMES, REQUESTS, without
from tests.security.probing import FACTS, PROBE, SEEN
from tests.security.sandbox_scene import a_spec, altered, engine, forgetful, probe

pytestmark = pytest.mark.timeout(60)

SIDE_BY_SIDE = 4


@pytest.fixture(scope="module")
def spec(image: str, runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxSpec]:
    with a_spec(Path(tmp_path_factory.mktemp("controls")), image, runtime) as spec:
        yield spec


@pytest.fixture(scope="module")
def inspection(spec: SandboxSpec) -> dict[str, Any]:
    """What the engine shows of a container with all of its walls."""
    with contextlib.closing(engine()) as client:
        made = client.create_container_from_config(request(spec), f"{spec.name}-whole")  # type: ignore[no-untyped-call]
        found = dict(client.inspect_container(made["Id"]))
        client.remove_container(made["Id"], force=True)
    return found


def test_every_control_can_be_taken_out() -> None:
    assert [control.name for control in (*WALLS, *SIGHTS) if control.name not in NAMES] == []
    assert len(NAMES) == len(WALLS) + len(SIGHTS)


def test_a_container_with_all_of_its_walls_is_confirmed(spec: SandboxSpec, inspection: dict[str, Any]) -> None:
    assert list(unconfirmed(spec, inspection)) == []


def test_all_is_hidden_and_protected_that_the_engine_would_hide_and_protect_by_itself(spec: SandboxSpec) -> None:
    """Our lists replace its own: a newer engine's may have more."""
    asked = request(spec)
    left_out = {key: asked["HostConfig"].pop(key) for key in ("MaskedPaths", "ReadonlyPaths")}
    with contextlib.closing(engine()) as client:
        made = client.create_container_from_config(asked, f"{spec.name}-plain")  # type: ignore[no-untyped-call]
        found = client.inspect_container(made["Id"])["HostConfig"]
        client.remove_container(made["Id"], force=True)
    for key, ours in left_out.items():
        assert found[key]
        assert set(found[key]) <= set(ours)


@pytest.mark.parametrize("control", NAMES)
def test_a_container_that_shows_one_control_less_is_not_confirmed(
    control: str, spec: SandboxSpec, inspection: dict[str, Any]
) -> None:
    (told,) = unconfirmed(spec, without(control, inspection))
    assert told.startswith(f"{control}: asked for ")


@pytest.mark.parametrize("control", sorted(REQUESTS))
def test_a_container_that_an_engine_has_made_without_a_control_is_never_started(
    control: str, spec: SandboxSpec
) -> None:
    with contextlib.closing(Sandbox(forgetful(REQUESTS[control]))) as sandbox:
        with pytest.raises(EngineRefused, match=f"cannot be confirmed: .*{control}: asked for "):
            sandbox.create(spec)
        assert sandbox.owned(spec.runner_id) == []


def test_a_container_that_is_there_already_is_confirmed_as_well(spec: SandboxSpec) -> None:
    with contextlib.closing(Sandbox.connect()) as sandbox, contextlib.closing(engine()) as client:
        weak = altered(request(spec), {"HostConfig.Privileged": True})
        client.create_container_from_config(weak, spec.name)  # type: ignore[no-untyped-call]
        with pytest.raises(EngineRefused, match="not confirmed"):
            sandbox.start(spec.name)
        assert not sandbox.is_as_asked(spec)
        with pytest.raises(EngineRefused, match="privileges: asked for False, the container has True"):
            sandbox.create(spec)
        assert sandbox.inspect(spec.name) is None


def test_a_runtime_that_the_engine_does_not_know_is_refused(spec: SandboxSpec) -> None:
    with contextlib.closing(Sandbox.connect()) as sandbox:
        with pytest.raises(EngineRefused, match="nosuch"):
            sandbox.create(replace(spec, oci_runtime="nosuch"))
        assert sandbox.owned(spec.runner_id) == []


@pytest.fixture(scope="module")
def facts(spec: SandboxSpec, runtime: str) -> dict[str, Any]:
    if runtime != "runc":
        pytest.skip("the probe reads the host kernel's own files")
    found: dict[str, Any] = probe(spec, PROBE)
    return found


@pytest.mark.parametrize("fact", sorted(FACTS))
def test_what_a_script_finds_in_its_sandbox(fact: str, facts: dict[str, Any], spec: SandboxSpec) -> None:
    assert facts[fact] == FACTS[fact](spec)


@pytest.fixture(scope="module")
def weakened(spec: SandboxSpec) -> Iterator[dict[str, Future[Any]]]:
    """What the script finds without each control, some containers at a time."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        yield {control: pool.submit(probe, spec, PROBE, REQUESTS[control]) for control in SEEN}


@pytest.mark.parametrize("control", sorted(SEEN))
def test_without_a_control_the_script_finds_something_else(
    control: str, facts: dict[str, Any], weakened: dict[str, Future[Any]]
) -> None:
    assert weakened[control].result()[SEEN[control]] != facts[SEEN[control]]

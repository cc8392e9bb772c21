"""Protects what an install container gets to see: what it needs, readable; the index's password in its slot alone."""

import dataclasses
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from services.backbone.health import Health
from services.runner.engine import Engine
from services.runner.folder import Owner, RunFolder
from services.runner.package_index import package_index
from services.runner.package_install import Install, InstallSpec, container_name, pack_pip
from services.runner.package_outcome import InstallLimits
from services.runner.requirements import Policy, package_set

URL = "https://someone:canary-4c1d@index.example/simple"
LIMITS = InstallLimits(timeout_s=60, max_bytes=1 << 20, memory_bytes=1 << 30, builds_allowed=False, oci_runtime=None)


@pytest.fixture
def install(tmp_path: Path) -> Install:
    certificates = tmp_path / "ca.pem"
    certificates.write_text("a certificate")
    certificates.chmod(0o600)
    wanted = package_set("sha256:1", {"r.txt": b"six\n", "r-gpu.txt": b"attrs # gpu\n"}, Policy(), (URL,))
    assert wanted is not None
    spec = InstallSpec(
        key=wanted.key,
        runner_id="rnr-00000000",
        image=wanted.image,
        folder=RunFolder(tmp_path / "making"),
        owner=Owner(os.geteuid(), os.getegid()),
        cpu_cores=1,
        memory_bytes=1 << 30,
    )
    return Install(wanted, package_index(URL, "", certificates, ""), LIMITS, spec, Engine(Health()))


def test_what_is_laid_out_can_be_read_by_any_user_and_the_password_stands_in_the_slot_alone(install: Install) -> None:
    install._lay_out()
    place = install.spec.folder
    for path in [place.code, *place.code.rglob("*"), place.data, *place.data.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o444), path
    assert (place.code / "requirements" / "r-gpu.txt").read_text() == "attrs\n"
    assert (place.data / "certificates.pem").read_text() == "a certificate"
    holding = [path for path in place.path.rglob("*") if path.is_file() and b"canary-4c1d" in path.read_bytes()]
    assert [path.parent.name for path in holding] == ["slot"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o400 for path in holding)


def test_a_disk_without_room_for_the_largest_install_is_noted_when_it_is_over(install: Install) -> None:
    install._lay_out()
    assert not install._evidence(None).disk_short
    install.limits = dataclasses.replace(LIMITS, max_bytes=1 << 60)
    assert install._evidence(None).disk_short


def test_containers_of_installs_are_told_from_those_of_runs_and_of_other_runners(install: Install) -> None:
    assert install.spec.name == container_name("rnr-00000000", install.wanted.key)
    assert install.spec.name != container_name("rnr-11111111", install.wanted.key)
    assert set(install.spec.labels) == {"runyard.install", "runyard.runner_id"}


def test_pip_runs_from_one_file(tmp_path: Path) -> None:
    pack_pip(tmp_path / "pip.zip")
    command = [sys.executable, "-I", "-B", str(tmp_path / "pip.zip" / "pip"), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert f"from {tmp_path}/pip.zip/pip" in said

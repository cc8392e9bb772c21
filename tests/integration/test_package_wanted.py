"""Which set of packages a run needs, from a real object store: bounded, and never one of another tenant."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from schemas.parts import Compute, PinnedAsset, PinnedDataset, TrainingSpec
from services.backbone.health import Health
from services.backbone.objects import Objects
from services.runner.cache import Cache
from services.runner.engine import Engine
from services.runner.folder import Owner
from services.runner.package_cache import PackageCache
from services.runner.package_index import PackageIndex
from services.runner.package_outcome import InstallLimits
from services.runner.packages import Packages
from services.runner.requirements import MOST_BYTES, PackageSet, RequirementsFailed

IMAGE = "sha256:1"


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    objects = Cache(tmp_path / "cache", Objects(f"file://{tmp_path}/objects"), 1 << 30)
    objects.clear_unfinished()
    limits = InstallLimits(60, 1 << 20, 1 << 30, builds_allowed=False, oci_runtime=None)
    cache = PackageCache(tmp_path / "ready", tmp_path / "runs", 1 << 30)
    index = PackageIndex("https://index.example/simple", frozenset())
    owner = Owner(64_900, 64_900)
    return Packages("rnr-1", tmp_path / "making", cache, objects, Engine(Health()), limits, owner, lambda: index)


async def wanted(packages: Packages, text: bytes, tenant_id: str, files: int = 1) -> PackageSet | None:
    async def chunks() -> AsyncIterator[bytes]:
        yield text

    await packages.objects.objects.store_content(chunks(), 2 * MOST_BYTES)
    sha256 = hashlib.sha256(text).hexdigest()
    names = ("r.txt", "s.txt")[:files]
    about = {"asset_type": "requirements", "asset_id": "ast-1", "sha256": sha256, "size_bytes": len(text)}
    assets = tuple(PinnedAsset.model_validate({"filename": name, **about}) for name in names)
    data = PinnedDataset(filename="d.csv", dataset_id="dts-1", sha256=sha256, size_bytes=len(text))
    spec = TrainingSpec(
        entry_point="train.py",
        runtime="python3.11",
        compute=Compute(cpu_cores=1, memory_gb=1),
        timeout_s=60,
        assets=assets,
        dataset=data,
    )
    return await packages.wanted(IMAGE, spec, tenant_id)


async def test_two_tenants_never_share_a_set_and_one_tenant_s_runs_do(packages: Packages) -> None:
    ours, again, theirs = [await wanted(packages, b"six\n", tenant) for tenant in ("acme", "acme", "globex")]
    assert ours is not None
    assert theirs is not None
    assert ours == again
    assert ours.key != theirs.key


async def test_requirements_over_the_limit_are_refused_before_they_are_read(packages: Packages) -> None:
    most = b"six\n" + b"#" * (MOST_BYTES - 4)
    assert await wanted(packages, most, "acme") is not None
    half = b"six\n" + b"#" * (MOST_BYTES // 2 - 4)
    assert await wanted(packages, half, "acme", files=2) is not None
    fetched = list(packages.objects.folder.iterdir())
    with pytest.raises(RequirementsFailed, match="together larger than 1048576 bytes"):
        await wanted(packages, half + b"#", "acme", files=2)
    with pytest.raises(RequirementsFailed, match=r"r\.txt: it is larger than 1048576 bytes"):
        await wanted(packages, most + b"#", "acme")
    assert list(packages.objects.folder.iterdir()) == fetched

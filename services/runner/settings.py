"""What a runner must be told (`RUNYARD_…`); read once in `main` and handed on as values."""

import os
from pathlib import Path

from pydantic import Field, SecretStr

from schemas.parts import Capacity
from services.backbone.settings import ServiceSettings

DEFAULT_CPU_CORES, DEFAULT_MEMORY_GB = 2, 8
"""The endpoint's defaults: whatever the host has, a first call must be able to start."""


class RunnerSettings(ServiceSettings):
    """Settings of a runner. A GB is 2**30 bytes."""

    work_dir: Path = Field(description="journal, cache and the runs' folders; at the same path for the engine")
    objects_url: str
    sealing_key: SecretStr = Field(description="'<id>:<base64 of 32 bytes>', the same as the api's")
    sealing_keys_retired: SecretStr = Field(default=SecretStr(""), description="keys of before, blanks between them")
    runner_cpu_cores: int | None = Field(default=None, ge=1, description="announced; by default the host's")
    runner_memory_gb: int | None = Field(default=None, ge=1, description="announced; by default the host's")
    runner_gpus: int = Field(default=0, ge=0)
    run_uid_base: int = Field(default=64_000, ge=1_000, description="as root, runs get user ids from here on")
    grace_s: float = Field(default=10.0, gt=0, description="from SIGTERM to SIGKILL")
    max_artifact_bytes: int = Field(default=10 << 30, ge=1)
    max_checkpoint_bytes: int = Field(default=2 << 30, ge=1)
    checkpoint_every_s: float = Field(default=10.0, gt=0, description="between two looks at a run's checkpoint folder")
    max_output_bytes: int = Field(default=64 << 20, ge=1)
    max_line_bytes: int = Field(default=16 << 10, ge=1)
    tmp_mb: int = Field(default=1024, ge=1, description="size of a run's /tmp, which counts as its memory")
    pids_limit: int = Field(default=512, ge=16)
    cache_max_gb: int = Field(default=20, ge=1)
    oci_runtime: str | None = Field(default=None, description="such as runsc; by default the engine's own")
    heartbeat_s: float = Field(default=5.0, gt=0)


def capacity(settings: RunnerSettings) -> Capacity:
    """Tell what the runner announces: as it is set, else the host's, never less than the endpoint's defaults."""
    host_memory_gb = (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) >> 30
    return Capacity(
        cpu_cores=settings.runner_cpu_cores or max(os.cpu_count() or 0, DEFAULT_CPU_CORES),
        memory_gb=settings.runner_memory_gb or max(host_memory_gb, DEFAULT_MEMORY_GB),
        gpus=settings.runner_gpus,
    )

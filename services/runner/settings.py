"""What a runner must be told (`RUNYARD_…`); read once in `main` and handed on as values."""

import os
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

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
    run_uid_base: int | None = Field(
        default=None,
        ge=1_000,
        description="as root, runs get user ids from here on; by default from a block of its own",
    )
    slots_dir: Path = Field(
        default=Path("/dev/shm"),  # noqa: S108 - a folder of the runner's own is made below it
        description="a tmpfs, for the values of variables; at the same path for the engine, like work_dir",
    )
    max_artifact_bytes: int = Field(default=10 << 30, ge=1)
    max_out_bytes: int = Field(
        default=20 << 30, ge=1, description="what a run may keep in the folder that it writes to"
    )
    max_out_files: int = Field(default=200_000, ge=16, description="the same in files and folders")
    loop_quota: bool = Field(default=True, description="false where the engine does not see what the runner mounts")
    max_checkpoint_bytes: int = Field(default=2 << 30, ge=1)
    checkpoint_every_s: float = Field(default=10.0, gt=0, description="between two looks at a run's checkpoint folder")
    max_output_bytes: int = Field(default=64 << 20, ge=1)
    max_line_bytes: int = Field(default=16 << 10, ge=1, le=64 << 10)
    max_lines_per_s: int = Field(default=2000, ge=1, description="of a run's log; ten seconds' worth may come at once")
    max_bytes_per_s: int = Field(default=4 << 20, ge=1, description="of a run's log, in the same way")
    tmp_mb: int = Field(default=1024, ge=1, description="size of a run's /tmp, which counts as its memory")
    pids_limit: int = Field(default=512, ge=16)
    cache_max_gb: int = Field(default=20, ge=1)
    oci_runtime: str | None = Field(default=None, description="such as runsc; by default the engine's own")
    seccomp_profile: Path | None = Field(default=None, description="a profile to use instead of the runner's own")
    heartbeat_s: float = Field(default=5.0, gt=0)

    @model_validator(mode="after")
    def _out_holds_an_artifact(self) -> Self:
        if self.max_out_bytes < self.max_artifact_bytes:
            raise ValueError(
                "max_out_bytes is less than max_artifact_bytes: no script could write so large an artifact"
            )
        return self


class PackageSettings(BaseSettings):
    """How requirements assets are installed (`RUNYARD_PACKAGE_…`); by default as the host's own pip would."""

    model_config = SettingsConfigDict(env_prefix="RUNYARD_PACKAGE_", frozen=True, extra="ignore", env_ignore_empty=True)

    index_url: SecretStr | None = Field(default=None, description="PEP 503; it may hold a password")
    hosts: str = Field(default="", description="where its files come from, beside its own host; blanks between")
    ca_file: Path | None = Field(default=None, description="a PEM file of what to trust, as pip's own --cert")
    builds_allowed: bool = Field(default=False, description="also from source: strangers' build scripts run then")
    oci_runtime: str | None = Field(default=None, description="of installs; it must let them connect to a socket")
    timeout_s: float = Field(default=600.0, gt=0)
    max_gb: int = Field(default=8, ge=1, description="what one set may take of the disk, and of the network")
    memory_gb: int = Field(default=2, ge=1, description="what pip may take; beside what is announced")
    cache_max_gb: int = Field(default=20, ge=1)


def install_runtime(runs: str | None, installs: PackageSettings) -> str | None:
    """Tell which OCI runtime installs get, where runs get `runs`; None is the engine's own.

    An install needs a socket of the host's, which gVisor does not let through unless told so. pip alone is no
    stranger's code, so the engine's own runtime will do; where strangers build, nothing weaker than the runs' will.
    """
    return installs.oci_runtime or (runs if installs.builds_allowed else None)


def capacity(settings: RunnerSettings) -> Capacity:
    """Tell what the runner announces: as it is set, else the host's, never less than the endpoint's defaults."""
    host_memory_gb = (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) >> 30
    return Capacity(
        cpu_cores=settings.runner_cpu_cores or max(os.cpu_count() or 0, DEFAULT_CPU_CORES),
        memory_gb=settings.runner_memory_gb or max(host_memory_gb, DEFAULT_MEMORY_GB),
        gpus=settings.runner_gpus,
    )

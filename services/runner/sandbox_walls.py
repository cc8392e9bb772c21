"""The sandbox's walls as one table: what the engine is asked for, and where the made container shows that it holds.

A control is one `Wall`: its place in the request is its place in the inspection. What shows elsewhere is a `Sight`.
Whatever is asked for is compared, even where it is the engine's default: a default is what an engine's configuration
may change. Pure: it knows the engine's words, and never talks to it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from os.path import normpath
from pathlib import Path
from typing import Any

from services.runner.folder import MOUNTED_AT, PACKAGES, PYTHON, SCRATCH, Owner, RunFolder
from services.runner.seccomp import profile

RUN_LABEL = "runyard.run_id"
ATTEMPT_LABEL = "runyard.attempt"
RUNNER_LABEL = "runyard.runner_id"
INSTALL_LABEL = "runyard.install"

CPU_PERIOD_US = 100_000
SHM_BYTES = 256 * 1024 * 1024
SCRATCH_INODES = 100_000
OPEN_FILES = 4096  # INR_OPEN_MAX of linux/fs.h: above the engine's own limit no container would start
ENTRY = [PYTHON, "-I", "-S", "-B", f"{MOUNTED_AT}/slot/shim"]
# The shim bounds what is logged; the engine must neither rotate nor drop, whatever its own defaults say (FACTS.md:
# following a rotated log loses lines). `max-size` has no word for unlimited.
LOG = {"Type": "json-file", "Config": {"mode": "blocking", "max-size": "1t", "max-file": "1", "compress": "false"}}

MASKED = [
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/key-users", "/proc/keys"),
    *("/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"),
    *("/sys/devices/virtual/powercap", "/sys/firmware"),
    *(f"/sys/devices/system/cpu/cpu{number}/thermal_throttle" for number in range(os.cpu_count() or 1)),
]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
"""What engines hide and protect by themselves, since these lists replace theirs (runtime-spec, `maskedPaths` and
`readonlyPaths`), and `key-users`, which tells of all users of the host."""

UNSAID = object()
"""Asked for by a wall that is left to the engine: nothing is said, and nothing compared."""
SHOWN_CHARACTERS = 160


@dataclass(frozen=True, kw_only=True)
class SandboxSpec:
    """What one attempt gets. The folder must be prepared before and stay until the container is removed.

    `image` is an id, so that a tag that moves changes nothing; `seccomp_profile` is the profile itself
    as JSON; `oci_runtime` is a name that the engine knows (`runsc`); `packages` is a folder of installed packages.
    `own_user` says that nobody else on the host has the owner's user id: the kernel counts processes by it, so only
    then can it bound this run's.
    """

    run_id: str
    attempt: int
    runner_id: str
    image: str
    folder: RunFolder
    owner: Owner
    cpu_cores: float
    memory_bytes: int
    gpu: bool = False
    pids_limit: int = 1024
    scratch_bytes: int = 1024**3
    file_size_bytes: int = 16 * 1024**3
    packages: Path | None = None
    oci_runtime: str | None = None
    seccomp_profile: str = field(default_factory=profile)
    own_user: bool = False

    @property
    def name(self) -> str:
        """The container's name; names are exclusive, so an attempt can have one container only."""
        return f"run-{self.run_id}-{self.attempt}"

    @property
    def labels(self) -> dict[str, str]:
        """How the container is found again."""
        return {RUN_LABEL: self.run_id, ATTEMPT_LABEL: str(self.attempt), RUNNER_LABEL: self.runner_id}


@dataclass(frozen=True)
class Wall:
    """A control that is asked for and seen at the same place: `HostConfig.X`, or `Config.X` for the container's own."""

    name: str
    place: str
    asked: Callable[[SandboxSpec], Any]

    def ask(self, spec: SandboxSpec, request: dict[str, Any]) -> None:
        """Write it into a request."""
        part, key = self.place.split(".")
        if (value := self.asked(spec)) is UNSAID:
            return
        (request if part == "Config" else request.setdefault(part, {}))[key] = value

    def found(self, inspection: Mapping[str, Any]) -> Any:
        """Read it from an inspection."""
        part, key = self.place.split(".")
        return inspection[part].get(key)


@dataclass(frozen=True)
class Sight:
    """What an inspection must show of several walls together, in the engine's own words."""

    name: str
    found: Callable[[Mapping[str, Any]], Any]
    asked: Callable[[SandboxSpec], Any]


@dataclass(frozen=True)
class Bind:
    """A folder of the host, and where the container has it."""

    source: str
    target: str
    read_only: bool = True


def request(spec: SandboxSpec) -> dict[str, Any]:
    """Compose what the engine is asked to create."""
    made: dict[str, Any] = {"Image": spec.image, "Labels": spec.labels, "Env": [], "Entrypoint": ENTRY}
    for wall in WALLS:
        wall.ask(spec, made)
    return made


def unconfirmed(spec: SandboxSpec, inspection: Mapping[str, Any]) -> Iterator[str]:
    """Name each control that a container does not show as it was asked for, with what it shows instead."""
    controls: tuple[Wall | Sight, ...] = (*WALLS, *SIGHTS)
    for control in controls:
        asked, found = control.asked(spec), control.found(inspection)
        if asked is not UNSAID and _plain(asked) != _plain(found):
            yield f"{control.name}: asked for {_shown(asked)}, the container has {_shown(found)}"


def binds(spec: SandboxSpec) -> tuple[Bind, ...]:
    """List what of the host the container sees: the run's own folders, one of them to write in.

    Paths are written as the engine will show them: without `..`, and with links as they are.
    """
    folder = spec.folder
    packages = () if spec.packages is None else (Bind(normpath(spec.packages), PACKAGES),)
    return (
        Bind(normpath(folder.slot), f"{MOUNTED_AT}/slot"),
        Bind(normpath(folder.code), f"{MOUNTED_AT}/code"),
        Bind(normpath(folder.data), f"{MOUNTED_AT}/data"),
        Bind(normpath(folder.out), f"{MOUNTED_AT}/out", read_only=False),
        *packages,
    )


def _always(value: Any) -> Callable[[SandboxSpec], Any]:
    return lambda _: value


def _mounts(spec: SandboxSpec) -> list[dict[str, Any]]:
    """Ask for binds that bring no other mount along: one below a read-only bind would not be read-only."""
    options = {"Propagation": "rprivate", "NonRecursive": True}
    return [
        {"Type": "bind", "Source": b.source, "Target": b.target, "ReadOnly": b.read_only, "BindOptions": options}
        for b in binds(spec)
    ]


def _scratch(spec: SandboxSpec) -> dict[str, str]:
    """`exec` must be said: some libraries compile at run time and load what they have made."""
    size = f"size={spec.scratch_bytes},nr_inodes={SCRATCH_INODES}"
    return {SCRATCH: f"rw,exec,nosuid,nodev,mode=1777,{size}"}


def _ulimits(spec: SandboxSpec) -> list[dict[str, Any]]:
    limits = {"nofile": OPEN_FILES, "fsize": spec.file_size_bytes, "core": 0}
    if spec.own_user:
        limits["nproc"] = spec.pids_limit
    return [{"Name": name, "Soft": limit, "Hard": limit} for name, limit in limits.items()]


def _security(spec: SandboxSpec) -> list[str]:
    return ["no-new-privileges:true", f"seccomp={spec.seccomp_profile}"]


def _devices(spec: SandboxSpec) -> list[dict[str, Any]]:
    return [{"Count": 1, "Capabilities": [["gpu"]]}] if spec.gpu else []


WALLS: tuple[Wall, ...] = (
    # the network
    Wall("network", "HostConfig.NetworkMode", _always("none")),
    Wall("network interfaces", "Config.NetworkDisabled", _always(True)),
    Wall("published ports", "HostConfig.PortBindings", _always({})),
    Wall("publishing of all ports", "HostConfig.PublishAllPorts", _always(False)),
    Wall("links", "HostConfig.Links", _always([])),
    Wall("extra hosts", "HostConfig.ExtraHosts", _always([])),
    Wall("name servers", "HostConfig.Dns", _always([])),
    # namespaces and control groups
    Wall("IPC namespace", "HostConfig.IpcMode", _always("private")),
    Wall("PID namespace", "HostConfig.PidMode", _always("")),
    Wall("UTS namespace", "HostConfig.UTSMode", _always("")),
    Wall("user namespace", "HostConfig.UsernsMode", _always("")),
    Wall("cgroup namespace", "HostConfig.CgroupnsMode", _always("private")),
    Wall("cgroup", "HostConfig.Cgroup", _always("")),
    Wall("parent cgroup", "HostConfig.CgroupParent", _always("")),
    # rights
    Wall("user", "Config.User", lambda spec: f"{spec.owner.uid}:{spec.owner.gid}"),
    Wall("groups", "HostConfig.GroupAdd", _always([])),
    Wall("privileges", "HostConfig.Privileged", _always(False)),
    Wall("dropped capabilities", "HostConfig.CapDrop", _always(["ALL"])),
    Wall("added capabilities", "HostConfig.CapAdd", _always([])),
    Wall("security options", "HostConfig.SecurityOpt", _security),
    Wall("kernel parameters", "HostConfig.Sysctls", _always({})),
    Wall("devices", "HostConfig.Devices", _always([])),
    Wall("device rules", "HostConfig.DeviceCgroupRules", _always([])),
    Wall("device requests", "HostConfig.DeviceRequests", _devices),
    # files
    Wall("read-only root", "HostConfig.ReadonlyRootfs", _always(True)),
    Wall("bind mounts", "HostConfig.Mounts", _mounts),
    Wall("other binds", "HostConfig.Binds", _always([])),
    Wall("volumes of others", "HostConfig.VolumesFrom", _always([])),
    Wall("masked paths", "HostConfig.MaskedPaths", _always(MASKED)),
    Wall("read-only paths", "HostConfig.ReadonlyPaths", _always(READ_ONLY)),
    Wall("scratch space", "HostConfig.Tmpfs", _scratch),
    Wall("shared memory", "HostConfig.ShmSize", lambda spec: min(SHM_BYTES, spec.memory_bytes)),
    # how much; CPU by quota: the engine refuses NanoCPUs above the host's cores
    Wall("CPU period", "HostConfig.CpuPeriod", _always(CPU_PERIOD_US)),
    Wall("CPU quota", "HostConfig.CpuQuota", lambda spec: int(spec.cpu_cores * CPU_PERIOD_US)),
    Wall("real-time CPU", "HostConfig.CpuRealtimeRuntime", _always(0)),
    Wall("memory", "HostConfig.Memory", lambda spec: spec.memory_bytes),
    Wall("memory with swap", "HostConfig.MemorySwap", lambda spec: spec.memory_bytes),
    Wall("OOM kill", "HostConfig.OomKillDisable", _always(False)),
    Wall("OOM score", "HostConfig.OomScoreAdj", _always(0)),
    Wall("processes", "HostConfig.PidsLimit", lambda spec: spec.pids_limit),
    Wall("ulimits", "HostConfig.Ulimits", _ulimits),
    # its life
    Wall("terminal", "Config.Tty", _always(False)),
    Wall("standard input", "Config.OpenStdin", _always(False)),
    Wall("stop signal", "Config.StopSignal", _always("SIGTERM")),
    Wall("health check", "Config.Healthcheck", _always({"Test": ["NONE"]})),
    Wall("restart policy", "HostConfig.RestartPolicy", _always({"Name": "no"})),
    Wall("removal by the engine", "HostConfig.AutoRemove", _always(False)),
    Wall("init process", "HostConfig.Init", _always(False)),
    Wall("log", "HostConfig.LogConfig", _always(LOG)),
    Wall("OCI runtime", "HostConfig.Runtime", lambda spec: spec.oci_runtime or UNSAID),
)


def _networks(inspection: Mapping[str, Any]) -> list[str]:
    return sorted(set((inspection["NetworkSettings"] or {}).get("Networks") or ()) - {"none"})


def _mounted(inspection: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Volumes that the image asks for show here, too."""
    return sorted((m["Type"], m["Source"], m["Destination"], m["RW"]) for m in inspection["Mounts"])


def _command(inspection: Mapping[str, Any]) -> list[str]:
    return [inspection["Path"], *inspection["Args"]]


SIGHTS: tuple[Sight, ...] = (
    Sight("image", lambda inspection: inspection["Image"], lambda spec: spec.image),
    Sight("attached networks", _networks, _always([])),
    Sight("mounts", _mounted, lambda spec: sorted(("bind", b.source, b.target, not b.read_only) for b in binds(spec))),
    Sight("command", _command, _always(ENTRY)),
)


def _plain(value: Any) -> Any:
    """Reduce what the engine says to what it means: nothing, however it is written, is nothing.

    >>> _plain({"Name": "no", "MaximumRetryCount": 0}) == _plain({"Name": "no"})
    True
    >>> _plain([]) is _plain(None) is _plain("") is _plain(False)
    True
    """
    if isinstance(value, Mapping):
        return {key: plain for key, found in value.items() if (plain := _plain(found)) is not None} or None
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value] or None
    return value or None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"

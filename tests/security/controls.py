"""How each control of the sandbox is taken out of a container's configuration: data for `test_controls`.

`REQUESTS` says by which request the engine makes a container without it; `ANSWERS` says how an inspection without it
looks, for what cannot be asked for here. Together they name every control of the table.
"""

import copy
from collections.abc import Callable
from typing import Any

Inspection = dict[str, Any]

REQUESTS: dict[str, dict[str, Any]] = {
    "network": {"HostConfig.NetworkMode": "host", "Config.NetworkDisabled": False},
    "network interfaces": {"Config.NetworkDisabled": False},
    "published ports": {"HostConfig.PortBindings": {"80/tcp": [{"HostPort": "54321"}]}},
    "publishing of all ports": {"HostConfig.PublishAllPorts": True},
    "extra hosts": {"HostConfig.ExtraHosts": ["elsewhere:192.0.2.1"]},
    "name servers": {"HostConfig.Dns": ["192.0.2.1"]},
    "IPC namespace": {"HostConfig.IpcMode": "host"},
    "PID namespace": {"HostConfig.PidMode": "host"},
    "UTS namespace": {"HostConfig.UTSMode": "host"},
    "user namespace": {"HostConfig.UsernsMode": "host"},
    "cgroup namespace": {"HostConfig.CgroupnsMode": "host"},
    "parent cgroup": {"HostConfig.CgroupParent": "/elsewhere"},
    "user": {"Config.User": "0:0"},
    "groups": {"HostConfig.GroupAdd": ["0"]},
    "privileges": {"HostConfig.Privileged": True},
    "dropped capabilities": {"HostConfig.CapDrop": []},
    "added capabilities": {"HostConfig.CapAdd": ["CAP_SYS_ADMIN"]},
    "security options": {"HostConfig.SecurityOpt": ["no-new-privileges:true", "seccomp=unconfined"]},
    "kernel parameters": {"HostConfig.Sysctls": {"net.ipv4.ip_forward": "1"}},
    "devices": {
        "HostConfig.Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "rwm"}]
    },
    "device rules": {"HostConfig.DeviceCgroupRules": ["b *:* rwm"]},
    "device requests": {"HostConfig.DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]},
    "read-only root": {"HostConfig.ReadonlyRootfs": False},
    "bind mounts": {"HostConfig.Mounts": []},
    "other binds": {"HostConfig.Binds": ["/etc:/host:ro"]},
    "scratch space": {"HostConfig.Tmpfs": {"/tmp": "rw,exec,nosuid,nodev,mode=1777"}},
    "shared memory": {"HostConfig.ShmSize": 1 << 40},
    "CPU period": {"HostConfig.CpuPeriod": 50_000},
    "CPU quota": {"HostConfig.CpuQuota": 0},
    "memory": {"HostConfig.Memory": 0, "HostConfig.MemorySwap": 0},
    "memory with swap": {"HostConfig.MemorySwap": -1},
    "OOM kill": {"HostConfig.OomKillDisable": True},
    "OOM score": {"HostConfig.OomScoreAdj": 500},
    "processes": {"HostConfig.PidsLimit": 0},
    "ulimits": {"HostConfig.Ulimits": []},
    "terminal": {"Config.Tty": True},
    "standard input": {"Config.OpenStdin": True},
    "stop signal": {"Config.StopSignal": "SIGKILL"},
    "health check": {"Config.Healthcheck": {"Test": ["CMD", "/bin/true"], "Interval": 1_000_000_000}},
    "restart policy": {"HostConfig.RestartPolicy": {"Name": "always"}},
    "removal by the engine": {"HostConfig.AutoRemove": True},
    "init process": {"HostConfig.Init": True},
    "log": {"HostConfig.LogConfig": {"Type": "json-file", "Config": {"max-size": "10k"}}},
    "OCI runtime": {"HostConfig.Runtime": "io.containerd.runc.v2"},
    "mounts": {"Config.Volumes": {"/var/lib/more": {}}},
    "command": {"Config.Entrypoint": ["/bin/sh", "-c", "true"]},
    "masked paths": {"HostConfig.MaskedPaths": []},
    "read-only paths": {"HostConfig.ReadonlyPaths": []},
}


def _host(key: str, value: Any) -> Callable[[Inspection], Any]:
    return lambda inspection: inspection["HostConfig"].update({key: value})


def _config(key: str, value: Any) -> Callable[[Inspection], Any]:
    return lambda inspection: inspection["Config"].update({key: value})


def _networks(inspection: Inspection) -> None:
    inspection["NetworkSettings"]["Networks"]["bridge"] = {"IPAddress": "172.17.0.2"}


def _writable(inspection: Inspection) -> None:
    for mount in inspection["Mounts"]:
        mount["RW"] = True


def _command(inspection: Inspection) -> None:
    inspection["Path"] = "/bin/sh"


SAID_ELSEWHERE: dict[str, Callable[[Inspection], Any]] = {
    # these cannot be asked for on any engine: they need another container, image or network, or a kernel option
    "links": _host("Links", ["other:name"]),
    "cgroup": _host("Cgroup", "container:other"),
    "volumes of others": _host("VolumesFrom", ["other"]),
    "real-time CPU": _host("CpuRealtimeRuntime", 1000),
    "attached networks": _networks,
    "image": lambda inspection: inspection.update(Image="sha256:other"),
    # these can, but show at another place than they are asked for
    "mounts": _writable,
    "command": _command,
    "memory": _host("Memory", 0),
    "network": _host("NetworkMode", "bridge"),
}


def without(control: str, inspection: Inspection) -> Inspection:
    """Show a container as it would look without one control, and with all others."""
    found = copy.deepcopy(inspection)
    if control in SAID_ELSEWHERE:
        SAID_ELSEWHERE[control](found)
        return found
    ((place, value),) = REQUESTS[control].items()
    part, key = place.split(".")
    (_host if part == "HostConfig" else _config)(key, value)(found)
    return found


NAMES = sorted({*REQUESTS, *SAID_ELSEWHERE})

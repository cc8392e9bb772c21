"""What the container has used, by its control group (v2 or v1), else by the processes already reaped.

Only reads; a number that nobody can tell is None, never a guess.
"""

import resource

CGROUP = "/sys/fs/cgroup"


def consumption() -> tuple[int, float, int]:
    """Return OOM kills, CPU seconds and peak memory in bytes."""
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    kills = counter("memory.events", "oom_kill") or counter("memory/memory.oom_control", "oom_kill")
    micros, nanos = counter("cpu.stat", "usage_usec"), counter("cpuacct/cpuacct.usage")
    reaped_s = reaped.ru_utime + reaped.ru_stime
    cpu_s = micros / 1e6 if micros is not None else nanos / 1e9 if nanos is not None else reaped_s
    peak_bytes = counter("memory.peak") or counter("memory/memory.max_usage_in_bytes")
    return kills or 0, cpu_s, peak_bytes or reaped.ru_maxrss * 1024


def counter(file: str, key: str = "") -> int | None:
    """Read one number of the container's control group, alone in its file or behind its key."""
    try:
        with open(f"{CGROUP}/{file}") as lines:  # noqa: PTH123 - pathlib costs 10 ms
            for line in lines:
                *name, number = line.split()
                if name == key.split():
                    return int(number)
    except (OSError, ValueError):
        return None
    return None

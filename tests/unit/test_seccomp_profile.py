"""The seccomp profile as data: what it lets through and what not, read as the kernel's filter reads it.

`tests/security/test_seccomp.py` makes the calls themselves.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from services.runner.seccomp import OWN, profile

RULES: list[dict[str, Any]] = json.loads(OWN.read_text())["syscalls"]
REFUSED = """
    io_uring_setup io_uring_enter io_uring_register io_setup io_submit io_getevents
    io_pgetevents io_cancel io_destroy keyctl add_key request_key userfaultfd bpf perf_event_open ptrace
    process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd mount umount umount2 pivot_root
    move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr statmount listmount unshare setns
    name_to_handle_at open_by_handle_at chroot reboot kexec_load init_module finit_module delete_module swapon swapoff
    acct quotactl syslog sethostname settimeofday clock_settime iopl ioperm modify_ldt lookup_dcookie fanotify_init
    nfsservctl vhangup memfd_secret socketcall ipc
"""
ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")


def allowed(call: str, *arguments: int) -> bool:
    """Tell whether some rule lets a call through; arguments are 64 bits wide, whatever the kernel makes of them."""
    return any(
        call in rule["names"]
        and rule["action"] == "SCMP_ACT_ALLOW"
        and all(holds(condition, arguments) for condition in rule.get("args", ()))
        for rule in RULES
    )


def holds(condition: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    assert condition["op"] == "SCMP_CMP_MASKED_EQ", "an `int` is compared under a mask, or its upper half would count"
    return arguments[condition["index"]] & condition["value"] == condition["valueTwo"]


def test_it_is_an_allow_list_for_two_architectures_alone() -> None:
    found = json.loads(profile())
    assert found["defaultAction"] == "SCMP_ACT_ERRNO"
    assert found["archMap"] == [{"architecture": name, "subArchitectures": []} for name in ARCHITECTURES]


def test_every_group_says_what_it_is_for() -> None:
    assert all(rule["comment"] for rule in RULES)


@pytest.mark.parametrize("call", REFUSED.split())
def test_a_call_is_in_no_group(call: str) -> None:
    assert not any(call in rule["names"] for rule in RULES)


def test_no_call_is_let_through_by_one_group_and_bound_by_another() -> None:
    free = {name for rule in RULES if "args" not in rule for name in rule["names"]}
    bound = {name for rule in RULES if "args" in rule for name in rule["names"]}
    assert free & bound == set()
    assert bound == {
        *("clone", "ioctl", "ioprio_set", "personality", "prlimit64", "sched_setattr", "sched_setparam"),
        *("sched_setscheduler", "setpriority", "socket", "socketpair"),
    }


def test_a_new_process_is_a_thread_or_a_child_and_never_a_namespace() -> None:
    assert allowed("clone", 0x01200011)  # fork: SIGCHLD, CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID
    assert allowed("clone", 0x003D0F00)  # pthread_create
    for namespace in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert not allowed("clone", 0x11 | namespace)
    (clone3,) = [rule for rule in RULES if "clone3" in rule["names"]]
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


@pytest.mark.parametrize("family", range(48))
def test_sockets_are_of_three_families(family: int) -> None:
    assert allowed("socket", family, 1, 0) == (family in (1, 2, 10))
    assert allowed("socketpair", family, 1, 0) == (family == 1)


def test_internet_sockets_are_tcp_and_udp_and_load_no_other_protocol() -> None:
    flags = 0x80800  # SOCK_CLOEXEC | SOCK_NONBLOCK
    assert all(allowed("socket", family, kind | flags, 0) for family in (2, 10) for kind in (1, 2))
    assert allowed("socket", 2, 1, 6)
    assert allowed("socket", 10, 2, 17)
    for kind, protocol in ((1, 132), (5, 0), (5, 132), (6, 33), (1, 262), (3, 1), (2, 1), (2, 136), (1, 17), (2, 6)):
        assert not allowed("socket", 2, kind, protocol)


def test_terminals_cannot_be_typed_into_and_all_other_requests_pass() -> None:
    refused = {0x5412, 0x541C}
    assert [request for request in range(0x10000) if not allowed("ioctl", 0, request)] == sorted(refused)
    for bit in range(32):
        assert all(
            allowed("ioctl", 0, request ^ (1 << bit)) for request in refused if request ^ (1 << bit) not in refused
        )
    for request in refused:
        assert not allowed("ioctl", 0, request | 1 << 32)  # the kernel takes 32 bits of it


@pytest.mark.parametrize("call", ["prlimit64", "sched_setscheduler", "sched_setattr", "sched_setparam"])
def test_limits_and_scheduling_are_the_callers_own(call: str) -> None:
    assert allowed(call, 0)
    assert not allowed(call, 1)
    assert not allowed(call, 0xFFFFFFFF)


def test_priorities_are_the_callers_own() -> None:
    assert allowed("setpriority", 0, 0)
    assert allowed("ioprio_set", 1, 0)
    for which, who in ((0, 1), (1, 0), (2, 0), (2, 1000)):
        assert not allowed("setpriority", which, who)
    for which, who in ((1, 1), (2, 0), (3, 0)):
        assert not allowed("ioprio_set", which, who)


def test_an_operators_own_file_is_taken_and_a_word_for_none_is_not(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}')
    assert json.loads(profile(own)) == json.loads(own.read_text())
    for text in ('"unconfined"', "{}", '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}', "unconfined"):
        (tmp_path / f"{len(text)}.json").write_text(text)
        with pytest.raises(ValueError, match=r"no seccomp profile|Expecting value"):
            profile(tmp_path / f"{len(text)}.json")

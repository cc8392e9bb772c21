"""What cannot hold on gVisor, with the reason; told by the suite each time, and in docs/security.md.

Seen with the runsc that Debian 12 has (2022-12-19). A waiver names cases by a pattern; what it excuses is a complaint
about how a case went, never that something was left behind, that a sentinel changed, that a neighbour was harmed, or
that the suite itself broke.
"""

import re

from tests.security.case import Complaint

OWN_KERNEL = (
    "the call is answered by gVisor's own kernel, in user space: what it does there is of no consequence for the"
    " host's, and runsc applies no filter of ours inside"
)
ONE_USER = (
    "gVisor does not protect PID 1 from its own user (no PR_SET_DUMPABLE, no init that ignores SIGKILL): a script can"
    " forge the records of its own run, and end its container, which is then a lost attempt"
)
SAME_GROUP = (
    "gVisor's kernel counts for the limit on processes, not what runs inside: processes without end are bounded by"
    " memory, or end that kernel, and the attempt is lost instead of failed"
)
INSIDE_ONLY = "what gVisor keeps to itself (FIFOs, sockets) is not on the host's disk, and so not in an artifact"
BY_BYTES = "gVisor's /tmp is bounded in bytes, which count as the run's memory, and not in files"

ON_RUNSC = {
    r"escape: (setns|add_key|request_key|keyctl|perf_event_open|io_uring_\w+|open_by_handle_at|syslog)": OWN_KERNEL,
    r"escape: (unshare of|clone into new) .*": OWN_KERNEL,
    r"escape: (an address space without randomness|an ambient capability|a core dump into .*)": OWN_KERNEL,
    r"escape: (no new privileges|a filter on its calls)": OWN_KERNEL,
    r"network: (a socket of AF_NETLINK|a socket for ping|a tunnel|the engine's own abstract socket)": OWN_KERNEL,
    r"cpu: (a better nice value|real-time scheduling|another process's scheduling)": OWN_KERNEL,
    r"memory: (to be spared when memory runs out|huge pages)": OWN_KERNEL,
    r"devices: (no device but the plain ones|the device /dev/(fuse|net/tun)|a device by its number.*)": OWN_KERNEL,
    r"escape: (writing to /proc/1/fd/1|reading /proc/1/(environ|maps|auxv)|a shim that is traced.*)": ONE_USER,
    r"(secrets|variables): (another process's environment|its variables are not those of PID 1)": ONE_USER,
    r"logs: imitated control records on the shim's own output": ONE_USER,
    r"signals: every signal to the shim, by kill, tgkill and pidfd": ONE_USER,
    r"fork: .*": SAME_GROUP,
    r"artifact: a (FIFO|socket)( among good files)?": INSIDE_ONLY,
    r"disk: a disk as a device node in /tmp": OWN_KERNEL,
    r"disk: /tmp by the number of files": BY_BYTES,
}


def waived(oci_runtime: str, complaint: Complaint) -> str | None:
    """Say why a complaint is no surprise on a runtime; None when it is one."""
    if oci_runtime != "runsc" or complaint.kind not in ("escape", "wrong end"):
        return None
    reason = next((reason for pattern, reason in ON_RUNSC.items() if re.fullmatch(pattern, complaint.case)), None)
    return None if reason is SAME_GROUP and complaint.kind == "escape" else reason

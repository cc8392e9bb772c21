"""The script of an install container: runs pip, whose only way out is a Unix socket of the runner's.

It listens on the container's own loopback as pip's HTTP proxy and copies bytes to that socket; who may be reached is
decided behind it. It tells pip's refusals (1) from an index that does not answer (75) by pip's own log, and tries the
latter again. It must never import more than the standard library of Python 3.10, nor print the index's URL.
"""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

INSTALLED, REFUSED, UNREACHABLE = 0, 1, 75  # EX_TEMPFAIL of sysexits.h
MAX_CONNECTIONS = 32
CHUNK_BYTES = 65536
LOG_BYTES = 4 << 20
ORDERS = "orders.json"
NO_CHILDREN = "[Errno 11]"
"""As Python tells of EAGAIN, which fork(2) answers at the limit of processes."""
INDEX_VARIABLE = "PIP_INDEX_URL"
"""Where the index stands: among the variables, since it may hold a password, and commands are shown in messages."""
# What pip says when the index is at fault: all but 4xx, which is its answer; 408 and 429 ask to come again.
TRANSIENT = re.compile(
    r"Could not fetch URL \S+: (?!4(?!08|29)\d\d )"
    r"|HTTP error (?:5\d\d|408|429) while getting"
    r"|error: (?:connection-failed|connection-timeout|proxy-connection-failed)"
    r"|error: (?:incomplete-download|ssl-verification-failed)"
)


def is_transient(pip_log: str) -> bool:
    """Tell from pip's log whether the same install may go well later.

    >>> is_transient("Could not fetch URL https://x/six/: 404 Client Error: Not Found - skipping")
    False
    """
    return TRANSIENT.search(pip_log) is not None


def listen(path: str) -> int:
    """Listen on a free port of the loopback for as long as the process lives, and hand connections to the socket."""
    server = socket.create_server(("127.0.0.1", 0), backlog=MAX_CONNECTIONS)
    places = threading.Semaphore(MAX_CONNECTIONS)
    threading.Thread(target=_accept, args=(server, path, places), daemon=True).start()
    return int(server.getsockname()[1])


def _accept(server: socket.socket, path: str, places: threading.Semaphore) -> None:
    while True:
        places.acquire()
        here, _ = server.accept()
        threading.Thread(target=_connect, args=(here, path, places), daemon=True).start()


def _connect(here: socket.socket, path: str, places: threading.Semaphore) -> None:
    with here, socket.socket(socket.AF_UNIX) as there, suppress(OSError):
        there.connect(path)
        back = threading.Thread(target=_copy, args=(there, here), daemon=True)
        back.start()
        _copy(here, there)
        back.join()
    places.release()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until their end, which is then passed on, too."""
    with suppress(OSError):
        while chunk := source.recv(CHUNK_BYTES):
            target.sendall(chunk)
    for side, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with suppress(OSError):
            side.shutdown(how)


def pip_command(orders: dict[str, Any], port: int) -> list[str]:
    """Compose what is run."""
    own = ["--no-input", "--disable-pip-version-check", "--no-cache-dir", "--no-color"]
    network = ["--proxy", f"http://127.0.0.1:{port}", "--retries", "3", "--timeout", "30"]
    network += ["--cert", orders["ca_file"]] if orders["ca_file"] else []
    kinds = [] if orders["builds_allowed"] else ["--only-binary", ":all:"]
    files = [word for path in orders["files"] for word in ("-r", path)]
    install = ["install", "--progress-bar", "off", "--target", orders["target"], *kinds, *files]
    return [sys.executable, "-I", "-B", orders["pip"], "--log", orders["log"], *own, *network, *install]


def forbid_children() -> None:
    """Take from pip the right to start processes, which it needs for nothing but builds.

    `--only-binary` is not enough: pip builds what a wheel's metadata names by URL, whatever that option says.
    """
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def say(line: str) -> None:
    """Add a line of ours to pip's."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def attempt(orders: dict[str, Any], port: int) -> int:
    """Run pip once."""
    for leftover in (orders["target"], orders["scratch"]):
        shutil.rmtree(leftover, ignore_errors=True)
    Path(orders["scratch"]).mkdir()
    Path(orders["log"]).write_bytes(b"")
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": orders["scratch"],
        "TMPDIR": orders["scratch"],  # beside the target, so that packages are moved there and not copied
        "LANG": "C.UTF-8",
        "PIP_CONFIG_FILE": os.devnull,
        INDEX_VARIABLE: os.environ[INDEX_VARIABLE],
    }
    done = subprocess.run(
        pip_command(orders, port),
        env=environment,
        cwd=orders["scratch"],
        stdin=subprocess.DEVNULL,
        preexec_fn=None if orders["builds_allowed"] else forbid_children,
        check=False,
    )
    if done.returncode == 0:
        return INSTALLED
    with open(orders["log"], "rb") as log:  # noqa: PTH123 - to read its end only
        log.seek(max(0, os.path.getsize(orders["log"]) - LOG_BYTES))  # noqa: PTH202 - as above
        said = log.read().decode("utf-8", "replace")
    if is_transient(said):
        return UNREACHABLE
    if NO_CHILDREN in said and not orders["builds_allowed"]:
        say("ERROR: a package without a wheel was to be built from source, which is not allowed here")
    return REFUSED


def main() -> int:
    """Do what the orders beside this file say."""
    orders = json.loads(Path(__file__).with_name(ORDERS).read_text(encoding="utf-8"))
    port = listen(orders["socket"])
    for pause_s in orders["pauses_s"]:
        outcome = attempt(orders, port)
        if outcome != UNREACHABLE:
            return outcome
        say(f"[runyard] the package index did not answer; trying again in {pause_s} s")
        time.sleep(pause_s)
    return attempt(orders, port)


if __name__ == "__main__":
    sys.exit(main())

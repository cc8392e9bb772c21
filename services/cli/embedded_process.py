"""A server of ours as a child process: started with a log, ended with its parent, found again after a crash.

`setpriv` (util-linux) sets the parent-death signal in the child, so that a killed `runyard up` leaves no server behind,
and gives a server that refuses to be root another user. What outlives all that (a crash in between) is found by the pid
file of the next start, which ends it first: never two servers on one folder. Never kills by name.
"""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
LOG_BYTES_KEPT = 5 << 20


class ServerFailed(Exception):
    """A server did not start or stop; the text says why and where its log is."""


class ServerProcess:
    """One server on one folder. `folder` holds its log `server.log` and its pid file."""

    def __init__(self, name: str, folder: Path, stop_signal: signal.Signals) -> None:
        self.name = name
        self.log_path = folder / "server.log"
        self._pid_path = folder / "server.pid"
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    async def spawn(
        self, command: Sequence[str], user: str | None = None, environment: dict[str, str] | None = None
    ) -> None:
        """Start the server, after ending one that an earlier crash left on this folder.

        Must be called on the main thread: the parent-death signal goes with the thread that started the child.
        """
        await self.end_leftover()
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES_KEPT:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*_setpriv(self._stop_signal, user), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # a Ctrl-C of the terminal is for `runyard up`, which stops its parts in order
            )
        self._pid_path.write_text(f"{self._process.pid} {_started_at(self._process.pid)}")

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def check_alive(self) -> None:
        """Raise ServerFailed, with the end of the log, if the server has ended."""
        if self.pid is None:
            raise ServerFailed(
                f"{self.name} ended while starting. Its log, {self.log_path}, ends with:\n{self.log_tail()}"
            )

    def log_tail(self, lines: int = 15) -> str:
        """Read the last lines of the server's log."""
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    async def stop(self) -> None:
        """Ask the server to end, wait, and kill it if it does not."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(self._stop_signal)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    while process.poll() is None:  # noqa: ASYNC110 - a child has no event to wait for
                        await asyncio.sleep(POLL_S)
        self.kill()
        self._pid_path.unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill the server at once (SIGKILL) and reap it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def end_leftover(self) -> None:
        """End a server that an earlier, killed parent left; a pid that belongs to another process now is not it.

        To be called before a port is chosen, too: a leftover holds the port until it is gone.
        """
        with contextlib.suppress(OSError, ValueError):
            pid, started_at = self._pid_path.read_text().split()
            if _started_at(int(pid)) == started_at:
                await end_process(int(pid), self._stop_signal)


async def end_process(pid: int, stop_signal: signal.Signals) -> None:
    """End a process that is not our child: ask, wait, and kill it if it does not end."""
    started_at = _started_at(pid)
    with contextlib.suppress(ProcessLookupError):
        for number in (stop_signal, signal.SIGKILL):
            if started_at and _started_at(pid) == started_at:
                os.kill(pid, number)
                await _wait_for_end(pid, started_at)


async def _wait_for_end(pid: int, started_at: str) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            while _started_at(pid) == started_at:  # noqa: ASYNC110 - not our child: nothing to wait for
                await asyncio.sleep(POLL_S)


def free_port() -> int:
    """Find a port on the loopback interface that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether a port of the loopback interface can be bound."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def kept_port(path: Path, wanted: int | None) -> int:
    """Choose a port: the wanted one, else the one kept in a file if it is still free, else a new one; keep it.

    Raises:
        ServerFailed: the wanted port is taken.
    """
    if wanted is not None and not is_free(wanted):
        raise ServerFailed(f"port {wanted} is taken by another program; stop it or choose another port")
    port = wanted
    if port is None:
        kept = int(path.read_text()) if path.exists() else 0
        port = kept if kept and is_free(kept) else free_port()
    path.write_text(str(port))
    return port


def unprivileged_user() -> str | None:
    """Name a user for servers that refuse to be root; None when we are not root."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


def _setpriv(death_signal: signal.Signals, user: str | None) -> list[str]:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ServerFailed("`setpriv` is missing: install util-linux (any Linux distribution has it)")
    command = [setpriv, "--pdeathsig", death_signal.name.removeprefix("SIG")]
    if user is not None:
        entry = pwd.getpwnam(user)
        # dac_override lets that user pass through folders of root's, such as a checkout in root's own home; without
        # no_setuid_fixup access(2), which PostgreSQL finds its own programs by, does not count it (capabilities(7)).
        caps = ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override", "--securebits", "+no_setuid_fixup"]
        command += ["--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups", *caps]
    return [*command, "--"]


def _started_at(pid: int) -> str:
    """Tell when a process started (clock ticks since boot): with its pid a name for good; '' if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state == "Z" else fields[18]

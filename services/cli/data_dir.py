"""The data folder: all that one Runyard on one machine keeps, and the lock that lets one system at a time use it.

Owns the folder's layout and the secrets in it, made once and readable by their owner alone. Never starts anything.
"""

import base64
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.cli.errors import CliError, UsageRefused

DEFAULT_DATA_DIR = Path(".runyard/up")
"""Of `runyard up` and of the commands that talk to it: in the current folder, so that checkouts do not meet."""
DEMO_DATA_DIR = Path(".runyard/demo")


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the parts of one system know of each other."""

    jwt_secret: str = field(repr=False)
    sealing_key: str = field(repr=False)
    api_password: str = field(repr=False)
    scheduler_password: str = field(repr=False)
    auditor_password: str = field(repr=False)

    @classmethod
    def new(cls) -> "Secrets":
        """Draw fresh secrets."""
        return cls(
            jwt_secret=secrets.token_urlsafe(48),
            sealing_key="k1:" + base64.b64encode(secrets.token_bytes(32)).decode(),
            api_password=secrets.token_urlsafe(24),
            scheduler_password=secrets.token_urlsafe(24),
            auditor_password=secrets.token_urlsafe(24),
        )


@dataclass(frozen=True, slots=True)
class DataDir:
    """A data folder by its absolute path."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> "DataDir":
        """Name a folder, which need not exist."""
        return cls(path.expanduser().absolute())

    @property
    def postgres(self) -> Path:
        """The embedded PostgreSQL's folder."""
        return self.path / "postgres"

    @property
    def kafka(self) -> Path:
        """The embedded Kafka's folder."""
        return self.path / "kafka"

    def keep_url(self, url: str) -> None:
        """Remember where the folder's system answers."""
        (self.path / "url").write_text(url)

    def last_url(self) -> str | None:
        """Tell where the folder's system answered last; None if there never was one."""
        path = self.path / "url"
        return path.read_text() if path.exists() else None

    @property
    def objects_url(self) -> str:
        """The object store: uploads, artifacts, sealed variables."""
        return (self.path / "objects").as_uri()

    @property
    def work(self) -> Path:
        """The runner's own folder: its journal, its cache and the runs'."""
        return self.path / "runner"

    def logs_of(self, service: str) -> Path:
        """The folder of a service's log."""
        return self.path / "logs" / service

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold its lock; the kernel lets go of it when the process dies.

        Raises:
            CliError: another process uses the folder, or it cannot be made.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageRefused(f"the data folder {self.path} cannot be used: {error.strerror}") from error
        with os.fdopen(handle, "r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InUse(self.path, lock.read().strip()) from error
            lock.truncate()
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def secrets(self) -> Secrets:
        """Read the folder's secrets.

        Raises:
            UsageRefused: no system was ever started on this folder.
        """
        try:
            return Secrets(**json.loads(self._secrets_path.read_text()))
        except FileNotFoundError as error:
            raise UsageRefused(
                f"{self.path} is no data folder of Runyard: start one with `runyard up`, or say where with --data-dir"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise UsageRefused(f"{self._secrets_path} cannot be read: {error}") from error

    def ensure_secrets(self) -> Secrets:
        """Read the folder's secrets, drawing them the first time; call it with the lock held."""
        if not self._secrets_path.exists():
            draft = self._secrets_path.with_suffix(".new")
            draft.unlink(missing_ok=True)
            draft.touch(mode=0o600)
            draft.write_text(json.dumps(asdict(Secrets.new()), indent=1))
            draft.rename(self._secrets_path)
        return self.secrets()

    @property
    def _secrets_path(self) -> Path:
        return self.path / "secrets.json"


class InUse(CliError):
    """Another process holds the data folder."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            f"the data folder {path} is in use by process {holder or '(unknown)'}: use that system, stop it (Ctrl-C in"
            " its terminal), or choose another folder with --data-dir"
        )

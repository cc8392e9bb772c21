"""Which package index installs use, and which hosts they may reach: from settings, else from the host's own pip.

Owns the reading of pip's configuration. No index is named in this project: without any configuration it is the one that
pip itself knows. It must never speak to an index.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pip import __version__ as PIP_VERSION  # noqa: N812 - it is a constant
from pip._internal.models.index import PyPI

PORTS: Mapping[str, int] = {"https": 443, "http": 80}
SECTIONS = (":env:", "install", "global")
"""Where pip keeps a setting, what counts first standing first."""
ASK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Destination:
    """A place that an install may reach: TLS to a host's port, or plain HTTP where that is configured."""

    scheme: Literal["https", "http"]
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class PackageIndex:
    """The configured index. Its URL may hold a password, so it is not shown."""

    url: str = field(repr=False)
    destinations: frozenset[Destination]
    ca_file: Path | None = None

    @property
    def identity(self) -> tuple[str, str]:
        """What makes the same requirements another set of packages."""
        return self.url, PIP_VERSION


def package_index(url: str | None, hosts: str, ca_file: Path | None, pip_said: str) -> PackageIndex:
    """Decide on the index: what the operator has set, else what pip is configured with, else pip's own.

    Args:
        url: of the index (PEP 503), as pip's `--index-url` takes it.
        hosts: where its files come from beside its own host; `host`, `host:port` or `http://host`, blanks between.
        ca_file: certificates to trust, in one PEM file.
        pip_said: what `pip config list` prints.

    Raises:
        ValueError: a setting is no URL of an index or names no host.
    """
    chosen = url or pip_setting(pip_said, "index-url") or PyPI.simple_url
    files = f"{hosts} {PyPI.file_storage_domain}" if chosen == PyPI.simple_url else hosts
    destinations = frozenset((destination(chosen), *map(destination, files.split())))
    certificates = ca_file or pip_setting(pip_said, "cert") or os.environ.get("SSL_CERT_FILE")
    return PackageIndex(chosen, destinations, Path(certificates) if certificates else None)


def destination(text: str) -> Destination:
    """Read a place from a URL, a host or `host:port`.

    >>> destination("index.example:8443").port
    8443

    Raises:
        ValueError: there is no host in it, or it is neither https nor http.
    """
    refusal = "an index and its hosts are given as https://…, http://…, a host, or host:port"
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:  # its words would show a piece of the text, and so perhaps of a password
        raise ValueError(refusal) from None
    if parts.scheme not in ("https", "http") or not host:
        raise ValueError(refusal)
    scheme: Literal["https", "http"] = "https" if parts.scheme == "https" else "http"
    return Destination(scheme, host, port or PORTS[scheme])


def pip_setting(pip_said: str, name: str) -> str | None:
    """Find a setting in what `pip config list` prints.

    >>> pip_setting("global.cert='/a.pem'", "cert")
    '/a.pem'
    """
    found = dict(re.findall(rf"^(\S+)\.{re.escape(name)}='(.*)'$", pip_said, re.MULTILINE))
    return next((found[section] for section in SECTIONS if found.get(section)), None)


def ask_pip() -> str:
    """Ask the host's pip for its configuration (environment and files); nothing when it does not answer."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""

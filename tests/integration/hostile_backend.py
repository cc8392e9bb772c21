"""A stranger's build script (PEP 517): what it could reach from an install container stands in the package it makes.

Its text is put into a source distribution, with the port of a neighbour that it is to try.
"""

import os
import socket
import zipfile

NEIGHBOUR = 0
NAME = "yardhostile-1.0"
WHEEL = f"{NAME}-py3-none-any.whl"
PLACES = (("169.254.169.254", 80), ("127.0.0.1", NEIGHBOUR), ("index.example", 443))
REQUESTS = (
    f"CONNECT 127.0.0.1:{NEIGHBOUR} HTTP/1.1",
    "CONNECT 169.254.169.254:80 HTTP/1.1",
    "CONNECT localhost:22 HTTP/1.1",
    "GET http://169.254.169.254/latest/meta-data/ HTTP/1.1",
    f"GET http://127.0.0.1:{NEIGHBOUR}/ HTTP/1.1",
)
FOLDERS = ("/", "/opt", "/runyard", "/runyard/code", "/runyard/data", "/runyard/slot")


def reached(place: tuple[str, int]) -> str:
    try:
        socket.create_connection(place, 2).close()
    except OSError as problem:
        return type(problem).__name__
    return "reached"


def asked(request: str) -> str:
    """Ask the runner's proxy itself, as pip would by way of the installer."""
    with socket.socket(socket.AF_UNIX) as there:
        there.connect("/runyard/data/index.sock")
        there.sendall(request.encode() + b"\r\n\r\n")
        return there.recv(100).decode().split()[1]


def build_wheel(folder: str, settings: object = None, metadata: object = None) -> str:
    found = {
        "directly": [reached(place) for place in PLACES],
        "proxied": [asked(request) for request in REQUESTS],
        "root": os.getuid() == 0,
        "writable": [path for path in FOLDERS if os.access(path, os.W_OK)],
        "variables": sorted(name for name in os.environ if "KEY" in name or "TOKEN" in name or "RUNYARD" in name),
    }
    with zipfile.ZipFile(os.path.join(folder, WHEEL), "w") as archive:  # noqa: PTH118 - as builds do
        archive.writestr("yardhostile.py", f"FOUND = {found!r}")
        archive.writestr(f"{NAME}.dist-info/METADATA", "Metadata-Version: 2.1\nName: yardhostile\nVersion: 1.0\n")
        archive.writestr(f"{NAME}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{NAME}.dist-info/RECORD", "")
    return WHEEL

"""A package index of ours on the loopback (PEP 503), whose packages are made on the spot, good ones and bad ones.

The runner's proxy connects to it on behalf of install containers, so nothing of the internet is needed; what it was
asked for is noted.
"""

import base64
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Index:
    """What it has: file name → bytes; `answer` is the status of everything, for an index that is ill."""

    files: Mapping[str, bytes]
    answer: int = 200
    asked: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def page(self, project: str) -> bytes | None:
        names = [name for name in self.files if name.replace("_", "-").rpartition("-")[0].startswith(project)]
        links = "".join(f'<a href="/files/{name}">{name}</a>' for name in names)
        return f"<!DOCTYPE html><html><body>{links}</body></html>".encode() if names else None

    def content(self, path: str) -> bytes | None:
        kind, _, name = path.strip("/").partition("/")
        if kind == "simple":
            return self.page(name)
        self.gate.wait(60)  # a file may take as long as the test wants
        return self.files.get(name) if kind == "files" else None


def wheel(name: str, version: str, module: str, *requires: str) -> bytes:
    """Make a pure wheel of one module (PEP 427)."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    contents = {
        f"{name}.py": module,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_digest(text)},{len(text.encode())}\n" for path, text in contents.items())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return packed.getvalue()


def sdist(name: str, version: str, **files: str) -> bytes:
    """Make a source distribution; `files` are its modules, `backend` among them runs at a build (PEP 517)."""
    pyproject = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    contents = {f"{module}.py": text for module, text in files.items()} | {
        "pyproject.toml": pyproject,
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, text in contents.items():
            about = tarfile.TarInfo(f"{name}-{version}/{path}")
            about.size = len(text.encode())
            archive.addfile(about, io.BytesIO(text.encode()))
    return packed.getvalue()


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Index]:
    """Serve an index for the length of a block; its gate is open unless a test closes it."""
    index = Index(files)
    index.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.asked.append(self.path)
            content = index.content(self.path) if index.answer == 200 else b""
            self.send_response(404 if content is None else index.answer)
            self.send_header("Content-Type", "text/html" if "/simple/" in self.path else "application/octet-stream")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        index.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")

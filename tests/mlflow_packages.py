"""MLflow itself, in a folder of its own: as a `requirements` asset has it installed."""

import subprocess
from pathlib import Path

from services.runner.sandbox_interpreter import find_uv

LOCKS = Path(__file__).parent / "integration" / "mlflow"
VERSIONS = sorted(path.stem.removeprefix("skinny-") for path in LOCKS.glob("skinny-*.txt"))
NEWEST = "3.17.2"


def install(version: str, folder: Path) -> None:
    """Install a locked mlflow-skinny for Python 3.11; quick after the first time on a machine."""
    uv = find_uv()
    assert uv is not None, "run deploy/bootstrap.sh"
    where = ["--target", str(folder), "--python-version", "3.11", "--only-binary", ":all:"]
    command = [str(uv), "pip", "install", "-q", *where, "-r", str(LOCKS / f"skinny-{version}.txt")]
    subprocess.run(command, check=True, timeout=300, stdin=subprocess.DEVNULL)

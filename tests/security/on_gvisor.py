"""Run a command against an engine of its own that knows gVisor, where the host's engine does not.

`python -m tests.security.on_gvisor .venv/bin/pytest tests/security -k runsc`. Needs root and `runsc` (Debian has it).
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence

from tests.chaos.private_engine import PrivateEngine, possible

RUNSC = shutil.which("runsc", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin")


async def run(command: Sequence[str]) -> int:
    """Start the engine, run the command with `DOCKER_HOST` set to it, stop the engine; return how the command ended."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as config:
        json.dump({"runtimes": {"runsc": {"path": RUNSC, "runtimeArgs": ["--network=none"]}}}, config)
        config.flush()
        engine = PrivateEngine((f"--config-file={config.name}",))
        await engine.start()
        try:
            await engine.load("python3.11")
            environment = {**os.environ, "DOCKER_HOST": engine.url}
            process = await asyncio.create_subprocess_exec(*command, env=environment)
            return await process.wait()
        finally:
            await engine.stop()


def main() -> int:
    """Run what the command line says."""
    if RUNSC is None or not possible():
        sys.exit("needs root, dockerd and runsc: apt-get install runsc")
    if len(sys.argv) == 1:
        sys.exit(str(__doc__))
    return asyncio.run(run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())

"""What lies beside every script for libraries that look for plugins: so far MLflow's stores.

A folder at the end of the script's path: a module and what a package index would have written about it. Nothing in it
is imported unless the library is there and asks.
"""

import shutil
from pathlib import Path

from services.runner import runyard_mlflow

MODULE = "runyard_mlflow"
ABOUT = f"{MODULE}-1.dist-info"
METADATA = f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1\n"
ENTRY_POINTS = f"""[mlflow.tracking_store]
runyard = {MODULE}:tracking_store

[mlflow.model_registry_store]
runyard = {MODULE}:registry_store
"""


def variables(scratch: str) -> dict[str, str]:
    """Tell MLflow to use our stores, in the scratch folder; the script's own variables win over these.

    Its store of files must be allowed since 3.17; its telemetry has nobody to reach; and GitPython, which it brings
    along, is not to complain at length that there is no git.
    """
    return {
        "MLFLOW_TRACKING_URI": f"runyard://{scratch}/mlflow",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def lay_out(folder: Path) -> None:
    """Make the folder, for everybody to read whatever the umask is."""
    about = folder / ABOUT
    about.mkdir(parents=True)
    shutil.copyfile(runyard_mlflow.__file__, folder / f"{MODULE}.py")
    (about / "METADATA").write_text(METADATA)
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o444)

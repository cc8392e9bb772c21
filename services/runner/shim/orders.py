"""What the shim is told, as the runner wrote it into `spec.json`: one object, every field of it required.

Owns the names on that file; what they mean is explained where they are written (`services.runner.folder.Orders`).
"""

import json


class Orders:
    """The orders for one script."""

    def __init__(self, text: bytes) -> None:
        told = json.loads(text)
        self.argv: list[str] = told["argv"]
        self.cwd: str = told["cwd"]
        self.environment: dict[str, str] = told["environment"]
        self.secrets = [self.environment[name] for name in told["secret_names"]]
        self.metrics_path: str = told["metrics_path"]
        self.failure_path: str = told["failure_path"]
        self.deadline_s: float = told["deadline_s"]
        self.grace_s: float = told["grace_s"]
        self.max_line_bytes: int = told["max_line_bytes"]
        self.max_output_bytes: int = told["max_output_bytes"]
        self.max_lines_per_s: int = told["max_lines_per_s"]
        self.max_bytes_per_s: int = told["max_bytes_per_s"]

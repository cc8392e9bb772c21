"""The committed OpenAPI document: `python -m services.api.openapi` writes it, `--check` fails if it has drifted."""

import argparse
import json
import sys
from pathlib import Path

from services.api.application import make_application
from services.backbone.health import Health

DOCUMENT = Path(__file__).parents[2] / "schemas" / "exported" / "openapi.json"


def document() -> str:
    """Write the document as it is committed: sorted keys, two spaces, a newline."""
    described = make_application(None, Health()).openapi()
    return json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the OpenAPI document, or check that the committed one is current."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the document would change")
    if parser.parse_args().check:
        if not DOCUMENT.exists() or DOCUMENT.read_text() != document():
            sys.exit(f"{DOCUMENT.name} has drifted: run python -m services.api.openapi and commit it")
        return
    DOCUMENT.parent.mkdir(parents=True, exist_ok=True)
    DOCUMENT.write_text(document())


if __name__ == "__main__":
    main()

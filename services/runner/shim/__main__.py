"""Starts the shim: reads its orders, sees the script through, and writes an end whatever goes wrong.

In the container this file is `<slot>/shim/__main__.py`, run as the folder `<slot>/shim`, which Python then searches
first, with -I, too; the rest lies below that folder under its own names (see `services.runner.slot`).
"""

import os
import sys
import time

from services.runner.shim.frames import FrameWriter
from services.runner.shim.launching import set_dumpable
from services.runner.shim.masking import Mask
from services.runner.shim.orders import Orders
from services.runner.shim.stop_signals import hold
from services.runner.shim.supervision import Supervisor, kill_everything

EXIT_NOT_STARTED = 125  # as `docker run` answers


def main() -> int:
    """Do what the orders beside this folder say; whatever goes wrong here, an end is written."""
    born = time.monotonic()
    hold()
    set_dumpable(0)
    frames, mask = FrameWriter(1, 0), Mask(())
    try:
        with open(os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + "/spec.json", "rb") as file:  # noqa: PTH100, PTH120, PTH123
            orders = Orders(file.read())
        frames.left_bytes, mask = orders.max_output_bytes, Mask(orders.secrets)
        return Supervisor(orders, frames, mask, born).run()
    except Exception as problem:  # noqa: BLE001 - the outermost edge: without an end the attempt would count as lost
        kill_everything(0)
        frames.send("end", exit_code=None, signal=None, error=mask.text(f"{type(problem).__name__}: {problem}")[:1000])
        frames.flush(wait=True)
        return EXIT_NOT_STARTED


if __name__ == "__main__":
    sys.exit(main())

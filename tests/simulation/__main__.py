"""Replays one seed, or looks for one that breaks a promise: `python -m tests.simulation --seed N [--trace]`."""

import argparse
import sys
import time

from tests.simulation.simulation import Broken, simulate


def main() -> int:
    """Run the seeds that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    wanted = parser.parse_args()
    began, runs, steps, failures = time.monotonic(), 0, 0, 0
    for seed in range(wanted.seed, wanted.seed + wanted.count):
        try:
            report = simulate(seed, traced=wanted.trace)
        except Broken as broken:
            failures += 1
            sys.stdout.write(f"{broken}\n")
            continue
        runs, steps = runs + report.runs, steps + report.steps
        if wanted.trace:
            sys.stdout.write("\n".join(report.trace) + "\n")
    took = time.monotonic() - began
    sys.stdout.write(
        f"{wanted.count} seeds, {runs} runs, {steps} steps in {took:.1f} s: {runs / took:.0f} runs/s, "
        f"{wanted.count / took * 60:.0f} seeds/min, {failures} broken\n"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

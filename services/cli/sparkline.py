"""Numbers as a line of blocks, and metrics as a table. Pure but for rich's classes."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 24


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Draw the last values, one block each, from the lowest to the highest of those drawn.

    >>> sparkline([1, 2, 3, 2])
    '▁▅█▅'
    >>> sparkline([0.5, 0.5])
    '▄▄'
    """
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if low == high:
        return BLOCKS[3] * len(shown)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in shown)


def metrics_table(series: Mapping[str, Sequence[float]]) -> Table:
    """Show series by name: how they went, their last, lowest and highest value, their mean."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("metric")
    table.add_column("")
    for column in ("last", "mean", "min", "max", "points"):
        table.add_column(column, justify="right")
    for name, values in series.items():
        if values:
            figures = (values[-1], math.fsum(values) / len(values), min(values), max(values))
            numbers = [f"{figure:.4g}" for figure in figures]
            table.add_row(Text(name), Text(sparkline(values), style="cyan"), *numbers, str(len(values)))
    return table

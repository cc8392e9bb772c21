"""Fewer points of a series, chosen so that its shape stays: first, last, and each stretch's extremes. Pure."""

from collections.abc import Callable, Sequence
from typing import TypeVar

FEWEST_POINTS = 4

Point = TypeVar("Point")


def downsample(points: Sequence[Point], value: Callable[[Point], float], max_points: int) -> list[Point]:
    """Keep at most `max_points` points in order: the first, the last, and the least and greatest of equal stretches.

    Args:
        points: in order.
        value: what is compared.
        max_points: at least 4.

    >>> downsample([0, 1, 9, 1, 1, -5, 1, 2], float, 4)
    [0, 9, -5, 2]
    """
    if max_points < FEWEST_POINTS:
        raise ValueError(f"max_points is at least {FEWEST_POINTS}")
    if len(points) <= max_points:
        return list(points)
    inner, stretches = len(points) - 2, (max_points - 2) // 2
    kept = {0, len(points) - 1}
    for stretch in range(stretches):
        places = range(1 + inner * stretch // stretches, 1 + inner * (stretch + 1) // stretches)
        kept.add(min(places, key=lambda place: value(points[place])))
        kept.add(max(places, key=lambda place: value(points[place])))
    return [points[place] for place in sorted(kept)]

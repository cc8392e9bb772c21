"""Protects downsampling: a shorter series keeps its ends, its extremes, its order and its limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from services.api.downsampling import FEWEST_POINTS, downsample

values = some.lists(some.floats(allow_nan=False, allow_infinity=False), max_size=300)
limits = some.integers(FEWEST_POINTS, 60)


@given(values, limits)
def test_never_more_points_than_asked_for_and_all_when_they_fit(series: list[float], most: int) -> None:
    kept = downsample(series, float, most)
    assert len(kept) <= most
    if len(series) <= most:
        assert kept == series


@given(values.filter(bool), limits)
def test_first_last_least_and_greatest_stay(series: list[float], most: int) -> None:
    kept = downsample(series, float, most)
    assert (kept[0], kept[-1], min(kept), max(kept)) == (series[0], series[-1], min(series), max(series))


@given(values, limits)
def test_points_stay_in_order_and_none_is_invented(series: list[float], most: int) -> None:
    points = list(enumerate(series))
    kept = downsample(points, lambda point: point[1], most)
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)


def test_a_single_spike_of_a_long_series_survives() -> None:
    series = [0.0] * 10_000
    series[6_321] = 9.0
    assert 9.0 in downsample(series, float, 4)


@pytest.mark.parametrize("most", [-1, 0, 3])
def test_fewer_than_four_points_cannot_keep_a_shape(most: int) -> None:
    with pytest.raises(ValueError, match="at least 4"):
        downsample([1, 2, 3, 4, 5], float, most)

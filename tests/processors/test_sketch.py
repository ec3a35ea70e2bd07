"""M4: logarithmic buckets with exact limits, and order statistics (M2)."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.sketch import (
    BUCKETS,
    LIMITS,
    bucket_at,
    bucket_of,
    lower_edge_us,
    order_statistics,
    upper_edge_us,
)
from schemas.latency import ESTIMATES_E9, LAST, OVERFLOW


def bucket(latency_us: int) -> int:
    return int(bucket_of(np.array([latency_us], np.int64))[0])


def test_the_example_of_m4() -> None:
    assert bucket(100) == 231
    assert Fraction(101**230, 99**230) < 100 <= Fraction(101**231, 99**231)
    assert round(ESTIMATES_E9[231] / 10**9, 4) == 100.4946


def test_limits_are_the_whole_numbers_of_the_definition() -> None:
    assert all(int(LIMITS[i]) == 101**i // 99**i for i in range(LAST + 1))
    assert int(LIMITS[LAST]) >= 3_600_000_000 > int(LIMITS[LAST - 1])


@given(st.integers(1, 4_000_000_000))
def test_a_value_lies_in_its_bucket_and_near_its_estimate(latency_us: int) -> None:
    index = bucket(latency_us)
    if index == OVERFLOW:
        assert latency_us > int(LIMITS[LAST])
        return
    assert lower_edge_us(index) < latency_us <= upper_edge_us(index) or index == 0
    if latency_us >= 1000:  # below, whole microseconds are coarser than 1 %
        estimate = ESTIMATES_E9[index] / 10**9
        assert abs(estimate - latency_us) <= 0.0101 * latency_us + 1


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=300), st.sampled_from([50, 95, 99]))
def test_a_percentile_is_the_bucket_of_the_value_that_numpy_calls_lower(
    values: list[int], percentile: int
) -> None:
    counts = np.bincount(bucket_of(np.array(values, np.int64)), minlength=BUCKETS)
    position = percentile * (len(values) - 1) // 100
    assert bucket_at(np.cumsum(counts), position) == bucket(sorted(values)[position])


def quantile(probability: Fraction, n: int, p: Fraction) -> int:
    """Smallest k with cdf >= probability, in exact fractions."""
    total = Fraction(0)
    for k in range(n + 1):
        total += comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= probability:
            return k
    raise AssertionError


@pytest.mark.parametrize("percentile", [50, 95, 99])
@pytest.mark.parametrize("n", [1, 2, 5, 20, 59, 60, 150, 299, 400])
def test_order_statistics_are_the_binomial_quantiles(n: int, percentile: int) -> None:
    p = Fraction(percentile, 100)
    expected = (quantile(Fraction(25, 1000), n, p), quantile(Fraction(975, 1000), n, p) + 1)
    assert order_statistics(n, percentile) == expected


def test_order_statistics_of_a_million_enclose_the_percentile_closely() -> None:
    low, high = order_statistics(1_000_000, 95)
    assert 949_500 < low < 950_000 < high < 950_500

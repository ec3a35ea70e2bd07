"""Histogram of latencies in logarithmic buckets of 1 % relative error (M4).

Bucket i covers (limit[i-1], limit[i]] microseconds with limit[i] = 101**i // 99**i; one more
bucket, OVERFLOW, takes what is above one hour. Counts merge by addition, in any order.
Source: DDSketch (Masson, Rim, Lee, VLDB 2019), logarithmic mapping with exact integer limits.
"""

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.latency import LAST, LIMITS_US, OVERFLOW

BUCKETS: Final = OVERFLOW + 1

LIMITS: Final[NDArray[np.int64]] = np.array(LIMITS_US, dtype=np.int64)
"""Upper limits in microseconds, shape (1102,)."""
MINIMUM_FOR_MAX: Final = {50: 6, 95: 59, 99: 299}
"""Samples from which the maximum is an upper bound of a percentile (M2)."""


def bucket_of(latency_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bucket index of each latency (microseconds, at least 1)."""
    return np.searchsorted(LIMITS, latency_us, side="left")


def upper_edge_us(bucket: int) -> int:
    """Upper edge of a bucket in microseconds; that of the last limit for OVERFLOW."""
    return int(LIMITS[min(bucket, LAST)])


def lower_edge_us(bucket: int) -> int:
    """Lower edge of a bucket in microseconds."""
    return 0 if bucket == 0 else int(LIMITS[min(bucket, LAST) - 1])


def bucket_at(cumulative: NDArray[np.int64], position: int) -> int:
    """Bucket of the value at a zero-based position; cumulative: running sums of the counts."""
    return int(np.searchsorted(cumulative, position, side="right"))


@lru_cache(maxsize=65_536)
def order_statistics(n: int, percentile: int) -> tuple[int, int]:
    """(l, u) such that the l-th and u-th smallest of n values enclose the percentile at 95 %.

    l = Q(0.025; n, p), u = Q(0.975; n, p) + 1 with the binomial quantile Q (M2); l = 0: no lower
    bound, u > n: no upper one. The pmf is summed over ten standard deviations around its mean by
    the ratio of neighbouring terms, and normalised; what lies outside is below 1e-20.
    """
    p = percentile / 100
    mean, spread = n * p, (n * p * (1 - p)) ** 0.5
    low = max(0, int(mean - 10 * spread - 2))
    high = min(n, int(mean + 10 * spread + 2))
    k: NDArray[Any] = np.arange(low, high, dtype=np.float64)
    logs = np.concatenate(([0.0], np.cumsum(np.log((n - k) / (k + 1)) + np.log(p / (1 - p)))))
    pmf = np.exp(logs - logs.max())
    cdf = np.cumsum(pmf) / pmf.sum()
    lower = low + int(np.searchsorted(cdf, 0.025, side="left"))
    upper = low + int(np.searchsorted(cdf, 0.975, side="left"))
    return lower, upper + 1

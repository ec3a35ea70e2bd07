"""Buckets of latency histograms (M4): frozen integers that every layer reads facts and panes by.

Bucket i covers (LIMITS_US[i-1], LIMITS_US[i]] microseconds; one more, OVERFLOW, takes what is above
one hour. A bucket is known to 1 % of its value.
"""

from typing import Final

from schemas.pricing import round_half_even
from schemas.values import BILLION

LAST: Final = 1101
OVERFLOW: Final = LAST + 1
LIMITS_US: Final[tuple[int, ...]] = tuple(101**i // 99**i for i in range(LAST + 1))
"""Upper limits."""
ESTIMATES_E9: Final[tuple[int, ...]] = tuple(
    round_half_even(BILLION * 99 * 101**i, 100 * 99**i) for i in range(LAST + 1)
)
"""Value that stands for a bucket, 2*gamma**i/(gamma+1), in 1e-9 microseconds."""

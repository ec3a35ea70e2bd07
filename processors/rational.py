"""Exact rounding: ratios of integers in, integers out."""

from math import isqrt

from schemas.values import BILLION


def round_div(numerator: int, denominator: int) -> int:
    """numerator / denominator to the nearest integer, half to even; denominator above 0."""
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    if twice > denominator or (twice == denominator and quotient % 2):
        quotient += 1
    return quotient


def e9(numerator: int, denominator: int) -> int:
    """A ratio as the nearest integer of 1e-9, half to even; denominator above 0."""
    return round_div(numerator * BILLION, denominator)


def sqrt_e9(numerator: int, denominator: int) -> int:
    """Square root of a ratio (0 or above) as the nearest integer of 1e-9, half to even."""
    scaled = numerator * BILLION**2
    root = isqrt(scaled // denominator)
    middle = (2 * root + 1) ** 2 * denominator  # of root and root + 1, squared, times 4
    if 4 * scaled > middle or (4 * scaled == middle and root % 2):
        root += 1
    return root


def double(units: int) -> float:
    """An integer of 1e-9 as the double that is emitted."""
    return units / BILLION

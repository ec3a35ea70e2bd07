"""Exact rounding: integers and fractions in, integers out."""

from fractions import Fraction
from math import isqrt

from schemas.values import BILLION


def round_div(numerator: int, denominator: int) -> int:
    """numerator / denominator to the nearest integer, half to even; denominator above 0."""
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    if twice > denominator or (twice == denominator and quotient % 2):
        quotient += 1
    return quotient


def e9(value: Fraction) -> int:
    """A value as the nearest integer of 1e-9, half to even."""
    return round_div(value.numerator * BILLION, value.denominator)


def sqrt_e9(square: Fraction) -> int:
    """Square root of a value (0 or above) as the nearest integer of 1e-9."""
    n, d = square.numerator * BILLION**2, square.denominator
    root = isqrt(n // d)
    middle = (2 * root + 1) ** 2 * d  # of root and root + 1, squared and times 4d
    if 4 * n > middle or (4 * n == middle and root % 2):
        root += 1
    return root


def double(units: int) -> float:
    """An integer of 1e-9 as the double that is emitted."""
    return units / BILLION

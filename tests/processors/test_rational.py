"""Rounding is exact: half to even, and square roots too."""

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from processors.rational import e9, round_div, sqrt_e9

wide = st.integers(0, 10**40)
positive = st.integers(1, 10**40)


@given(wide, positive)
def test_division_rounds_half_to_even(numerator: int, denominator: int) -> None:
    assert round_div(numerator, denominator) == round(Fraction(numerator, denominator))


def test_halves_go_to_the_even_side() -> None:
    assert [round_div(n, 2) for n in (1, 3, 5, 7)] == [0, 2, 2, 4]
    assert e9(5, 10**10) == 0
    assert e9(15, 10**10) == 2


@given(wide, positive)
def test_square_roots_are_the_nearest_integer_of_1e_9(numerator: int, denominator: int) -> None:
    with localcontext() as context:
        context.prec = 120
        root = (Decimal(numerator) / Decimal(denominator)).sqrt() * 10**9
        assert sqrt_e9(numerator, denominator) == int(root.to_integral_value(ROUND_HALF_EVEN))


def test_a_square_root_that_ends_in_a_half_goes_to_the_even_side() -> None:
    for doubled in (1, 3, 5, 7):  # the root is doubled / 2 of 1e-9
        expected = round(Fraction(doubled, 2))
        assert sqrt_e9(doubled**2, 4 * 10**18) == expected

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.pricing import Card, choose, cost_picousd, round_half_even


def card(version: int, offset: int, start: int, end: int | None = None, append: int = 0) -> Card:
    return Card(version, offset, append, start, end, price_picousd=100 * version + offset)


def test_the_worked_example_of_m8_costs_525_300_000_picousd() -> None:
    # 1,234 input tokens at 0.15 USD and 567 output tokens at 0.60 USD per million
    assert cost_picousd((1234, 0, 567), (150_000_000_000, None, 600_000_000_000)) == 525_300_000


def test_a_unit_above_zero_without_a_price_leaves_the_cost_unknown() -> None:
    assert cost_picousd((1, 0, 0), (None, 5, 5)) is None
    assert cost_picousd((0, 0, 0), (None, None, None)) == 0


@pytest.mark.parametrize(("halves", "rounded"), [(1, 0), (2, 1), (3, 2), (5, 2), (7, 4), (9, 4)])
def test_halves_are_rounded_to_the_even_neighbour(halves: int, rounded: int) -> None:
    assert round_half_even(halves, 2) == rounded
    assert cost_picousd((halves, 0, 0), (500_000, None, None)) == rounded


@given(st.integers(0, 10**30), st.integers(1, 10**7))
def test_rounding_is_that_of_exact_fractions(numerator: int, denominator: int) -> None:
    assert round_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


def test_of_the_cards_in_force_the_highest_version_then_the_highest_offset_counts() -> None:
    cards = [card(1, 9, 0), card(2, 3, 0), card(2, 4, 0), card(3, 5, 1_000)]
    assert choose(cards, 500) == card(2, 4, 0)
    assert choose(cards, 1_000) == card(3, 5, 1_000)


def test_a_card_holds_from_its_first_millisecond_up_to_but_not_with_its_last() -> None:
    only = [card(1, 0, 100, 200)]
    assert choose(only, 99) is None
    assert choose(only, 100) is not None
    assert choose(only, 199) is not None
    assert choose(only, 200) is None


def test_only_cards_appended_strictly_before_an_invocation_are_known_to_it() -> None:
    cards = [card(1, 0, 0, append=10), card(2, 1, 0, append=20)]
    assert choose(cards, 5, before_append_ms=10) is None
    assert choose(cards, 5, before_append_ms=20) == cards[0]
    assert choose(cards, 5, before_append_ms=21) == cards[1]

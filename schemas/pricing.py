"""What an invocation costs (M8): the choice of the card and the exact sum. Pure integers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from schemas.envelope import Position
from schemas.rate_card import PriceUnit, RateCardUpdated

PRICE_UNITS: Final = (PriceUnit.INPUT_TOKEN, PriceUnit.CACHED_TOKEN, PriceUnit.OUTPUT_TOKEN)
"""In the order of the token fields of llm.invocation; the three are disjoint."""
PRICED_UNITS: Final = 1_000_000
"""A price is that of so many units."""


@dataclass(frozen=True, slots=True, order=True)
class Card:
    """A price as it stands in the log. Ordered: of the cards that apply the greatest counts."""

    version: int
    offset: int  # one partition, so the offset decides among equal versions
    append_ms: int
    valid_from_ms: int
    valid_to_ms: int | None
    price_picousd: int  # per PRICED_UNITS


def card_of(event: RateCardUpdated, at: Position) -> Card:
    """A rate.card.updated as a card."""
    return Card(
        version=event.version,
        offset=at.offset,
        append_ms=at.append_ms,
        valid_from_ms=event.valid_from_ms,
        valid_to_ms=event.valid_to_ms,
        price_picousd=event.price_picousd_per_million,
    )


def choose(
    cards: Iterable[Card], at_ms: int, *, before_append_ms: int | None = None
) -> Card | None:
    """The card in force at an event time, None if there is none.

    cards: those of one provider, model and unit, in any order.
    before_append_ms: only cards appended strictly before it count, None: all of them do.
    """
    applying = (
        card
        for card in cards
        if card.valid_from_ms <= at_ms
        and (card.valid_to_ms is None or at_ms < card.valid_to_ms)
        and (before_append_ms is None or card.append_ms < before_append_ms)
    )
    return max(applying, key=lambda card: (card.version, card.offset), default=None)


def round_half_even(numerator: int, denominator: int) -> int:
    """numerator / denominator to the nearest integer, half to even; denominator above 0."""
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1))


def cost_picousd(units: Sequence[int], prices: Sequence[int | None]) -> int | None:
    """Cost of units at prices per million, rounded once; None: a unit above 0 has no price.

    units, prices: aligned, for example by PRICE_UNITS. 1,234 units at 150,000,000,000 pUSD and 567
    at 600,000,000,000 pUSD make 525,300,000 pUSD.
    """
    total = 0
    for n, price in zip(units, prices, strict=True):
        if n > 0:
            if price is None:
                return None
            total += n * price
    return round_half_even(total, PRICED_UNITS)

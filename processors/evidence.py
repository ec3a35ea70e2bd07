"""Evidence about models over a window of panes: priced sums, histograms; integers (M2-M4)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from processors.sketch import BUCKETS
from processors.totals import UNIT_PAIRS
from schemas.envelope import Recorded
from schemas.pricing import PRICE_UNITS, Card, card_of, choose
from schemas.rate_card import PriceUnit, RateCardUpdated
from schemas.slm_metrics import ModelTotals
from schemas.values import OUTCOMES

MILLION: Final = 10**6

Who = tuple[str, str]
"""(provider, model)."""


class Cards:
    """Rate cards as far as they have been read, in log order."""

    def __init__(self) -> None:
        self._cards: dict[tuple[str, str, PriceUnit], list[Card]] = {}
        self._prices = lru_cache(maxsize=100_000)(self._look_up)

    def add(self, recorded: Recorded[RateCardUpdated]) -> None:
        """Takes the next card of rate.card.updated."""
        card = recorded.event
        key = (card.provider, card.model, card.unit)
        self._cards.setdefault(key, []).append(card_of(card, recorded.at))
        self._prices.cache_clear()

    def prices(self, who: Who, pane_ms: int) -> tuple[int | None, int | None, int | None]:
        """Pico-USD per million units (input, cached, output) in force at a pane's start."""
        return self._prices(who, pane_ms)

    def _look_up(self, who: Who, pane_ms: int) -> tuple[int | None, int | None, int | None]:
        def price(unit: PriceUnit) -> int | None:
            card = choose(self._cards.get((*who, unit), ()), pane_ms)
            return None if card is None else card.price_picousd

        return price(PRICE_UNITS[0]), price(PRICE_UNITS[1]), price(PRICE_UNITS[2])


COUNTS: Final = len(OUTCOMES) + BUCKETS


def _counts() -> NDArray[np.int64]:
    return np.zeros(COUNTS, np.int64)


@dataclass(slots=True)
class Evidence:
    """Sums over invocations of one model; panes add to it and leave it again.

    counts: shape (COUNTS,): invocations per outcome, then complete responses per latency bucket.
    cost: 1e-6 pico-USD. cost_cost: 1e-12 pico-USD squared. cost_tokens: 1e-6 pico-USD times tokens.
    unpriced: number of facts in which a unit had no price. quality: metric -> [observations, hits].
    """

    invocations: int = 0
    tokens: int = 0
    cost: int = 0
    cost_cost: int = 0
    cost_tokens: int = 0
    tokens_tokens: int = 0
    unpriced: int = 0
    counts: NDArray[np.int64] = field(default_factory=_counts)
    quality: dict[str, list[int]] = field(default_factory=dict)

    def add(self, other: "Evidence", sign: int = 1) -> None:
        """Adds the sums of other, or takes them away again (sign -1)."""
        self.invocations += sign * other.invocations
        self.tokens += sign * other.tokens
        self.cost += sign * other.cost
        self.cost_cost += sign * other.cost_cost
        self.cost_tokens += sign * other.cost_tokens
        self.tokens_tokens += sign * other.tokens_tokens
        self.unpriced += sign * other.unpriced
        self.counts += sign * other.counts
        for metric, (n, hits) in other.quality.items():
            known = self.quality.setdefault(metric, [0, 0])
            known[0] += sign * n
            known[1] += sign * hits
            if known[0] == 0:
                del self.quality[metric]

    @property
    def outcomes(self) -> list[int]:
        """Invocations per outcome, in the order of OUTCOMES."""
        counts: list[int] = self.counts[: len(OUTCOMES)].tolist()
        return counts

    @property
    def latency(self) -> NDArray[np.int64]:
        """Complete responses per bucket, shape (BUCKETS,)."""
        return self.counts[len(OUTCOMES) :]

    @property
    def gone(self) -> bool:
        """Whether nothing is left of it."""
        return self.invocations == 0 and not self.quality


def evidence_of(totals: ModelTotals, pane_ms: int, cards: Cards) -> Evidence:
    """What one model's totals in one pane say, priced by the cards in force at the pane's start."""
    evidence = Evidence(quality={c.metric: [c.n, c.hits] for c in totals.quality})
    if not any(totals.outcomes):
        return evidence
    sums = [int(text) for text in totals.unit_sums]
    products = {
        pair: int(text) for pair, text in zip(UNIT_PAIRS, totals.unit_products, strict=True)
    }
    found = cards.prices((totals.provider, totals.model), pane_ms)
    price = [found[i] or 0 if sums[i] else 0 for i in range(3)]
    reported = [int(text) for text in totals.reported_sums]
    squares = [int(text) for text in totals.reported_products]
    evidence.invocations = sum(totals.outcomes)
    evidence.tokens = sum(sums) + reported[1]
    evidence.cost = sum(p * s for p, s in zip(price, sums, strict=True)) + MILLION * reported[0]
    evidence.cost_cost = (
        sum(
            (1 if a == b else 2) * price[a] * price[b] * amount
            for (a, b), amount in products.items()
        )
        + MILLION**2 * squares[0]
    )
    evidence.cost_tokens = (
        sum(
            (price[a] + price[b] if a != b else price[a]) * amount
            for (a, b), amount in products.items()
        )
        + MILLION * squares[1]
    )
    evidence.tokens_tokens = (
        sum((1 if a == b else 2) * n for (a, b), n in products.items()) + squares[2]
    )
    evidence.unpriced = int(any(sums[i] and found[i] is None for i in range(3)))
    evidence.counts[: len(totals.outcomes)] = totals.outcomes
    evidence.latency[list(totals.latency_buckets)] = totals.latency_counts
    return evidence


Panel = dict[Who, Evidence]
"""Evidence of every model in a pane or window."""


def add_panel(window: Panel, panel: Panel, sign: int = 1) -> None:
    """Adds a pane's panel to a window, or takes it away; a model without evidence leaves it."""
    for who, evidence in panel.items():
        known = window.get(who)
        if known is None:
            known = window[who] = Evidence()
        known.add(evidence, sign)
        if known.gone:
            del window[who]


def panel_of(facts: Iterable[tuple[int, ModelTotals]], cards: Cards) -> Panel:
    """Panel of facts of one pane: (pane start, totals of a model)."""
    panel: Panel = {}
    for pane_ms, totals in facts:
        who = (totals.provider, totals.model)
        evidence = evidence_of(totals, pane_ms, cards)
        if who in panel:
            panel[who].add(evidence)
        else:
            panel[who] = evidence
    return panel


def copy_panel(panel: Panel) -> Panel:
    """A panel that can be changed without changing the first."""
    fresh: Panel = {}
    add_panel(fresh, panel)
    return fresh

"""Evidence about models over a window of panes: priced sums, histograms; integers (M2-M4)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from processors.sketch import BUCKETS
from processors.totals import UNIT_PAIRS
from schemas.rate_card import PriceUnit, RateCardUpdated
from schemas.slm_metrics import ModelTotals
from schemas.values import COMPLETE, FAILED, OUTCOMES, Outcome

MILLION: Final = 10**6
UNITS: Final = (PriceUnit.INPUT_TOKEN, PriceUnit.CACHED_TOKEN, PriceUnit.OUTPUT_TOKEN)
COMPLETE_INDEX: Final = tuple(i for i, o in enumerate(OUTCOMES) if o in COMPLETE)
FAILED_INDEX: Final = tuple(i for i, o in enumerate(OUTCOMES) if o in FAILED)
LIMITED_INDEX: Final = OUTCOMES.index(Outcome.RATE_LIMITED)

Who = tuple[str, str]
"""(provider, model)."""


class Cards:
    """Rate cards as far as they have been read, in log order."""

    def __init__(self) -> None:
        self._cards: dict[tuple[str, str, PriceUnit], list[tuple[int, RateCardUpdated]]] = {}
        self._prices = lru_cache(maxsize=100_000)(self._look_up)

    def add(self, offset: int, card: RateCardUpdated) -> None:
        """Takes the card at an offset of rate.card.updated."""
        key = (card.provider, card.model, card.unit)
        self._cards.setdefault(key, []).append((offset, card))
        self._prices.cache_clear()

    def prices(self, who: Who, pane_ms: int) -> tuple[int | None, int | None, int | None]:
        """Pico-USD per million units (input, cached, output) in force at a pane's start."""
        return self._prices(who, pane_ms)

    def _look_up(self, who: Who, pane_ms: int) -> tuple[int | None, int | None, int | None]:
        def price(unit: PriceUnit) -> int | None:
            valid = [
                (card.version, offset, card.price_picousd_per_million)
                for offset, card in self._cards.get((*who, unit), ())
                if card.valid_from_ms <= pane_ms
                and (card.valid_to_ms is None or pane_ms < card.valid_to_ms)
            ]
            return max(valid)[2] if valid else None

        return price(UNITS[0]), price(UNITS[1]), price(UNITS[2])


def _counts() -> NDArray[np.int64]:
    return np.zeros(BUCKETS, np.int64)


@dataclass(slots=True)
class Evidence:
    """Sums over invocations of one model; panes add to it and leave it again.

    cost: 1e-6 pico-USD. cost_cost: 1e-12 pico-USD squared. cost_tokens: 1e-6 pico-USD times tokens.
    latency: complete responses per bucket, shape (BUCKETS,). unpriced: number of facts in which a
    unit had no price.
    """

    invocations: int = 0
    complete: int = 0
    trials: int = 0
    rate_limited: int = 0
    tokens: int = 0
    cost: int = 0
    cost_cost: int = 0
    cost_tokens: int = 0
    tokens_tokens: int = 0
    unpriced: int = 0
    latency: NDArray[np.int64] = field(default_factory=_counts)

    def add(self, other: "Evidence", sign: int = 1) -> None:
        """Adds the sums of other, or takes them away again (sign -1)."""
        self.invocations += sign * other.invocations
        self.complete += sign * other.complete
        self.trials += sign * other.trials
        self.rate_limited += sign * other.rate_limited
        self.tokens += sign * other.tokens
        self.cost += sign * other.cost
        self.cost_cost += sign * other.cost_cost
        self.cost_tokens += sign * other.cost_tokens
        self.tokens_tokens += sign * other.tokens_tokens
        self.unpriced += sign * other.unpriced
        self.latency += sign * other.latency


def evidence_of(totals: ModelTotals, pane_ms: int, cards: Cards) -> Evidence:
    """What one model's totals in one pane say, priced by the cards in force at the pane's start."""
    sums = [int(text) for text in totals.unit_sums]
    products = {
        pair: int(text) for pair, text in zip(UNIT_PAIRS, totals.unit_products, strict=True)
    }
    found = cards.prices((totals.provider, totals.model), pane_ms)
    price = [found[i] or 0 if sums[i] else 0 for i in range(3)]
    reported = [int(text) for text in totals.reported_sums]
    squares = [int(text) for text in totals.reported_products]
    cost_tokens = sum(
        (price[a] + price[b] if a != b else price[a]) * amount
        for (a, b), amount in products.items()
    )
    complete = sum(totals.outcomes[i] for i in COMPLETE_INDEX)
    evidence = Evidence(
        invocations=sum(totals.outcomes),
        complete=complete,
        trials=complete + sum(totals.outcomes[i] for i in FAILED_INDEX),
        rate_limited=totals.outcomes[LIMITED_INDEX],
        tokens=sum(sums) + reported[1],
        cost=sum(p * s for p, s in zip(price, sums, strict=True)) + MILLION * reported[0],
        cost_cost=sum(
            (1 if a == b else 2) * price[a] * price[b] * amount
            for (a, b), amount in products.items()
        )
        + MILLION**2 * squares[0],
        cost_tokens=cost_tokens + MILLION * squares[1],
        tokens_tokens=sum((1 if a == b else 2) * n for (a, b), n in products.items()) + squares[2],
        unpriced=int(any(sums[i] and found[i] is None for i in range(3))),
    )
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
        if known.invocations == 0:
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

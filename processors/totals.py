"""Sums over invocations of one model: what facts carry and windows add. Integers only."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.slm_metrics import ModelTotals
from schemas.values import OUTCOMES

UNIT_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
"""Order of unit_products: input, cached, output."""


@dataclass(slots=True)
class Totals:
    """Mutable sums; fields as in ModelTotals. latency: bucket index -> complete responses."""

    outcomes: list[int] = field(default_factory=lambda: [0] * len(OUTCOMES))
    tokens: list[int] = field(default_factory=lambda: [0, 0, 0])
    priced_n: int = 0
    unit_sums: list[int] = field(default_factory=lambda: [0] * 3)
    unit_products: list[int] = field(default_factory=lambda: [0] * 6)
    reported_n: int = 0
    reported_sums: list[int] = field(default_factory=lambda: [0] * 2)
    reported_products: list[int] = field(default_factory=lambda: [0] * 3)
    latency: dict[int, int] = field(default_factory=dict)

    def wire(self, provider: str, model: str) -> ModelTotals:
        """As it stands in a fact."""
        buckets = sorted(self.latency)
        return ModelTotals.model_construct(
            provider=provider,
            model=model,
            outcomes=tuple(self.outcomes),
            input_tokens=self.tokens[0],
            cached_tokens=self.tokens[1],
            output_tokens=self.tokens[2],
            priced_n=self.priced_n,
            unit_sums=_texts(self.unit_sums),
            unit_products=_texts(self.unit_products),
            reported_n=self.reported_n,
            reported_sums=_texts(self.reported_sums),
            reported_products=_texts(self.reported_products),
            latency_buckets=tuple(buckets),
            latency_counts=tuple(self.latency[b] for b in buckets),
        )


def _texts(numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(str(n) for n in numbers)

"""Sums over events of one model: what facts carry and windows add. Integers only."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import add
from typing import Final

from schemas.slm_metrics import MetricCount, ModelTotals
from schemas.values import OUTCOMES

UNIT_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
"""Order of unit_products: input, cached, output."""
OTHER: Final = "~"
"""Counts further metrics of a model; no metric can be called so."""


@dataclass(slots=True)
class Totals:
    """Mutable sums; fields as in ModelTotals. latency: bucket index -> complete responses.
    quality: metric -> [observations, good ones among them], in the order of the log."""

    outcomes: list[int] = field(default_factory=lambda: [0] * len(OUTCOMES))
    tokens: list[int] = field(default_factory=lambda: [0, 0, 0])
    priced_n: int = 0
    unit_sums: list[int] = field(default_factory=lambda: [0] * 3)
    unit_products: list[int] = field(default_factory=lambda: [0] * 6)
    reported_n: int = 0
    reported_sums: list[int] = field(default_factory=lambda: [0] * 2)
    reported_products: list[int] = field(default_factory=lambda: [0] * 3)
    latency: dict[int, int] = field(default_factory=dict)
    quality: dict[str, list[int]] = field(default_factory=dict)

    def add(self, other: "Totals", most_metrics: int) -> None:
        """Adds the sums of other, which come later in the log: the first so many metrics are
        counted under their names."""
        self.outcomes = [*map(add, self.outcomes, other.outcomes)]
        self.tokens = [*map(add, self.tokens, other.tokens)]
        self.priced_n += other.priced_n
        self.unit_sums = [*map(add, self.unit_sums, other.unit_sums)]
        self.unit_products = [*map(add, self.unit_products, other.unit_products)]
        self.reported_n += other.reported_n
        self.reported_sums = [*map(add, self.reported_sums, other.reported_sums)]
        self.reported_products = [*map(add, self.reported_products, other.reported_products)]
        for bucket, count in other.latency.items():
            self.latency[bucket] = self.latency.get(bucket, 0) + count
        for metric, (n, hits) in other.quality.items():
            full = len(self.quality) - (OTHER in self.quality) >= most_metrics
            name = OTHER if full and metric not in self.quality else metric
            known = self.quality.setdefault(name, [0, 0])
            known[0] += n
            known[1] += hits

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
            quality=tuple(
                MetricCount.model_construct(metric=metric, n=n, hits=hits)
                for metric, (n, hits) in sorted(
                    self.quality.items(), key=lambda item: item[0].encode()
                )
            ),
        )


def _texts(numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(str(n) for n in numbers)

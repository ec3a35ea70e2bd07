"""Reported benchmarks as the prior of quality (M19): floor and target are the policy's, so no
candidate changes the quality of another."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from processors.evidence import Who
from schemas.envelope import Recorded
from schemas.quality import MetricScale, SlmBenchmarkResults
from schemas.scoring_policy import PolicyBenchmark, ScoringPolicyUpdated
from schemas.values import BILLION, canonical_role

WHOLE: Final = 10_000
Z95: Final = Fraction(1_959_964, 1_000_000)


@dataclass(frozen=True, slots=True)
class Part:
    """A result that counts. value_e9: in 1e-9 of the unit. part: 0 at the floor, 1 at the target,
    exact. variance: of that part, from its interval; None: it has none."""

    wanted: PolicyBenchmark
    result: SlmBenchmarkResults
    value_e9: int
    part: Fraction
    variance: Fraction | None


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known of a model's quality before production says anything. variance: of the mean,
    None where not every part has an interval. missing: the policy names more than was found."""

    mean: Fraction
    variance: Fraction | None
    parts: tuple[Part, ...]
    missing: bool


class Benchmarks:
    """Results as far as they have been read."""

    def __init__(self) -> None:
        self._results: dict[tuple[Who, str], list[Recorded[SlmBenchmarkResults]]] = {}

    def add(self, recorded: Recorded[SlmBenchmarkResults]) -> None:
        """Takes a result."""
        event = recorded.event
        key = ((event.provider, event.model), event.name)
        self._results.setdefault(key, []).append(recorded)

    def prior(self, who: Who, role: str, policy: ScoringPolicyUpdated, at_ms: int) -> Prior:
        """Mean of the parts that were found, by the policy's weights; the policy's own prior
        where there is none. at_ms: later results do not count."""
        parts = []
        for wanted in policy.benchmarks:
            found = self._newest(who, role, wanted, at_ms)
            if found is not None:
                parts.append(part_of(wanted, found))
        missing = len(parts) < len(policy.benchmarks)
        if not parts:
            return Prior(Fraction(policy.prior_quality, WHOLE), None, (), missing)
        weights = sum(p.wanted.weight for p in parts)
        mean = sum((p.wanted.weight * p.part for p in parts), Fraction(0)) / weights
        variance: Fraction | None = Fraction(0)
        for p in parts:
            if p.variance is None:
                variance = None
                break
            assert variance is not None
            variance += p.wanted.weight**2 * p.variance
        if variance is not None:
            variance /= weights**2
        return Prior(mean, variance, tuple(parts), missing)

    def _newest(
        self, who: Who, role: str, wanted: PolicyBenchmark, at_ms: int
    ) -> SlmBenchmarkResults | None:
        def counts(event: SlmBenchmarkResults) -> bool:
            return (
                event.occurred_at_ms <= at_ms
                and (event.role is None or canonical_role(event.role) == role)
                and wanted.dataset_hash in (None, event.dataset_hash)
                and wanted.signature in (None, event.signature)
            )

        known = [r for r in self._results.get((who, wanted.name), ()) if counts(r.event)]
        newest = max(
            known,
            key=lambda r: (r.event.occurred_at_ms, r.at.partition, r.at.offset),
            default=None,
        )
        return None if newest is None else newest.event


def part_of(wanted: PolicyBenchmark, result: SlmBenchmarkResults) -> Part:
    """A result between the policy's floor and target."""
    width = wanted.target_e9 - wanted.floor_e9
    value = scaled_e9(result.value, result.scale)
    part = min(Fraction(1), max(Fraction(0), Fraction(value - wanted.floor_e9, width)))
    variance = None
    if result.ci_low is not None and result.ci_high is not None:
        span = scaled_e9(result.ci_high, result.scale) - scaled_e9(result.ci_low, result.scale)
        variance = (Fraction(span, abs(width)) / (2 * Z95)) ** 2
    return Part(wanted, result, value, part, variance)


def scaled_e9(value: float, scale: MetricScale) -> int:
    """A reported value in 1e-9 of its unit, half to even; percent as a share."""
    return round(Fraction(value) * BILLION / (100 if scale is MetricScale.PERCENT else 1))

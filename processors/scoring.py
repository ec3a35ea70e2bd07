"""From evidence to entries of a ranking: M1, M2, M3 in exact integers and fractions.

Every number is exact until it is emitted; it is emitted as the nearest 1e-9, half to even.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np

from processors.evidence import MILLION, Evidence, Panel, Who
from processors.rational import double, e9, sqrt_e9
from processors.sketch import (
    ESTIMATES_E9,
    LAST,
    MINIMUM_FOR_MAX,
    OVERFLOW,
    bucket_at,
    lower_edge_us,
    order_statistics,
    upper_edge_us,
)
from schemas.model_profile import RankingEntry, ScoreTerm
from schemas.scoring_policy import CostUnit, ScoringPolicyUpdated
from schemas.values import BILLION

Z95: Final = Fraction(1_959_964, 1_000_000)
WHOLE: Final = 10_000  # shares are ten-thousandths


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentile with its interval, in microseconds; None: no bound. spread: of the interval that
    the standard error uses."""

    value_us: Fraction
    low_us: int | None
    high_us: int | None
    variance: Fraction
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """Mean cost in pico-USD per unit, with the variance of that mean; None: cannot be said."""

    per_request: Fraction | None
    per_1k_tokens: Fraction | None
    value: Fraction | None
    variance: Fraction
    reason: str | None


def latency_of(evidence: Evidence, percentile: int) -> Latency:
    """Percentile of complete responses (at least one), with interval and variance."""
    n = evidence.complete
    cumulative = np.cumsum(evidence.latency)
    bucket = bucket_at(cumulative, percentile * (n - 1) // 100)
    flags = ["overflow"] if bucket == OVERFLOW else []
    smallest, largest = bucket_at(cumulative, 0), bucket_at(cumulative, n - 1)
    lower, upper = order_statistics(n, percentile)
    low = lower_edge_us(bucket_at(cumulative, lower - 1)) if lower >= 1 else None
    high: int | None = None
    if upper <= n:
        high = upper_edge_us(bucket_at(cumulative, upper - 1))
    elif n >= MINIMUM_FOR_MAX[percentile]:
        high = upper_edge_us(largest)
        flags.append("ucb_is_max")
    if low is None or high is None:
        flags.append("interval_is_range")
    width = (upper_edge_us(largest) if high is None else high) - (
        lower_edge_us(smallest) if low is None else low
    )
    return Latency(
        value_us=Fraction(ESTIMATES_E9[min(bucket, LAST)], BILLION),
        low_us=low,
        high_us=high,
        variance=(Fraction(width) / (2 * Z95)) ** 2,
        flags=tuple(flags),
    )


def cost_of(evidence: Evidence, unit: CostUnit) -> Cost:
    """Mean cost of complete responses (at least one) and the variance of that mean.

    The mean per 1,000 tokens is a ratio of sums; its variance is that of the residuals
    cost - ratio * tokens (delta method).
    """
    if evidence.unpriced:
        return Cost(None, None, None, Fraction(0), "unpriced")
    n, tokens = evidence.complete, evidence.tokens
    total = Fraction(evidence.cost, MILLION)
    squares = Fraction(evidence.cost_cost, MILLION**2)
    per_request = total / n
    per_1k = 1000 * total / tokens if tokens else None
    spread = Fraction(0)
    if unit is CostUnit.PER_REQUEST:
        if n > 1:
            spread = (squares - total * total / n) / (n - 1) / n
        return Cost(per_request, per_1k, per_request, spread, None)
    if per_1k is None:
        return Cost(per_request, None, None, Fraction(0), "no_tokens")
    if n > 1:
        ratio = total / tokens
        products = Fraction(evidence.cost_tokens, MILLION)
        residual = squares - 2 * ratio * products + ratio * ratio * evidence.tokens_tokens
        spread = MILLION * residual / (n - 1) / n / Fraction(tokens, n) ** 2
    return Cost(per_request, per_1k, per_1k, spread, None)


@dataclass(frozen=True, slots=True)
class _Term:
    name: str
    value: Fraction
    reference: Fraction | None
    floored: bool
    weight: int
    share: Fraction  # what it adds to the score
    variance: Fraction
    n: int

    def wire(self) -> ScoreTerm:
        return ScoreTerm.model_construct(
            name=self.name,
            value=_emit(self.value),
            reference=None if self.reference is None else _emit(self.reference),
            floored=self.floored,
            weight=self.weight,
            contribution=_emit(self.share),
            standard_error=double(sqrt_e9(self.variance)),
            n=self.n,
        )


def _emit(value: Fraction) -> float:
    return double(e9(value))


def _maybe(value: Fraction | int | None) -> float | None:
    return None if value is None else _emit(Fraction(value))


def _ratio_term(
    name: str,
    weight: int,
    measured: Fraction,
    variance: Fraction,
    reference: int,
    most: Fraction,
    n: int,
) -> _Term:
    """A term that falls as its measure grows: weight * reference / measured, capped at most."""
    share = Fraction(weight, WHOLE)
    floored = measured == 0 or reference >= most * measured
    if floored:
        gain, spread = share * most, Fraction(0)
    else:
        gain = share * reference / measured
        spread = (share * reference) ** 2 * variance / measured**4
    return _Term(name, measured, Fraction(reference), floored, weight, gain, spread, n)


@dataclass(frozen=True, slots=True)
class Measured:
    """What does not depend on weights: shared by all policies of one percentile and cost unit."""

    evidence: Evidence
    latency: Latency | None
    cost: Cost | None


def measure(evidence: Evidence, percentile: int, unit: CostUnit) -> Measured:
    """Latency and cost of a model; None without a complete response."""
    if evidence.complete == 0:
        return Measured(evidence, None, None)
    return Measured(evidence, latency_of(evidence, percentile), cost_of(evidence, unit))


@dataclass(frozen=True, slots=True)
class _Scored:
    """An entry with what its place in the order depends on."""

    entry: RankingEntry
    group: int
    order: tuple[int, Fraction]


def _score(who: Who, measured: Measured, policy: ScoringPolicyUpdated) -> _Scored:
    evidence, latency, cost = measured.evidence, measured.latency, measured.cost
    strength = policy.prior_strength
    quality = Fraction(policy.prior_quality, WHOLE)
    prior = Fraction(strength * policy.prior_reliability, WHOLE)
    reliability = (evidence.complete + prior) / (evidence.trials + strength)
    reason = None
    if latency is None or cost is None:
        reason = "no_complete_response"
    elif cost.value is None:
        reason = cost.reason
    flags = ("parts_missing", *(latency.flags if latency is not None else ()))
    shared: dict[str, Any] = {
        "provider": who[0],
        "model": who[1],
        "invocations": evidence.invocations,
        "complete": evidence.complete,
        "trials": evidence.trials,
        "hits": evidence.complete,
        "rate_limited": evidence.rate_limited,
        "latency_us": None if latency is None else _emit(latency.value_us),
        "latency_low_us": None if latency is None else _maybe(latency.low_us),
        "latency_high_us": None if latency is None else _maybe(latency.high_us),
        "cost_picousd_per_request": None if cost is None else _maybe(cost.per_request),
        "cost_picousd_per_1k_tokens": None if cost is None else _maybe(cost.per_1k_tokens),
        "reliability": _emit(reliability) if evidence.trials else None,
        "quality": _emit(quality),
        "prior_only": True,
        "flags": flags,
    }
    if latency is None or cost is None or cost.value is None:
        entry = RankingEntry.model_construct(
            status="unrankable",
            reason=reason,
            rank=None,
            score=None,
            score_se=None,
            score_raw=None,
            terms=(),
            **shared,
        )
        return _Scored(entry, 2, (0, Fraction(0)))
    most = Fraction(policy.max_ratio_percent, 100)
    weights = (policy.weight_quality, policy.weight_reliability)
    terms = (
        _Term(
            "quality",
            quality,
            None,
            False,
            weights[0],
            Fraction(weights[0], WHOLE) * quality,
            Fraction(weights[0], WHOLE) ** 2 * quality * (1 - quality) / (strength + 1),
            0,
        ),
        _ratio_term(
            "cost",
            policy.weight_cost,
            cost.value,
            cost.variance,
            policy.reference_cost_picousd,
            most,
            evidence.complete,
        ),
        _ratio_term(
            "latency",
            policy.weight_latency,
            latency.value_us,
            latency.variance,
            policy.reference_latency_us,
            most,
            evidence.complete,
        ),
        _Term(
            "reliability",
            reliability,
            None,
            False,
            weights[1],
            Fraction(weights[1], WHOLE) * reliability,
            Fraction(weights[1], WHOLE) ** 2
            * reliability
            * (1 - reliability)
            / (evidence.trials + strength + 1),
            evidence.trials,
        ),
    )
    score = e9(sum((t.share for t in terms), Fraction(0)))
    status, reason, group = "provisional", "prior_only", 0
    if policy.prior_quality < policy.min_quality:
        status, reason, group = "ineligible", "quality_below_gate", 1
    elif reliability < Fraction(policy.min_reliability, WHOLE):
        status, reason, group = "ineligible", "reliability_below_gate", 1
    elif evidence.complete < policy.min_samples or evidence.trials < policy.min_trials:
        reason = "few_samples"
    entry = RankingEntry.model_construct(
        status=status,
        reason=reason,
        rank=None,
        score=double(score),
        score_se=double(sqrt_e9(sum((t.variance for t in terms), Fraction(0)))),
        score_raw=_raw(policy, quality, cost.value, latency.value_us, reliability),
        terms=tuple(t.wire() for t in terms),
        **shared,
    )
    return _Scored(entry, group, (-score, cost.value))


def _raw(
    policy: ScoringPolicyUpdated,
    quality: Fraction,
    cost: Fraction,
    latency_us: Fraction,
    reliability: Fraction,
) -> float | None:
    """Score exactly as seed 001 writes it (R49): cost in USD, latency in ms; for audit only."""
    if cost == 0:
        return None
    return _emit(
        (
            policy.weight_quality * quality
            + policy.weight_cost * 10**12 / cost
            + policy.weight_latency * 1000 / latency_us
            + policy.weight_reliability * reliability
        )
        / WHOLE
    )


def rank(
    panel: Panel, policy: ScoringPolicyUpdated, measured: Callable[[Who], Measured]
) -> tuple[RankingEntry, ...]:
    """Entries in display order: score descending, then lower cost, then id bytes; then those that
    failed a gate, then those that cannot be ranked. measured gives the (shared) measures."""
    scored = sorted(
        ((_score(who, measured(who), policy), who) for who in panel),
        key=lambda pair: (
            pair[0].group,
            pair[0].order if pair[0].group == 0 else (0, Fraction(0)),
            pair[1][0].encode(),
            pair[1][1].encode(),
        ),
    )
    return tuple(
        s.entry if s.group else s.entry.model_copy(update={"rank": place})
        for place, (s, _) in enumerate(scored, 1)
    )

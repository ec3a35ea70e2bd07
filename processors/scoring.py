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


Ratio = tuple[int, int]
"""(numerator, denominator), denominator above 0, not reduced: most are used once, and reducing
costs more than it saves."""


def _plus(a: Ratio, b: Ratio) -> Ratio:
    return a[0] * b[1] + b[0] * a[1], a[1] * b[1]


def _emit(value: Ratio) -> float:
    return double(e9(*value))


def _pair(value: Fraction) -> Ratio:
    return value.numerator, value.denominator


@dataclass(frozen=True, slots=True)
class _Term:
    """share: what it adds to the score. variance: of that share."""

    name: str
    value: Ratio
    reference: int | None
    floored: bool
    weight: int
    share: Ratio
    variance: Ratio
    n: int

    def wire(self) -> ScoreTerm:
        return ScoreTerm.model_construct(
            name=self.name,
            value=_emit(self.value),
            reference=None if self.reference is None else float(self.reference),
            floored=self.floored,
            weight=self.weight,
            contribution=_emit(self.share),
            standard_error=double(sqrt_e9(*self.variance)),
            n=self.n,
        )


def _share_term(name: str, weight: int, value: Ratio, strength: int, n: int) -> _Term:
    """A share (quality, reliability) with a prior of this strength (M2)."""
    hit, of = value
    return _Term(
        name,
        value,
        None,
        False,
        weight,
        (weight * hit, WHOLE * of),
        (weight**2 * hit * (of - hit), WHOLE**2 * of**2 * (n + strength + 1)),
        n,
    )


def _ratio_term(
    name: str,
    weight: int,
    measured: Ratio,
    variance: Ratio,
    reference: int,
    most_percent: int,
    n: int,
) -> _Term:
    """A term that falls as its measure grows: weight * reference / measured, capped."""
    value, of = measured
    floored = value == 0 or reference * of * 100 >= most_percent * value
    if floored:
        gain, spread = (weight * most_percent, WHOLE * 100), (0, 1)
    else:
        gain = (weight * reference * of, WHOLE * value)
        spread = (
            (weight * reference) ** 2 * variance[0] * of**4,
            WHOLE**2 * variance[1] * value**4,
        )
    return _Term(name, measured, reference, floored, weight, gain, spread, n)


@dataclass(frozen=True, slots=True)
class Measured:
    """What does not depend on weights: shared by all policies of one percentile and cost unit.
    fields: those of RankingEntry that follow from it alone."""

    evidence: Evidence
    latency: Latency | None
    cost: Cost | None
    fields: dict[str, Any]


def measure(evidence: Evidence, percentile: int, unit: CostUnit) -> Measured:
    """Latency and cost of a model; None without a complete response."""
    latency = latency_of(evidence, percentile) if evidence.complete else None
    cost = cost_of(evidence, unit) if evidence.complete else None

    def maybe(value: Fraction | None) -> float | None:
        return None if value is None else _emit(_pair(value))

    fields = {
        "invocations": evidence.invocations,
        "complete": evidence.complete,
        "trials": evidence.trials,
        "hits": evidence.complete,
        "rate_limited": evidence.rate_limited,
        "latency_us": None if latency is None else _emit(_pair(latency.value_us)),
        "latency_low_us": None
        if latency is None or latency.low_us is None
        else float(latency.low_us),
        "latency_high_us": None
        if latency is None or latency.high_us is None
        else float(latency.high_us),
        "cost_picousd_per_request": maybe(None if cost is None else cost.per_request),
        "cost_picousd_per_1k_tokens": maybe(None if cost is None else cost.per_1k_tokens),
        "prior_only": True,
        "flags": ("parts_missing", *(latency.flags if latency is not None else ())),
    }
    return Measured(evidence, latency, cost, fields)


@dataclass(frozen=True, slots=True)
class _Scored:
    """An entry with what its place in the order depends on."""

    entry: RankingEntry
    group: int
    order: tuple[int, Fraction]


def _score(who: Who, measured: Measured, policy: ScoringPolicyUpdated) -> _Scored:
    evidence, latency, cost = measured.evidence, measured.latency, measured.cost
    strength = policy.prior_strength
    quality = (policy.prior_quality, WHOLE)
    reliability = (
        evidence.complete * WHOLE + strength * policy.prior_reliability,
        (evidence.trials + strength) * WHOLE,
    )
    fields = {
        **measured.fields,
        "provider": who[0],
        "model": who[1],
        "reliability": _emit(reliability) if evidence.trials else None,
        "quality": _emit(quality),
    }
    if latency is None or cost is None or cost.value is None:
        entry = RankingEntry.model_construct(
            status="unrankable",
            reason="no_complete_response" if cost is None else cost.reason,
            rank=None,
            score=None,
            score_se=None,
            score_raw=None,
            terms=(),
            **fields,
        )
        return _Scored(entry, 2, (0, Fraction(0)))
    n, most = evidence.complete, policy.max_ratio_percent
    terms = (
        _share_term("quality", policy.weight_quality, quality, strength, 0),
        _ratio_term(
            "cost",
            policy.weight_cost,
            _pair(cost.value),
            _pair(cost.variance),
            policy.reference_cost_picousd,
            most,
            n,
        ),
        _ratio_term(
            "latency",
            policy.weight_latency,
            _pair(latency.value_us),
            _pair(latency.variance),
            policy.reference_latency_us,
            most,
            n,
        ),
        _share_term(
            "reliability", policy.weight_reliability, reliability, strength, evidence.trials
        ),
    )
    score, variance = (0, 1), (0, 1)
    for term in terms:
        score, variance = _plus(score, term.share), _plus(variance, term.variance)
    units = e9(*score)
    status, reason, group = "provisional", "prior_only", 0
    if policy.prior_quality < policy.min_quality:
        status, reason, group = "ineligible", "quality_below_gate", 1
    elif reliability[0] * WHOLE < policy.min_reliability * reliability[1]:
        status, reason, group = "ineligible", "reliability_below_gate", 1
    elif n < policy.min_samples or evidence.trials < policy.min_trials:
        reason = "few_samples"
    entry = RankingEntry.model_construct(
        status=status,
        reason=reason,
        rank=None,
        score=double(units),
        score_se=double(sqrt_e9(*variance)),
        score_raw=_raw(policy, quality, cost.value, latency.value_us, reliability),
        terms=tuple([t.wire() for t in terms]),
        **fields,
    )
    return _Scored(entry, group, (-units, cost.value))


def _raw(
    policy: ScoringPolicyUpdated,
    quality: Ratio,
    cost: Fraction,
    latency_us: Fraction,
    reliability: Ratio,
) -> float | None:
    """Score exactly as seed 001 writes it (R49): cost in USD, latency in ms; for audit only."""
    if cost == 0:
        return None
    parts: tuple[Ratio, ...] = (
        (policy.weight_quality * quality[0], quality[1]),
        (policy.weight_cost * 10**12 * cost.denominator, cost.numerator),
        (policy.weight_latency * 1000 * latency_us.denominator, latency_us.numerator),
        (policy.weight_reliability * reliability[0], reliability[1]),
    )
    total: Ratio = (0, 1)
    for part in parts:
        total = _plus(total, part)
    return _emit((total[0], total[1] * WHOLE))


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

"""From evidence to entries of a ranking: M1, M2, M3 in exact integers and fractions.

Every number is exact until it is emitted; it is emitted as the nearest 1e-9, half to even.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from typing import Any, Final

import numpy as np

from processors.benchmarks import WHOLE, Prior
from processors.evidence import MILLION, Evidence, Panel, Who
from processors.rational import double, e9, sqrt_e9
from processors.sketch import (
    MINIMUM_FOR_MAX,
    bucket_at,
    lower_edge_us,
    order_statistics,
    upper_edge_us,
)
from schemas.latency import ESTIMATES_E9, LAST, OVERFLOW
from schemas.model_profile import BenchmarkPart, RankingEntry, ReliabilityPart, ScoreTerm
from schemas.quality import POLICY_COMPLIANCE, REFUSAL_ACCURACY
from schemas.scoring_policy import CostUnit, ScoringPolicyUpdated
from schemas.values import BILLION, COMPLETE, FAILED, OUTCOMES, Outcome

Z_E6: Final = 1_959_964
"""Two-sided 95 % of the normal distribution, in 1e-6 (M0)."""
Z95: Final = Fraction(Z_E6, MILLION)
MOST_ENTRIES: Final = 5_000
FEW: Final = 64
"""Up to so many entries are compared in plain integers, more of them by columns."""
COMPLETE_INDEX: Final = tuple(i for i, o in enumerate(OUTCOMES) if o in COMPLETE)
FAILED_INDEX: Final = tuple(i for i, o in enumerate(OUTCOMES) if o in FAILED)
LIMITED_INDEX: Final = OUTCOMES.index(Outcome.RATE_LIMITED)


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


def latency_of(evidence: Evidence, n: int, percentile: int) -> Latency:
    """Percentile of n complete responses (at least one), with interval and variance."""
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


def cost_of(evidence: Evidence, n: int, unit: CostUnit) -> Cost:
    """Mean cost of n complete responses (at least one) and the variance of that mean.

    The mean per 1,000 tokens is a ratio of sums; its variance is that of the residuals
    cost - ratio * tokens (delta method).
    """
    if evidence.unpriced:
        return Cost(None, None, None, Fraction(0), "unpriced")
    tokens = evidence.tokens
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


def _share_term(name: str, weight: int, value: Ratio, variance: Ratio, n: int) -> _Term:
    """A share (quality, reliability) that counts as it is."""
    return _Term(
        name,
        value,
        None,
        False,
        weight,
        (weight * value[0], WHOLE * value[1]),
        (weight**2 * variance[0], WHOLE**2 * variance[1]),
        n,
    )


def shrunk(hits: int, n: int, prior: Ratio, strength: int) -> tuple[Ratio, Ratio]:
    """(value, variance) of a share with a prior of this mean and strength (M2)."""
    hit = hits * prior[1] + strength * prior[0]
    of = (n + strength) * prior[1]
    return (hit, of), (hit * (of - hit), of**2 * (n + strength + 1))


@lru_cache(maxsize=65_536)
def wilson_e9(hits: int, n: int) -> tuple[int, int]:
    """Ends of the 95 % interval of hits among n > 0 trials, in 1e-9 (Wilson 1927; M2). The root is
    cut off at 30 decimals."""
    z, one, digits = Z_E6**2, MILLION**2, 10**30
    root = isqrt(z * (4 * hits * (n - hits) * one + n * z) * digits**2 // (n * one**2))
    middle = (2 * hits * one + z) * digits
    below = 2 * digits * (n * one + z)
    low, high = (e9(middle + sign * root * one, below) for sign in (-1, 1))
    return max(0, low), min(BILLION, high)


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
    complete: int
    trials: int
    latency: Latency | None
    cost: Cost | None
    fields: dict[str, Any]


def measure(evidence: Evidence, percentile: int, unit: CostUnit) -> Measured:
    """Counts, latency and cost of a model; the last two are None without a complete response."""
    outcomes = evidence.outcomes
    complete = sum(outcomes[i] for i in COMPLETE_INDEX)
    trials = complete + sum(outcomes[i] for i in FAILED_INDEX)
    latency = latency_of(evidence, complete, percentile) if complete else None
    cost = cost_of(evidence, complete, unit) if complete else None
    success = wilson_e9(complete, trials) if trials else None

    def maybe(value: Fraction | None) -> float | None:
        return None if value is None else _emit(_pair(value))

    fields = {
        "invocations": evidence.invocations,
        "complete": complete,
        "trials": trials,
        "hits": complete,
        "rate_limited": outcomes[LIMITED_INDEX],
        "latency_us": None if latency is None else _emit(_pair(latency.value_us)),
        "latency_low_us": None
        if latency is None or latency.low_us is None
        else float(latency.low_us),
        "latency_high_us": None
        if latency is None or latency.high_us is None
        else float(latency.high_us),
        "cost_picousd_per_request": maybe(None if cost is None else cost.per_request),
        "cost_picousd_per_1k_tokens": maybe(None if cost is None else cost.per_1k_tokens),
        "success_low": None if success is None else double(success[0]),
        "success_high": None if success is None else double(success[1]),
    }
    return Measured(evidence, complete, trials, latency, cost, fields)


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality bits of production, shrunk towards the prior of benchmarks or policy (M2, M19)."""

    value: Ratio
    variance: Ratio
    n: int
    hits: int
    prior: Prior

    @property
    def prior_only(self) -> bool:
        """Whether it rests on the policy's word alone."""
        return self.n == 0 and not self.prior.parts

    def fields(self) -> dict[str, Any]:
        """Those of RankingEntry that it makes."""
        return {
            "quality": _emit(self.value),
            "quality_n": self.n,
            "quality_hits": self.hits,
            "quality_prior": _emit(_pair(self.prior.mean)),
            "prior_only": self.prior_only,
            "benchmarks": tuple(
                BenchmarkPart.model_construct(
                    name=part.wanted.name,
                    event_id=part.result.event_id,
                    value=double(part.value_e9),
                    part=_emit(_pair(part.part)),
                    weight=part.wanted.weight,
                )
                for part in self.prior.parts
            ),
        }


def quality_of(evidence: Evidence, policy: ScoringPolicyUpdated, prior: Prior) -> Quality:
    """Quality of a model by a policy's metrics."""
    counts = [evidence.quality.get(metric, (0, 0)) for metric in policy.quality_metrics]
    n, hits = sum(c[0] for c in counts), sum(c[1] for c in counts)
    value, variance = shrunk(hits, n, _pair(prior.mean), policy.prior_strength)
    if n == 0 and prior.variance is not None:
        variance = _pair(prior.variance)  # the benchmarks' own error
    return Quality(value, variance, n, hits, prior)


@dataclass(frozen=True, slots=True)
class Reliability:
    """Availability, policy compliance and refusal accuracy (R53). value: None where no part that
    has a share has been tried."""

    value: Ratio | None
    variance: Ratio
    parts: tuple[ReliabilityPart, ...]
    missing: bool


def reliability_of(measured: Measured, policy: ScoringPolicyUpdated) -> Reliability:
    """Parts with trials, each shrunk towards the prior, averaged by the policy's shares (M2)."""
    quality = measured.evidence.quality
    found = (
        ("availability", policy.part_availability, (measured.trials, measured.complete)),
        (POLICY_COMPLIANCE, policy.part_policy_compliance, quality.get(POLICY_COMPLIANCE, (0, 0))),
        (REFUSAL_ACCURACY, policy.part_refusal_accuracy, quality.get(REFUSAL_ACCURACY, (0, 0))),
    )
    prior = (policy.prior_reliability, WHOLE)
    total, missing, parts = 0, False, []
    value: Ratio = (0, 1)
    variance: Ratio = (0, 1)
    for name, weight, (n, hits) in found:
        if n == 0:
            missing = missing or weight > 0
            continue
        mean, spread = shrunk(hits, n, prior, policy.prior_strength)
        parts.append(
            ReliabilityPart.model_construct(
                name=name,
                n=n,
                hits=hits,
                weight=weight,
                value=_emit(mean),
                standard_error=double(sqrt_e9(*spread)),
            )
        )
        if weight:
            total += weight
            value = _plus(value, (weight * mean[0], mean[1]))
            variance = _plus(variance, (weight**2 * spread[0], spread[1]))
    if total == 0:
        return Reliability(None, (0, 1), tuple(parts), missing)
    mean, spread = (value[0], value[1] * total), (variance[0], variance[1] * total**2)
    return Reliability(mean, spread, tuple(parts), missing)


@dataclass(frozen=True, slots=True)
class _Scored:
    """An entry with what its place in the order depends on."""

    entry: RankingEntry
    group: int
    order: tuple[int, Fraction]


NOWHERE: Final = (0, Fraction(0))


def _score(who: Who, measured: Measured, policy: ScoringPolicyUpdated, prior: Prior) -> _Scored:
    latency, cost = measured.latency, measured.cost
    quality = quality_of(measured.evidence, policy, prior)
    reliability = reliability_of(measured, policy)
    flags = (
        *(("parts_missing",) if reliability.missing else ()),
        *(("benchmarks_missing",) if prior.missing else ()),
        *(latency.flags if latency is not None else ()),
    )
    fields = {
        **measured.fields,
        **quality.fields(),
        "provider": who[0],
        "model": who[1],
        "reliability": None if reliability.value is None else _emit(reliability.value),
        "parts": reliability.parts,
        "flags": flags,
    }
    if latency is None or cost is None or cost.value is None or reliability.value is None:
        reason = "no_complete_response"
        if cost is not None:
            reason = cost.reason or "no_reliability"
        entry = RankingEntry.model_construct(
            status="unrankable",
            reason=reason,
            rank=None,
            score=None,
            score_se=None,
            score_raw=None,
            terms=(),
            **fields,
        )
        return _Scored(entry, 2, NOWHERE)
    n, most = measured.complete, policy.max_ratio_percent
    terms = (
        _share_term("quality", policy.weight_quality, quality.value, quality.variance, quality.n),
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
            "reliability",
            policy.weight_reliability,
            reliability.value,
            reliability.variance,
            measured.trials,
        ),
    )
    score, variance = (0, 1), (0, 1)
    for term in terms:
        score, variance = _plus(score, term.share), _plus(variance, term.variance)
    units = e9(*score)
    status, reason_, group = _standing(measured, quality, reliability.value, latency, policy)
    entry = RankingEntry.model_construct(
        status=status,
        reason=reason_,
        rank=None,
        score=double(units),
        score_se=double(sqrt_e9(*variance)),
        score_raw=_raw(policy, quality.value, cost.value, latency.value_us, reliability.value),
        terms=tuple([t.wire() for t in terms]),
        **fields,
    )
    return _Scored(entry, group, (-units, cost.value))


def _standing(
    measured: Measured,
    quality: Quality,
    reliability: Ratio,
    latency: Latency,
    policy: ScoringPolicyUpdated,
) -> tuple[str, str | None, int]:
    """(status, reason, group in the display order) of a model that has a score."""
    if quality.value[0] * WHOLE < policy.min_quality * quality.value[1]:
        return "ineligible", "quality_below_gate", 1
    if reliability[0] * WHOLE < policy.min_reliability * reliability[1]:
        return "ineligible", "reliability_below_gate", 1
    if measured.complete < policy.min_samples or measured.trials < policy.min_trials:
        return "provisional", "few_samples", 0
    if quality.prior_only:
        return "provisional", "prior_only", 0
    if "interval_is_range" in latency.flags:
        return "provisional", "latency_interval", 0
    return "ranked", None, 0


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


def apart(score_a: int, se_a: int, score_b: int, se_b: int) -> bool:
    """Whether a's score exceeds b's by more than the 95 % error of the difference; all in 1e-9."""
    lead = score_a - score_b
    return lead > 0 and lead**2 * MILLION**2 > Z_E6**2 * (se_a**2 + se_b**2)


def ranks(scores: Sequence[tuple[int, int]]) -> list[int]:
    """Ranks with ties (M3): 1 + the number of those that are certainly better. scores: (score,
    standard error) in 1e-9, highest score first."""
    if len(scores) <= FEW:
        return [
            1 + sum(apart(*scores[o], *scores[m]) for o in range(m)) for m in range(len(scores))
        ]
    score = np.array([s for s, _ in scores], np.float64)
    square = np.array([e for _, e in scores], np.float64) ** 2
    found = []
    for m in range(len(scores)):
        lead = score[:m] - score[m]
        limit = np.sqrt(square[:m] + square[m]) * (Z_E6 / MILLION)
        near = np.abs(lead - limit) <= 1e-6 * limit + 1  # where floats cannot tell
        better = int(np.count_nonzero((lead > limit) & ~near))
        better += sum(apart(*scores[o], *scores[m]) for o in np.flatnonzero(near).tolist())
        found.append(1 + better)
    return found


def rank(
    panel: Panel,
    policy: ScoringPolicyUpdated,
    measured: Callable[[Who], Measured],
    prior: Callable[[Who], Prior],
) -> tuple[RankingEntry, ...]:
    """Entries in display order: score descending, then lower cost, then id bytes; then those that
    failed a gate, then those that cannot be ranked. measured gives the (shared) measures."""
    scored = sorted(
        (
            (_score(who, measured(who), policy, prior(who)), who)
            for who, evidence in panel.items()
            if evidence.invocations
        ),
        key=lambda pair: (
            pair[0].group,
            pair[0].order if pair[0].group == 0 else NOWHERE,
            pair[1][0].encode(),
            pair[1][1].encode(),
        ),
    )
    entries = [s.entry for s, _ in scored]
    places = ranks([units(s.entry) for s, _ in scored if s.group == 0])
    for i, place in enumerate(places):
        entries[i] = entries[i].model_copy(update={"rank": place})
    return tuple(entries)


def units(entry: RankingEntry) -> tuple[int, int]:
    """Score and standard error of a scored entry as they are emitted, in 1e-9."""
    assert entry.score is not None and entry.score_se is not None
    return round(entry.score * BILLION), round(entry.score_se * BILLION)

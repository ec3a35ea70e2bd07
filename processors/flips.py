"""What would put the runner-up of a ranking ahead of its leader: the smallest change of one weight,
of one price, latency or quality. Pure; from what the ranking says alone.

Every flip that is reported has been scored again, and the same change less one unit does not flip.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from operator import mul
from typing import Final, Literal

from processors.rational import e9
from schemas.model_profile import RankingEntry
from schemas.scoring_policy import ScoringPolicyUpdated
from schemas.values import MAX_LATENCY_US

WHOLE: Final = 10_000
"""Weights in ten-thousandths, and a price in ten-thousandths of what it is."""
MILLION: Final = 10**6
TERMS: Final = ("quality", "cost", "latency", "reliability")
DEAREST: Final = MILLION * WHOLE
"""A price is not raised above a million times itself."""

Weights = tuple[int, int, int, int]
Gains = tuple[Fraction, Fraction, Fraction, Fraction]
"""What each term would add with the whole weight, in the order of TERMS."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What is assumed to be otherwise; None: as it is. price: in ten-thousandths of the cost.
    latency_us: of the percentile. quality_e6: in millionths."""

    weights: Weights | None = None
    price: int | None = None
    latency_us: int | None = None
    quality_e6: int | None = None


AS_IT_IS: Final = Changes()


@dataclass(frozen=True, slots=True)
class Flip:
    """The smallest change of one thing that makes the runner-up lead.

    of: the weight's name, or provider/model. before, after: ten-thousandths (weight; price as a
    part of what it is), microseconds, or a share; after None: no change of it alone does it.
    weights: all four with it, the others kept in proportion. by: score, or gate where the leader
    fails the policy's least quality first. leader_score, runner_up_score: then, in 1e-9.
    """

    what: Literal["weight", "price", "latency", "quality"]
    of: str
    before: float
    after: float | None
    weights: Weights | None = None
    by: Literal["score", "gate"] | None = None
    leader_score: int | None = None
    runner_up_score: int | None = None


def weights_of(policy: ScoringPolicyUpdated) -> Weights:
    """Weights of a policy in the order of TERMS."""
    return (
        policy.weight_quality,
        policy.weight_cost,
        policy.weight_latency,
        policy.weight_reliability,
    )


def gains_of(
    entry: RankingEntry, policy: ScoringPolicyUpdated, changes: Changes = AS_IT_IS
) -> Gains:
    """Terms of a scored entry without their weights, from the values it names."""
    values = {term.name: Fraction(term.value) for term in entry.terms}
    cost, latency, quality = values["cost"], values["latency"], values["quality"]
    if changes.price is not None:
        cost = cost * changes.price / WHOLE
    if changes.latency_us is not None:
        latency = Fraction(changes.latency_us)
    if changes.quality_e6 is not None:
        quality = Fraction(changes.quality_e6, MILLION)
    most = Fraction(policy.max_ratio_percent, 100)
    return (
        quality,
        most if cost == 0 else min(most, policy.reference_cost_picousd / cost),
        most if latency == 0 else min(most, policy.reference_latency_us / latency),
        values["reliability"],
    )


def score_of(entry: RankingEntry, policy: ScoringPolicyUpdated, changes: Changes = AS_IT_IS) -> int:
    """Score of a scored entry in 1e-9, recomputed from the values it names. Without changes it is
    the score it bears, but for the rounding of those values."""
    return _weighted(gains_of(entry, policy, changes), changes.weights or weights_of(policy))


def _weighted(gains: Gains, weights: Weights) -> int:
    total = sum((w * gain for w, gain in zip(weights, gains, strict=True)), Fraction(0))
    return e9(total.numerator, total.denominator * WHOLE)


def with_weight(weights: Weights, index: int, weight: int) -> Weights:
    """Weights with one of them changed and the others in the proportion they have, all whole and
    10,000 together: the largest remainders are rounded up. Others that are all 0 share equally."""
    rest = WHOLE - weight
    others = [i for i in range(len(weights)) if i != index]
    shares = {i: weights[i] for i in others}
    if not any(shares.values()):
        shares = dict.fromkeys(others, 1)
    of = sum(shares.values())
    found = {i: share * rest // of for i, share in shares.items()}
    left = rest - sum(found.values())
    for i in sorted(others, key=lambda i: (-(shares[i] * rest % of), i))[:left]:
        found[i] += 1
    found[index] = weight
    return found[0], found[1], found[2], found[3]


def flips(
    leader: RankingEntry, runner_up: RankingEntry, policy: ScoringPolicyUpdated
) -> tuple[Flip, ...]:
    """Of each weight, and of price, latency and quality of either, the smallest change that makes
    the runner-up lead. Both must be scored, the leader not behind; () where their scores differ by
    no more than the rounding of what they were made of."""
    if _ahead(runner_up, leader, policy, AS_IT_IS, AS_IT_IS):
        return ()
    found = [_weight_flip(leader, runner_up, policy, i) for i in range(len(TERMS))]
    for entry, worse in ((leader, True), (runner_up, False)):
        found += _measure_flips(leader, runner_up, policy, entry, worse)
    return tuple(found)


def _ahead(
    runner_up: RankingEntry,
    leader: RankingEntry,
    policy: ScoringPolicyUpdated,
    of_runner_up: Changes,
    of_leader: Changes,
) -> Literal["score", "gate"] | None:
    """What puts the runner-up ahead, if anything does."""
    if score_of(runner_up, policy, of_runner_up) > score_of(leader, policy, of_leader):
        return "score"
    if of_leader.quality_e6 is not None and (
        of_leader.quality_e6 * WHOLE < policy.min_quality * MILLION
    ):
        return "gate"
    return None


def _weight_flip(
    leader: RankingEntry, runner_up: RankingEntry, policy: ScoringPolicyUpdated, index: int
) -> Flip:
    """The nearest other weight, up or down. The others are rounded, so the lead need not change
    steadily: every weight is tried, but those that the exact line rules out."""
    weights = weights_of(policy)
    ahead, behind = gains_of(leader, policy), gains_of(runner_up, policy)
    lacks = tuple(b - a for a, b in zip(ahead, behind, strict=True))  # of the runner-up
    now = weights[index]
    rounding = sum((abs(gap) for i, gap in enumerate(lacks) if i != index), Fraction(0))
    whole = lcm(*(gain.denominator for gain in (*ahead, *behind)))
    leads = [int(gain * whole) for gain in ahead]  # integers: many weights may have to be tried
    follows = [int(gain * whole) for gain in behind]
    best: tuple[int, Weights] | None = None
    for sign, room in ((1, WHOLE - now), (-1, now)):
        least = _ruled_out(weights, index, lacks, rounding, sign, room)
        for step in range(least, room + 1):
            if best is not None and step >= best[0]:
                break
            tried = with_weight(weights, index, now + sign * step)
            behind_e9, ahead_e9 = (
                e9(sum(map(mul, tried, gains)), whole * WHOLE) for gains in (follows, leads)
            )
            if behind_e9 > ahead_e9:
                best = step, tried
                break
    if best is None:
        return Flip("weight", TERMS[index], now, None)
    changed = Changes(weights=best[1])
    return Flip(
        "weight",
        TERMS[index],
        now,
        best[1][index],
        best[1],
        "score",
        score_of(leader, policy, changed),
        score_of(runner_up, policy, changed),
    )


def _ruled_out(
    weights: Weights,
    index: int,
    lacks: tuple[Fraction, ...],
    rounding: Fraction,
    sign: int,
    room: int,
) -> int:
    """First step of a weight that may flip: before it the runner-up's lead, a straight line where
    the other weights are not rounded, stays below 0 by more than rounding can make up."""
    if room == 0:
        return 1
    lead_now = sum((w * gap for w, gap in zip(weights, lacks, strict=True)), Fraction(0))
    rest = WHOLE - weights[index]
    if rest:
        others = (lead_now - weights[index] * lacks[index]) / rest
    else:
        others = sum((gap for i, gap in enumerate(lacks) if i != index), Fraction(0)) / 3
    slope = sign * (lacks[index] - others)
    if lead_now + rounding >= 0:
        return 1
    if slope <= 0:
        return room + 1
    return max(1, int((-lead_now - rounding) / slope))


def _measure_flips(
    leader: RankingEntry,
    runner_up: RankingEntry,
    policy: ScoringPolicyUpdated,
    entry: RankingEntry,
    worse: bool,
) -> list[Flip]:
    """Flips by price, latency and quality of one of the two, which is to become worse or better.
    The lead changes steadily with each of them, so halving finds the smallest change."""
    values = {term.name: Fraction(term.value) for term in entry.terms}
    who = f"{entry.provider}/{entry.model}"

    def found(
        what: Literal["price", "latency", "quality"],
        before: float,
        at: Callable[[int], Changes],
        start: int,
        limit: int,
        unit: int,
    ) -> Flip:
        """start: the first value that is a change, in the direction of limit."""
        sign = 1 if limit >= start else -1

        def ahead(step: int) -> Literal["score", "gate"] | None:
            changed = at(start + sign * step)
            of = (AS_IT_IS, changed) if worse else (changed, AS_IT_IS)
            return _ahead(runner_up, leader, policy, *of)

        step = smallest(lambda n: ahead(n) is not None, abs(limit - start))
        if step is None:
            return Flip(what, who, before, None)
        changed = at(start + sign * step)
        return Flip(
            what,
            who,
            before,
            (start + sign * step) / unit,
            None,
            ahead(step),
            score_of(leader, policy, changed if worse else AS_IT_IS),
            score_of(runner_up, policy, AS_IT_IS if worse else changed),
        )

    latency, quality = values["latency"], values["quality"] * MILLION
    price = Flip("price", who, WHOLE, None)
    if values["cost"] > 0:  # nothing makes a free model dearer by a factor
        price = found(
            "price",
            WHOLE,
            lambda n: Changes(price=n),
            WHOLE + 1 if worse else WHOLE - 1,
            DEAREST if worse else 0,
            1,
        )
    above, below = _beyond(latency)
    slower = Flip("latency", who, float(latency), None)
    if above <= MAX_LATENCY_US if worse else below >= 1:
        slower = found(
            "latency",
            float(latency),
            lambda n: Changes(latency_us=n),
            above if worse else below,
            MAX_LATENCY_US if worse else 1,
            1,
        )
    above, below = _beyond(quality)
    better = Flip("quality", who, float(values["quality"]), None)
    if below >= 0 if worse else above <= MILLION:
        better = found(
            "quality",
            float(values["quality"]),
            lambda n: Changes(quality_e6=n),
            below if worse else above,
            0 if worse else MILLION,
            MILLION,
        )
    return [price, slower, better]


def _beyond(value: Fraction) -> tuple[int, int]:
    """Nearest whole numbers above and below."""
    floor = value.numerator // value.denominator
    return floor + 1, floor if floor < value else floor - 1


def smallest(holds: Callable[[int], bool], limit: int) -> int | None:
    """Smallest number from 0 to limit for which something holds that goes on to hold; None: it
    never does."""
    if not holds(limit):
        return None
    low, high = -1, limit
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high

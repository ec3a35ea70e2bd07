"""Rankings with exact fractions, as math.md M1 to M4 and M19 write them; the double of a field is
made once, at the end: the nearest integer of 1e-9, half to even, divided by 1e9."""

import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from operator import add, sub
from typing import Any, Final

from tools.verify.recompute import (
    LIMIT,
    OUTCOME_INDEX,
    OVERFLOW,
    UNITS,
    Cards,
    CostSums,
    Pane,
    Totals,
    by_bytes,
)
from tools.verify.records import Fields

E9: Final = 10**9
Z: Final = Fraction(1959964, 10**6)
MOST_ENTRIES: Final = 5_000
MINIMUM_FOR_MAX: Final = {50: 6, 95: 59, 99: 299}
SCALE: Final = 1 << 256  # fixed point of the binomial weights
PAIRS: Final = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def to_e9(value: Fraction) -> int:
    """The nearest integer of 1e-9, half to even."""
    return round(value * E9)


def root_e9(square: Fraction) -> int:
    """The nearest integer of 1e-9 to a square root, half to even."""
    wanted = square * (E9 * E9)
    low = isqrt(wanted.numerator // wanted.denominator)
    middle = Fraction(2 * low + 1, 2) ** 2
    up = wanted > middle or (wanted == middle and low % 2 == 1)
    return low + 1 if up else low


def double(value: Fraction | None) -> float | None:
    """The double of a field."""
    return None if value is None else to_e9(value) / E9


@lru_cache(maxsize=OVERFLOW + 1)
def estimate_e9(index: int) -> int:
    """Value that stands for a bucket, 2*gamma**i/(gamma+1) us, in 1e-9 us (M4)."""
    i = min(index, OVERFLOW - 1)
    return to_e9(Fraction(99 * 101**i, 100 * 99**i))


def upper_us(index: int) -> int:
    """Upper edge of a bucket; the overflow counts as the last bucket."""
    return LIMIT[min(index, OVERFLOW - 1)]


def lower_us(index: int) -> int:
    """Lower edge of a bucket; the overflow counts as the last bucket."""
    return 0 if index == 0 else LIMIT[min(index, OVERFLOW - 1) - 1]


def value_at(histogram: Counter[int], position: int) -> int:
    """Bucket of the value at a zero-based position of the sorted values."""
    for index in sorted(histogram):
        position -= histogram[index]
        if position < 0:
            return index
    raise IndexError("position beyond the last value")


@lru_cache(maxsize=100_000)
def binomial_bounds(n: int, percentile: int) -> tuple[int, int]:
    """(l, u) = (Q(0.025; n, p), Q(0.975; n, p) + 1), Q(x) the smallest k with cdf(k) >= x (M2).

    Weights relative to that of the mode, by the ratio of neighbours, with 256 binary digits after
    the point; further out than they reach, weights are below 1e-70 and count as none.
    """
    good, bad = percentile, 100 - percentile
    mode = min(n, (n + 1) * good // 100)
    below: list[int] = []  # weights of mode - 1, mode - 2, ...
    weight, k = SCALE, mode
    while k > 0 and weight:
        weight = weight * k * bad // ((n - k + 1) * good)
        k -= 1
        below.append(weight)
    above: list[int] = []  # weights of mode + 1, mode + 2, ...
    weight, k = SCALE, mode
    while k < n and weight:
        weight = weight * (n - k) * good // ((k + 1) * bad)
        k += 1
        above.append(weight)
    weights = [*reversed(below), SCALE, *above]
    first, total = mode - len(below), sum(weights)

    def quantile(share: Fraction) -> int:
        reached = 0
        for i, w in enumerate(weights):
            reached += w
            if reached * share.denominator >= total * share.numerator:
                return first + i
        return n

    return quantile(Fraction(25, 1000)), quantile(Fraction(975, 1000)) + 1


def pane_cost(
    pair: tuple[str, str], start: int, totals: Totals, cards: Cards, below: int
) -> CostSums | None:
    """Cost sums of complete responses in one pane, priced by the cards in force at its start, of
    those below an offset; None: a unit has no price (M8). Cost counts in 1e-6 pUSD."""
    prices = []
    for unit, units in zip(UNITS, totals.unit_sums, strict=True):
        found = cards.price(*pair, unit, start, before_offset=below) if units > 0 else 0
        if found is None:
            return None
        prices.append(found)
    c = sum(price * units for price, units in zip(prices, totals.unit_sums, strict=True))
    t = sum(totals.unit_sums)
    cc = ct = tt = 0
    for (a, b), product in zip(PAIRS, totals.unit_products, strict=True):
        twice = 1 if a == b else 2
        cc += twice * prices[a] * prices[b] * product
        ct += (prices[a] if a == b else prices[a] + prices[b]) * product
        tt += twice * product
    cost, tokens = totals.reported_sums
    cost_cost, cost_tokens, tokens_tokens = totals.reported_products
    return (
        c + cost * 10**6,
        t + tokens,
        cc + cost_cost * 10**12,
        ct + cost_tokens * 10**6,
        tt + tokens_tokens,
    )


# Evidence

Who = tuple[str, str]  # provider, model
PanesOfRole = Mapping[int, Mapping[str, Pane]]
"""Start of a pane -> mode -> totals by model."""


@dataclass(slots=True)
class Sum:
    """One model in a window. cost: sums in 1e-6 pUSD. unpriced: panes in which a unit had no
    price."""

    totals: Totals = field(default_factory=Totals)
    cost: list[int] = field(default_factory=lambda: [0] * 5)
    unpriced: int = 0


@dataclass(slots=True)
class Window:
    """Sums over the panes of one role that start in [first, last]: what moves in is added, what
    moves out is taken away. modes: that count; empty: all. below: next offset of
    rate.card.updated, as the ranking recorded it."""

    panes: PanesOfRole
    starts: Sequence[int]
    modes: frozenset[str]
    cards: Cards
    below: int
    first: int = 0
    last: int = -1
    models: dict[Who, Sum] = field(default_factory=dict)
    _hash: str | None = None

    def move(self, first: int, last: int) -> None:
        """Moves to other bounds, of starts of panes, both inclusive."""
        if (first, last) == (self.first, self.last):
            return
        for start in self._held(self.first, self.last):
            if not first <= start <= last:
                self._leave(start)
        for start in self._held(first, last):
            if not self.first <= start <= self.last:
                self._enter(start)
        self.first, self.last, self._hash = first, last, None

    def _held(self, first: int, last: int) -> Sequence[int]:
        return self.starts[bisect_left(self.starts, first) : bisect_left(self.starts, last + 1)]

    def _of(self, start: int) -> list[tuple[Who, Totals]]:
        return [
            (who, totals)
            for mode, pane in self.panes[start].items()
            if not self.modes or mode in self.modes
            for who, totals in pane.items()
        ]

    def _enter(self, start: int) -> None:
        for who, totals in self._of(start):
            mine = self.models.setdefault(who, Sum())
            mine.totals.add(totals)
            cost = self._cost(who, start, totals)
            if cost is None:
                mine.unpriced += 1
            else:
                mine.cost[:] = map(add, mine.cost, cost)

    def _leave(self, start: int) -> None:
        for who, totals in self._of(start):
            mine = self.models[who]
            mine.totals.subtract(totals)
            cost = self._cost(who, start, totals)
            if cost is None:
                mine.unpriced -= 1
            else:
                mine.cost[:] = map(sub, mine.cost, cost)
            if not mine.totals.invocations and not mine.totals.quality:
                del self.models[who]

    def _cost(self, who: Who, start: int, totals: Totals) -> CostSums | None:
        if totals.cost is None or totals.cost[0] != self.below:  # many windows share a pane
            totals.cost = self.below, pane_cost(who, start, totals, self.cards, self.below)
        return totals.cost[1]

    def candidates(self) -> list[tuple[Who, Sum]]:
        """Models with an invocation, by their bytes; quality alone makes no candidate."""
        found = [(who, mine) for who, mine in self.models.items() if mine.totals.invocations]
        return sorted(found, key=lambda item: by_bytes(item[0]))

    def state_hash(self) -> str:
        """Digest of the candidates with all their sums (R56)."""
        if self._hash is None:
            rows = [_hashed(who, mine) for who, mine in self.candidates()]
            text = json.dumps(rows, separators=(",", ":"), ensure_ascii=True)
            self._hash = hashlib.sha256(text.encode()).hexdigest()
        return self._hash


def _hashed(who: Who, mine: Sum) -> list[object]:
    totals = mine.totals
    cost, tokens, cost_cost, cost_tokens, tokens_tokens = mine.cost
    sums: list[object] = [cost, tokens, cost_cost, cost_tokens, tokens_tokens]
    return [
        who[0],
        who[1],
        list(totals.outcomes),
        *([None] * 5 if mine.unpriced else sums),
        mine.unpriced > 0,
        [[index, totals.latency[index]] for index in sorted(totals.latency)],
        [
            [metric, *counts]
            for metric, counts in sorted(totals.quality.items(), key=lambda item: item[0].encode())
        ],
    ]


# Quality and reliability

Look = Callable[[Who, Fields], Fields | None]
"""(model, benchmark of a policy) -> the result that counts; None: there is none."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of one model (M2, M19): value and variance, and what they follow from."""

    value: Fraction
    variance: Fraction
    prior: Fraction
    n: int
    hits: int
    benchmarks: tuple[Fields, ...]
    missing: bool  # some benchmark, or all of them


def shared_e9(value: float, scale: str) -> int:
    """A reported number in 1e-9 of its unit, percent as a share; half to even (M19)."""
    exact = Fraction(value) * E9
    return round(exact / 100 if scale == "PERCENT" else exact)


def benchmark_part(value_e9: int, wanted: Fields) -> Fraction:
    """0 at the policy's floor or beyond it, 1 at its target (M19)."""
    floor, target = wanted["floor_e9"], wanted["target_e9"]
    return min(max(Fraction(value_e9 - floor, target - floor), Fraction(0)), Fraction(1))


def quality_of(who: Who, totals: Totals, policy: Fields, look: Look) -> Quality:
    """Bits from production, shrunk towards the mean of the benchmarks."""
    counts = [totals.quality.get(metric, (0, 0)) for metric in policy["quality_metrics"]]
    n, hits = sum(c[0] for c in counts), sum(c[1] for c in counts)
    found = [(b, result) for b in policy["benchmarks"] if (result := look(who, b)) is not None]
    weights = sum(b["weight"] for b, _ in found)
    prior, listed, errors = Fraction(policy["prior_quality"], 10_000), [], []
    if found:
        prior = Fraction(0)
    for wanted, result in found:
        value = shared_e9(result["value"], result["scale"])
        part = benchmark_part(value, wanted)
        prior += wanted["weight"] * part / weights
        listed.append(
            {
                "name": wanted["name"],
                "event_id": result["event_id"],
                "value": value / E9,
                "part": double(part),
                "weight": wanted["weight"],
            }
        )
        if result["ci_low"] is not None and result["ci_high"] is not None:
            ends = [shared_e9(result[end], result["scale"]) for end in ("ci_low", "ci_high")]
            error = (ends[1] - ends[0]) / (2 * Z * abs(wanted["target_e9"] - wanted["floor_e9"]))
            errors.append(wanted["weight"] * error)
    q, variance = shrunk(hits, n, prior, policy["prior_strength"])
    if n == 0 and found and len(errors) == len(found):  # its own error, as it was reported
        variance = sum((error**2 for error in errors), Fraction(0)) / weights**2
    missing = len(found) < len(policy["benchmarks"])
    return Quality(q, variance, prior, n, hits, tuple(listed), missing)


def shrunk(hits: int, n: int, mean: Fraction, strength: int) -> tuple[Fraction, Fraction]:
    """A rate, shrunk towards a prior mean of so many trials, and its variance (M2)."""
    rho = (hits + strength * mean) / (n + strength)
    return rho, rho * (1 - rho) / (n + strength + 1)


@lru_cache(maxsize=10_000)
def wilson(k: int, n: int) -> tuple[Fraction, Fraction] | None:
    """95 % interval of k hits in n trials (M2); None: no trial."""
    if n == 0:
        return None
    square = Z**2 * (Fraction(4 * k * (n - k), n) + Z**2)
    root = Fraction(isqrt(square.numerator * 10**60 // square.denominator), 10**30)
    centre, scale = 2 * k + Z**2, 2 * (n + Z**2)
    return max((centre - root) / scale, Fraction(0)), min((centre + root) / scale, Fraction(1))


@dataclass(frozen=True, slots=True)
class Reliability:
    """Reliability of one model; value: None: no part that counts has trials."""

    value: Fraction | None
    variance: Fraction
    parts: tuple[Fields, ...]
    missing: bool


def reliability_of(totals: Totals, hits: int, trials: int, policy: Fields) -> Reliability:
    """Three parts, those without trials left out and the others' shares scaled up (M2)."""
    strength = policy["prior_strength"]
    mean = Fraction(policy["prior_reliability"], 10_000)
    counted = [("availability", trials, hits)] + [
        (metric, *totals.quality.get(metric, (0, 0)))
        for metric in ("policy_compliance", "refusal_accuracy")
    ]
    listed, shares, value, variance, missing = [], 0, Fraction(0), Fraction(0), False
    for part, n, k in counted:
        share = policy[f"part_{part}"]
        if n == 0:
            missing = missing or share > 0
            continue
        rho, var = shrunk(k, n, mean, strength)
        shares += share
        value += share * rho
        variance += share**2 * var
        listed.append(
            {
                "name": part,
                "n": n,
                "hits": k,
                "weight": share,
                "value": double(rho),
                "standard_error": root_e9(var) / E9,
            }
        )
    if shares == 0:
        return Reliability(None, Fraction(0), tuple(listed), missing)
    return Reliability(value / shares, variance / shares**2, tuple(listed), missing)


# Entries


@dataclass(frozen=True, slots=True)
class Entry:
    """One model in a ranking. cost: exact, in the policy's unit. score, error: in 1e-9."""

    who: Who
    fields: Fields
    status: str
    cost: Fraction = Fraction(0)
    score: int = 0
    error: int = 0

    @property
    def places(self) -> bool:
        """Whether it has a rank."""
        return self.status in ("ranked", "provisional")


def entry(who: Who, mine: Sum, policy: Fields, look: Look) -> Entry:
    """One entry of a ranking without its rank."""
    window = mine.totals

    def outcome(symbol: str) -> int:
        return window.outcomes[OUTCOME_INDEX[symbol]]

    complete = outcome("SUCCESS") + outcome("REFUSAL")
    trials = complete + outcome("FAILURE") + outcome("TIMEOUT") + outcome("CONFIG_ERROR")
    quality = quality_of(who, window, policy, look)
    reliability = reliability_of(window, complete, trials, policy)
    interval = wilson(complete, trials)
    flags = []
    if reliability.missing:
        flags.append("parts_missing")
    if quality.missing:
        flags.append("benchmarks_missing")

    # latency
    latency = low = high = None
    var_l = Fraction(0)
    if complete:
        n, pct = complete, policy["latency_percentile"]
        at = value_at(window.latency, pct * (n - 1) // 100)
        latency = Fraction(estimate_e9(at), E9)
        smallest, largest = min(window.latency), max(window.latency)
        if at == OVERFLOW:
            flags.append("overflow")
        first, last = binomial_bounds(n, pct)
        if first > 0:
            low = lower_us(value_at(window.latency, first - 1))
        if last <= n:
            high = upper_us(value_at(window.latency, last - 1))
        elif n >= MINIMUM_FOR_MAX[pct]:
            high = upper_us(largest)
            flags.append("ucb_is_max")
        if low is None or high is None:
            flags.append("interval_is_range")
        upper = upper_us(largest) if high is None else high
        lower = lower_us(smallest) if low is None else low
        var_l = ((upper - lower) / (2 * Z)) ** 2

    # cost
    per_request = per_1k = cost = None
    var_c = Fraction(0)
    if complete and not mine.unpriced:
        c, t, cc, ct, tt = (
            Fraction(mine.cost[0], 10**6),
            mine.cost[1],
            Fraction(mine.cost[2], 10**12),
            Fraction(mine.cost[3], 10**6),
            mine.cost[4],
        )
        per_request = c / complete
        per_1k = None if t == 0 else 1000 * c / t
        if policy["cost_unit"] == "PER_REQUEST":
            cost = per_request
            spread = cc - c * c / complete
            if complete > 1:
                var_c = spread / (complete - 1) / complete
        elif t:
            cost = per_1k
            ratio = c / t
            spread = cc - 2 * ratio * ct + ratio * ratio * tt
            if complete > 1:
                mean_t = Fraction(t, complete)
                var_c = 1000**2 * spread / (complete - 1) / complete / mean_t**2

    r = reliability.value
    made: Fields = {
        "provider": who[0],
        "model": who[1],
        "rank": None,
        "score": None,
        "score_se": None,
        "score_raw": None,
        "invocations": window.invocations,
        "complete": complete,
        "trials": trials,
        "hits": complete,
        "rate_limited": outcome("RATE_LIMITED"),
        "latency_us": double(latency),
        "latency_low_us": None if low is None else float(low),
        "latency_high_us": None if high is None else float(high),
        "cost_picousd_per_request": double(per_request),
        "cost_picousd_per_1k_tokens": double(per_1k),
        "reliability": double(r),
        "quality": double(quality.value),
        "prior_only": quality.n == 0 and not quality.benchmarks,
        "flags": flags,
        "terms": [],
        "quality_n": quality.n,
        "quality_hits": quality.hits,
        "quality_prior": double(quality.prior),
        "benchmarks": list(quality.benchmarks),
        "parts": list(reliability.parts),
        "success_low": None if interval is None else double(interval[0]),
        "success_high": None if interval is None else double(interval[1]),
    }

    def without_score(reason: str) -> Entry:
        return Entry(who, {**made, "status": "unrankable", "reason": reason}, "unrankable")

    if not complete:
        return without_score("no_complete_response")
    if mine.unpriced:
        return without_score("unpriced")
    if cost is None:
        return without_score("no_tokens")
    if r is None:
        return without_score("no_reliability")
    assert latency is not None

    # terms (M1)
    w_q, w_c, w_l, w_r = (
        Fraction(policy[f"weight_{part}"], 10_000)
        for part in ("quality", "cost", "latency", "reliability")
    )
    r_max = Fraction(policy["max_ratio_percent"], 100)
    c_ref, l_ref = Fraction(policy["reference_cost_picousd"]), policy["reference_latency_us"]
    q = quality.value

    def term(
        part: str,
        value: Fraction,
        reference: Fraction | None,
        floored: bool,
        contribution: Fraction,
        variance: Fraction,
        n: int,
    ) -> tuple[Fields, Fraction, Fraction]:
        return (
            {
                "name": part,
                "value": double(value),
                "reference": double(reference),
                "floored": floored,
                "weight": policy[f"weight_{part}"],
                "contribution": double(contribution),
                "standard_error": root_e9(variance) / E9,
                "n": n,
            },
            contribution,
            variance,
        )

    def against(
        part: str, weight: Fraction, value: Fraction, reference: Fraction, variance: Fraction
    ) -> tuple[Fields, Fraction, Fraction]:
        if value == 0 or reference / value >= r_max:
            return term(part, value, reference, True, weight * r_max, Fraction(0), complete)
        return term(
            part,
            value,
            reference,
            False,
            weight * reference / value,
            (weight * reference / value**2) ** 2 * variance,
            complete,
        )

    terms = (
        term("quality", q, None, False, w_q * q, w_q**2 * quality.variance, quality.n),
        against("cost", w_c, cost, c_ref, var_c),
        against("latency", w_l, latency, Fraction(l_ref), var_l),
        term("reliability", r, None, False, w_r * r, w_r**2 * reliability.variance, trials),
    )
    score = to_e9(sum((contribution for _, contribution, _ in terms), Fraction(0)))
    error = root_e9(sum((variance for _, _, variance in terms), Fraction(0)))
    raw = None if cost == 0 else w_q * q + w_c / (cost / 10**12) + w_l / (latency / 1000) + w_r * r
    if q < Fraction(policy["min_quality"], 10_000):
        status, reason = "ineligible", "quality_below_gate"
    elif r < Fraction(policy["min_reliability"], 10_000):
        status, reason = "ineligible", "reliability_below_gate"
    elif complete < policy["min_samples"] or trials < policy["min_trials"]:
        status, reason = "provisional", "few_samples"
    elif made["prior_only"]:
        status, reason = "provisional", "prior_only"
    elif "interval_is_range" in flags:
        status, reason = "provisional", "latency_interval"
    else:
        status, reason = "ranked", None
    made |= {
        "terms": [fields for fields, _, _ in terms],
        "score": score / E9,
        "score_se": error / E9,
        "score_raw": double(raw),
        "status": status,
        "reason": reason,
    }
    return Entry(who, made, status, cost, score, error)


def beats(one: Entry, other: Entry) -> bool:
    """Whether a score is higher by more than the error of the difference (M3)."""
    ahead = one.score - other.score
    return ahead > 0 and ahead**2 > Z**2 * (one.error**2 + other.error**2)


def entries(candidates: Sequence[tuple[Who, Sum]], policy: Fields, look: Look) -> list[Entry]:
    """All entries of a ranking in display order, with their ranks; those that tie share one."""
    made = [entry(who, mine, policy, look) for who, mine in candidates]

    def place(one: Entry) -> tuple[Any, ...]:
        if one.places:
            return (0, -one.score, one.cost, by_bytes(one.who))
        return (1 if one.status == "ineligible" else 2, 0, 0, by_bytes(one.who))

    made.sort(key=place)
    placed = [one for one in made if one.places]
    for i, one in enumerate(placed):
        one.fields["rank"] = 1 + sum(beats(better, one) for better in placed[:i])
    return made


# Leader

Leader = dict[str, Any]
"""provider, model, since_ms, challenger_provider, challenger_model, closes."""


def leader_after(
    before: Leader | None, shown: Sequence[Entry], policy: Fields, as_of_ms: int
) -> Leader:
    """Who leads after a final (M3). shown: its entries in display order."""

    def leads(who: Who | None, since: int | None, challenger: Who | None, closes: int) -> Leader:
        return {
            "provider": who and who[0],
            "model": who and who[1],
            "since_ms": since,
            "challenger_provider": challenger and challenger[0],
            "challenger_model": challenger and challenger[1],
            "closes": closes,
        }

    ranked = [one for one in shown if one.status == "ranked"]
    incumbent = None
    if before is not None and before["provider"] is not None:
        incumbent = next(
            (
                one
                for one in shown
                if one.places and one.who == (before["provider"], before["model"])
            ),
            None,
        )
    if before is None or incumbent is None:
        if not ranked:
            return leads(None, None, None, 0)
        return leads(ranked[0].who, as_of_ms, None, 0)
    since = before["since_ms"]
    others = [one for one in ranked if one.who != incumbent.who]
    challenger = others[0] if others else None
    if (
        challenger is None
        or challenger.score - incumbent.score <= policy["hysteresis_margin_e9"]
        or not beats(challenger, incumbent)
    ):
        return leads(incumbent.who, since, None, 0)
    again = challenger.who == (before["challenger_provider"], before["challenger_model"])
    closes = before["closes"] + 1 if again else 1
    if closes >= policy["hysteresis_closes"] and as_of_ms - since >= policy["hysteresis_min_ms"]:
        return leads(challenger.who, as_of_ms, None, 0)
    return leads(incumbent.who, since, challenger.who, closes)

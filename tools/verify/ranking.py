"""Rankings with exact fractions, as math.md M1 to M4 writes them; the double of a field is made
once, at the end: the nearest integer of 1e-9, half to even, divided by 1e9."""

from collections import Counter
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from operator import add
from typing import Final

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

Window = list[tuple[int, Pane]]
"""(start, totals by model) of the panes of a window, one for each mode that counts."""

E9: Final = 10**9
Z: Final = Fraction(1959964, 10**6)
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


def by_model(panes: Window) -> dict[tuple[str, str], list[tuple[int, Totals]]]:
    """Per (provider, model) its totals in the panes of a window."""
    models: dict[tuple[str, str], list[tuple[int, Totals]]] = {}
    for start, pane in panes:
        for pair, totals in pane.items():
            models.setdefault(pair, []).append((start, totals))
    return models


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


Sums = tuple[Fraction, int, Fraction, Fraction, int]
"""C, T, CC, CT, TT of a window, in pUSD and tokens."""


def _cost_sums(
    pair: tuple[str, str], panes: list[tuple[int, Totals]], cards: Cards, below: int
) -> Sums | None:
    """Cost sums of a window; None: unpriced (M8, M3)."""
    sums = [0] * 5
    for start, totals in panes:
        if totals.cost is None or totals.cost[0] != below:  # many windows share a pane
            totals.cost = below, pane_cost(pair, start, totals, cards, below)
        found = totals.cost[1]
        if found is None:
            return None
        sums = list(map(add, sums, found))
    c, t, cc, ct, tt = sums
    return Fraction(c, 10**6), t, Fraction(cc, 10**12), Fraction(ct, 10**6), tt


Evidence = dict[tuple[str, str], tuple[Totals, Sums | None]]
"""Per (provider, model) what a window holds: all that a policy's numbers follow from."""


def evidence(panes: Window, cards: Cards, cards_before: int) -> Evidence:
    """Sums over a window.

    panes: of the role and the policy's evidence modes. cards_before: next offset of
    rate.card.updated as the ranking recorded it.
    """
    made: Evidence = {}
    for pair, mine in by_model(panes).items():
        window = Totals()
        for _, totals in mine:
            window.add(totals)
        made[pair] = window, _cost_sums(pair, mine, cards, cards_before)
    return made


def entry(
    pair: tuple[str, str], window: Totals, sums: Sums | None, policy: Fields
) -> tuple[Fields, Fraction | None]:
    """One entry of a ranking without its rank, and its exact cost in the policy's unit."""

    def outcome(symbol: str) -> int:
        return window.outcomes[OUTCOME_INDEX[symbol]]

    hits = outcome("SUCCESS") + outcome("REFUSAL")
    trials = hits + outcome("FAILURE") + outcome("TIMEOUT") + outcome("CONFIG_ERROR")
    complete = hits
    flags = ["parts_missing"]

    # quality and reliability
    strength = policy["prior_strength"]
    q = Fraction(policy["prior_quality"], 10_000)
    var_q = q * (1 - q) / (strength + 1)
    r = (hits + strength * Fraction(policy["prior_reliability"], 10_000)) / (trials + strength)
    var_r = r * (1 - r) / (trials + strength + 1)

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
    if complete and sums is not None:
        c, t, cc, ct, tt = sums
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

    made: Fields = {
        "provider": pair[0],
        "model": pair[1],
        "rank": None,
        "score": None,
        "score_se": None,
        "score_raw": None,
        "invocations": sum(window.outcomes),
        "complete": complete,
        "trials": trials,
        "hits": hits,
        "rate_limited": outcome("RATE_LIMITED"),
        "latency_us": double(latency),
        "latency_low_us": None if low is None else float(low),
        "latency_high_us": None if high is None else float(high),
        "cost_picousd_per_request": double(per_request),
        "cost_picousd_per_1k_tokens": double(per_1k),
        "reliability": double(r) if trials else None,
        "quality": double(q),
        "prior_only": True,
        "flags": flags,
        "terms": [],
    }
    if not complete:
        return {**made, "status": "unrankable", "reason": "no_complete_response"}, None
    if sums is None:
        return {**made, "status": "unrankable", "reason": "unpriced"}, None
    if cost is None:
        return {**made, "status": "unrankable", "reason": "no_tokens"}, None
    assert latency is not None

    # terms (M1)
    w_q, w_c, w_l, w_r = (
        Fraction(policy[f"weight_{part}"], 10_000)
        for part in ("quality", "cost", "latency", "reliability")
    )
    r_max = Fraction(policy["max_ratio_percent"], 100)
    c_ref, l_ref = Fraction(policy["reference_cost_picousd"]), policy["reference_latency_us"]

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
        term("quality", q, None, False, w_q * q, w_q**2 * var_q, 0),
        against("cost", w_c, cost, c_ref, var_c),
        against("latency", w_l, latency, Fraction(l_ref), var_l),
        term("reliability", r, None, False, w_r * r, w_r**2 * var_r, trials),
    )
    score = sum((contribution for _, contribution, _ in terms), Fraction(0))
    variance = sum((v for _, _, v in terms), Fraction(0))
    raw = None if cost == 0 else w_q * q + w_c / (cost / 10**12) + w_l / (latency / 1000) + w_r * r
    made |= {
        "terms": [fields for fields, _, _ in terms],
        "score": double(score),
        "score_se": root_e9(variance) / E9,
        "score_raw": double(raw),
    }
    if q < Fraction(policy["min_quality"], 10_000):
        status, reason = "ineligible", "quality_below_gate"
    elif r < Fraction(policy["min_reliability"], 10_000):
        status, reason = "ineligible", "reliability_below_gate"
    elif complete < policy["min_samples"] or trials < policy["min_trials"]:
        status, reason = "provisional", "few_samples"
    else:
        status, reason = "provisional", "prior_only"
    return {**made, "status": status, "reason": reason}, cost


def entries(found: Evidence, policy: Fields) -> list[Fields]:
    """All entries of a ranking in display order."""
    made = [entry(pair, window, sums, policy) for pair, (window, sums) in found.items()]

    def place(item: tuple[Fields, Fraction | None]) -> tuple[object, ...]:
        fields, cost = item
        name = by_bytes((fields["provider"], fields["model"]))
        if fields["status"] == "provisional":
            return (0, -fields["score"], cost, name)
        return (1 if fields["status"] == "ineligible" else 2, 0, 0, name)

    ordered = [fields for fields, _ in sorted(made, key=place)]
    for rank, fields in enumerate((f for f in ordered if f["status"] == "provisional"), 1):
        fields["rank"] = rank
    return ordered

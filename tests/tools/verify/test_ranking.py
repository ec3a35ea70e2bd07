"""Rankings in exact fractions: the worked examples of M1 and M4, and the same digits as the
scorer's from the same totals."""

import random
from fractions import Fraction
from math import comb
from typing import Any

import pytest

from processors import evidence, scoring
from processors.sketch import order_statistics
from processors.totals import Totals as FastTotals
from schemas import RateCardUpdated, ScoringPolicyUpdated
from tools.verify import ranking
from tools.verify.log import Record
from tools.verify.recompute import PANE_MS, Cards, Pane, Totals, bucket, fact_models
from tools.verify.records import Fields

POLICY: Fields = {
    "event_id": "p1",
    "occurred_at_ms": 0,
    "source": "test",
    "role": "dialogue",
    "deployment_mode": "PRODUCTION",
    "weight_quality": 4000,
    "weight_cost": 1500,
    "weight_latency": 1500,
    "weight_reliability": 3000,
    "cost_unit": "PER_REQUEST",
    "reference_cost_picousd": 4_000_000_000,
    "reference_latency_us": 2_000_000,
    "latency_percentile": 95,
    "max_ratio_percent": 200,
    "prior_quality": 8200,
    "prior_reliability": 9700,
    "prior_strength": 20,
    "min_quality": 0,
    "min_reliability": 0,
    "min_samples": 59,
    "min_trials": 30,
    "evidence_modes": [],
    "actor": "test",
}


def invocation(**changed: Any) -> Fields:
    """One complete request that cost 0.001 USD and took one second less a bit."""
    return {
        "outcome": "SUCCESS",
        "input_tokens": 100,
        "cached_tokens": 0,
        "output_tokens": 50,
        "latency_us": 980_000,
        "reported_cost_picousd": 1_000_000_000,
        **changed,
    }


def totals(*invocations: Fields) -> Totals:
    made = Totals()
    for one in invocations:
        made.count(one)
    return made


def ranked(pane: Pane, policy: Fields = POLICY, cards: Cards | None = None) -> list[Fields]:
    return ranking.entries(ranking.evidence([(0, pane)], cards or Cards(), 10**9), policy)


def test_example_of_m1_scores_1_219() -> None:
    """q 0.82, c 0.001 USD (ratio 4, capped at 2), latency at the cap too, r 0.97."""
    window = totals(*[invocation()] * 97, *[invocation(outcome="FAILURE")] * 3)
    (entry,) = ranked({("a", "m"): window})
    assert entry["reliability"] == 0.97
    assert entry["score"] == 1.219
    assert [t["contribution"] for t in entry["terms"]] == [0.328, 0.3, 0.3, 0.291]
    assert [t["floored"] for t in entry["terms"]] == [False, True, True, False]
    assert entry["status"] == "provisional"
    assert entry["reason"] == "prior_only"


def test_example_of_m4_bucket_231_stands_for_100_4946_us() -> None:
    assert bucket(100) == 231
    assert round(ranking.estimate_e9(231) / 1e9, 4) == 100.4946
    assert ranking.lower_us(231) == 99
    assert ranking.upper_us(231) == 101


@pytest.mark.parametrize("percentile", [50, 95, 99])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 36, 37, 59, 73, 299, 368, 400])
def test_bounds_are_the_binomial_quantiles(n: int, percentile: int) -> None:
    p = Fraction(percentile, 100)
    cdf, reached = [], Fraction(0)
    for k in range(n + 1):
        reached += comb(n, k) * p**k * (1 - p) ** (n - k)
        cdf.append(reached)

    def quantile(share: Fraction) -> int:
        return next(k for k, c in enumerate(cdf) if c >= share)

    wanted = (quantile(Fraction(1, 40)), quantile(Fraction(39, 40)) + 1)
    assert ranking.binomial_bounds(n, percentile) == wanted


@pytest.mark.parametrize("percentile", [50, 95, 99])
def test_bounds_are_those_of_the_scorer_for_large_n_too(percentile: int) -> None:
    for n in [*range(1, 800), 12_345, 250_000, 1_000_003]:
        assert ranking.binomial_bounds(n, percentile) == order_statistics(n, percentile), n


def test_roots_are_rounded_to_the_nearest_billionth() -> None:
    assert ranking.root_e9(Fraction(2)) == 1_414_213_562
    assert ranking.root_e9(Fraction(0)) == 0
    half = Fraction(2 * 7 + 1, 2 * 10**9)
    assert ranking.root_e9(half**2) == 8  # a tie goes to the even one
    assert ranking.root_e9((half + Fraction(1, 10**9)) ** 2) == 8


def test_reasons_stand_in_their_order() -> None:
    """No response before no price, no price before gates, gates before too few samples."""
    assert ranked({("a", "m"): totals(invocation(outcome="FAILURE"))})[0]["reason"] == (
        "no_complete_response"
    )
    unpriced = totals(invocation(reported_cost_picousd=None))
    assert ranked({("a", "m"): unpriced})[0]["reason"] == "unpriced"
    silent = totals(invocation(input_tokens=0, output_tokens=0))
    per_1k = {**POLICY, "cost_unit": "PER_1K_TOKENS"}
    assert ranked({("a", "m"): silent}, per_1k)[0]["reason"] == "no_tokens"
    strict = {**POLICY, "min_quality": 9000, "min_reliability": 9900}
    assert ranked({("a", "m"): totals(invocation())}, strict)[0]["reason"] == "quality_below_gate"
    strict["min_quality"] = 0
    found = ranked({("a", "m"): totals(invocation())}, strict)[0]
    assert (found["reason"], found["rank"]) == ("reliability_below_gate", None)
    assert ranked({("a", "m"): totals(invocation())})[0]["reason"] == "few_samples"


def test_order_is_score_then_cost_then_bytes() -> None:
    """Both floored: equal scores, so the cheaper one leads; of equal ones the smaller name."""
    cheap = totals(*[invocation(reported_cost_picousd=10)] * 60)
    dear = totals(*[invocation(reported_cost_picousd=20)] * 60)
    failed = totals(invocation(outcome="FAILURE"))
    pane = {("z", "m"): cheap, ("a", "m"): dear, ("b", "m"): cheap, ("0", "m"): failed}
    found = ranked(pane)
    assert [(e["provider"], e["rank"]) for e in found] == [
        ("b", 1),
        ("z", 2),
        ("a", 3),
        ("0", None),
    ]


OUTCOMES = ("SUCCESS", "REFUSAL", "FAILURE", "TIMEOUT", "RATE_LIMITED", "CONFIG_ERROR")


def _some(chance: random.Random) -> Fields:
    return invocation(
        outcome=chance.choice(OUTCOMES[:2] if chance.random() < 0.8 else OUTCOMES),
        input_tokens=chance.choice([0, 1, 777, 10**9]),
        cached_tokens=chance.choice([0, 0, 5]),
        output_tokens=chance.choice([0, 3, 4096]),
        latency_us=chance.choice(
            [1, 99, 1_000_000, 3_599_999_999, 10**12, chance.randrange(1, 10**7)]
        ),
        reported_cost_picousd=chance.choice([None, None, 0, 123_456_789, 2**62]),
    )


def _cards(chance: random.Random) -> tuple[Cards, evidence.Cards]:
    plain, fast = Cards(), evidence.Cards()
    offset = 0
    for provider in "ab":
        for unit in ("INPUT_TOKEN", "CACHED_TOKEN", "OUTPUT_TOKEN"):
            for _ in range(chance.choice([0, 1, 1, 2, 3])):
                f = {
                    "event_id": f"c{offset}",
                    "occurred_at_ms": 0,
                    "source": "test",
                    "provider": provider,
                    "model": "m",
                    "unit": unit,
                    "price_picousd_per_million": chance.choice([0, 1, 150_000_000_000, 7]),
                    "valid_from_ms": chance.choice([0, PANE_MS]),
                    "valid_to_ms": chance.choice([None, 2 * PANE_MS]),
                    "version": chance.choice([1, 1, 2]),
                }
                plain.add(Record("rate.card.updated", 0, offset, 5, b"k", b""), f)
                fast.add(offset, RateCardUpdated.model_validate(f))
                offset += 1
    return plain, fast


@pytest.mark.parametrize("seed", range(150))
def test_scorer_and_verify_agree_to_the_last_digit(seed: int) -> None:
    """The same totals, cards and policy: two computations that share no code."""
    chance = random.Random(seed)
    plain_cards, fast_cards = _cards(chance)
    panes: list[tuple[int, Pane]] = [
        (
            start,
            {
                (provider, "m"): totals(*[_some(chance) for _ in range(chance.choice([1, 7, 70]))])
                for provider in "abc"
                if chance.random() < 0.8
            },
        )
        for start in (0, PANE_MS, 2 * PANE_MS)
    ]
    policy = {
        **POLICY,
        "cost_unit": chance.choice(["PER_REQUEST", "PER_1K_TOKENS"]),
        "latency_percentile": chance.choice([50, 95, 99]),
        "max_ratio_percent": chance.choice([100, 200, 10_000]),
        "min_reliability": chance.choice([0, 8000]),
        "min_samples": chance.choice([1, 59]),
        "prior_quality": chance.choice([0, 5000, 10_000]),
        "reference_cost_picousd": chance.choice([1, 4_000_000_000]),
    }
    panel: evidence.Panel = {}
    for start, pane in panes:
        facts = [(start, _wire(f)) for f in fact_models(pane)]
        evidence.add_panel(panel, evidence.panel_of(facts, fast_cards))
    fast_policy = ScoringPolicyUpdated.model_validate(policy)
    unit, percentile = fast_policy.cost_unit, fast_policy.latency_percentile
    fast = scoring.rank(
        panel, fast_policy, lambda who: scoring.measure(panel[who], percentile, unit)
    )
    plain = ranking.entries(ranking.evidence(panes, plain_cards, 10**9), policy)
    assert plain == [_listed(entry.model_dump()) for entry in fast]


def _wire(fact: Fields) -> Any:
    made = FastTotals(
        outcomes=fact["outcomes"],
        tokens=[fact["input_tokens"], fact["cached_tokens"], fact["output_tokens"]],
        priced_n=fact["priced_n"],
        unit_sums=[int(v) for v in fact["unit_sums"]],
        unit_products=[int(v) for v in fact["unit_products"]],
        reported_n=fact["reported_n"],
        reported_sums=[int(v) for v in fact["reported_sums"]],
        reported_products=[int(v) for v in fact["reported_products"]],
        latency=dict(zip(fact["latency_buckets"], fact["latency_counts"], strict=True)),
    )
    return made.wire(fact["provider"], fact["model"])


def _listed(value: Any) -> Any:
    """Tuples as the lists that stand on the wire."""
    if isinstance(value, dict):
        return {k: _listed(v) for k, v in value.items()}
    return [_listed(v) for v in value] if isinstance(value, list | tuple) else value

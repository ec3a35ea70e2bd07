"""Rankings in exact fractions: the worked examples of M1 to M4 and M19, and the same digits as
the scorer's from the same totals."""

import random
from fractions import Fraction
from math import comb
from typing import Any

import pytest

from processors import evidence, leader, scoring
from processors.benchmarks import Benchmarks
from processors.digest import state_hash
from processors.sketch import order_statistics
from processors.totals import Totals as FastTotals
from schemas import (
    Position,
    RateCardUpdated,
    Recorded,
    ScoringPolicyUpdated,
    SlmBenchmarkResults,
)
from schemas.model_profile import LeaderState
from tests.support.evidence import POLICY, ROUGE, WER, invocation, result, totals
from tools.verify import ranking
from tools.verify.log import Record
from tools.verify.rankings import Inputs
from tools.verify.recompute import PANE_MS, Cards, Pane, Rules, Totals, bucket, fact_models
from tools.verify.records import Fields


def nothing(_who: ranking.Who, _wanted: Fields) -> None:
    return None


def window(panes: dict[int, Pane], cards: Cards | None = None) -> ranking.Window:
    made = ranking.Window(
        {start: {"": pane} for start, pane in panes.items()},
        sorted(panes),
        frozenset(),
        cards or Cards(),
        10**9,
    )
    made.move(min(panes), max(panes))
    return made


def ranked(
    pane: Pane,
    policy: Fields = POLICY,
    cards: Cards | None = None,
    look: ranking.Look = nothing,
) -> list[Fields]:
    found = ranking.entries(window({0: pane}, cards).candidates(), policy, look)
    return [one.fields for one in found]


def one(mine: Totals, policy: Fields = POLICY, look: ranking.Look = nothing) -> Fields:
    (entry,) = ranked({("a", "m"): mine}, policy, look=look)
    return entry


def test_example_of_m1_scores_1_219() -> None:
    """q 0.82, c 0.001 USD (ratio 4, capped at 2), latency at the cap too, r 0.97."""
    entry = one(totals(*[invocation()] * 97, *[invocation(outcome="FAILURE")] * 3))
    assert entry["reliability"] == 0.97
    assert entry["score"] == 1.219
    assert [t["contribution"] for t in entry["terms"]] == [0.328, 0.3, 0.3, 0.291]
    assert [t["floored"] for t in entry["terms"]] == [False, True, True, False]
    assert entry["status"] == "provisional"
    assert entry["reason"] == "prior_only"
    assert entry["prior_only"]


def test_example_of_m2_wilson_of_81_in_263() -> None:
    low, high = ranking.wilson(81, 263) or (Fraction(0), Fraction(0))
    assert (round(float(low), 6), round(float(high), 6)) == (0.255289, 0.366210)
    z, p, n = 1.959964, 81 / 263, 263
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    assert (float(low), float(high)) == pytest.approx((centre - half, centre + half), abs=1e-14)
    assert ranking.wilson(0, 0) is None
    assert [ranking.wilson(k, 5) for k in (0, 5)] == [
        (0, ranking.wilson(0, 5)[1]),  # type: ignore[index]
        (ranking.wilson(5, 5)[0], 1),  # type: ignore[index]
    ]


def scored(who: str, score: float, error: float, status: str = "ranked") -> ranking.Entry:
    return ranking.Entry(
        (who, "m"), {}, status, Fraction(0), round(score * 1e9), round(error * 1e9)
    )


def test_example_of_m3_ranks_q_p_s_r_as_1_2_2_4(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "P": scored("P", 0.94, 0.007),
        "Q": scored("Q", 1.22, 0.02),
        "R": scored("R", 0.79, 0.01),
        "S": scored("S", 0.95, 0.006),
    }
    monkeypatch.setattr(ranking, "entry", lambda who, *_: made[who[0]])
    found = ranking.entries([((name, "m"), ranking.Sum()) for name in made], POLICY, nothing)
    assert [(e.who[0], e.fields["rank"]) for e in found] == [("Q", 1), ("S", 2), ("P", 2), ("R", 4)]


def test_a_tie_needs_the_error_of_the_difference_and_not_a_hair_more() -> None:
    """3-4-5: the limit is 1.959964 * 0.005, exactly 9,799,820 e-9."""
    low = scored("a", 0, 0.003)
    assert not ranking.beats(scored("b", 0.009799820, 0.004), low)
    assert ranking.beats(scored("b", 0.009799821, 0.004), low)
    assert not ranking.beats(low, scored("b", 0.5, 0.004))


def test_equal_models_share_a_rank() -> None:
    slow = totals(*[invocation(latency_us=1_500_000 + i) for i in range(80)], quality=[40, 20])
    found = ranked({(name, "m"): slow for name in "abc"})
    assert [(e["provider"], e["rank"], e["status"]) for e in found] == [
        (name, 1, "ranked") for name in "abc"
    ]


def looked_up(*results: Fields) -> ranking.Look:
    known = {f["name"]: f for f in results}
    return lambda _, wanted: known.get(wanted["name"])


def test_example_of_m19_rouge_and_wer_make_0_65() -> None:
    policy = {**POLICY, "benchmarks": [ROUGE, WER]}
    entry = one(totals(invocation()), policy, looked_up(result("rouge", 0.35), result("wer", 0.1)))
    assert entry["quality"] == entry["quality_prior"] == 0.65
    assert [(b["name"], b["value"], b["part"]) for b in entry["benchmarks"]] == [
        ("rouge", 0.35, 0.5),
        ("wer", 0.1, 0.8),
    ]
    assert not entry["prior_only"]
    assert entry["flags"][0] == "parts_missing"
    assert "benchmarks_missing" not in entry["flags"]


def test_benchmarks_are_weighted_clipped_and_percent_is_a_share() -> None:
    policy = {**POLICY, "benchmarks": [{**ROUGE, "weight": 3}, WER]}
    half = looked_up(result("rouge", 35.0, scale="PERCENT"))
    assert one(totals(invocation()), policy, half)["quality"] == 0.5
    assert one(totals(invocation()), policy, half)["flags"][1] == "benchmarks_missing"
    both = looked_up(result("rouge", 35.0, scale="PERCENT"), result("wer", 3.0))
    assert one(totals(invocation()), policy, both)["quality"] == 0.375  # wer beyond its floor
    none = one(totals(invocation()), policy)
    assert (none["quality"], none["prior_only"]) == (0.82, True)
    assert "benchmarks_missing" in none["flags"]
    halves = [ranking.shared_e9(n / 1024, "UNIT") for n in (1, 3)]
    assert halves == [976_562, 2_929_688]  # 976,562.5 and 2,929,687.5: to the even one


def test_production_bits_are_blended_with_the_benchmarks() -> None:
    """(45 + 20 * 0.65)/(70 + 20)."""
    policy = {**POLICY, "benchmarks": [ROUGE, WER], "quality_metrics": ["quality", "thumbs"]}
    look = looked_up(result("rouge", 0.35), result("wer", 0.1))
    mine = totals(invocation(), quality=[50, 40], thumbs=[20, 5], other=[9, 9])
    entry = one(mine, policy, look)
    q = Fraction(45 + 13, 90)
    assert entry["quality"] == ranking.double(q)
    assert (entry["quality_n"], entry["quality_hits"]) == (70, 45)
    assert entry["terms"][0]["n"] == 70
    error = ranking.root_e9(Fraction(4, 10) ** 2 * q * (1 - q) / 91) / 1e9
    assert entry["terms"][0]["standard_error"] == error


def test_a_reported_interval_is_the_error_of_quality_while_there_are_no_bits() -> None:
    """Both widths are 0.02 * 1.959964 * 2 of their ranges: errors 0.02 and 0.02 of equal weight."""
    policy = {**POLICY, "benchmarks": [ROUGE, WER]}
    wide = [
        result("rouge", 0.35, ci_low=0.35, ci_high=0.35 + 0.02 * 2 * 1.959964 * 0.3),
        result("wer", 0.1, ci_low=0.1, ci_high=0.1 + 0.02 * 2 * 1.959964 * 0.25),
    ]
    entry = one(totals(invocation()), policy, looked_up(*wide))
    wanted = 0.4 * (0.02**2 + 0.02**2) ** 0.5 / 2
    assert entry["terms"][0]["standard_error"] == pytest.approx(wanted, abs=2e-9)
    bare = looked_up(wide[0], result("wer", 0.1))  # one has none: the spread of the prior
    shrunk = 0.4 * (0.65 * 0.35 / 21) ** 0.5
    found = one(totals(invocation()), policy, bare)["terms"][0]["standard_error"]
    assert found == pytest.approx(shrunk, abs=1e-9)


def test_parts_of_reliability_that_are_absent_leave_their_share_to_the_others() -> None:
    """Prior .97 of strength 20: (97 + 19.4)/120, (9 + 19.4)/30."""
    mine = totals(*[invocation()] * 97, *[invocation(outcome="TIMEOUT")] * 3)
    mine.quality = {"refusal_accuracy": [10, 9], "policy_compliance": [0, 0]}
    entry = one(mine)
    a, b = Fraction(97 * 5 + 97, 600), Fraction(9 * 5 + 97, 150)
    assert entry["reliability"] == ranking.double((5000 * a + 2500 * b) / 7500)
    assert [(p["name"], p["n"], p["hits"], p["weight"]) for p in entry["parts"]] == [
        ("availability", 100, 97, 5000),
        ("refusal_accuracy", 10, 9, 2500),
    ]
    assert entry["flags"] == ["parts_missing"]
    mine.quality["policy_compliance"] = [1, 1]
    assert one(mine)["flags"] == []


def test_without_a_part_that_counts_there_is_no_reliability() -> None:
    shares = {"part_availability": 0, "part_policy_compliance": 10_000, "part_refusal_accuracy": 0}
    entry = one(totals(invocation()), {**POLICY, **shares})
    assert (entry["status"], entry["reason"]) == ("unrankable", "no_reliability")
    assert (entry["reliability"], entry["terms"]) == (None, [])
    assert [p["name"] for p in entry["parts"]] == ["availability"]


def test_quality_alone_makes_no_candidate() -> None:
    pane = {("a", "m"): totals(invocation()), ("b", "m"): totals(quality=[9, 9])}
    assert [e["provider"] for e in ranked(pane)] == ["a"]


# Leader


def state(who: str | None, since: int | None, challenger: str | None, closes: int) -> Fields:
    return {
        "provider": who,
        "model": who and "m",
        "since_ms": since,
        "challenger_provider": challenger,
        "challenger_model": challenger and "m",
        "closes": closes,
    }


def test_a_challenger_leads_after_three_closes_and_half_an_hour() -> None:
    shown = [scored("b", 0.95, 0.001), scored("a", 0.9, 0.001)]
    before, story = state("a", 0, None, 0), []
    for close in range(1, 8):
        before = ranking.leader_after(before, shown, POLICY, close * PANE_MS)
        story.append((before["provider"], before["closes"]))
    assert story == [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("a", 5), ("b", 0), ("b", 0)]
    assert before["since_ms"] == 6 * PANE_MS


def test_the_count_begins_anew_where_the_lead_fails_or_another_leads() -> None:
    hour = 12 * PANE_MS
    a, b, c = scored("a", 0.9, 0.001), scored("b", 0.95, 0.001), scored("c", 0.96, 0.001)
    near = scored("b", 0.92, 0.001)  # by the margin, and not more
    noisy = scored("b", 0.95, 0.03)
    counted = state("a", 0, "b", 2)
    for challenger in (near, noisy):
        after = ranking.leader_after(counted, [challenger, a], POLICY, hour)
        assert after == state("a", 0, None, 0)
    assert ranking.leader_after(counted, [c, b, a], POLICY, hour) == state("a", 0, "c", 1)
    unsure = scored("b", 0.95, 0.001, "provisional")
    assert ranking.leader_after(counted, [unsure, a], POLICY, hour) == state("a", 0, None, 0)
    assert ranking.leader_after(counted, [b, a], POLICY, hour) == state("b", hour, None, 0)


def test_a_leader_that_no_longer_qualifies_is_replaced_at_once() -> None:
    b, late = scored("b", 0.5, 0.001), 9 * PANE_MS
    gone = scored("a", 0.9, 0.001, "ineligible")
    led = state("a", 0, None, 0)
    assert ranking.leader_after(led, [b, gone], POLICY, late) == state("b", late, None, 0)
    assert ranking.leader_after(led, [gone], POLICY, late) == state(None, None, None, 0)
    unsure = scored("a", 0.4, 0.001, "provisional")  # it keeps its place
    assert ranking.leader_after(led, [unsure], POLICY, late) == led
    assert ranking.leader_after(None, [unsure, b], POLICY, late) == state("b", late, None, 0)
    assert ranking.leader_after(None, [unsure], POLICY, late) == state(None, None, None, 0)


def test_equal_models_never_switch() -> None:
    same = [scored("a", 0.9, 0.01), scored("b", 0.9, 0.01)]
    led = state("b", 0, None, 0)
    for close in range(100):
        led = ranking.leader_after(led, same, POLICY, close * PANE_MS)
    assert led == state("b", 0, None, 0)


# Windows


def test_a_window_that_moves_is_the_window_made_anew() -> None:
    """Forth, back and far away; what has left leaves no trace."""
    chance = random.Random(3)
    cards, _ = _cards(chance)
    panes = {
        start * PANE_MS: {
            (p, "m"): totals(*[_some(chance) for _ in range(3)], quality=[2, 1])
            for p in "abcd"
            if chance.random() < 0.5
        }
        for start in range(30)
    }
    moving = window(panes, cards)
    for first, last in [(0, 5), (1, 6), (3, 8), (2, 7), (20, 29), (29, 40), (0, 29), (5, 5)]:
        moving.move(first * PANE_MS, last * PANE_MS)
        fresh = window({s: p for s, p in panes.items() if first <= s // PANE_MS <= last}, cards)
        assert moving.models == fresh.models
        assert moving.state_hash() == fresh.state_hash()


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
    """Both floored: equal scores, so the cheaper one leads; of equal ones the smaller name. All
    three tie."""
    cheap = totals(*[invocation(reported_cost_picousd=10)] * 60)
    dear = totals(*[invocation(reported_cost_picousd=20)] * 60)
    failed = totals(invocation(outcome="FAILURE"))
    pane = {("z", "m"): cheap, ("a", "m"): dear, ("b", "m"): cheap, ("0", "m"): failed}
    found = ranked(pane)
    assert [(e["provider"], e["rank"]) for e in found] == [
        ("b", 1),
        ("z", 1),
        ("a", 1),
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
                at = Position("rate.card.updated", 0, offset, 5)
                fast.add(Recorded(RateCardUpdated.model_validate(f), at, b"k"))
                offset += 1
    return plain, fast


def _benchmarks(chance: random.Random) -> list[Fields]:
    """Of a policy: some in percent, some where lower is better, some twice."""
    return [
        {
            "name": chance.choice(["rouge", "wer", "own"]),
            "weight": chance.choice([1, 7]),
            "floor_e9": floor,
            "target_e9": floor + chance.choice([-(10**8), 3 * 10**8, 7]),
            "dataset_hash": chance.choice([None, None, "d"]),
            "signature": chance.choice([None, None, "s"]),
        }
        for floor in chance.sample([0, 10**8, 5 * 10**8, 10**9], chance.choice([0, 0, 1, 3]))
    ]


def _results(chance: random.Random) -> list[tuple[int, int, Fields]]:
    made = []
    for i in range(chance.choice([0, 5, 40])):
        name = chance.choice(["rouge", "wer", "own"])
        scale = chance.choice(["UNIT", "PERCENT", "RAW"])
        value = chance.choice([0.0, 0.1, 0.35, 1 / 3, 1.0]) * (100 if scale == "PERCENT" else 1)
        ends = (value * 0.9, min(value * 1.1, 100 if scale == "PERCENT" else 1))
        f = result(
            name,
            value,
            event_id=f"r{i}",
            occurred_at_ms=chance.choice([0, 1, 2, 3 * PANE_MS + 1]),
            provider=chance.choice("abc"),
            role=chance.choice([None, "chat", "dialogue", "code"]),
            scale=scale,
            ci_low=None if chance.random() < 0.3 else ends[0],
            dataset_hash=chance.choice([None, "d"]),
            signature=chance.choice([None, "s"]),
        )
        f["ci_high"] = None if f["ci_low"] is None else ends[1]
        made.append((chance.randrange(4), i, f))
    return made


@pytest.mark.parametrize("seed", range(200))
def test_scorer_and_verify_agree_to_the_last_digit(seed: int) -> None:
    """The same totals, cards, results and policy: two computations that share no code."""
    chance = random.Random(seed)
    plain_cards, fast_cards = _cards(chance)
    panes: dict[int, Pane] = {
        start: {
            (provider, "m"): totals(
                *[_some(chance) for _ in range(chance.choice([0, 1, 7, 70, 150]))],
                **{
                    metric: [n, chance.randrange(n + 1)]
                    for metric in ("quality", "thumbs", "policy_compliance", "refusal_accuracy")
                    if chance.random() < 0.3 and (n := chance.choice([1, 50]))
                },
            )
            for provider in "abc"
            if chance.random() < 0.8
        }
        for start in (0, PANE_MS, 2 * PANE_MS)
    }
    parts = chance.choice([(5000, 2500, 2500), (10_000, 0, 0), (0, 5000, 5000)])
    policy = {
        **POLICY,
        "cost_unit": chance.choice(["PER_REQUEST", "PER_1K_TOKENS"]),
        "latency_percentile": chance.choice([50, 95, 99]),
        "max_ratio_percent": chance.choice([100, 200, 10_000]),
        "min_reliability": chance.choice([0, 8000]),
        "min_quality": chance.choice([0, 0, 6000]),
        "min_samples": chance.choice([1, 59]),
        "min_trials": chance.choice([1, 30]),
        "prior_quality": chance.choice([0, 5000, 10_000]),
        "reference_cost_picousd": chance.choice([1, 4_000_000_000]),
        "reference_latency_us": chance.choice([1, 2_000_000]),
        "part_availability": parts[0],
        "part_policy_compliance": parts[1],
        "part_refusal_accuracy": parts[2],
        "quality_metrics": chance.choice([["quality"], ["quality", "thumbs"], [], ["thumbs"]]),
        "benchmarks": _benchmarks(chance),
        "hysteresis_closes": chance.choice([1, 2]),
        "hysteresis_min_ms": chance.choice([0, 9995]),
    }
    panel: evidence.Panel = {}
    for start, pane in panes.items():
        facts = [(start, _wire(f)) for f in fact_models(pane)]
        evidence.add_panel(panel, evidence.panel_of(facts, fast_cards))
    inputs, known = Inputs(Rules(), plain_cards), Benchmarks()
    for partition, offset, f in _results(chance):
        topic = "slm.benchmark.results"
        inputs.benchmark(Record(topic, partition, offset, 0, b"k", b""), f)
        event = SlmBenchmarkResults.model_validate(f)
        known.add(Recorded(event, Position(topic, partition, offset, 0), b"k"))
    end = 3 * PANE_MS
    below = {("slm.benchmark.results", partition): 10**6 for partition in range(4)}

    plain_window = window(panes, plain_cards)
    plain = ranking.entries(
        plain_window.candidates(),
        policy,
        lambda who, wanted: inputs.result(who, wanted, "dialogue", end, below),
    )
    fast_policy = ScoringPolicyUpdated.model_validate(policy)
    unit, percentile = fast_policy.cost_unit, fast_policy.latency_percentile
    fast = scoring.rank(
        panel,
        fast_policy,
        lambda who: scoring.measure(panel[who], percentile, unit),
        lambda who: known.prior(who, "dialogue", fast_policy, end),
    )
    assert [one.fields for one in plain] == [_listed(entry.model_dump()) for entry in fast]
    assert plain_window.state_hash() == state_hash(panel)

    before = chance.choice(
        [None, state(None, None, None, 0)]
        + [state(a, 5, b, 3 if b else 0) for a in "abc" for b in (None, "a", "b", "c") if a != b]
    )
    after = leader.next_leader(
        None if before is None else LeaderState.model_validate(before), fast, fast_policy, 9999
    )
    assert ranking.leader_after(before, plain, policy, 9999) == after.model_dump()


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
    made.quality = {c["metric"]: [c["n"], c["hits"]] for c in fact["quality"]}
    return made.wire(fact["provider"], fact["model"])


def _listed(value: Any) -> Any:
    """Tuples as the lists that stand on the wire."""
    if isinstance(value, dict):
        return {k: _listed(v) for k, v in value.items()}
    return [_listed(v) for v in value] if isinstance(value, list | tuple) else value

"""M1 to M3: the worked examples, and laws of a ranking."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.benchmarks import Benchmarks
from processors.evidence import Evidence, Panel
from processors.scoring import apart, cost_of, latency_of, measure, rank, ranks, wilson_e9
from processors.sketch import BUCKETS, bucket_of
from schemas import ScoringPolicyUpdated
from schemas.model_profile import RankingEntry
from schemas.scoring_policy import CostUnit
from schemas.values import BILLION, OUTCOMES, Outcome

USD = 10**12


def policy(**changes: Any) -> ScoringPolicyUpdated:
    fields: dict[str, Any] = {
        "event_id": "policy",
        "occurred_at_ms": 0,
        "source": "test",
        "role": "dialogue",
        "deployment_mode": "PRODUCTION",
        "weight_quality": 4000,
        "weight_cost": 1500,
        "weight_latency": 1500,
        "weight_reliability": 3000,
        "cost_unit": CostUnit.PER_REQUEST,
        "reference_cost_picousd": 4 * USD // 1000,
        "reference_latency_us": 2_000_000,
        "actor": "test",
    }
    return ScoringPolicyUpdated(**{**fields, **changes})


def evidence(
    latencies: list[int],
    failed: int = 0,
    cost_picousd: int = USD // 1000,
    tokens: int = 1000,
    quality: dict[str, list[int]] | None = None,
) -> Evidence:
    """Each complete call cost the same and took the same number of tokens. quality: metric ->
    [observations, hits]."""
    n = len(latencies)
    cost = cost_picousd * 10**6
    found = Evidence(
        invocations=n + failed,
        tokens=n * tokens,
        cost=n * cost,
        cost_cost=n * cost * cost,
        cost_tokens=n * cost * tokens,
        tokens_tokens=n * tokens * tokens,
        quality=quality or {},
    )
    found.counts[OUTCOMES.index(Outcome.SUCCESS)] = n
    found.counts[OUTCOMES.index(Outcome.FAILURE)] = failed
    found.latency[:] = np.bincount(bucket_of(np.array(latencies, np.int64)), minlength=BUCKETS)
    return found


def ranked(
    panel: Panel, rules: ScoringPolicyUpdated, results: Benchmarks | None = None
) -> tuple[RankingEntry, ...]:
    measures = {
        who: measure(e, rules.latency_percentile, rules.cost_unit) for who, e in panel.items()
    }
    known = results or Benchmarks()
    return rank(
        panel, rules, measures.__getitem__, lambda who: known.prior(who, rules.role, rules, 0)
    )


def test_the_example_of_m1() -> None:
    # q .82, c .001 USD (ratio 4, floored at 2), l of 1 s (ratio 2: just the cap), r .97
    rules = policy(prior_quality=8200, prior_reliability=9700)
    (entry,) = ranked({("p", "m"): evidence([990_000] * 97, failed=3)}, rules)
    terms = {t.name: t for t in entry.terms}
    assert terms["quality"].contribution == 0.328
    assert terms["cost"].contribution == 0.3
    assert terms["cost"].floored
    assert terms["latency"].contribution == 0.3
    assert terms["reliability"].contribution == 0.291
    assert entry.score == 1.219


def test_a_term_equals_its_weight_exactly_when_the_target_is_met() -> None:
    rules = policy(reference_cost_picousd=USD // 1000, cost_unit=CostUnit.PER_REQUEST)
    (entry,) = ranked({("p", "m"): evidence([990_000] * 97)}, rules)
    assert entry.terms[1].contribution == 0.15
    assert not entry.terms[1].floored


def test_without_weight_for_anything_else_the_cheaper_model_leads() -> None:
    rules = policy(weight_quality=0, weight_cost=10_000, weight_latency=0, weight_reliability=0)
    panel = {
        ("p", "dear"): evidence([10**6] * 60, cost_picousd=USD // 100),
        ("p", "cheap"): evidence([10**6] * 60, cost_picousd=USD // 200),
    }
    assert [e.model for e in ranked(panel, rules)] == ["cheap", "dear"]


@given(st.lists(st.integers(1, 10**8), min_size=1, max_size=40), st.integers(0, 20))
def test_adding_a_candidate_changes_no_other_score(latencies: list[int], failed: int) -> None:
    first = {("p", "a"): evidence(latencies, failed)}
    both = {**first, ("p", "b"): evidence([5_000], 3, cost_picousd=7)}
    alone = ranked(first, policy())[0]
    beside = next(e for e in ranked(both, policy()) if e.model == "a")
    assert alone.model_copy(update={"rank": None}) == beside.model_copy(update={"rank": None})


def test_what_is_missing_is_named_and_never_zero() -> None:
    unpriced = evidence([1_000] * 60)
    unpriced.unpriced = 1
    panel = {
        ("p", "priced"): evidence([1_000] * 60),
        ("p", "unpriced"): unpriced,
        ("p", "never answered"): evidence([], failed=4),
    }
    entries = {e.model: e for e in ranked(panel, policy())}
    assert (entries["unpriced"].status, entries["unpriced"].reason) == ("unrankable", "unpriced")
    assert entries["unpriced"].score is None
    assert entries["unpriced"].cost_picousd_per_request is None
    assert entries["never answered"].reason == "no_complete_response"
    assert entries["never answered"].latency_us is None
    assert entries["priced"].rank == 1


def test_gates_come_before_the_score() -> None:
    panel = {
        ("p", "flaky"): evidence([1_000] * 60, failed=60),
        ("p", "firm"): evidence([9_000] * 60),
    }
    entries = ranked(panel, policy(min_reliability=9_000 - 500))
    assert [(e.model, e.status, e.rank) for e in entries] == [
        ("firm", "provisional", 1),
        ("flaky", "ineligible", None),
    ]


def test_free_is_capped_and_never_divides_by_zero() -> None:
    (entry,) = ranked({("p", "m"): evidence([10**6] * 60, cost_picousd=0)}, policy())
    assert entry.terms[1].contribution == 0.3
    assert entry.score_raw is None


@pytest.mark.parametrize("n", [1, 2, 3, 58, 59, 60, 300])
def test_the_interval_of_a_percentile_encloses_it(n: int) -> None:
    found = latency_of(evidence([i * 1000 for i in range(1, n + 1)]), n, 95)
    assert found.low_us is None or found.low_us <= found.value_us
    assert found.high_us is None or found.value_us <= found.high_us
    assert (found.high_us is None) == (n < 59)


def test_the_variance_of_a_mean_is_that_of_the_textbook() -> None:
    costs, tokens = [100, 300, 200, 900], [10, 40, 20, 70]
    found = Evidence(
        invocations=4,
        tokens=sum(tokens),
        cost=sum(costs) * 10**6,
        cost_cost=sum(c * c for c in costs) * 10**12,
        cost_tokens=sum(c * t for c, t in zip(costs, tokens, strict=True)) * 10**6,
        tokens_tokens=sum(t * t for t in tokens),
    )
    mean = Fraction(sum(costs), 4)
    per_request = cost_of(found, 4, CostUnit.PER_REQUEST)
    assert per_request.value == mean
    assert per_request.variance == sum((c - mean) ** 2 for c in costs) / 3 / 4
    ratio = Fraction(sum(costs), sum(tokens))
    residuals = sum((c - ratio * t) ** 2 for c, t in zip(costs, tokens, strict=True))
    per_1k = cost_of(found, 4, CostUnit.PER_1K_TOKENS)
    assert per_1k.value == 1000 * ratio
    assert per_1k.variance == 10**6 * residuals / 3 / 4 / Fraction(sum(tokens), 4) ** 2


def test_the_example_of_m2() -> None:
    """Wilson interval of 81 hits among 263 trials."""
    low, high = wilson_e9(81, 263)
    assert (round(low / BILLION, 6), round(high / BILLION, 6)) == (0.255289, 0.366210)


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_the_wilson_interval_encloses_the_rate_and_stays_within_0_and_1(n: int, hits: int) -> None:
    hits = min(n, hits)
    low, high = wilson_e9(hits, n)
    assert 0 <= low <= round(Fraction(hits, n) * BILLION) <= high <= BILLION
    if hits == 0:
        assert low == 0
    if hits == n:
        assert high == BILLION


def test_the_example_of_m3() -> None:
    """P .94 +- .007, Q 1.22 +- .02, R .79 +- .01, S .95 +- .006: Q 1, P 2, S 2, R 4."""
    e = BILLION // 1000
    found = {"Q": (1220 * e, 20 * e), "S": (950 * e, 6 * e), "P": (940 * e, 7 * e)}
    found["R"] = (790 * e, 10 * e)
    assert dict(zip(found, ranks(list(found.values())), strict=True)) == {
        "Q": 1,
        "S": 2,
        "P": 2,
        "R": 4,
    }


@given(st.lists(st.tuples(st.integers(0, 2 * BILLION), st.integers(0, BILLION // 10)), max_size=90))
def test_many_are_ranked_as_few_are(scores: list[tuple[int, int]]) -> None:
    ordered = sorted(scores, key=lambda s: -s[0])
    plain = [1 + sum(apart(*o, *m) for o in ordered) for m in ordered]
    assert ranks(ordered) == plain


def test_ties_share_a_rank_and_the_next_one_counts_them() -> None:
    assert ranks([(10, 0), (10, 0), (9, 0)]) == [1, 1, 3]
    assert ranks([]) == []


def test_quality_bits_pull_the_prior_as_far_as_they_are_many() -> None:
    rules = policy(prior_quality=5000, prior_strength=20)
    few = evidence([10**6] * 60, quality={"quality": [20, 20]})
    many = evidence([10**6] * 60, quality={"quality": [980, 980]})
    other = evidence([10**6] * 60, quality={"style": [980, 980]})
    panel = {("p", "few"): few, ("p", "many"): many, ("p", "other"): other}
    found = {e.model: e for e in ranked(panel, rules)}
    assert (found["few"].quality, found["few"].quality_n) == (0.75, 20)
    assert found["many"].quality == 0.99
    assert (found["other"].quality, found["other"].prior_only) == (0.5, True)
    assert found["few"].status == "ranked"
    assert (found["other"].status, found["other"].reason) == ("provisional", "prior_only")
    assert found["many"].terms[0].standard_error < found["few"].terms[0].standard_error


def test_reliability_has_three_parts_and_leaves_out_what_was_never_tried() -> None:
    rules = policy(prior_reliability=5000, prior_strength=20)
    bits = {"policy_compliance": [80, 80], "refusal_accuracy": [60, 0]}
    panel = {
        ("p", "all"): evidence([10**6] * 80, quality=bits),
        ("p", "one"): evidence([10**6] * 80),
    }
    found = {e.model: e for e in ranked(panel, rules)}
    # availability (80+10)/100, compliance (80+10)/100, refusal (0+10)/80
    assert found["all"].reliability == 0.5 * 0.9 + 0.25 * 0.9 + 0.25 * 0.125
    assert [(p.name, p.n, p.hits) for p in found["all"].parts] == [
        ("availability", 80, 80),
        ("policy_compliance", 80, 80),
        ("refusal_accuracy", 60, 0),
    ]
    assert "parts_missing" not in found["all"].flags
    assert found["one"].reliability == 0.9
    assert found["one"].flags == ("parts_missing",)


def test_a_policy_that_asks_for_parts_that_were_never_tried_ranks_nobody() -> None:
    rules = policy(part_availability=0, part_policy_compliance=10_000, part_refusal_accuracy=0)
    (entry,) = ranked({("p", "m"): evidence([10**6] * 80)}, rules)
    assert (entry.status, entry.reason) == ("unrankable", "no_reliability")


def test_a_model_with_observations_but_no_invocation_is_no_candidate() -> None:
    panel = {("p", "m"): evidence([], quality={"quality": [5, 5]})}
    assert ranked(panel, policy()) == ()

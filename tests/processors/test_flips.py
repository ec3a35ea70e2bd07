"""What would flip a ranking: the least change, confirmed by scoring again."""

from dataclasses import replace
from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from processors.flips import (
    MILLION,
    TERMS,
    WHOLE,
    Changes,
    Flip,
    flips,
    score_of,
    smallest,
    weights_of,
    with_weight,
)
from processors.scoring import units
from schemas import ScoringPolicyUpdated
from schemas.model_profile import RankingEntry
from schemas.scoring_policy import CostUnit
from tests.support.rankings import entries, evidence, policy

MS = 1000
weights = (
    st.tuples(*[st.integers(0, 10_000)] * 3)
    .map(sorted)
    .map(lambda cut: (cut[0], cut[1] - cut[0], cut[2] - cut[1], WHOLE - cut[2]))
)
rules_ = st.builds(
    lambda w, unit, most, percentile, least: policy(
        **{f"weight_{name}": part for name, part in zip(TERMS, w, strict=True)},
        cost_unit=unit,
        max_ratio_percent=most,
        latency_percentile=percentile,
        min_quality=least,
        reference_cost_picousd=10**9,
    ),
    weights,
    st.sampled_from([CostUnit.PER_REQUEST, CostUnit.PER_1K_TOKENS]),
    st.integers(100, 1000),
    st.sampled_from([50, 95, 99]),
    st.integers(0, 3000),
)
models = st.builds(
    lambda latencies, failed, cost, tokens, n, share: evidence(
        latencies, failed=failed, cost=cost, tokens=tokens, quality=(n * share // 100, n)
    ),
    st.lists(st.integers(1 * MS, 60_000 * MS), min_size=1, max_size=20),
    st.integers(0, 10),
    st.integers(0, 10**10),
    st.integers(1, 5_000),
    st.integers(0, 200),
    st.integers(0, 100),
)


def pair(
    a: object, b: object, rules: ScoringPolicyUpdated
) -> tuple[RankingEntry, RankingEntry] | None:
    """Leader and runner-up, where both are placed."""
    placed = [e for e in entries({"a": a, "b": b}, rules) if e.rank is not None]  # type: ignore[dict-item]
    return (placed[0], placed[1]) if len(placed) == 2 else None


def test_an_unchanged_score_is_the_emitted_one_in_the_example_of_m1() -> None:
    rules = policy(prior_quality=8200, prior_reliability=9700)
    (entry,) = entries({"m": evidence([990 * MS] * 97, failed=3, quality=(0, 0))}, rules)
    assert entry.score == 1.219
    assert score_of(entry, rules) == 1_219_000_000


@given(models, rules_)
def test_an_unchanged_score_is_the_emitted_one_to_the_rounding_of_each_term(
    measured: object, rules: ScoringPolicyUpdated
) -> None:
    (entry,) = entries({"m": measured}, rules)  # type: ignore[dict-item]
    assume(entry.score is not None)
    # half a unit for each value, and half for the score itself
    assert abs(score_of(entry, rules) - units(entry)[0]) <= 3


@given(weights, st.integers(0, 3), st.integers(0, 10_000))
def test_other_weights_keep_their_proportion_and_all_sum_to_the_whole(
    before: tuple[int, int, int, int], index: int, weight: int
) -> None:
    after = with_weight(before, index, weight)
    assert sum(after) == WHOLE
    assert after[index] == weight
    assert min(after) >= 0
    of = WHOLE - before[index]
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if i != index:
            exact = Fraction(old, of) if of else Fraction(1, 3)
            assert abs(new - exact * (WHOLE - weight)) < 1
    assert with_weight(before, index, before[index]) == before or of == 0


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_smallest_number_for_which_something_holds(threshold: int, limit: int) -> None:
    found = smallest(lambda n: n >= threshold, limit)
    assert found == (threshold if threshold <= limit else None)


def changes_of(flip: Flip, step: int = 0) -> Changes:
    """The change that a flip names, less so many units."""
    assert flip.after is not None
    if flip.what == "price":
        way = 1 if flip.after > flip.before else -1
        return Changes(price=int(flip.after) - way * step)
    if flip.what == "latency":
        way = 1 if flip.after > flip.before else -1
        return Changes(latency_us=int(flip.after) - way * step)
    way = 1 if flip.after > flip.before else -1
    return Changes(quality_e6=round(flip.after * MILLION) - way * step)


def scores(
    flip: Flip, a: RankingEntry, b: RankingEntry, rules: ScoringPolicyUpdated, changes: Changes
) -> tuple[int, int]:
    """Scores of leader and runner-up under the change."""
    of_a = flip.of == f"{a.provider}/{a.model}"
    return (
        score_of(a, rules, changes if of_a or changes.weights else Changes()),
        score_of(b, rules, changes if not of_a or changes.weights else Changes()),
    )


@settings(max_examples=150, deadline=None)
@given(models, models, rules_)
def test_every_flip_flips_and_a_unit_less_does_not(
    one: object, other: object, rules: ScoringPolicyUpdated
) -> None:
    found = pair(one, other, rules)
    assume(found is not None)
    assert found is not None
    a, b = found
    all_ = flips(a, b, rules)
    if not all_:
        assert score_of(b, rules) > score_of(a, rules)  # equal but for rounding
        assert units(a)[0] - units(b)[0] <= 6
        return
    assert [f.what for f in all_] == ["weight"] * 4 + ["price", "latency", "quality"] * 2
    for flip in all_:
        if flip.after is None:
            continue
        if flip.what == "weight":
            assert flip.weights is not None
            leads, follows = scores(flip, a, b, rules, Changes(weights=flip.weights))
            assert follows > leads
        else:
            leads, follows = scores(flip, a, b, rules, changes_of(flip))
            least = changes_of(flip).quality_e6
            gate = (
                flip.of == f"{a.provider}/{a.model}"
                and least is not None
                and least * 10_000 < rules.min_quality * MILLION
            )
            assert (follows > leads) if flip.by == "score" else gate
            before = changes_of(flip, 1)
            leads_, follows_ = scores(flip, a, b, rules, before)
            assert follows_ <= leads_
            if flip.of == f"{a.provider}/{a.model}" and before.quality_e6 is not None:
                within = before.quality_e6 * 10_000 >= rules.min_quality * MILLION
                assert within or not gate or before.quality_e6 > (a.quality or 0) * MILLION
        assert (flip.leader_score, flip.runner_up_score) == (leads, follows)


@settings(max_examples=25, deadline=None)
@given(models, models, rules_, st.integers(0, 3))
def test_no_weight_nearer_than_the_reported_one_flips(
    one: object, other: object, rules: ScoringPolicyUpdated, index: int
) -> None:
    found = pair(one, other, rules)
    assume(found is not None)
    assert found is not None
    a, b = found
    all_ = flips(a, b, rules)
    assume(all_)
    now = weights_of(rules)
    after = all_[index].after
    reach = WHOLE if after is None else abs(int(after) - now[index])
    tried = {w for step in range(1, reach) for w in (now[index] - step, now[index] + step)}
    for weight in sorted(w for w in tried if 0 <= w <= WHOLE)[::7] + [
        w for w in (now[index] - reach + 1, now[index] + reach - 1) if 0 <= w <= WHOLE and reach > 1
    ]:
        changed = Changes(weights=with_weight(now, index, weight))
        assert score_of(b, rules, changed) <= score_of(a, rules, changed), weight


def told(panel: dict[str, object], rules: ScoringPolicyUpdated) -> dict[tuple[str, str], Flip]:
    a, b, *_ = entries(panel, rules)  # type: ignore[arg-type]
    return {(f.what, f.of): f for f in flips(a, b, rules)}


def test_a_cheaper_runner_up_overtakes_at_exactly_the_price_that_makes_up_its_lack() -> None:
    # equal but for cost: 4 mUSD (ratio 1) and 5 mUSD (ratio .8): a factor below .8 is needed
    rules = policy()
    panel: dict[str, object] = {
        "dear": evidence([3_000 * MS] * 60, cost=5 * 10**9),
        "cheap": evidence([3_000 * MS] * 60, cost=4 * 10**9),
    }
    found = told(panel, rules)
    assert found["price", "p/dear"].after == 7_999
    assert found["price", "p/cheap"].after == 12_501
    # cheaper in the only thing in which they differ: no weight makes the dear one lead
    assert [found["weight", name].after for name in TERMS] == [None] * 4
    assert found["latency", "p/dear"].after is not None


def test_a_term_at_its_cap_gains_nothing_by_becoming_better() -> None:
    rules = policy(weight_quality=0, weight_cost=5000, weight_latency=5000, weight_reliability=0)
    panel: dict[str, object] = {
        "quick": evidence([100 * MS] * 60, cost=10**9),
        "slow": evidence([3_000 * MS] * 60, cost=10**9),  # its cost is at the cap already
    }
    found = told(panel, rules)
    assert found["price", "p/slow"].after is None
    assert found["price", "p/quick"].after is not None
    assert found["quality", "p/slow"].after is None  # quality has no weight


def test_a_free_model_is_not_made_dearer_by_a_factor() -> None:
    rules = policy()
    panel: dict[str, object] = {
        "free": evidence([1_000 * MS] * 60, cost=0),
        "paid": evidence([1_000 * MS] * 60, cost=9 * 10**9),
    }
    assert told(panel, rules)["price", "p/free"].after is None


def test_a_leader_may_fall_at_the_gate_before_it_falls_behind() -> None:
    rules = policy(min_quality=7000, min_samples=1)
    panel: dict[str, object] = {
        "good": evidence([1_000 * MS] * 60, quality=(95, 100)),
        "poor": evidence([9_000 * MS] * 60, quality=(80, 100)),
    }
    flip = told(panel, rules)["quality", "p/good"]
    assert (flip.after, flip.by) == (0.699999, "gate")
    assert flip.leader_score is not None and flip.runner_up_score is not None
    assert flip.leader_score > flip.runner_up_score


def test_equal_scores_are_flipped_by_the_smallest_unit() -> None:
    rules = policy()
    same = evidence([3_000 * MS] * 60)
    a, b = entries({"a": same, "b": same}, rules)
    found = {(f.what, f.of): f for f in flips(a, b, rules)}
    quality = found["quality", "p/b"]
    assert quality.after is not None and a.quality is not None
    assert 0 < quality.after - a.quality < 2e-6
    assert all(found["weight", name].after is None for name in TERMS)


def test_where_one_weight_is_the_whole_the_others_share_what_it_leaves() -> None:
    assert with_weight((10_000, 0, 0, 0), 0, 9_998) == (9_998, 1, 1, 0)
    rules = policy(weight_quality=10_000, weight_cost=0, weight_latency=0, weight_reliability=0)
    panel: dict[str, object] = {
        "good": evidence([9_000 * MS] * 60, quality=(90, 100)),
        "quick": evidence([1_000 * MS] * 60, quality=(80, 100)),
    }
    flip = told(panel, rules)["weight", "quality"]
    assert flip.after is not None and flip.after < WHOLE
    assert flip == replace(flip, by="score")

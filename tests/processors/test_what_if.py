"""History scored again under assumptions."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.benchmarks import Benchmarks, Prior
from processors.evidence import Evidence, Panel, Who, add_panel
from processors.what_if import (
    Assumptions,
    Close,
    Step,
    Window,
    outcome,
    over_panes,
    over_published,
    rescored,
)
from schemas import ScoringPolicyUpdated
from schemas.model_profile import LeaderState
from tests.support.rankings import USD, entries, evidence, final, policy

PANE = 300_000
GRACE = 600_000
NONE = Benchmarks()


def prior(who: Who, rules: ScoringPolicyUpdated, at_ms: int) -> Prior:
    return NONE.prior(who, "dialogue", rules, at_ms)


def panel(**models: Evidence) -> Panel:
    return {("p", name): found for name, found in models.items()}


def steady(n: int, **models: Evidence) -> dict[int, Panel]:
    """The same in each of n panes."""
    return {i * PANE: panel(**models) for i in range(n)}


def run(
    panes: Mapping[int, Panel],
    rules: ScoringPolicyUpdated,
    assumed: Assumptions,
    before: LeaderState | None = None,
) -> list[Step]:
    closes = [Close(p + PANE + GRACE, p + PANE, rules) for p in sorted(panes)]
    return list(over_panes(closes, panes, PANE, prior, assumed, before))


GOOD = evidence([3_000_000] * 60, cost=8 * 10**9, quality=(57, 60))
CHEAP = evidence([3_000_000] * 60, cost=3 * 10**9, quality=(30, 60))


@given(
    st.dictionaries(st.integers(0, 30), st.integers(1, 5), max_size=20),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), max_size=12),
)
def test_a_window_that_moves_holds_what_lies_in_it(
    filled: dict[int, int], moves: list[tuple[int, int]]
) -> None:
    panes = {i: panel(m=evidence([1_000] * n, quality=(n, n))) for i, n in filled.items()}
    window = Window(panes)
    for end, length in moves:  # backwards and by jumps too
        found = window.at(end - length, end)
        wanted: Panel = {}
        for i in range(end - length, end):
            add_panel(wanted, panes.get(i, {}))
        assert set(found) == set(wanted)
        for who, held in found.items():
            assert (held.invocations, held.cost, held.quality) == (
                wanted[who].invocations,
                wanted[who].cost,
                wanted[who].quality,
            )


def test_nothing_assumed_changes_nothing() -> None:
    steps = run(steady(6, good=GOOD, cheap=CHEAP), policy(window_panes=3), Assumptions())
    assert len(steps) == 6
    assert all(step.was == step.would for step in steps)
    found = outcome("panes", steps, limited=False)
    assert (found.differing, len(found.spans)) == (0, 1)
    assert found.was.breaches is None


def test_other_weights_let_another_lead_after_as_many_closes_as_hysteresis_asks() -> None:
    rules = policy(
        window_panes=3, weight_quality=8000, weight_cost=500, weight_latency=500,
        weight_reliability=1000, hysteresis_min_ms=0,
    )  # fmt: skip
    before = LeaderState(provider="p", model="good", since_ms=0)
    steps = run(
        steady(6, good=GOOD, cheap=CHEAP),
        rules,
        Assumptions(weights=(500, 8000, 500, 1000)),
        before,
    )
    assert [s.was.model for s in steps] == ["p/good"] * 6
    assert [s.would.model for s in steps] == ["p/good"] * 2 + ["p/cheap"] * 4
    found = outcome("panes", steps, limited=False)
    assert (found.differing, found.was.changes, found.would.changes) == (4, 0, 1)
    assert [(s.was, s.would, s.closes) for s in found.spans] == [
        ("p/good", "p/good", 2),
        ("p/good", "p/cheap", 4),
    ]
    assert found.spans[1].from_ms == steps[2].as_of_ms
    assert found.spans[1].to_ms == steps[5].as_of_ms


def test_without_the_leader_the_next_one_leads_at_its_own_cost() -> None:
    rules = policy(window_panes=3)
    steps = run(steady(4, good=GOOD, cheap=CHEAP), rules, Assumptions(drop=frozenset({"p/good"})))
    leader = steps[0].was.model
    assert leader == "p/good"
    assert {s.would.model for s in steps} == {"p/cheap"}
    found = outcome("panes", steps, limited=False)
    assert found.would.cost_picousd_per_1k_tokens == 3 * 10**9
    assert found.was.cost_picousd_per_1k_tokens == 8 * 10**9
    nobody = run(steady(2, good=GOOD), rules, Assumptions(drop=frozenset({"p/good"})))
    assert [s.would.model for s in nobody] == [None, None]


@given(st.integers(0, 100_000), st.lists(st.integers(0, 10**9), min_size=1, max_size=9))
def test_a_price_scales_cost_and_its_products(factor: int, costs: list[int]) -> None:
    found = evidence([1_000] * len(costs), cost=costs)
    assumed = Assumptions(prices={"p/m": factor}).panel(panel(m=found, other=found))
    changed = assumed["p", "m"]
    f = Fraction(factor, 10_000)
    assert abs(changed.cost - found.cost * f) <= Fraction(1, 2)
    assert abs(changed.cost_cost - found.cost_cost * f**2) <= Fraction(1, 2)
    assert abs(changed.cost_tokens - found.cost_tokens * f) <= Fraction(1, 2)
    assert changed.tokens == found.tokens
    assert assumed["p", "other"] is found


def test_a_shorter_window_sees_the_newest_panes_alone() -> None:
    panes = {
        **{i * PANE: panel(good=GOOD, cheap=CHEAP) for i in range(3)},
        **{i * PANE: panel(cheap=CHEAP) for i in range(3, 6)},
    }
    steps = run(panes, policy(window_panes=10), Assumptions(window_panes=2))
    assert {s.was.model for s in steps} == {"p/good"}
    assert [s.would.model for s in steps] == ["p/good"] * 4 + ["p/cheap"] * 2


def test_a_missed_limit_of_the_policy_is_a_breach() -> None:
    rules = policy(window_panes=3, sla_cost_picousd_per_1k=5 * 10**9)
    steps = run(steady(4, good=GOOD, cheap=CHEAP), rules, Assumptions(drop=frozenset({"p/good"})))
    found = outcome("panes", steps, limited=True)
    assert (found.was.breaches, found.would.breaches) == (4, 0)
    assert steps[0].was.missed == ("cost",)


def test_published_finals_scored_again_have_the_leader_that_panes_have() -> None:
    rules = policy()
    models = {"good": GOOD, "cheap": CHEAP}
    record = final(entries(models, rules), rules)
    for factor in (1_000, 5_000, 20_000, 100_000):
        assumed = Assumptions(prices={"p/good": factor, "p/cheap": 30_000})
        (step,) = over_published([(record, rules)], assumed)
        fresh = entries(
            {
                "good": scaled(GOOD, factor),
                "cheap": scaled(CHEAP, 30_000),
            },
            rules,
        )
        assert step.would.model == f"p/{fresh[0].model}"
        assert step.would.score == pytest.approx(fresh[0].score, abs=3e-9)
        cost = fresh[0].cost_picousd_per_1k_tokens
        assert step.would.cost_picousd_per_1k_tokens == pytest.approx(cost, rel=1e-9)
        assert step.was.model == f"p/{record.entries[0].model}"


def scaled(found: Evidence, factor: int) -> Evidence:
    return replace(
        found,
        cost=found.cost * factor // 10**4,
        cost_cost=found.cost_cost * factor**2 // 10**8,
        cost_tokens=found.cost_tokens * factor // 10**4,
    )


def test_a_published_final_cannot_be_given_another_window() -> None:
    with pytest.raises(ValueError, match="window"):
        list(over_published([], Assumptions(window_panes=3)))


def test_an_entry_without_assumptions_keeps_its_score() -> None:
    rules = policy()
    (entry,) = entries({"m": GOOD}, rules)
    assert rescored(entry, rules, {}).score == pytest.approx(entry.score, abs=3e-9)
    dear = rescored(entry, rules, {"p/m": 20_000})
    assert dear.cost_picousd_per_request == 16 * USD / 1000

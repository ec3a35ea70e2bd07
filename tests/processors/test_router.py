"""M21: who serves a persona."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.router import Circumstances, Decision, Limits, limits_of, route
from schemas import ModelProfileScored
from schemas.model_profile import RankingEntry
from tests.support.rankings import USD, final, policy

ASKED = Limits(success=9_000, latency_us=2_000_000, cost_picousd_per_1k=2 * USD // 100)


def entry(model: str, **changes: Any) -> RankingEntry:
    """One that is within all of ASKED."""
    fields: dict[str, Any] = {
        "provider": "p",
        "model": model,
        "status": "ranked",
        "reason": None,
        "rank": 1,
        "score": 1.0,
        "score_se": 0.01,
        "score_raw": None,
        "invocations": 500,
        "complete": 500,
        "trials": 500,
        "hits": 500,
        "rate_limited": 0,
        "latency_us": 1_000_000.0,
        "latency_low_us": 900_000.0,
        "latency_high_us": 1_900_000.0,
        "cost_picousd_per_request": None,
        "cost_picousd_per_1k_tokens": 0.015 * USD,
        "reliability": 0.95,
        "quality": 0.8,
        "prior_only": False,
        "success_low": 0.935,
    }
    return RankingEntry(**{**fields, **changes})


def ranking(*entries: RankingEntry) -> ModelProfileScored:
    return final(entries, policy())


def decided(*entries: RankingEntry, limits: Limits = ASKED, **around: Any) -> Decision:
    return route(ranking(*entries), policy(), "analyst", limits, Circumstances(**around))


def verdicts(decision: Decision, model: str) -> dict[str, str]:
    candidate = next(c for c in decision.candidates if c.model == f"p/{model}")
    return {test.name: test.verdict for test in candidate.tests if test.verdict != "passed"}


def test_the_example_of_m21() -> None:
    found = decided(
        entry("A", success_low=0.888, score=1.3),
        entry("C", latency_high_us=2_400_000.0, score=1.2),
        entry("B"),
    )
    assert found.pick == "p/B"
    assert not found.sla_unmet
    assert verdicts(found, "A") == {"success": "failed"}
    assert verdicts(found, "C") == {"latency": "failed"}
    assert verdicts(found, "B") == {}


def test_of_those_within_all_limits_the_first_in_the_rankings_order_is_picked() -> None:
    assert decided(entry("a"), entry("b")).pick == "p/a"


def test_a_limit_itself_is_within() -> None:
    found = decided(
        entry(
            "edge",
            success_low=0.9,
            latency_high_us=2_000_000.0,
            cost_picousd_per_1k_tokens=0.02 * USD,
            complete=1,
        )
    )
    assert found.pick == "p/edge"
    assert not found.sla_unmet


def test_where_none_is_within_the_smallest_violation_serves_and_it_is_said() -> None:
    found = decided(
        entry("slow", latency_high_us=2_400_000.0),  # .2
        entry("dear", cost_picousd_per_1k_tokens=0.023 * USD, success_low=0.81),  # .15, .1
        entry("flaky", success_low=0.72),  # .2
    )
    assert (found.pick, found.sla_unmet) == ("p/dear", True)
    assert [c.violation for c in found.candidates] == [0.2, 0.15, 0.2]
    assert not any(c.eligible for c in found.candidates)


def test_equal_violations_are_decided_by_the_rankings_order() -> None:
    found = decided(
        entry("first", latency_high_us=2_400_000.0), entry("second", latency_high_us=2_400_000.0)
    )
    assert found.pick == "p/first"


def test_a_missing_value_fails_its_test_and_has_no_violation() -> None:
    found = decided(entry("few", latency_high_us=None), entry("slow", latency_high_us=20_000_000.0))
    assert verdicts(found, "few") == {"latency": "missing"}
    assert found.candidates[0].violation is None
    assert (found.pick, found.sla_unmet) == ("p/slow", True)


def test_an_absent_limit_is_not_tested() -> None:
    found = decided(
        entry("unpriced", cost_picousd_per_1k_tokens=None, latency_high_us=None),
        limits=Limits(success=9_000),
    )
    assert found.pick == "p/unpriced"
    assert [t.name for t in found.candidates[0].tests if t.name in ("latency", "cost")] == []


@pytest.mark.parametrize(
    ("changes", "around", "failed"),
    [
        ({"status": "ineligible", "reason": "quality_below_gate"}, {}, "placed"),
        ({"status": "unrankable", "reason": "unpriced", "score": None}, {}, "placed"),
        ({}, {"broken": frozenset({"p/m"})}, "breaker"),
        ({}, {"unfunded": frozenset({"p/m"})}, "reservation"),
        ({}, {"personas": {"p/m": frozenset({"engineer"})}}, "persona"),
        ({"complete": 0}, {}, "samples"),
    ],
)
def test_what_may_not_be_used_serves_nobody_not_even_as_the_smallest_violation(
    changes: dict[str, Any], around: dict[str, Any], failed: str
) -> None:
    found = decided(entry("m", **changes), **around)
    assert (found.pick, found.sla_unmet) == (None, True)
    assert "exhausted" in found.reason
    assert verdicts(found, "m") == {failed: "failed"}
    second = decided(entry("m", **changes), entry("slow", latency_high_us=9_000_000.0), **around)
    assert second.pick == "p/slow"


def test_a_persona_that_is_named_may_use_the_model() -> None:
    admitted = {"p/m": frozenset({"analyst", "engineer"})}
    assert decided(entry("m"), personas=admitted).pick == "p/m"


def test_few_samples_are_not_explored() -> None:
    found = decided(
        entry("new", complete=58, score=1.9),
        entry("old"),
        limits=Limits(success=9_000, min_samples=59),
    )
    assert found.pick == "p/old"


def test_limits_that_are_not_given_are_the_policys() -> None:
    rules = policy(sla_success=9_500, sla_latency_us=3_000_000, min_samples=77)
    assert limits_of(rules) == Limits(9_500, 3_000_000, None, 77)
    assert limits_of(rules, success=1, min_samples=2) == Limits(1, 3_000_000, None, 2)
    assert limits_of(rules, success=0).success == 0


def test_a_cap_of_nothing_is_met_by_free_models_alone() -> None:
    free = Limits(cost_picousd_per_1k=0)
    found = decided(entry("paid"), entry("free", cost_picousd_per_1k_tokens=0.0), limits=free)
    assert (found.pick, found.sla_unmet) == ("p/free", False)
    assert decided(entry("paid"), limits=free).pick is None


def test_nobody_is_picked_from_an_empty_ranking() -> None:
    assert decided().pick is None


measures = st.builds(
    entry,
    st.sampled_from("abcd"),
    status=st.sampled_from(["ranked", "provisional", "ineligible"]),
    success_low=st.none() | st.floats(0, 1),
    latency_high_us=st.none() | st.floats(1, 1e7),
    cost_picousd_per_1k_tokens=st.none() | st.floats(0, 1e11),
    complete=st.integers(0, 100),
)


@given(st.lists(measures, max_size=5), st.integers(0, 10_000), st.integers(1, 10**7))
def test_a_decision_follows_from_what_it_records(
    entries: list[RankingEntry], success: int, latency_us: int
) -> None:
    entries = [e.model_copy(update={"model": f"{e.model}{i}"}) for i, e in enumerate(entries)]
    limits = Limits(success=success, latency_us=latency_us, min_samples=10)
    found = decided(*entries, limits=limits)
    assert json.loads(json.dumps(found.plain()))["pick"] == found.pick
    eligible = [c for c in found.candidates if all(t.verdict == "passed" for t in c.tests)]
    assert [c.model for c in found.candidates if c.eligible] == [c.model for c in eligible]
    if eligible:
        assert (found.pick, found.sla_unmet) == (eligible[0].model, False)
        return
    near = [c for c in found.candidates if c.violation is not None]
    assert found.sla_unmet
    assert (found.pick is None) == (not near)
    if near:
        best = next(c for c in found.candidates if c.model == found.pick)
        assert best.violation == min(c.violation for c in near if c.violation is not None)

"""Why a ranking is as it is, from the record and its policy alone."""

import json
from math import isclose
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.evidence import Evidence
from processors.explain import Explanation, Model, explain
from processors.scoring import units
from schemas import ModelProfileScored, ScoringPolicyUpdated
from schemas.model_profile import LeaderState
from tests.support.rankings import WINDOW_END, entries, evidence, final, policy, recorded

MS = 1000
USUAL = {
    "leader": evidence([1_500 * MS] * 80, cost=10**9, quality=(160, 200)),
    "close": evidence([1_500 * MS] * 80, cost=10**9, quality=(158, 200)),
    "far": evidence([2_500 * MS] * 80, cost=6 * 10**9, quality=(100, 200), failed=9),
}


def explained(
    panel: dict[str, Evidence], rules: ScoringPolicyUpdated, **changes: Any
) -> tuple[ModelProfileScored, Explanation]:
    record = final(entries(panel, rules), rules, **changes)
    return record, explain(record, recorded(rules))


def model(found: Explanation, name: str) -> Model:
    return next(m for m in found.models if m.model == f"p/{name}")


def failures(found: Explanation, name: str) -> dict[str, tuple[Any, Any, Any]]:
    return {f.test: (f.value, f.limit, f.short_by) for f in model(found, name).failed}


def test_the_example_of_m1_is_told_term_by_term() -> None:
    rules = policy(prior_quality=8200, prior_reliability=9700, min_samples=1)
    _, found = explained({"m": evidence([990 * MS] * 97, failed=3, quality=(0, 0))}, rules)
    told = [
        (t.name, t.unit, t.reference, t.floored, t.credited, t.weight, t.contribution)
        for t in found.models[0].terms
    ]
    assert told == [
        ("quality", "share", None, False, 0.82, 4000, 0.328),
        ("cost", "picousd_per_request", 4e9, True, 2.0, 1500, 0.3),
        ("latency", "us_p95", 2e6, True, 2.0, 1500, 0.3),
        ("reliability", "share", None, False, 0.97, 3000, 0.291),
    ]
    assert found.models[0].terms[1].ratio == 4.0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.builds(
            evidence,
            st.lists(st.integers(1, 60_000 * MS), max_size=80),
            failed=st.integers(0, 30),
            cost=st.integers(0, 10**10),
            quality=st.sampled_from([(0, 0), (3, 4), (90, 100)]),
            unpriced=st.booleans(),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 9000),
    st.integers(0, 9000),
)
def test_what_is_told_adds_up_to_what_was_published(
    found: list[Evidence], least_quality: int, least_reliability: int
) -> None:
    rules = policy(min_quality=least_quality, min_reliability=least_reliability)
    record, told = explained({f"m{i}": e for i, e in enumerate(found) if e.invocations}, rules)
    assert json.loads(json.dumps(told.plain())) is not None
    for said, entry in zip(told.models, record.entries, strict=True):
        assert said.model == f"{entry.provider}/{entry.model}"
        if said.score is not None:
            assert isclose(sum(t.contribution for t in said.terms), said.score, abs_tol=4e-9)
            for t in said.terms:
                assert isclose(t.weight / 1e4 * t.credited, t.contribution, abs_tol=3e-9)
        else:
            assert said.terms == ()
        # whoever is not ranked is told why, the reason of the record first of all
        assert bool(said.failed) == (said.status != "ranked")
        if said.reason is not None:
            reasons = [f.test for f in said.failed]
            assert said.reason == reasons[0] or (said.reason, reasons[0]) == (
                "few_samples",
                "few_trials",
            )


def test_the_margin_to_the_next_has_an_interval_that_says_whether_they_tie() -> None:
    record, found = explained(USUAL, policy())
    first, second, last = found.models
    assert [m.model for m in found.models] == ["p/leader", "p/close", "p/far"]
    assert first.margin is not None and second.margin is not None
    assert first.margin.next == "p/close"
    assert not first.margin.certain
    assert first.margin.low < 0 < first.margin.lead < first.margin.high
    assert second.margin.certain
    assert second.margin.low > 0
    assert last.margin is None
    (s1, e1), (s2, e2) = units(record.entries[0]), units(record.entries[1])
    assert first.margin.lead == (s1 - s2) / 1e9
    assert isclose(
        first.margin.high - first.margin.lead, 1.959964 * (e1**2 + e2**2) ** 0.5 / 1e9, rel_tol=1e-6
    )
    assert found.ties == (("p/leader", "p/close"),)
    assert (first.rank, second.rank, last.rank) == (1, 1, 3)


def test_each_excluded_model_is_told_what_it_failed_and_by_how_much() -> None:
    rules = policy(min_quality=6000, min_reliability=9000, min_samples=59, min_trials=70)
    panel = {
        "fine": evidence([1_000 * MS] * 80, failed=0, quality=(90, 100)),
        "flaky": evidence([1_000 * MS] * 60, failed=60),
        "poor": evidence([1_000 * MS] * 80, quality=(10, 100)),
        "poor and flaky": evidence([1_000 * MS] * 60, failed=60, quality=(10, 100)),
        "unpriced": evidence([1_000 * MS] * 80, unpriced=True),
        "silent": evidence([], failed=4),
    }
    rules_loose = policy(min_samples=59, min_trials=70)
    _, found = explained(panel, rules)
    assert failures(found, "fine") == {}
    value, limit, short = failures(found, "flaky")["reliability_below_gate"]
    assert (value, limit) == (0.5, 0.9)
    assert short == 0.4
    assert failures(found, "poor")["quality_below_gate"] == (0.166666667, 0.6, 0.433333333)
    assert list(failures(found, "poor and flaky")) == [
        "quality_below_gate",
        "reliability_below_gate",
    ]
    assert list(failures(found, "unpriced")) == ["unpriced"]
    assert failures(found, "silent")["no_complete_response"] == (0, 1, 1)
    _, loose = explained({"new": evidence([1_000 * MS] * 9, quality=(0, 0))}, rules_loose)
    assert failures(loose, "new") == {
        "few_samples": (9, 59, 50),
        "few_trials": (9, 70, 61),
        "prior_only": (0, 1, 1),
        "latency_interval": (None, None, None),
    }


def test_the_policy_is_named_with_the_place_of_the_event_that_set_it() -> None:
    _, found = explained(USUAL, policy())
    said = found.policy
    assert (said["event_id"], said["version"], said["topic"], said["offset"]) == (
        "policy",
        1,
        "scoring.policy.updated",
        7,
    )
    assert said["weight_quality"] == 4000
    assert found.inputs == ({"topic": "scoring.policy.updated", "partition": 0, "next_offset": 8},)
    assert found.marks[0]["up_to_offset"] == 41
    assert found.window == {
        "start_ms": WINDOW_END - 86_400_000,
        "end_ms": WINDOW_END,
        "panes": 288,
    }


def test_another_policy_explains_nothing() -> None:
    record = final(entries(USUAL, policy()), policy())
    with pytest.raises(ValueError, match="other"):
        explain(record, recorded(policy(event_id="other")))


def test_a_challenger_is_told_what_it_still_needs() -> None:
    rules = policy(hysteresis_min_ms=3_600_000)
    before = LeaderState(
        provider="p",
        model="far",
        since_ms=WINDOW_END - 1_200_000,
        challenger_provider="p",
        challenger_model="leader",
        closes=1,
    )
    _, found = explained(USUAL, rules, before=before)
    assert found.leader is not None
    assert found.leader["model"] == "p/far"
    assert found.leader["challenger"] == "p/leader"
    assert (found.leader["closes"], found.leader["closes_needed"]) == (2, 3)
    assert found.leader["wait_ms"] == 3_600_000 - 1_800_000
    assert found.leader["before"]["closes"] == 1


def test_flips_are_those_of_the_first_two_by_score() -> None:
    _, found = explained(USUAL, policy())
    assert found.between == ("p/leader", "p/close")
    assert len(found.flips) == 10
    _, alone = explained({"only": USUAL["leader"]}, policy())
    assert (alone.between, alone.flips) == (None, ())


def test_a_ranking_without_anybody_is_explained_too() -> None:
    _, found = explained({"silent": evidence([], failed=2)}, policy())
    assert found.models[0].status == "unrankable"
    assert found.ties == ()

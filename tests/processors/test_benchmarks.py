"""M19: reported benchmarks as the prior of quality."""

from fractions import Fraction
from typing import Any

import pytest

from processors.benchmarks import Benchmarks, scaled_e9
from schemas import Position, Recorded, SlmBenchmarkResults
from schemas.quality import MetricDirection, MetricScale
from schemas.scoring_policy import PolicyBenchmark
from tests.processors.test_scoring import evidence, policy, ranked

E9 = 10**9
ROUGE = PolicyBenchmark(name="rouge", weight=1, floor_e9=E9 // 5, target_e9=E9 // 2)
WER = PolicyBenchmark(name="wer", weight=1, floor_e9=3 * E9 // 10, target_e9=E9 // 20)
WHO = ("p", "m")


def result(name: str, value: float, offset: int = 0, **fields: Any) -> Any:
    direction = MetricDirection.LOWER if name == "wer" else MetricDirection.HIGHER
    event = SlmBenchmarkResults(
        **{
            "event_id": f"{name}-{offset}",
            "occurred_at_ms": 0,
            "source": "test",
            "provider": "p",
            "model": "m",
            "name": name,
            "value": value,
            "scale": MetricScale.UNIT,
            "direction": direction,
            **fields,
        }
    )
    return Recorded(event, Position("slm.benchmark.results", 0, offset, 0), b"k")


def known(*results: Any) -> Benchmarks:
    found = Benchmarks()
    for one in results:
        found.add(one)
    return found


def test_the_example_of_m19() -> None:
    """ROUGE-L .35 (floor .20, target .50) and WER .10 (floor .30, target .05): .65."""
    rules = policy(benchmarks=(ROUGE, WER))
    prior = known(result("rouge", 0.35), result("wer", 0.10)).prior(WHO, "dialogue", rules, 0)
    assert prior.mean == Fraction(65, 100)
    assert not prior.missing


def test_a_missing_benchmark_is_left_out_and_flagged() -> None:
    rules = policy(benchmarks=(ROUGE, WER))
    found = known(result("wer", 0.10))
    assert found.prior(WHO, "dialogue", rules, 0).mean == Fraction(8, 10)
    (entry,) = ranked({WHO: evidence([10**6] * 60)}, rules, found)
    assert "benchmarks_missing" in entry.flags
    assert (entry.quality, entry.prior_only, entry.status) == (0.8, False, "ranked")


def test_without_any_the_policy_s_prior_stands() -> None:
    rules = policy(benchmarks=(ROUGE,), prior_quality=7000)
    (entry,) = ranked({WHO: evidence([10**6] * 60)}, rules)
    assert (entry.quality_prior, entry.prior_only) == (0.7, True)
    assert "benchmarks_missing" in entry.flags


def test_parts_are_clipped_at_floor_and_target() -> None:
    rules = policy(benchmarks=(ROUGE,))
    assert known(result("rouge", 0.9)).prior(WHO, "dialogue", rules, 0).mean == 1
    assert known(result("rouge", 0.1)).prior(WHO, "dialogue", rules, 0).mean == 0


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"role": "chat"}, True),  # an alias of dialogue
        ({"role": "code"}, False),
        ({"occurred_at_ms": 1}, False),  # later than the window
        ({"model": "other"}, False),
        ({"dataset_hash": "x"}, True),
    ],
)
def test_only_results_of_the_model_the_role_and_the_time_count(
    changes: dict[str, Any], counts: bool
) -> None:
    prior = known(result("rouge", 0.5, **changes)).prior(
        WHO, "dialogue", policy(benchmarks=(ROUGE,)), 0
    )
    assert bool(prior.parts) == counts


def test_a_policy_may_ask_for_one_dataset_and_signature() -> None:
    wanted = ROUGE.model_copy(update={"dataset_hash": "d", "signature": "s"})
    rules = policy(benchmarks=(wanted,))
    found = known(
        result("rouge", 0.5, 1, dataset_hash="d", signature="s"),
        result("rouge", 0.2, 2, dataset_hash="d"),
        result("rouge", 0.2, 3, dataset_hash="x", signature="s"),
    )
    assert found.prior(WHO, "dialogue", rules, 0).mean == 1


def test_the_newest_result_counts_by_its_own_time_then_by_the_log() -> None:
    rules = policy(benchmarks=(ROUGE,))
    older = result("rouge", 0.2, 9, occurred_at_ms=1)
    newer = result("rouge", 0.5, 1, occurred_at_ms=2)
    assert known(older, newer).prior(WHO, "dialogue", rules, 5).mean == 1
    assert known(newer, older).prior(WHO, "dialogue", rules, 5).mean == 1
    again = result("rouge", 0.2, 3, occurred_at_ms=2)
    assert known(newer, again).prior(WHO, "dialogue", rules, 5).mean == 0


def test_a_reported_interval_is_the_error_of_a_quality_without_bits() -> None:
    rules = policy(benchmarks=(ROUGE,))
    exact = known(result("rouge", 0.35, ci_low=0.35, ci_high=0.35))
    (entry,) = ranked({WHO: evidence([10**6] * 60)}, rules, exact)
    assert entry.terms[0].standard_error == 0
    wide = known(result("rouge", 0.35, ci_low=0.25, ci_high=0.45))
    (entry,) = ranked({WHO: evidence([10**6] * 60)}, rules, wide)
    # weight .4, width .2 of a span of .3
    assert entry.terms[0].standard_error == round(0.4 * 0.2 / 0.3 / (2 * 1.959964), 9)


def test_percent_is_a_share_and_the_value_is_taken_exactly() -> None:
    assert (
        scaled_e9(35.0, MetricScale.PERCENT) == scaled_e9(0.35, MetricScale.UNIT) == 35 * E9 // 100
    )
    assert scaled_e9(4.2, MetricScale.RAW) == 42 * E9 // 10

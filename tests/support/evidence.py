"""A policy, invocations, totals and benchmark results as plain fields, for tests of rankings."""

from typing import Any

from tools.verify.recompute import Totals
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
    "window_panes": 288,
    "part_availability": 5000,
    "part_policy_compliance": 2500,
    "part_refusal_accuracy": 2500,
    "quality_metrics": ["quality"],
    "benchmarks": [],
    "hysteresis_margin_e9": 20_000_000,
    "hysteresis_closes": 3,
    "hysteresis_min_ms": 1_800_000,
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


def totals(*invocations: Fields, **quality: list[int]) -> Totals:
    made = Totals()
    for one in invocations:
        made.count(one)
    made.quality = quality
    return made


ROUGE: Fields = {
    "name": "rouge",
    "weight": 1,
    "floor_e9": 200_000_000,
    "target_e9": 500_000_000,
    "dataset_hash": None,
    "signature": None,
}
WER: Fields = {**ROUGE, "name": "wer", "floor_e9": 300_000_000, "target_e9": 50_000_000}


def result(name: str, value: float, **changed: Any) -> Fields:
    return {
        "event_id": f"r-{name}",
        "occurred_at_ms": 0,
        "source": "test",
        "role": None,
        "provider": "a",
        "model": "m",
        "name": name,
        "value": value,
        "scale": "UNIT",
        "direction": "LOWER" if name == "wer" else "HIGHER",
        "ci_low": None,
        "ci_high": None,
        "dataset_hash": None,
        "signature": None,
        **changed,
    }

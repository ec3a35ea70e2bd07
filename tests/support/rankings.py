"""Rankings made by the real scoring code from evidence that a test describes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from processors.benchmarks import Benchmarks
from processors.evidence import Evidence, Panel
from processors.leader import next_leader
from processors.scoring import LIMITED_INDEX, measure, rank
from processors.sketch import BUCKETS, bucket_of
from schemas import ModelProfileScored, Position, Recorded, ScoringPolicyUpdated
from schemas.model_profile import InputPosition, LeaderState, MarkPosition, RankingEntry
from schemas.scoring_policy import CostUnit
from schemas.values import OUTCOMES, Outcome, derived_id

USD = 10**12
SUCCESS, FAILURE = OUTCOMES.index(Outcome.SUCCESS), OUTCOMES.index(Outcome.FAILURE)
WINDOW_END = 1_700_000_100_000 // 300_000 * 300_000


def policy(**changes: Any) -> ScoringPolicyUpdated:
    """That of the example of M1, a shade stricter about samples."""
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
        "actor": "ann",
    }
    return ScoringPolicyUpdated(**{**fields, **changes})


def recorded(rules: ScoringPolicyUpdated, offset: int = 7) -> Recorded[ScoringPolicyUpdated]:
    """A policy as it stands in the log."""
    return Recorded(rules, Position("scoring.policy.updated", 0, offset, 5), b"dialogue/PRODUCTION")


def evidence(
    latencies: Sequence[int],
    *,
    failed: int = 0,
    limited: int = 0,
    cost: int | Sequence[int] = USD // 1000,
    tokens: int = 1000,
    quality: tuple[int, int] = (80, 100),
    unpriced: bool = False,
) -> Evidence:
    """Complete calls of these latencies (microseconds). cost: of each call, in pico-USD. quality:
    (hits, n) of the metric "quality"."""
    n = len(latencies)
    costs = [cost] * n if isinstance(cost, int) else list(cost)
    counts = np.zeros(len(OUTCOMES) + BUCKETS, np.int64)
    counts[SUCCESS], counts[FAILURE], counts[LIMITED_INDEX] = n, failed, limited
    if n:
        buckets = bucket_of(np.array(latencies, np.int64))
        counts[len(OUTCOMES) :] = np.bincount(buckets, minlength=BUCKETS)
    million = 10**6
    return Evidence(
        invocations=n + failed + limited,
        tokens=n * tokens,
        cost=sum(costs) * million,
        cost_cost=sum(c * c for c in costs) * million**2,
        cost_tokens=sum(costs) * million * tokens,
        tokens_tokens=n * tokens * tokens,
        unpriced=int(unpriced),
        counts=counts,
        quality={"quality": [quality[1], quality[0]]} if quality[1] else {},
    )


def entries(panel: Mapping[str, Evidence], rules: ScoringPolicyUpdated) -> tuple[RankingEntry, ...]:
    """The ranking of models of one provider, p."""
    whole: Panel = {("p", model): found for model, found in panel.items()}
    none = Benchmarks()
    measures = {
        who: measure(found, rules.latency_percentile, rules.cost_unit)
        for who, found in whole.items()
    }
    return rank(
        whole,
        rules,
        measures.__getitem__,
        lambda who: none.prior(who, "dialogue", rules, WINDOW_END),
    )


def final(
    ranked: Sequence[RankingEntry],
    rules: ScoringPolicyUpdated,
    *,
    before: LeaderState | None = None,
    window_end_ms: int = WINDOW_END,
    status: str = "FINAL",
    revision: int = 0,
    **changes: Any,
) -> ModelProfileScored:
    """A record of these entries."""
    as_of = window_end_ms + 600_000
    fields: dict[str, Any] = {
        "event_id": derived_id("test", rules.role, rules.deployment_mode, status, as_of, revision),
        "occurred_at_ms": as_of,
        "source": "roster-scorer",
        "role": rules.role,
        "deployment_mode": rules.deployment_mode,
        "status": status,
        "as_of_ms": as_of,
        "window_start_ms": window_end_ms - rules.window_panes * 300_000,
        "window_end_ms": window_end_ms,
        "revision": revision,
        "generation": 2,
        "policy_event_id": rules.event_id,
        "policy_version": 1,
        "marks": (
            MarkPosition(
                source_topic="llm.invocation",
                source_partition=0,
                up_to_offset=41,
                watermark_ms=as_of,
            ),
        ),
        "inputs": (InputPosition(topic="scoring.policy.updated", partition=0, next_offset=8),),
        "entries": tuple(ranked),
        "state_hash": "00",
        "leader": next_leader(before, ranked, rules, as_of),
        "leader_before": before,
    }
    return ModelProfileScored(**{**fields, **changes})

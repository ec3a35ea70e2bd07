"""Events for tests: one plain good example of each, and hypothesis strategies for all of them.

The strategies follow from the classes and from the wire types of their schemas, so that a new
event is covered from its first day.
"""

import json
from collections.abc import Mapping
from enum import Enum
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from hypothesis import strategies as st
from pydantic import BaseModel, StringConstraints
from pydantic.fields import FieldInfo

from schemas import (
    BudgetThresholdCrossed,
    BudgetUpdated,
    ClockTick,
    DeadLetter,
    Event,
    LateEvent,
    LlmInvocation,
    MeterMark,
    ModeChanged,
    ModelFallbackUsed,
    ModelProfileActive,
    ModelProfileRecommended,
    ModelProfileRejected,
    ModelProfileScored,
    ModelProfileUpdated,
    ModelQualityObserved,
    ModelRegistered,
    PaneFact,
    RateCardUpdated,
    ScoringPolicyUpdated,
    SlmBenchmarkResults,
)
from schemas.avro import schema_text
from schemas.quality import DIRECTIONS, LARGEST_RATIO, MetricDirection, MetricScale
from schemas.slm_metrics import LATENCY_BUCKETS, ModelTotals
from schemas.values import MAX_INT, MAX_LONG, OUTCOMES

E = TypeVar("E", bound=Event)

HEADER: Final = {"event_id": "e-1", "occurred_at_ms": 1_700_000_000_000, "source": "test"}
_KEY: Final = {"scope": "system", "role": "code", "deployment_mode": "TEST"}
_CAUSE: Final = {"cause_partition": 0, "cause_offset": 5}
_TERM: Final = {
    "name": "cost",
    "value": 0.5,
    "reference": 1.0,
    "floored": False,
    "weight": 1500,
    "contribution": 0.3,
    "standard_error": 0.01,
    "n": 7,
}
_ENTRY: Final = {
    "provider": "p",
    "model": "m",
    "status": "provisional",
    "reason": "few_samples",
    "rank": 1,
    "score": 0.7,
    "score_se": 0.1,
    "score_raw": 2.5,
    "invocations": 7,
    "complete": 7,
    "trials": 7,
    "hits": 7,
    "rate_limited": 0,
    "latency_us": 100.0,
    "latency_low_us": None,
    "latency_high_us": 200.0,
    "cost_picousd_per_request": 3.5,
    "cost_picousd_per_1k_tokens": None,
    "reliability": 0.9,
    "quality": 0.5,
    "prior_only": True,
    "flags": ["parts_missing"],
    "terms": [_TERM],
    "quality_n": 4,
    "quality_hits": 3,
    "quality_prior": 0.75,
    "benchmarks": [{"name": "rouge", "event_id": "e-2", "value": 0.4, "part": 0.75, "weight": 2}],
    "parts": [
        {
            "name": "availability",
            "n": 7,
            "hits": 7,
            "weight": 5000,
            "value": 0.9,
            "standard_error": 0.05,
        }
    ],
    "success_low": 0.6,
    "success_high": 1.0,
}
_LEADER: Final = {
    "provider": "p",
    "model": "m",
    "since_ms": 600_000,
    "challenger_provider": "p",
    "challenger_model": "a",
    "closes": 2,
}
_TOTALS: Final = {
    "provider": "p",
    "model": "m",
    "outcomes": [0, 2] + [0] * (len(OUTCOMES) - 2),
    "input_tokens": 3,
    "cached_tokens": 0,
    "output_tokens": 4,
    "priced_n": 1,
    "reported_n": 1,
    "unit_sums": ["3", "0", "4"],
    "unit_products": ["9", "0", "12", "0", "0", "16"],
    "reported_sums": ["5", "7"],
    "reported_products": ["25", "35", "49"],
    "latency_buckets": [3, 500],
    "latency_counts": [1, 1],
    "quality": [{"metric": "quality", "n": 5, "hits": 4}],
}
_PLACE: Final = {"source_topic": "llm.invocation", "source_partition": 0, "generation": 1}
_ORIGIN: Final = {"origin_topic": "llm.invocation", "origin_partition": 0, "origin_offset": 3}

GOOD: Final[Mapping[type[Event], Mapping[str, Any]]] = {
    LlmInvocation: {
        **HEADER,
        "tenant": "acme",
        "role": "code",
        "provider": "p",
        "model": "m",
        "outcome": "SUCCESS",
        "input_tokens": 10,
        "output_tokens": 5,
        "latency_us": 1_000,
    },
    ClockTick: {**HEADER, "base_occurred_at_ms": 1, "base_append_ms": 1},
    ModelFallbackUsed: {
        **HEADER,
        "tenant": "acme",
        "role": "code",
        "from_model": "p/a",
        "to_model": "p/b",
        "reason": "timeout",
        "chain": ["p/a"],
        "attempt": 2,
        "added_latency_us": 0,
    },
    ModelProfileUpdated: {**HEADER, **_KEY, "action": "SET", "model": "p/m", "actor": "ann"},
    ModelProfileRejected: {
        **HEADER,
        **_KEY,
        **_CAUSE,
        "rejected_event_id": "e-0",
        "kind": "CONFLICT",
        "actual_version": 2,
        "actor": "ann",
        "cause_topic": "model.profile.updated",
    },
    ModelProfileActive: {
        **HEADER,
        **_KEY,
        **_CAUSE,
        "version": 1,
        "model": "p/m",
        "actor": "ann",
        "cause_event_id": "e-0",
    },
    ModelProfileScored: {
        **HEADER,
        "role": "code",
        "deployment_mode": "TEST",
        "status": "FINAL",
        "as_of_ms": 900_000,
        "window_start_ms": 0,
        "window_end_ms": 300_000,
        "revision": 0,
        "generation": 1,
        "policy_event_id": "e-0",
        "policy_version": 1,
        "marks": [
            {"source_topic": "t", "source_partition": 0, "up_to_offset": 9, "watermark_ms": None}
        ],
        "inputs": [{"topic": "t", "partition": 0, "next_offset": 4}],
        "entries": [_ENTRY],
        "state_hash": "ab" * 32,
        "omitted": 1,
        "leader": _LEADER,
        "leader_before": {**_LEADER, "closes": 1},
    },
    ModelProfileRecommended: {
        **HEADER,
        "role": "code",
        "deployment_mode": "TEST",
        "provider": "p",
        "model": "m",
        "score": 0.7,
        "score_se": 0.1,
        "samples": 7,
        "leads_since_ms": 600_000,
        "current_model": "p/a",
        "current_status": "ranked",
        "current_score": 0.5,
        "current_score_se": 0.05,
        "profile_key": "mode/code/TEST",
        "profile_version": 2,
        "ranking_event_id": "e-2",
        "ranking_as_of_ms": 900_000,
        "policy_event_id": "e-0",
        "policy_version": 1,
    },
    ModeChanged: {**HEADER, "deployment": "main", "to_mode": "qa", "actor": "ann"},
    ModelRegistered: {
        **HEADER,
        "provider": "p",
        "model": "m",
        "action": "SET",
        "tier": "small",
        "quantization": "q4_k_m",
        "licence": "Apache-2.0",
        "parameters_millions": 7_000,
        "context_tokens": 4_096,
        "max_output_tokens": 2_048,
        "roles": ["code"],
        "capabilities": ["tools"],
        "allowed_personas": ["developer"],
        "revision": "r1",
        "strengths": "short answers",
        "notes": "one GPU",
        "actor": "ann",
        "reason": "new",
    },
    ScoringPolicyUpdated: {
        **HEADER,
        "role": "code",
        "deployment_mode": "TEST",
        "actor": "ann",
        "weight_quality": 4000,
        "weight_cost": 1500,
        "weight_latency": 1500,
        "weight_reliability": 3000,
        "cost_unit": "PER_REQUEST",
        "reference_cost_picousd": 1,
        "reference_latency_us": 1,
        "evidence_modes": ["TEST"],
        "window_panes": 12,
        "part_availability": 6000,
        "part_policy_compliance": 1000,
        "part_refusal_accuracy": 3000,
        "quality_metrics": ["quality", "helpful"],
        "benchmarks": [
            {
                "name": "wer",
                "weight": 2,
                "floor_e9": 500_000_000,
                "target_e9": 50_000_000,
                "dataset_hash": "sha256:1",
                "signature": None,
            }
        ],
        "hysteresis_margin_e9": 1,
        "hysteresis_closes": 2,
        "hysteresis_min_ms": 0,
        "sla_success": 9900,
        "sla_latency_us": 2_000_000,
        "sla_cost_picousd_per_1k": 5,
        "severity": "PAGE",
    },
    ModelQualityObserved: {
        **HEADER,
        "tenant": "acme",
        "role": "code",
        "provider": "p",
        "model": "m",
        "metric": "helpful",
        "n": 3,
        "hits": 2,
        "invocation_id": "i-1",
        "judge": "ann",
    },
    SlmBenchmarkResults: {
        **HEADER,
        "role": "code",
        "provider": "p",
        "model": "m",
        "name": "wer",
        "value": 12.5,
        "scale": "PERCENT",
        "direction": "LOWER",
        "n": 200,
        "ci_low": 11.0,
        "ci_high": 14.25,
        "tool": "jiwer",
        "seed": -7,
    },
    RateCardUpdated: {
        **HEADER,
        "provider": "p",
        "model": "m",
        "unit": "INPUT_TOKEN",
        "price_picousd_per_million": 7,
        "valid_from_ms": 0,
    },
    BudgetUpdated: {
        **HEADER,
        "tenant": "acme",
        "budget": "b",
        "cap_picousd": 10,
        "period": "DAY",
        "at_cap": "DENY",
        "actor": "ann",
    },
    BudgetThresholdCrossed: {
        **HEADER,
        "tenant": "acme",
        "budget": "b",
        "budget_event_id": "e-0",
        "period_start_ms": 0,
        "threshold_percent": 80,
        "spent_picousd": 8,
        "cap_picousd": 10,
        "at_offsets": [{"topic": "t", "partition": 0, "next_offset": 4}],
    },
    PaneFact: {
        **_PLACE,
        "role": "code",
        "mode": "TEST",
        "pane_start_ms": 300_000,
        "up_to_offset": 3,
        "models": [_TOTALS],
    },
    MeterMark: {
        **_PLACE,
        "up_to_offset": 3,
        "watermark_ms": None,
        "newest_event_ms": None,
        "newest_append_ms": None,
        "consumed": 4,
        "applied": 4,
        "duplicate": 0,
        "late": 0,
        "dead_lettered": 0,
        "conflict": 0,
        "control": 0,
        "replay_from": 0,
        "kept_from_ms": None,
        "owner": "0",
    },
    DeadLetter: {
        **HEADER,
        **_ORIGIN,
        "origin_append_ms": 1,
        "reason": "bad_magic",
        "detail": "no",
        "key": b"k",
        "value": b"\x01",
        "value_length": 1,
        "headers": {"h": b"\xff"},
    },
    LateEvent: {
        **HEADER,
        **_ORIGIN,
        "late_event_id": "e-0",
        "pane_start_ms": 0,
        "watermark_ms": 10**6,
        "generation": 1,
    },
}
"""Fields of one good example per event."""


def good(event: type[E], **changes: Any) -> E:
    """A good example of an event, with some fields changed."""
    return event.model_validate({**GOOD[event], **changes})


def raw(event: type[Event], **changes: Any) -> dict[str, Any]:
    """Fields of that example for the encoder of Avro, changed into whatever it can write."""
    return {**good(event).model_dump(mode="python"), **changes}


# --- strategies

WIRE_INT: Final = {"int": (-MAX_INT - 1, MAX_INT), "long": (-MAX_LONG - 1, MAX_LONG)}
UNICODE: Final = st.characters(codec="utf-8")


def wire_types(schema: Any) -> dict[str, Any]:
    """Field name -> wire type without null, of a record's schema; a name stands for what bore it
    before."""
    found: dict[str, Any] = {}
    known: dict[str, Any] = {}
    for field in schema["fields"]:
        kind = _not_null(field["type"])
        found[field["name"]] = known.get(kind, kind) if isinstance(kind, str) else kind
        if isinstance(kind, dict) and "name" in kind:
            known[kind["name"]] = kind
    return found


def _not_null(kind: Any) -> Any:
    return next(one for one in kind if one != "null") if isinstance(kind, list) else kind


def _value(annotation: Any, rules: list[Any], wire: Any) -> st.SearchStrategy[Any]:
    """Values of a type under its rules that the wire type can hold."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        for rule in more:
            rules = [*rules, *(rule.metadata if isinstance(rule, FieldInfo) else [rule])]
        return _value(inner, rules, wire)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return st.one_of(
            *(
                st.none() if one is NoneType else _value(one, rules, wire)
                for one in sorted(arguments, key=lambda one: one is not NoneType)
            )
        )
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        least = max((r.min_length for r in rules if isinstance(r, MinLen)), default=0)
        most = min((r.max_length for r in rules if isinstance(r, MaxLen)), default=least + 2)
        items = _value(arguments[0], [], wire["items"])
        return st.lists(items, min_size=least, max_size=most).map(tuple)
    if origin is dict:
        values = _value(arguments[1], [], wire["values"])
        return st.dictionaries(st.text(UNICODE, max_size=5), values, max_size=2)
    if issubclass(annotation, BaseModel):
        return fields_of(annotation, wire).map(annotation.model_validate)
    if issubclass(annotation, Enum):
        return st.sampled_from(list(annotation))
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return _integers(rules, WIRE_INT[wire])
    if annotation is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if annotation is bytes:
        return st.binary(max_size=20)
    assert annotation is str, annotation
    return _strings(rules)


def _integers(rules: list[Any], span: tuple[int, int]) -> st.SearchStrategy[int]:
    low, high = span
    for rule in rules:
        bound: Any = rule
        low = max(low, bound.ge) if isinstance(rule, Ge) else low
        low = max(low, bound.gt + 1) if isinstance(rule, Gt) else low
        high = min(high, bound.le) if isinstance(rule, Le) else high
        high = min(high, bound.lt - 1) if isinstance(rule, Lt) else high
    return st.integers(low, high)


def _strings(rules: list[Any]) -> st.SearchStrategy[str]:
    pattern = next((r.pattern for r in rules if isinstance(r, StringConstraints) and r.pattern), "")
    if pattern:
        inner = str(pattern).removeprefix("^").removesuffix("$")
        found = st.from_regex(inner, fullmatch=True, alphabet=UNICODE)
        return found.filter(lambda text: ".." not in text)  # the rule beside the pattern
    return st.text(UNICODE, max_size=30)


def fields_of(model: type[BaseModel], schema: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Fields of a model that are good one by one, and together as far as BETWEEN knows."""
    wire = wire_types(schema)
    made = {
        name: _value(info.annotation, list(info.metadata), wire[name])
        for name, info in model.model_fields.items()
    }
    return st.fixed_dictionaries({**made, **BETWEEN.get(model, {})}).map(_settled)


BETWEEN: Final[Mapping[type[BaseModel], Mapping[str, st.SearchStrategy[Any]]]] = {
    BudgetUpdated: {"thresholds": st.sets(st.integers(1, 1000), max_size=4).map(sorted)},
    ScoringPolicyUpdated: {
        "quality_metrics": st.lists(
            st.sampled_from(["quality", "helpful", "wer"]), unique=True
        ).map(tuple)
    },
    ModelTotals: {
        "latency_buckets": st.lists(st.integers(0, LATENCY_BUCKETS - 1), min_size=2, max_size=2),
        "latency_counts": st.lists(st.integers(0, MAX_LONG), min_size=2, max_size=2),
    },
    SlmBenchmarkResults: {
        "name": st.sampled_from(["pass_at_1", *DIRECTIONS]),
        "value": st.floats(0, 1),  # of what its scale allows
        "ci_low": st.none() | st.floats(0, 1),
        "ci_high": st.floats(0, 1),
    },
}
"""Rules over more than one field that can be kept by drawing."""


def _settled(fields: dict[str, Any]) -> dict[str, Any]:
    """Mends what must hold between fields."""
    for prefix in ("weight_", "part_"):
        shares = [name for name in fields if name.startswith(prefix)]
        if shares:
            cuts = sorted(fields[name] for name in shares[1:])
            parts = (b - a for a, b in pairwise((0, *cuts, 10_000)))
            fields |= dict(zip(shares, parts, strict=True))
    if "hits" in fields and "judge" in fields:
        fields["hits"] = min(fields["hits"], fields["n"])
    if "floor_e9" in fields and fields["floor_e9"] == fields["target_e9"]:
        fields["floor_e9"] = 0 if fields["target_e9"] else 1
    if "ci_low" in fields:
        _scale(fields)
    if fields.get("valid_to_ms") is not None:
        low, high = sorted((fields["valid_from_ms"], fields["valid_to_ms"]))
        fields |= {"valid_from_ms": low, "valid_to_ms": high if high > low else None}
    if "window_end_ms" in fields:
        low, high = sorted((fields["window_start_ms"], fields["window_end_ms"]))
        start = min(low, MAX_LONG - 1)
        fields |= {"window_start_ms": start, "window_end_ms": max(high, start + 1)}
    return fields


def _scale(fields: dict[str, Any]) -> None:
    """Brings a benchmark's numbers, drawn as shares, to its scale, in the direction of its name."""
    fields["direction"] = DIRECTIONS.get(fields["name"], fields["direction"])
    most = {MetricScale.UNIT: 1.0, MetricScale.PERCENT: 100.0}.get(fields["scale"], 1e300)
    if fields["direction"] is MetricDirection.LOWER:
        most *= LARGEST_RATIO
    if fields["ci_low"] is None:
        fields |= {"ci_high": None, "value": fields["value"] * most}
    else:
        low, value, high = sorted((fields["ci_low"], fields["value"], fields["ci_high"]))
        fields |= {"ci_low": low * most, "value": value * most, "ci_high": high * most}


def events(event: type[E]) -> st.SearchStrategy[E]:
    """Any good event of a type."""
    schema = json.loads(schema_text(event))
    return fields_of(event, schema).map(event.model_validate)

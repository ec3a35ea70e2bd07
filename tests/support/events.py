"""Events for tests: one plain good example of each, and hypothesis strategies for all of them.

The strategies follow from the classes and from the wire types of their schemas, so that a new
event is covered from its first day.
"""

import json
from collections.abc import Mapping
from enum import Enum
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
    ModelProfileRejected,
    ModelProfileScored,
    ModelProfileUpdated,
    ModelRegistered,
    PaneFact,
    RateCardUpdated,
    ScoringPolicyUpdated,
)
from schemas.avro import schema_text
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


def _wire(schema: Any) -> dict[str, Any]:
    """Field name -> wire type without null, of a record's schema."""
    return {field["name"]: _not_null(field["type"]) for field in schema["fields"]}


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
    wire = _wire(schema)
    made = {
        name: _value(info.annotation, list(info.metadata), wire[name])
        for name, info in model.model_fields.items()
    }
    return st.fixed_dictionaries({**made, **BETWEEN.get(model, {})}).map(_settled)


BETWEEN: Final[Mapping[type[BaseModel], Mapping[str, st.SearchStrategy[Any]]]] = {
    BudgetUpdated: {"thresholds": st.sets(st.integers(1, 1000), max_size=4).map(sorted)},
    ModelTotals: {
        "latency_buckets": st.lists(st.integers(0, LATENCY_BUCKETS - 1), min_size=2, max_size=2),
        "latency_counts": st.lists(st.integers(0, MAX_LONG), min_size=2, max_size=2),
    },
}
"""Rules over more than one field that can be kept by drawing."""


def _settled(fields: dict[str, Any]) -> dict[str, Any]:
    """Mends what must hold between fields."""
    if "weight_quality" in fields:
        weights = ("quality", "cost", "latency", "reliability")
        a, b, c = sorted(fields[f"weight_{name}"] for name in weights[1:])
        parts = (a, b - a, c - b, 10_000 - c)
        fields |= {f"weight_{n}": part for n, part in zip(weights, parts, strict=True)}
    if fields.get("valid_to_ms") is not None:
        low, high = sorted((fields["valid_from_ms"], fields["valid_to_ms"]))
        fields |= {"valid_from_ms": low, "valid_to_ms": high if high > low else None}
    if "window_end_ms" in fields:
        low, high = sorted((fields["window_start_ms"], fields["window_end_ms"]))
        start = min(low, MAX_LONG - 1)
        fields |= {"window_start_ms": start, "window_end_ms": max(high, start + 1)}
    return fields


def events(event: type[E]) -> st.SearchStrategy[E]:
    """Any good event of a type."""
    schema = json.loads(schema_text(event))
    return fields_of(event, schema).map(event.model_validate)

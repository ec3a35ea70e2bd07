"""Bytes of a record -> its fields, or the reason why it is a dead letter.

Written from reliability.md sections 3 and 4 by hand, field by field, on purpose without the code
that the other processes use. The schemas are those of schemas/avsc, read as data.
"""

import io
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final
from uuid import UUID, uuid5

import fastavro

from tools.verify.log import Record

Fields = dict[str, Any]
Check = Callable[[Any], str | None]

MAX_BYTES: Final = 256 * 1024
OWN_MAX_BYTES: Final = 8 * 1024 * 1024
OWN: Final = frozenset({"slm.metrics", "model.profile.scored"})
DAY_MS: Final = 86_400_000
LONG: Final = 2**63 - 1
NAMESPACE: Final = UUID("7a5a1c3e-6f0b-5d4e-9d0e-52074f7374e2")
IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
DIGITS: Final = re.compile(r"0|[1-9][0-9]{0,79}")
LONG_RUN: Final = re.compile(rb"[\x80-\xff]{9}")
NIL: Final = "00000000-0000-0000-0000-000000000000"

CARRIES: Final[Mapping[str, tuple[str, ...]]] = {
    "llm.invocation": ("LlmInvocation", "ClockTick"),
    "model.fallback.used": ("ModelFallbackUsed",),
    "model.profile.updated": ("ModelProfileUpdated",),
    "model.profile.rejected": ("ModelProfileRejected",),
    "model.profile.active": ("ModelProfileActive",),
    "mode.changed": ("ModeChanged",),
    "model.registered": ("ModelRegistered",),
    "scoring.policy.updated": ("ScoringPolicyUpdated",),
    "rate.card.updated": ("RateCardUpdated",),
    "budget.updated": ("BudgetUpdated",),
    "budget.threshold.crossed": ("BudgetThresholdCrossed",),
    "slm.metrics": ("PaneFact", "MeterMark"),
    "model.profile.scored": ("ModelProfileScored",),
    "model.profile.recommended": ("ModelProfileRecommended",),
    "model.quality.observed": ("ModelQualityObserved", "ClockTick"),
    "slm.benchmark.results": ("SlmBenchmarkResults",),
    "late.events": ("LateEvent",),
    "dead.letters": ("DeadLetter",),
}
"""Topic -> records it may carry."""
FOLDED: Final = frozenset({"LlmInvocation", "ModelQualityObserved"})
"""What the meter folds: a repeated id must meet in one partition."""
TIMED: Final = FOLDED | {"ModelFallbackUsed"}
HIGHER_IS_BETTER: Final = frozenset(
    ["bleu", "rouge", "factual_accuracy", "diff_accuracy", "summarization_faithfulness", "mos_lqo"]
)
LOWER_IS_BETTER: Final = frozenset(
    [
        "hallucination_rate",
        "policy_violations",
        "wer",
        "cer",
        "latency_p50",
        "latency_p95",
        "cost_per_1k_tokens",
        "streaming_latency",
    ]
)


def derived_id(kind: str, *parts: object) -> str:
    """uuid5 of what an event was made of."""
    return str(uuid5(NAMESPACE, "|".join([kind, *(str(part) for part in parts)])))


# What a field must be. Each check gives None or the reason code.


@lru_cache(maxsize=10_000)  # tenants, models, sources: few, and the same ones again and again
def identifier(value: Any) -> str | None:
    return event_id(value) if value != NIL else None


def event_id(value: Any) -> str | None:
    good = isinstance(value, str) and IDENTIFIER.fullmatch(value) and ".." not in value
    return None if good and value != NIL else "invalid_field"


@lru_cache(maxsize=10_000)
def name(value: Any) -> str | None:
    return None if isinstance(value, str) and NAME.fullmatch(value) else "invalid_field"


def text(value: Any) -> str | None:
    return None if isinstance(value, str) and len(value) <= 4096 else "invalid_field"


def detail(value: Any) -> str | None:
    return None if len(value) <= 512 else "invalid_field"


def finite(value: Any) -> str | None:
    return None if math.isfinite(value) else "not_finite"


def between(low: int, high: int) -> Check:
    return lambda value: None if low <= value <= high else "out_of_range"


def one_of(*allowed: object) -> Check:
    return lambda value: None if value in allowed else "invalid_field"


def maybe(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def each(check: Check) -> Check:
    def first(values: Any) -> str | None:
        for value in values:
            reason = check(value)
            if reason is not None:
                return reason
        return None

    return first


def all_between(low: int, high: int) -> Check:
    """As each(between(low, high))."""
    return lambda values: (
        None if not values or (low <= min(values) and max(values) <= high) else "out_of_range"
    )


def within(checks: tuple[tuple[str, Check], ...]) -> Check:
    return lambda value: first_reason(checks, value)


def first_reason(checks: tuple[tuple[str, Check], ...], fields: Fields) -> str | None:
    """Reason of the first field that is not what it must be; None: all are."""
    for field, check in checks:
        reason = check(fields[field])
        if reason is not None:
            return reason
    return None


def digits(values: Any) -> str | None:
    return None if all(map(DIGITS.fullmatch, values)) else "invalid_field"


def sized(low: int, high: int | None, check: Check) -> Check:
    """A list of so many items that passes a check."""

    def look(values: Any) -> str | None:
        reason = check(values)
        if reason is None and (len(values) < low or (high is not None and len(values) > high)):
            return "invalid_field"
        return reason

    return look


def at_most(n: int, check: Check) -> Check:
    """A list of no more items, each of which passes a check; too many is said first."""
    return lambda values: "invalid_field" if len(values) > n else each(check)(values)


time_ms = between(0, 253_402_300_799_999)
tokens = between(0, 10**9)
latency = between(1, 10**12)
money = between(0, LONG)
share = between(0, 10_000)
offset = between(-1, LONG)
natural = between(0, LONG)
positive = between(1, LONG)
int32 = between(-(2**31), 2**31 - 1)  # decoders take longer numbers for an Avro int
partition = between(0, 2**31 - 1)


def _headed(tenant: Check = maybe(identifier)) -> tuple[tuple[str, Check], ...]:  # noqa: B008  # pure
    return (
        ("event_id", event_id),
        ("occurred_at_ms", time_ms),
        ("source", identifier),
        ("tenant", tenant),
        ("persona", maybe(identifier)),
        ("mode", maybe(name)),
        ("trace_id", maybe(text)),
        ("budget_trace_id", maybe(text)),
    )


DOUBLES: Final = (
    "score",
    "score_se",
    "score_raw",
    "latency_us",
    "latency_low_us",
    "latency_high_us",
    "cost_picousd_per_request",
    "cost_picousd_per_1k_tokens",
    "reliability",
    "quality",
)
TERM: Final = (
    ("value", finite),
    ("reference", maybe(finite)),
    ("weight", int32),
    ("contribution", finite),
    ("standard_error", finite),
)


QUALITY: Final = (
    ("quality_prior", maybe(finite)),
    ("benchmarks", each(within((("value", finite), ("part", finite), ("weight", int32))))),
    (
        "parts",
        each(within((("weight", int32), ("value", finite), ("standard_error", finite)))),
    ),
    ("success_low", maybe(finite)),
    ("success_high", maybe(finite)),
)


def ranking_entry(entry: Fields) -> str | None:
    """An entry of a ranking; there are many of them."""
    if entry["rank"] is not None and int32(entry["rank"]) is not None:
        return "out_of_range"
    if not all(entry[name] is None or math.isfinite(entry[name]) for name in DOUBLES):
        return "not_finite"
    for term in entry["terms"]:
        reason = first_reason(TERM, term)
        if reason is not None:
            return reason
    return first_reason(QUALITY, entry)


LEADER: Final = maybe(within((("closes", int32),)))


def policy_benchmark(benchmark: Fields) -> str | None:
    """A benchmark of a policy."""
    reason = first_reason(
        (
            ("name", identifier),
            ("weight", between(1, 10**6)),
            ("dataset_hash", maybe(text)),
            ("signature", maybe(text)),
        ),
        benchmark,
    )
    same = benchmark["floor_e9"] == benchmark["target_e9"]
    return reason or ("invalid_field" if same else None)


CHECKS: Final[Mapping[str, tuple[tuple[str, Check], ...]]] = {
    "LlmInvocation": (
        *_headed(identifier),
        ("role", name),
        ("provider", identifier),
        ("model", identifier),
        ("input_tokens", tokens),
        ("cached_tokens", tokens),
        ("output_tokens", tokens),
        ("latency_us", latency),
        ("first_token_us", maybe(latency)),
        ("gpu_ms", maybe(tokens)),
        ("reported_cost_picousd", maybe(money)),
        ("error_code", maybe(text)),
        ("attempt", between(1, 1000)),
        ("request_id", maybe(text)),
        ("profile_key", maybe(text)),
        ("profile_version", maybe(natural)),
    ),
    "ClockTick": (*_headed(), ("base_occurred_at_ms", time_ms), ("base_append_ms", time_ms)),
    "ModelFallbackUsed": (
        *_headed(identifier),
        ("role", name),
        ("from_model", identifier),
        ("to_model", identifier),
        ("reason", identifier),
        ("chain", each(identifier)),
        ("attempt", between(2, 1000)),
        ("added_latency_us", between(0, 10**12)),
        ("added_cost_picousd", maybe(money)),
        ("request_id", maybe(text)),
        ("invocation_id", maybe(identifier)),
    ),
    "ModelProfileUpdated": (
        *_headed(),
        ("role", name),
        ("deployment_mode", name),
        ("action", one_of("SET", "DELETE")),
        ("temperature", finite),
        ("actor", identifier),
        ("reason", maybe(text)),
        ("expected_version", maybe(natural)),
    ),
    "ModelProfileRejected": (
        *_headed(),
        ("kind", one_of("CONFLICT", "INVALID")),
        ("cause_partition", partition),
        ("cause_offset", offset),
    ),
    "ModelProfileActive": (
        *_headed(),
        ("temperature", finite),
        ("cause_partition", partition),
        ("cause_offset", offset),
    ),
    "ModeChanged": (
        *_headed(),
        ("deployment", identifier),
        ("to_mode", name),
        ("actor", identifier),
        ("reason", maybe(text)),
    ),
    "ModelRegistered": (
        *_headed(),
        ("provider", identifier),
        ("model", identifier),
        ("action", one_of("SET", "DELETE")),
        ("tier", maybe(name)),
        ("quantization", maybe(name)),
        ("licence", maybe(text)),
        ("parameters_millions", maybe(between(1, 10**9))),
        ("context_tokens", maybe(between(1, 10**9))),
        ("max_output_tokens", maybe(between(1, 10**9))),
        ("roles", each(name)),
        ("capabilities", each(name)),
        ("allowed_personas", each(identifier)),
        ("revision", maybe(text)),
        ("strengths", maybe(text)),
        ("notes", maybe(text)),
        ("actor", identifier),
        ("reason", maybe(text)),
    ),
    "ScoringPolicyUpdated": (
        *_headed(),
        ("role", name),
        ("deployment_mode", name),
        ("weight_quality", share),
        ("weight_cost", share),
        ("weight_latency", share),
        ("weight_reliability", share),
        ("cost_unit", one_of("PER_REQUEST", "PER_1K_TOKENS")),
        ("reference_cost_picousd", between(1, LONG)),
        ("reference_latency_us", latency),
        ("latency_percentile", one_of(50, 95, 99)),
        ("max_ratio_percent", between(100, 10_000)),
        ("prior_quality", share),
        ("prior_reliability", share),
        ("prior_strength", between(1, 10**6)),
        ("min_quality", share),
        ("min_reliability", share),
        ("min_samples", between(1, 2**31 - 1)),
        ("min_trials", between(1, 2**31 - 1)),
        ("emit_epsilon_e9", natural),
        ("emit_min_interval_ms", natural),
        ("heartbeat_ms", positive),
        ("evidence_modes", each(name)),
        ("actor", identifier),
        ("window_panes", between(1, 10_000)),
        ("part_availability", share),
        ("part_policy_compliance", share),
        ("part_refusal_accuracy", share),
        ("quality_metrics", at_most(32, identifier)),
        ("benchmarks", at_most(32, policy_benchmark)),
        ("hysteresis_margin_e9", natural),
        ("hysteresis_closes", between(1, 1000)),
        ("hysteresis_min_ms", natural),
        ("sla_success", maybe(share)),
        ("sla_latency_us", maybe(latency)),
        ("sla_cost_picousd_per_1k", maybe(money)),
        ("severity", one_of("INFO", "WARN", "PAGE")),
    ),
    "RateCardUpdated": (
        *_headed(),
        ("provider", identifier),
        ("model", identifier),
        ("unit", one_of("INPUT_TOKEN", "CACHED_TOKEN", "OUTPUT_TOKEN")),
        ("price_picousd_per_million", money),
        ("currency", one_of("USD")),
        ("valid_from_ms", time_ms),
        ("valid_to_ms", maybe(time_ms)),
        ("version", positive),
        ("origin", maybe(text)),
    ),
    "BudgetUpdated": (
        *_headed(identifier),
        ("budget", identifier),
        ("cap_picousd", between(1, LONG)),
        ("period", one_of("HOUR", "DAY", "MONTH")),
        ("thresholds", each(between(1, 1000))),
        ("at_cap", one_of("DENY", "DOWNGRADE", "ALLOW_EMERGENCY")),
        ("actor", identifier),
    ),
    "BudgetThresholdCrossed": (
        *_headed(identifier),
        ("budget", identifier),
        ("budget_event_id", identifier),
        ("period_start_ms", time_ms),
        ("threshold_percent", int32),
        ("spent_picousd", money),
        ("cap_picousd", money),
        ("at_offsets", each(within((("partition", partition),)))),
    ),
    "ModelProfileScored": (
        *_headed(),
        ("status", one_of("PROVISIONAL", "FINAL", "HEARTBEAT")),
        ("generation", int32),
        ("marks", each(within((("source_partition", partition),)))),
        ("inputs", each(within((("partition", partition),)))),
        ("entries", each(ranking_entry)),
        ("leader", LEADER),
        ("leader_before", LEADER),
    ),
    "ModelProfileRecommended": (
        *_headed(),
        ("score", finite),
        ("score_se", finite),
        ("current_score", maybe(finite)),
        ("current_score_se", maybe(finite)),
    ),
    "ModelQualityObserved": (
        *_headed(identifier),
        ("role", name),
        ("provider", identifier),
        ("model", identifier),
        ("metric", identifier),
        ("n", between(1, 10**6)),
        ("hits", between(0, 10**6)),
        ("invocation_id", maybe(identifier)),
        ("judge", maybe(text)),
    ),
    "SlmBenchmarkResults": (
        *_headed(),
        ("role", maybe(name)),
        ("provider", identifier),
        ("model", identifier),
        ("name", identifier),
        ("value", finite),
        ("scale", one_of("UNIT", "PERCENT", "RAW")),
        ("direction", one_of("HIGHER", "LOWER")),
        ("n", maybe(natural)),
        ("ci_low", maybe(finite)),
        ("ci_high", maybe(finite)),
        ("tool", maybe(text)),
        ("tool_version", maybe(text)),
        ("signature", maybe(text)),
        ("dataset_id", maybe(text)),
        ("dataset_hash", maybe(text)),
        ("split", maybe(text)),
        ("prompt_set_version", maybe(text)),
        ("judge_model", maybe(text)),
    ),
    "LateEvent": (
        *_headed(),
        ("origin_partition", partition),
        ("origin_offset", offset),
        ("pane_start_ms", time_ms),
        ("generation", int32),
    ),
    "DeadLetter": (
        *_headed(),
        ("origin_partition", partition),
        ("origin_offset", offset),
        ("detail", detail),
        ("schema_id", maybe(int32)),
    ),
    "PaneFact": (
        ("source_partition", partition),
        ("generation", int32),
        (
            "models",
            each(
                within(
                    (
                        ("outcomes", sized(9, None, all_between(0, LONG))),
                        ("input_tokens", natural),
                        ("cached_tokens", natural),
                        ("output_tokens", natural),
                        ("priced_n", natural),
                        ("unit_sums", sized(3, 3, digits)),
                        ("unit_products", sized(6, 6, digits)),
                        ("reported_n", natural),
                        ("reported_sums", sized(2, 2, digits)),
                        ("reported_products", sized(3, 3, digits)),
                        ("latency_buckets", all_between(0, 1102)),
                        ("latency_counts", all_between(0, LONG)),
                        ("quality", each(within((("n", natural), ("hits", natural))))),
                    )
                )
            ),
        ),
    ),
    "MeterMark": (("source_partition", partition), ("generation", int32)),
}


def _between_fields(kind: str, f: Fields) -> str | None:
    """Rules over more than one field; looked at when each field by itself is good."""
    if kind == "ScoringPolicyUpdated":
        weights = ("weight_quality", "weight_cost", "weight_latency", "weight_reliability")
        parts = ("part_availability", "part_policy_compliance", "part_refusal_accuracy")
        good = all(sum(f[share] for share in shares) == 10_000 for shares in (weights, parts))
        good = good and len(set(f["quality_metrics"])) == len(f["quality_metrics"])
    elif kind == "RateCardUpdated":
        good = f["valid_to_ms"] is None or f["valid_to_ms"] > f["valid_from_ms"]
    elif kind == "BudgetUpdated":
        good = all(a < b for a, b in zip(f["thresholds"], f["thresholds"][1:], strict=False))
    elif kind == "ModelProfileScored":
        good = f["window_end_ms"] > f["window_start_ms"]
    elif kind == "ModelQualityObserved":
        good = f["hits"] <= f["n"]
    elif kind == "SlmBenchmarkResults":
        return _benchmark(f)
    elif kind == "PaneFact":
        good = all(len(m["latency_buckets"]) == len(m["latency_counts"]) for m in f["models"])
    else:
        good = True
    return None if good else "invalid_field"


def _benchmark(f: Fields) -> str | None:
    """The numbers of a benchmark fit its direction, its scale and each other."""
    better = {"HIGHER": LOWER_IS_BETTER, "LOWER": HIGHER_IS_BETTER}[f["direction"]]
    if f["name"] in better:
        return "invalid_field"
    top = {"UNIT": 1.0, "PERCENT": 100.0, "RAW": math.inf}[f["scale"]]
    top *= 10 if f["direction"] == "LOWER" else 1
    ends = f["ci_low"], f["ci_high"]
    if any(number is not None and not 0 <= number <= top for number in (f["value"], *ends)):
        return "out_of_range"
    if None in ends:
        return None if ends == (None, None) else "invalid_field"
    return None if ends[0] <= ends[1] else "invalid_field"


class Decoder:
    """Decodes with the writer's schema, resolved to ours where it is another one.

    texts: schema text of an id, None if the registry does not know it.
    """

    def __init__(self, texts: Callable[[int], str | None]) -> None:
        self._texts = texts
        self._ours = _our_schemas()
        self._writers: dict[int, tuple[str, Any, Any] | None] = {}

    def _writer(self, schema_id: int) -> tuple[str, Any, Any] | None:
        """(full name, writer's schema, ours if it is another one) of a schema id."""
        if schema_id not in self._writers:
            found = self._texts(schema_id)
            if found is None:
                self._writers[schema_id] = None
            else:
                try:
                    schema = _parse(found)
                except Exception:  # another kind of schema: it decodes nothing of ours
                    schema = {"name": ""}
                full = str(schema["name"]) if schema.get("type") == "record" else ""
                ours = self._ours.get(full)
                self._writers[schema_id] = (full, schema, None if schema == ours else ours)
        return self._writers[schema_id]

    def __call__(self, record: Record) -> tuple[str, Fields] | str:
        """(record name, fields), or the reason why the record is a dead letter."""
        key, value = record.key, record.value
        if key is None:
            return "null_key"
        if not value:
            return "empty_value"
        if len(value) > (OWN_MAX_BYTES if record.topic in OWN else MAX_BYTES):
            return "too_large"
        if value[0] != 0:
            return "bad_magic"
        if len(value) < 5:
            return "bad_frame"
        writer = self._writer(int.from_bytes(value[1:5], "big", signed=True))
        if writer is None:
            return "schema_unknown"
        full, schema, reader = writer
        kind = full.removeprefix("roster.")
        if full not in self._ours or kind not in CARRIES[record.topic]:
            return "schema_not_allowed"
        source = io.BytesIO(value)
        source.seek(5)
        try:
            if LONG_RUN.search(value):
                Walk(value, 5, schema)
            fields: Any = fastavro.schemaless_reader(source, schema, reader)
        except Exception:  # malformed input raises errors of many kinds
            return "decode_error"
        if source.tell() != len(value):
            return "trailing_bytes"
        reason = first_reason(CHECKS[kind], fields) or _between_fields(kind, fields)
        if reason is not None:
            return reason
        if kind in FOLDED and key != f"{fields['tenant']}/{fields['event_id']}".encode():
            return "invalid_field"
        if kind == "ClockTick" and not (
            fields["base_append_ms"] <= record.append_ms
            and fields["base_occurred_at_ms"] <= fields["base_append_ms"] + 300_000
        ):
            return "out_of_range"
        if kind in TIMED:
            age = record.append_ms - fields["occurred_at_ms"]
            if age > 35 * DAY_MS:
                return "ts_too_old"
            if age < -300_000:
                return "ts_future"
        return kind, fields


class Walk:
    """Walks one datum by its writer's schema; ValueError at a number of more than 64 bits, which
    fastavro would take. Only for records that may hold one: it is slow."""

    def __init__(self, data: bytes, at: int, schema: Any) -> None:
        self._data, self._at = data, at
        self._named: dict[str, Any] = {}
        self._take(schema)

    def _take(self, schema: Any) -> None:
        if isinstance(schema, str) and schema in self._named:
            schema = self._named[schema]
        kind = schema["type"] if isinstance(schema, dict) else schema
        if isinstance(schema, dict) and "name" in schema:
            self._named[schema["name"]] = schema
        if isinstance(schema, list):
            self._take(schema[self._number()])
        elif kind == "record":
            for one in schema["fields"]:
                self._take(one["type"])
        elif kind in ("array", "map"):
            while n := self._number():
                if n < 0:
                    self._number()
                for _ in range(abs(n)):
                    if kind == "map":
                        self._skip(self._number())
                    self._take(schema["items" if kind == "array" else "values"])
        elif kind in ("int", "long", "enum"):
            self._number()
        elif kind in ("string", "bytes"):
            self._skip(self._number())
        else:
            self._skip({"null": 0, "boolean": 1, "float": 4, "double": 8}.get(kind, 0))

    def _skip(self, n: int) -> None:
        if n < 0 or self._at + n > len(self._data):
            raise ValueError("truncated")
        self._at += n

    def _number(self) -> int:
        value = 0
        for i in range(10):
            byte = self._data[self._at + i]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                self._at += i + 1
                if value >> 64:
                    break
                return (value >> 1) ^ -(value & 1)
        raise ValueError("a number of more than 64 bits")


def _without_logical_types(schema: Any) -> Any:
    """The same bytes as plain numbers."""
    if isinstance(schema, list):
        return [_without_logical_types(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value if name in ("default", "doc") else _without_logical_types(value)
        for name, value in schema.items()
        if name != "logicalType"
    }


def _parse(schema: str) -> Any:
    """A schema as fastavro wants it. Raises, among others, ValueError for one that it had better
    not read with: arrays of nothing and records within themselves end in a loop or a crash."""
    made = fastavro.parse_schema(_without_logical_types(json.loads(schema)), named_schemas={})
    types = 0
    known: dict[str, Any] = {}

    def least_bytes(node: Any, above: frozenset[str]) -> int:
        nonlocal types
        types += 1
        node = known.get(node, node) if isinstance(node, str) else node
        if types > 10_000 or (isinstance(node, dict) and node.get("name") in above):
            raise ValueError("endless")
        if isinstance(node, str):
            return int(node != "null")
        if isinstance(node, list):
            return 1 + min((least_bytes(one, above) for one in node), default=0)
        if "name" in node:
            known[node["name"]] = node
        if node["type"] == "record":
            inner = above | {node["name"]}
            return sum(least_bytes(field["type"], inner) for field in node["fields"])
        if node["type"] == "fixed":
            return int(node["size"])
        for items in (node[k] for k in ("items", "values") if k in node):
            if least_bytes(items, above) == 0 and node["type"] == "array":
                raise ValueError("items of no bytes")
        kind = node["type"]
        return int(kind != "null") if isinstance(kind, str) else least_bytes(kind, above)

    least_bytes(made, frozenset())
    return made


def _our_schemas() -> dict[str, Any]:
    """Full name -> schema of the newest version."""
    found: dict[str, tuple[int, Any]] = {}
    for path in (files("schemas") / "avsc").iterdir():
        file = re.fullmatch(r"\w+\.v(\d+)\.avsc", path.name)
        if file is None:
            continue
        schema = _parse(path.read_text(encoding="utf-8"))
        mine = (int(file[1]), schema)
        found[schema["name"]] = max(mine, found.get(schema["name"], mine), key=lambda one: one[0])
    return {name: schema for name, (_, schema) in found.items()}

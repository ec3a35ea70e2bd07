"""Bad records, one kind of fault at a time, each with the reason that its dead letter must give.

reliability.md, section 4: whatever bytes of one event can carry on its topic.
"""

import io
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, NamedTuple, get_args, get_origin

import fastavro
from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import StringConstraints

from schemas import (
    BudgetUpdated,
    ClockTick,
    Event,
    HeadedEvent,
    ModelQualityObserved,
    RateCardUpdated,
    ScoringPolicyUpdated,
    SlmBenchmarkResults,
)
from schemas.avro import parse, schema_text
from schemas.values import FUTURE_LIMIT_MS, NIL_UUID, PAST_LIMIT_MS
from streams.codec import FOLDED, TIMED, frame, tenant_key
from streams.registry import Catalogue
from streams.topics import Topic
from tests.support.events import WIRE_INT, good, raw, wire_types

HOUR_MS: Final = 3_600_000
TEXTS: Final = ("", "a\x00", "a\nb", "x" * 129)
IDENTIFIERS: Final = (
    *TEXTS,
    *("../etc/passwd", "a..b", "\u202etxt", "'; DROP TABLE x;--", "${jndi:ldap://x}", "{{7*7}}"),
    *("=cmd|'/c calc'!A1", "-a", "\u0430dmin"),
)


class Bad(NamedTuple):
    """What to write, and the reason why it is refused. name: of the fault."""

    name: str
    key: bytes | None
    value: bytes | None
    reason: str


_SPAN: Final = {"name": "x", "weight": 1, "floor_e9": 5, "target_e9": 5}
ACROSS: Final[Mapping[type[Event], tuple[tuple[str, Mapping[str, Any], str], ...]]] = {
    ScoringPolicyUpdated: (
        ("weights of 10,001", {"weight_cost": 1501}, "invalid_field"),
        ("parts of 9,999", {"part_refusal_accuracy": 2999}, "invalid_field"),
        ("a benchmark without a span", {"benchmarks": [_SPAN]}, "invalid_field"),
        ("a metric twice", {"quality_metrics": ["x", "x"]}, "invalid_field"),
    ),
    RateCardUpdated: (("no time", {"valid_from_ms": 5, "valid_to_ms": 5}, "invalid_field"),),
    BudgetUpdated: (("thresholds descend", {"thresholds": [80, 80]}, "invalid_field"),),
    ModelQualityObserved: (("more hits than n", {"n": 2, "hits": 3}, "invalid_field"),),
    SlmBenchmarkResults: (
        ("against the direction of its name", {"direction": "HIGHER"}, "invalid_field"),
        ("below 0", {"value": -0.5}, "out_of_range"),
        ("above its scale", {"value": 1000.5}, "out_of_range"),
        ("an end above its scale", {"ci_high": 1000.5}, "out_of_range"),
        ("above a share", {"name": "x", "direction": "HIGHER", "value": 101.0}, "out_of_range"),
        ("half an interval", {"ci_high": None}, "invalid_field"),
        ("an interval from high to low", {"ci_low": 15.0}, "invalid_field"),
    ),
}
"""Rules over more than one field: (what, changes of the good example, reason)."""


def datum(event: type[Event], fields: dict[str, Any]) -> bytes:
    """Whatever bytes can carry, numbers too long for an int among it."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _wide(event), fields)
    return out.getvalue()


@cache
def _wide(event: type[Event]) -> Any:
    """Its schema with a long for every int: the bytes are the same, the encoder allows more."""
    return parse(schema_text(event).replace('"int"', '"long"'))


def key_of(event: Event) -> bytes:
    """A key that its topic takes."""
    return tenant_key(event) if isinstance(event, FOLDED) else b"key"


def framing(catalogue: Catalogue, topic: Topic, one: Event, other_id: int) -> Iterator[Bad]:
    """Faults of key, frame and body of a good record. other_id: of a schema of another topic."""
    key, schema_id = key_of(one), catalogue.id_of(topic, type(one))
    body = datum(type(one), one.model_dump())
    right = frame(schema_id, body)
    yield Bad("no key", None, right, "null_key")
    yield Bad("nothing", key, b"", "empty_value")
    if not topic.compacted:
        yield Bad("null", key, None, "empty_value")
    for name, value in {
        "json": b'{"event_id": "e-1"}',
        "avro file": b"Obj\x01" + right,
        "GUID frame": b"\x01" + right[1:],
        "single object": b"\xc3\x01" + right,
    }.items():
        yield Bad(name, key, value, "bad_magic")
    yield Bad("one byte", key, b"\x00", "bad_frame")
    yield Bad("four bytes", key, right[:4], "bad_frame")
    for number in (0, -1, 2**31 - 1, -(2**31)):
        yield Bad(f"schema id {number}", key, frame(number, body), "schema_unknown")
    yield Bad("another schema", key, frame(other_id, body), "schema_not_allowed")
    yield Bad("no body", key, right[:5], "decode_error")
    yield Bad("truncated", key, right[:-1], "decode_error")
    yield Bad("bad UTF-8", key, frame(schema_id, b"\x02\xff" + body[2:]), "decode_error")
    yield Bad("negative length", key, frame(schema_id, b"\x01" + body), "decode_error")
    yield Bad(
        "length of 2**62", key, frame(schema_id, b"\xff" * 9 + b"\x00" + body), "decode_error"
    )
    yield Bad(
        "varint of 11 bytes", key, frame(schema_id, b"\x82" * 10 + b"\x00" + body), "decode_error"
    )
    yield Bad("trailing", key, right + b"\x00", "trailing_bytes")
    yield Bad("too large", key, right + b"\x00" * topic.max_bytes, "too_large")


def fields(event: type[Event], appended_ms: int) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(field=value, all fields, reason): every field of the record itself in every way wrong that
    its class and the wire have in common, and the times beside the append time."""
    base = raw(event)
    if issubclass(event, HeadedEvent):
        base["occurred_at_ms"] = appended_ms
    wire = wire_types(json.loads(schema_text(event)))
    for name, info in event.model_fields.items():
        for what, value, reason in _wrong(
            info.annotation, list(info.metadata), wire[name], base[name]
        ):
            yield f"{name}={what}", {**base, name: value}, reason
    if event.NAME in TIMED:
        old = appended_ms - PAST_LIMIT_MS - HOUR_MS
        early = appended_ms + FUTURE_LIMIT_MS + HOUR_MS
        yield "too old", {**base, "occurred_at_ms": old}, "ts_too_old"
        yield "from the future", {**base, "occurred_at_ms": early}, "ts_future"
    for what, changes, reason in ACROSS.get(event, ()):
        yield what, {**base, **changes}, reason
    if event in FOLDED:
        yield "no tenant", {**base, "tenant": None}, "invalid_field"
    if event is ClockTick:
        later = {"base_append_ms": appended_ms + HOUR_MS}
        yield "base after itself", {**base, **later}, "out_of_range"
        apart = {"base_append_ms": 0, "base_occurred_at_ms": FUTURE_LIMIT_MS + 1}
        yield "base from the future", {**base, **apart}, "out_of_range"


def _wrong(
    annotation: Any, rules: list[Any], wire: Any, now: Any
) -> Iterator[tuple[str, Any, str]]:
    """(what, wrong value, reason) of a type under rules; now: a good value."""
    if hasattr(annotation, "__metadata__"):
        rules = [*rules, *annotation.__metadata__]
        annotation = get_args(annotation)[0]
    flat = [r for rule in rules for r in (getattr(rule, "metadata", None) or [rule])]
    if type(None) in get_args(annotation):
        annotation = next(a for a in get_args(annotation) or [annotation] if a is not type(None))
        if hasattr(annotation, "__metadata__") or get_origin(annotation) is not None:
            yield from _wrong(annotation, flat, wire, now)
            return
    kind = wire["type"] if isinstance(wire, dict) else wire
    if kind == "enum":
        if get_origin(annotation) is not None:  # a Literal without UNKNOWN
            yield "UNKNOWN", "UNKNOWN", "invalid_field"
    elif kind == "array":
        item = get_args(annotation)[0]
        for what, value, reason in _wrong(item, [], wire["items"], now[0] if now else None):
            yield f"[{what}]", [value], reason
        for most in (rule.max_length for rule in flat if isinstance(rule, MaxLen)):
            yield f"{most + 1} items", list(now[:1]) * (most + 1), "invalid_field"
    elif kind == "record":
        inner = wire_types(wire)
        for name, info in annotation.model_fields.items():
            for what, value, reason in _wrong(
                info.annotation, list(info.metadata), inner[name], now[name]
            ):
                yield f"{name}={what}", {**now, name: value}, reason
    elif kind in WIRE_INT:
        yield from ((str(v), v, "out_of_range") for v in _beyond(flat, kind))
    elif kind == "double":
        yield from ((v, float(v), "not_finite") for v in ("nan", "inf", "-inf"))
    elif kind == "string":
        yield from ((_short(v), v, "invalid_field") for v in _texts(flat))


def _short(text: str) -> str:
    return ascii(text) if len(text) < 40 else f"{len(text)} characters"


def _beyond(rules: list[Any], wire: str) -> Iterator[int]:
    """Integers just beyond the bounds that the wire carries all the same."""
    low, high = WIRE_INT["long"]  # decoders take a long number for an int, too
    for rule in rules:
        bound: Any = rule
        if isinstance(rule, Ge) and bound.ge > low:
            yield bound.ge - 1
        if isinstance(rule, Gt) and bound.gt >= low:
            yield bound.gt
        if isinstance(rule, Le) and bound.le < high:
            yield bound.le + 1
        if isinstance(rule, Lt) and bound.lt <= high:
            yield bound.lt


def _texts(rules: list[Any]) -> tuple[str, ...]:
    pattern = next((r.pattern for r in rules if isinstance(r, StringConstraints) and r.pattern), "")
    if pattern and str(pattern).startswith("^[A-Za-z0-9]"):
        nil = (NIL_UUID,) if any("_not_nil" in repr(r) for r in rules) else ()
        return (*IDENTIFIERS, *nil)
    if pattern:
        return TEXTS
    longest = [r.max_length for r in rules if isinstance(r, StringConstraints) and r.max_length]
    longest += [r.max_length for r in rules if isinstance(r, MaxLen)]
    return tuple("x" * (n + 1) for n in longest)


def of_fields(
    catalogue: Catalogue, topic: Topic, event: type[Event], appended_ms: int
) -> Iterator[Bad]:
    """The faults of fields as records."""
    schema_id = catalogue.id_of(topic, event)
    for name, wrong, reason in fields(event, appended_ms):
        key = b"key"
        if event in FOLDED:
            key = f"{wrong['tenant']}/{wrong['event_id']}".encode()
        yield Bad(name, key, frame(schema_id, datum(event, wrong)), reason)


def good_now(event: type[Event], appended_ms: int) -> Event:
    """The good example of an event, of just now."""
    if issubclass(event, HeadedEvent):
        return good(event, occurred_at_ms=appended_ms)
    return good(event)

"""Kafka record <-> event. One frame: 0x00, schema id (4 bytes, big-endian), Avro datum.

A record that cannot be taken is a value, Undecodable, that keeps the original; the verdict is a
function of the record and its append time alone.
"""

import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Final, TypeVar

from confluent_kafka import Message
from pydantic import ValidationError

from schemas import (
    ClockTick,
    DeadLetter,
    Event,
    HeadedEvent,
    LlmInvocation,
    ModelQualityObserved,
    Position,
    Recorded,
)
from schemas.avro import TrailingBytes, parsed
from schemas.avro import decode as decode_datum
from schemas.avro import encode as encode_datum
from schemas.dead_letter import KEEP_BYTES
from schemas.values import (
    FUTURE_LIMIT_MS,
    PAST_LIMIT_MS,
    derived_id,
)
from streams.errors import BadEvent
from streams.kafka import append_ms
from streams.registry import Catalogue
from streams.topics import BY_NAME, Topic

MAGIC: Final = b"\x00"
E = TypeVar("E", bound=Event)

FOLDED: Final = (LlmInvocation, ModelQualityObserved)
SYMBOL: Final = re.compile(r"<\w+\.\w+: ('[^']*')>")
TIMED: Final = frozenset({"llm.invocation", "model.fallback.used", "model.quality.observed"})
"""Events whose time must lie near their append time (M5); a policy or card may lie anywhere."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A record that could not be taken, whole, with its reason."""

    at: Position
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    reason: str
    detail: str
    schema_id: int | None = None

    def as_event(self, source: str) -> DeadLetter:
        """The dead letter of this record; made again it is the same."""
        small = self.value is not None and len(self.value) <= KEEP_BYTES
        return DeadLetter(
            event_id=derived_id(
                "dead.letter", self.at.topic, self.at.partition, self.at.offset, self.reason
            ),
            occurred_at_ms=self.at.append_ms,
            source=source,
            origin_topic=self.at.topic,
            origin_partition=self.at.partition,
            origin_offset=self.at.offset,
            origin_append_ms=self.at.append_ms,
            reason=self.reason,
            detail=self.detail[:512],
            schema_id=self.schema_id,
            key=self.key if self.key is None or len(self.key) <= KEEP_BYTES else None,
            value=self.value if small else None,
            value_sha256=None
            if self.value is None or small
            else hashlib.sha256(self.value).hexdigest(),
            value_length=None if self.value is None else len(self.value),
            headers=self._kept_headers(),
        )

    def _kept_headers(self) -> dict[str, bytes]:
        """All of them, or none where they are so many that no topic would take the dead letter."""
        kept = {name: value for name, value in self.headers if isinstance(value, bytes)}
        size = sum(len(name.encode()) + len(value) for name, value in kept.items())
        return kept if size <= KEEP_BYTES else {}


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A record without a value on a compacted topic: the key is deleted."""

    at: Position
    key: bytes


def frame(schema_id: int, datum: bytes) -> bytes:
    """Confluent's frame around an Avro datum."""
    return MAGIC + struct.pack(">i", schema_id) + datum


def schema_id_of(value: bytes) -> int:
    """Schema id of a frame of at least 5 bytes; a signed number, as registries have it."""
    return int.from_bytes(value[1:5], "big", signed=True)


def encode(catalogue: Catalogue, topic: Topic, event: Event) -> bytes:
    """An event as the bytes of a record of that topic."""
    return frame(catalogue.id_of(topic, type(event)), encode_datum(event))


def position(message: Message) -> Position:
    """Where a record stands."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and partition is not None and offset is not None
    return Position(topic, partition, offset, append_ms(message))


def decode(catalogue: Catalogue, message: Message) -> Recorded[Event] | Undecodable | Tombstone:
    """A record as an event, or as the value that says why not. Never raises on bad bytes.

    Raises Unreachable only through Catalogue.writer with a bounded patience.
    """
    at = position(message)
    value = message.value()
    key = message.key()
    raw_key = key if isinstance(key, bytes) or key is None else str(key).encode()
    topic = BY_NAME[at.topic]
    if value is None and topic.compacted and raw_key is not None:
        return Tombstone(at, raw_key)
    return decode_value(
        catalogue, at, raw_key, value if isinstance(value, bytes) else None, message
    )


def decode_value(
    catalogue: Catalogue,
    at: Position,
    key: bytes | None,
    value: bytes | None,
    message: Message | None = None,
) -> Recorded[Event] | Undecodable:
    """As decode, from the parts of a record; message only serves to keep its headers."""
    topic = BY_NAME[at.topic]

    def bad(reason: str, detail: str, schema_id: int | None = None) -> Undecodable:
        headers = tuple((message.headers() or ()) if message is not None else ())
        return Undecodable(at, key, value, headers, reason, detail, schema_id)  # type: ignore[arg-type]  # client stubs: header values

    if key is None:
        return bad("null_key", "every record needs a key")
    if not value:
        return bad("empty_value", "a record without a value")
    if len(value) > topic.max_bytes:
        return bad("too_large", f"{len(value)} bytes; allowed: {topic.max_bytes}")
    if value[:1] != MAGIC:
        return bad("bad_magic", f"first byte is 0x{value[0]:02x}; allowed: 0x00")
    if len(value) < 5:
        return bad("bad_frame", f"{len(value)} bytes; a frame alone has 5")
    schema_id = schema_id_of(value)
    writer = catalogue.writer(schema_id)
    if writer is None:
        return bad("schema_unknown", f"schema id {schema_id} is not registered", schema_id)
    if writer.event is None or writer.event not in topic.events:
        return bad(
            "schema_not_allowed",
            f"{writer.name or 'no record'} on {topic.name}; allowed: "
            + ", ".join(str(parsed(e)["name"]) for e in topic.events),
            schema_id,
        )
    try:
        reader = None if writer.ours else parsed(writer.event)
        fields = decode_datum(value[5:], writer.schema, reader)
    except TrailingBytes as error:
        return bad("trailing_bytes", str(error), schema_id)
    except Exception as error:  # malformed input raises errors of many kinds
        return bad("decode_error", f"{type(error).__name__}: {error}", schema_id)
    try:
        event = writer.event.model_validate(fields)
    except ValidationError as error:
        reason, detail = explain(error)
        return bad(reason, detail, schema_id)
    if isinstance(event, FOLDED) and key != tenant_key(event):
        return bad("invalid_field", f"key={key[:160]!r}: allowed: tenant/event_id", schema_id)
    if isinstance(event, ClockTick) and not _plausible(event, at.append_ms):
        return bad("out_of_range", "the tick's base is not older than the tick itself", schema_id)
    if event.NAME in TIMED and isinstance(event, HeadedEvent):
        verdict = time_verdict(event.occurred_at_ms, at.append_ms)
        if verdict is not None:
            return bad(
                verdict,
                f"occurred_at_ms={event.occurred_at_ms}; allowed:"
                f" {at.append_ms - PAST_LIMIT_MS} to {at.append_ms + FUTURE_LIMIT_MS}",
                schema_id,
            )
    return Recorded(event, at, key)


def tenant_key(event: LlmInvocation | ModelQualityObserved) -> bytes:
    """Key of what the meter folds: whatever bears the same id, repeated or conflicting, meets in
    one partition, and duplicates are found only there."""
    return f"{event.tenant}/{event.event_id}".encode()


def tick_ms(event: ClockTick, appended_ms: int) -> int:
    """Event time that a tick announces: that of its base plus the append time passed since."""
    return event.base_occurred_at_ms + (appended_ms - event.base_append_ms)


def _plausible(event: ClockTick, appended_ms: int) -> bool:
    return (
        event.base_append_ms <= appended_ms
        and event.base_occurred_at_ms <= event.base_append_ms + FUTURE_LIMIT_MS
    )


def time_verdict(occurred_at_ms: int, appended_ms: int) -> str | None:
    """ts_too_old, ts_future, or None where the event time is acceptable (M5, ends included)."""
    if occurred_at_ms < appended_ms - PAST_LIMIT_MS:
        return "ts_too_old"
    if occurred_at_ms > appended_ms + FUTURE_LIMIT_MS:
        return "ts_future"
    return None


def explain(error: ValidationError) -> tuple[str, str]:
    """(reason code, field=value and what is allowed) of the first error of a validation."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "record"
    value = repr(first.get("input"))
    shown = value if len(value) <= 120 else value[:117] + "..."
    kind = first["type"]
    if kind == "finite_number":
        reason = "not_finite"
    elif kind.startswith(("greater_than", "less_than")):
        reason = "out_of_range"
    elif "nested deeper" in first["msg"]:
        reason = "too_deep"
    else:
        reason = "invalid_field"
    if field == "record" or kind == "missing":
        return reason, f"{field}: {first['msg']}"
    return reason, f"{field}={shown}: {first['msg']}"


def checked(event: type[E], fields: dict[str, object]) -> E:
    """An event made from fields that a person or a file gave. Raises BadEvent."""
    try:
        return event.model_validate(fields)
    except ValidationError as error:
        raise BadEvent(_told(explain(error)[1])) from None


def _told(text: str) -> str:
    """What a validation says, without the validator's own words."""
    plain = SYMBOL.sub(r"\1", text.replace("Value error, ", "", 1))
    return plain if plain.startswith("record: Input ") else plain.removeprefix("record: ")

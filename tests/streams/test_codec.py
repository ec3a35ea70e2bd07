"""One verdict for every record, whatever bytes it has (reliability.md, section 4)."""

import hashlib
import io
import json
from typing import Any, Final
from uuid import uuid4

import fastavro
import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import (
    ClockTick,
    DeadLetter,
    Event,
    HeadedEvent,
    LlmInvocation,
    ModelProfileUpdated,
    Position,
    RateCardUpdated,
    Recorded,
)
from schemas.avro import schema_text
from schemas.dead_letter import KEEP_BYTES
from schemas.values import (
    FUTURE_LIMIT_MS,
    MAX_RECORD_BYTES,
    MAX_TIME_MS,
    PAST_LIMIT_MS,
    Outcome,
)
from streams.codec import (
    FOLDED,
    TIMED,
    Tombstone,
    Undecodable,
    checked,
    decode,
    decode_value,
    encode,
    frame,
    tick_ms,
    time_verdict,
)
from streams.errors import BadEvent
from streams.kafka import COPIED_HEADER
from streams.registry import Catalogue, Registry
from streams.topics import DEAD_LETTERS, LLM_INVOCATION, MODE_CHANGED, TOPICS, Topic
from tests.support import bad
from tests.support.events import events, good

NOW: Final = 1_760_000_000_000
CARRIED: Final = [(topic, event) for topic in TOPICS for event in topic.events]
every_event = pytest.mark.parametrize(
    ("topic", "event"), CARRIED, ids=[event.NAME for _, event in CARRIED]
)
quick = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def judge(
    catalogue: Catalogue, topic: Topic, key: bytes | None, value: bytes | None, now: int = NOW
) -> Recorded[Event] | Undecodable:
    return decode_value(catalogue, Position(topic.name, 0, 7, now), key, value)


def verdict(
    catalogue: Catalogue, topic: Topic, key: bytes | None, value: bytes | None, now: int = NOW
) -> str:
    found = judge(catalogue, topic, key, value, now)
    return found.reason if isinstance(found, Undecodable) else "good"


def foreign(catalogue: Catalogue, topic: Topic) -> int:
    """Schema id of an event that the topic does not carry."""
    other = MODE_CHANGED if topic is not MODE_CHANGED else LLM_INVOCATION
    return catalogue.id_of(other, other.events[0])


@every_event
def test_a_good_record_is_the_event_it_was(
    catalogue: Catalogue, topic: Topic, event: type[Event]
) -> None:
    one = bad.good_now(event, NOW)
    found = judge(catalogue, topic, bad.key_of(one), encode(catalogue, topic, one))
    assert isinstance(found, Recorded), found
    assert (found.event, found.at.offset, found.key) == (one, 7, bad.key_of(one))


@every_event
def test_a_fault_of_key_frame_or_body_has_its_reason_and_keeps_the_bytes(
    catalogue: Catalogue, topic: Topic, event: type[Event]
) -> None:
    one = bad.good_now(event, NOW)
    for row in bad.framing(catalogue, topic, one, foreign(catalogue, topic)):
        found = judge(catalogue, topic, row.key, row.value)
        assert isinstance(found, Undecodable), row.name
        assert found.reason == row.reason, (row.name, found.detail)
        assert (found.key, found.value) == (row.key, row.value), row.name


@every_event
def test_a_fault_of_a_field_has_its_reason_and_is_named(
    catalogue: Catalogue, topic: Topic, event: type[Event]
) -> None:
    n = 0
    for row in bad.of_fields(catalogue, topic, event, NOW):
        found = judge(catalogue, topic, row.key, row.value)
        assert isinstance(found, Undecodable), row.name
        assert found.reason == row.reason, (row.name, found.detail)
        field = row.name.partition("=")[0]
        assert "=" not in row.name or found.detail.startswith(field), (row.name, found.detail)
        n += 1
    assert n >= 4


@every_event
def test_every_truncation_is_malformed(
    catalogue: Catalogue, topic: Topic, event: type[Event]
) -> None:
    one = bad.good_now(event, NOW)
    right = encode(catalogue, topic, one)
    for cut in range(5, len(right)):
        assert verdict(catalogue, topic, bad.key_of(one), right[:cut]) == "decode_error", cut


@every_event
def test_nothing_may_follow_a_record(
    catalogue: Catalogue, topic: Topic, event: type[Event]
) -> None:
    one = bad.good_now(event, NOW)
    right = encode(catalogue, topic, one)
    for junk in (b"\x00", b"\x00" * 100, b"\xff", right):
        assert verdict(catalogue, topic, bad.key_of(one), right + junk) == "trailing_bytes"


@every_event
def test_random_bytes_are_judged_and_never_raise(
    catalogue: Catalogue, topic: Topic, event: type[Event]
) -> None:
    right = encode(catalogue, topic, bad.good_now(event, NOW))
    key = bad.key_of(bad.good_now(event, NOW))

    @quick
    @given(st.data())
    def law(data: st.DataObject) -> None:
        value = bytearray(right)
        if data.draw(st.booleans()):
            value[5:] = data.draw(st.binary(max_size=60))
        else:
            for _ in range(data.draw(st.integers(1, 3))):
                value[data.draw(st.integers(5, len(value) - 1))] = data.draw(st.integers(0, 255))
        found = judge(catalogue, topic, key, bytes(value))
        if isinstance(found, Undecodable):
            again = buried(catalogue, found)
            assert (again.reason, again.value, again.key) == (found.reason, bytes(value), key)
        else:
            assert encode(catalogue, topic, found.event)

    law()


@every_event
def test_any_good_event_is_read_as_it_was_written(
    catalogue: Catalogue, topic: Topic, event: type[Event]
) -> None:
    @quick
    @given(events(event))
    def law(one: Event) -> None:
        now = one.occurred_at_ms if isinstance(one, HeadedEvent) else NOW
        found = judge(catalogue, topic, bad.key_of(one), encode(catalogue, topic, one), now)
        if isinstance(one, ClockTick) and isinstance(found, Undecodable):
            assert found.reason == "out_of_range"  # a tick has a rule beyond its fields
        else:
            assert isinstance(found, Recorded), (one, found)
            assert found.event == one

    law()


# --- sizes


def test_a_record_of_exactly_the_largest_size_is_taken(catalogue: Catalogue) -> None:
    topic, event = next(c for c in CARRIED if c[1] is ModelProfileUpdated)
    base = good(ModelProfileUpdated, base_url="x" * 200_000)
    room = MAX_RECORD_BYTES - len(encode(catalogue, topic, base))
    largest = good(ModelProfileUpdated, base_url="x" * (200_000 + room))
    value = encode(catalogue, topic, largest)
    assert len(value) == MAX_RECORD_BYTES
    assert verdict(catalogue, topic, b"k", value) == "good"
    more = good(ModelProfileUpdated, base_url="x" * (200_001 + room))
    assert verdict(catalogue, topic, b"k", encode(catalogue, topic, more)) == "too_large"
    assert event is ModelProfileUpdated


# --- time (T-C1)


@pytest.mark.parametrize(
    ("apart", "expected"),
    [
        (-PAST_LIMIT_MS - 1, "ts_too_old"),
        (-PAST_LIMIT_MS, "good"),
        (-PAST_LIMIT_MS + 1, "good"),
        (0, "good"),
        (FUTURE_LIMIT_MS, "good"),
        (FUTURE_LIMIT_MS + 1, "ts_future"),
    ],
)
@pytest.mark.parametrize(("topic", "event"), [c for c in CARRIED if c[1].NAME in TIMED])
def test_event_times_are_bounded_with_both_ends_allowed(
    catalogue: Catalogue, topic: Topic, event: type[HeadedEvent], apart: int, expected: str
) -> None:
    assert PAST_LIMIT_MS == 35 * 24 * 3_600_000
    assert FUTURE_LIMIT_MS == 5 * 60_000
    one = good(event, occurred_at_ms=NOW + apart)
    value = encode(catalogue, topic, one)
    assert verdict(catalogue, topic, bad.key_of(one), value) == expected
    assert (time_verdict(NOW + apart, NOW) or "good") == expected


def test_statements_may_be_of_any_time(catalogue: Catalogue) -> None:
    topic, _ = next(c for c in CARRIED if c[1] is RateCardUpdated)
    for when in (0, MAX_TIME_MS):
        value = encode(catalogue, topic, good(RateCardUpdated, occurred_at_ms=when))
        assert verdict(catalogue, topic, b"k", value) == "good"


def test_the_append_time_of_a_copy_is_that_of_the_original(catalogue: Catalogue) -> None:
    one = good(LlmInvocation, occurred_at_ms=NOW - PAST_LIMIT_MS)
    value = encode(catalogue, LLM_INVOCATION, one)

    def read(header: bytes | None) -> Any:
        headers: Any = [] if header is None else [(COPIED_HEADER, header)]
        return decode(
            catalogue,
            Message(
                topic=LLM_INVOCATION.name,
                partition=0,
                offset=7,
                key=bad.key_of(one),
                value=value,
                headers=headers,
                timestamp=(2, NOW + 1000),
            ),
        )

    assert read(None).reason == "ts_too_old"
    assert read(str(NOW).encode()).at.append_ms == NOW
    # A copy cannot be older than its original says, and nonsense says nothing.
    for header in (b"9" * 13, b"9" * 10_000, b"-5", b"", b"x", b"\xff", str(NOW + 9_999).encode()):
        assert read(header).at.append_ms == NOW + 1000, header


# --- rules beyond fields


@pytest.mark.parametrize(("topic", "event"), [c for c in CARRIED if c[1] in FOLDED])
def test_what_is_folded_stands_under_its_own_key(
    catalogue: Catalogue, topic: Topic, event: type[HeadedEvent]
) -> None:
    one = good(event, occurred_at_ms=NOW)
    value = encode(catalogue, topic, one)
    assert verdict(catalogue, topic, b"acme/e-1", value) == "good"
    for key in (b"", b"acme", b"acme/e-2", b"ACME/e-1", b"acme/e-1 ", b"\xff", b"x" * 70_000):
        found = judge(catalogue, topic, key, value)
        assert isinstance(found, Undecodable)
        assert found.reason == "invalid_field"
        assert "tenant/event_id" in found.detail


@pytest.mark.parametrize(
    ("occurred", "appended", "expected"),
    [
        (NOW, NOW, "good"),
        (NOW + FUTURE_LIMIT_MS, NOW, "good"),
        (NOW + FUTURE_LIMIT_MS + 1, NOW, "out_of_range"),
        (0, NOW, "good"),
        (NOW, NOW + 1, "out_of_range"),
        (0, 0, "good"),
    ],
)
def test_a_tick_rests_on_something_older_than_itself(
    catalogue: Catalogue, occurred: int, appended: int, expected: str
) -> None:
    one = good(ClockTick, base_occurred_at_ms=occurred, base_append_ms=appended)
    value = encode(catalogue, LLM_INVOCATION, one)
    assert verdict(catalogue, LLM_INVOCATION, b"tick", value) == expected
    if expected == "good":
        assert tick_ms(one, NOW) <= NOW + FUTURE_LIMIT_MS
        assert tick_ms(one, NOW) == occurred + (NOW - appended)


def test_names_that_nobody_knows_are_kept_as_sent(catalogue: Catalogue) -> None:
    for name in ("unheard of", "=cmd|'/c calc'!A1", "'; DROP TABLE x;--", "\u202etxt", "Диалог"):
        one = good(LlmInvocation, occurred_at_ms=NOW, role=name, mode=name, error_code=name)
        found = judge(
            catalogue, LLM_INVOCATION, b"acme/e-1", encode(catalogue, LLM_INVOCATION, one)
        )
        assert isinstance(found, Recorded)
        assert found.event == one


# --- other versions


def register(registry: str, schema: dict[str, Any]) -> int:
    """Id of a schema under a subject that nobody else uses."""
    with Registry(registry) as client:
        return client.register(f"test-{uuid4()}", json.dumps(schema))


def written(schema: dict[str, Any], schema_id: int, fields: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema, named_schemas={}), fields)
    return frame(schema_id, out.getvalue())


def test_a_record_of_a_newer_version_is_read(catalogue: Catalogue, registry: str) -> None:
    schema = json.loads(schema_text(LlmInvocation))
    schema["fields"].insert(3, {"name": "region", "type": "string", "default": ""})
    outcome = next(f for f in schema["fields"] if f["name"] == "outcome")
    outcome["type"]["symbols"].append("PARTIAL")
    schema_id = register(registry, schema)
    one = good(LlmInvocation, occurred_at_ms=NOW)
    for said, read in (("SUCCESS", Outcome.SUCCESS), ("PARTIAL", Outcome.UNKNOWN)):
        value = written(schema, schema_id, {**one.model_dump(), "outcome": said, "region": "eu"})
        found = judge(catalogue, LLM_INVOCATION, b"acme/e-1", value)
        assert isinstance(found, Recorded), found
        assert found.event == one.model_copy(update={"outcome": read})
        assert verdict(catalogue, LLM_INVOCATION, b"acme/e-1", value[:-1]) == "decode_error"
        assert verdict(catalogue, LLM_INVOCATION, b"acme/e-1", value + b"\x00") == "trailing_bytes"


def test_a_writer_with_logical_types_says_the_same(catalogue: Catalogue, registry: str) -> None:
    schema = json.loads(schema_text(LlmInvocation))
    when = next(f for f in schema["fields"] if f["name"] == "occurred_at_ms")
    when["type"] = {"type": "long", "logicalType": "timestamp-millis"}
    one = good(LlmInvocation, occurred_at_ms=NOW)
    value = written(schema, register(registry, schema), one.model_dump())
    found = judge(catalogue, LLM_INVOCATION, b"acme/e-1", value)
    assert isinstance(found, Recorded), found
    assert found.event == one


@pytest.mark.parametrize(
    "schema",
    [
        "string",
        {"type": "enum", "name": "E", "symbols": ["A"]},
        {"type": "record", "name": "LlmInvocation", "fields": []},  # another namespace
    ],
    ids=["primitive", "enum", "namesake"],
)
def test_a_schema_that_is_registered_for_something_else_is_not_allowed(
    catalogue: Catalogue, registry: str, schema: Any
) -> None:
    value = frame(register(registry, schema), b"\x00")
    assert verdict(catalogue, LLM_INVOCATION, b"acme/e-1", value) == "schema_not_allowed"


@pytest.mark.parametrize(
    "bomb", [{"type": "array", "items": "null"}, "list"], ids=["array", "list"]
)
def test_a_schema_of_endless_data_is_not_allowed(
    catalogue: Catalogue, registry: str, bomb: Any
) -> None:
    if bomb == "list":
        link = {"name": "next", "type": ["null", "L"], "default": None}
        bomb = {"type": "record", "name": "L", "fields": [link]}
    schema = json.loads(schema_text(LlmInvocation))
    schema["fields"].insert(0, {"name": "bomb", "type": bomb})
    value = frame(register(registry, schema), b"\xfe" + b"\xff" * 8 + b"\x01\x00")
    assert verdict(catalogue, LLM_INVOCATION, b"acme/e-1", value) == "schema_not_allowed"


def test_a_namesake_that_cannot_be_resolved_is_malformed(
    catalogue: Catalogue, registry: str
) -> None:
    other = {"type": "record", "name": "LlmInvocation", "namespace": "roster", "fields": []}
    value = frame(register(registry, other), b"")
    assert verdict(catalogue, LLM_INVOCATION, b"acme/e-1", value) == "decode_error"


# --- tombstones


def message(topic: Topic, key: bytes | None, value: bytes | None) -> Message:
    return Message(
        topic=topic.name, partition=1, offset=2, key=key, value=value, timestamp=(2, NOW)
    )


@pytest.mark.parametrize("topic", [t for t in TOPICS if t.events], ids=lambda topic: topic.name)
def test_only_compacted_topics_have_tombstones(catalogue: Catalogue, topic: Topic) -> None:
    found = decode(catalogue, message(topic, b"k", None))
    if topic.compacted:
        assert isinstance(found, Tombstone)
        assert found == Tombstone(Position(topic.name, 1, 2, NOW), b"k")
    else:
        assert isinstance(found, Undecodable)
        assert found.reason == "empty_value"
    nobody = decode(catalogue, message(topic, None, None))
    assert isinstance(nobody, Undecodable)
    assert nobody.reason == "null_key"
    blank = decode(catalogue, message(topic, b"k", b""))
    assert isinstance(blank, Undecodable), "an empty value deletes nothing"
    assert blank.reason == "empty_value"


# --- dead letters


def buried(catalogue: Catalogue, found: Undecodable) -> DeadLetter:
    """The dead letter as its readers see it; what is made twice is the same."""
    letter = found.as_event("test")
    assert found.as_event("test") == letter
    assert found.as_event("another-process").event_id == letter.event_id
    value = encode(catalogue, DEAD_LETTERS, letter)
    assert len(value) < MAX_RECORD_BYTES
    again = judge(catalogue, DEAD_LETTERS, b"k", value)
    assert isinstance(again, Recorded), again
    assert again.event == letter
    return letter


def undecodable(**changes: Any) -> Undecodable:
    at = Position("llm.invocation", 3, 9, NOW)
    base: dict[str, Any] = {
        "at": at,
        "key": b"k",
        "value": b"v",
        "headers": (),
        "reason": "bad_magic",
        "detail": "d",
        "schema_id": None,
    }
    return Undecodable(**{**base, **changes})


def test_ids_of_dead_letters_differ_by_place_and_reason(catalogue: Catalogue) -> None:
    places = [Position(t, p, o, NOW) for t in ("a", "b") for p in (0, 1) for o in (0, 1)]
    ids = {
        undecodable(at=at, reason=reason).as_event("test").event_id
        for at in places
        for reason in ("bad_magic", "null_key")
    }
    assert len(ids) == 2 * len(places)
    later = Position("a", 0, 0, NOW + 1)
    assert undecodable(at=later).as_event("x").event_id in ids


@pytest.mark.parametrize("size", [0, 1, KEEP_BYTES, KEEP_BYTES + 1, 900_000])
def test_up_to_64_kib_are_kept_and_of_more_a_digest(catalogue: Catalogue, size: int) -> None:
    value = b"\x80" * size
    letter = buried(catalogue, undecodable(value=value, key=value))
    assert letter.value_length == size
    if size <= KEEP_BYTES:
        assert (letter.value, letter.value_sha256, letter.key) == (value, None, value)
    else:
        assert (letter.value, letter.key) == (None, None)
        assert letter.value_sha256 == hashlib.sha256(value).hexdigest()
    assert KEEP_BYTES == 64 * 1024


def test_a_record_without_a_value_has_a_dead_letter_without_one(catalogue: Catalogue) -> None:
    letter = buried(catalogue, undecodable(value=None, key=None, reason="null_key"))
    assert (letter.value, letter.key, letter.value_length) == (None, None, None)


def test_headers_are_kept_unless_they_would_not_fit(catalogue: Catalogue) -> None:
    few = (("traceparent", b"00-ab"), ("raw", b"\xff\x00"), ("none", None))
    assert buried(catalogue, undecodable(headers=few)).headers == {
        "traceparent": b"00-ab",
        "raw": b"\xff\x00",
    }
    for many in (
        (("h", b"x" * 900_000),),
        tuple((f"h{i}", b"x" * 100) for i in range(8_000)),
        (("x" * 900_000, b""),),
    ):
        assert buried(catalogue, undecodable(headers=many)).headers == {}


def test_a_detail_is_short(catalogue: Catalogue) -> None:
    assert len(buried(catalogue, undecodable(detail="é" * 5_000)).detail) == 512


@pytest.mark.parametrize("number", [-(2**31), -1, 0, 2**31 - 1])
def test_any_schema_id_of_a_frame_can_be_told(catalogue: Catalogue, number: int) -> None:
    found = judge(catalogue, LLM_INVOCATION, b"k", frame(number, b"x"))
    assert isinstance(found, Undecodable)
    assert buried(catalogue, found).schema_id == number


# --- for people


def test_what_a_person_wrote_wrong_is_one_line_with_field_value_and_what_is_allowed() -> None:
    fields = {**good(LlmInvocation).model_dump(), "input_tokens": -1}
    with pytest.raises(BadEvent) as error:
        checked(LlmInvocation, fields)
    assert str(error.value) == "input_tokens=-1: Input should be greater than or equal to 0"
    del fields["role"]
    fields["input_tokens"] = 1
    with pytest.raises(BadEvent, match=r"^role: Field required$"):
        checked(LlmInvocation, fields)
    with pytest.raises(BadEvent, match=r"^surplus=1: "):
        checked(LlmInvocation, {**good(LlmInvocation).model_dump(), "surplus": 1})


@pytest.mark.parametrize("event", [e for _, e in CARRIED], ids=lambda event: event.NAME)
def test_what_was_checked_can_be_written(catalogue: Catalogue, event: type[Event]) -> None:
    """Nothing that a person may send fails later, in the encoder."""
    topic = next(t for t, e in CARRIED if e is event)

    @quick
    @given(events(event))
    def law(one: Event) -> None:
        assert encode(catalogue, topic, checked(event, one.model_dump()))

    law()

"""Bytes -> fields or a reason: one verdict for each row of reliability.md section 4, and the same
as the codec's, record by record, on a real broker and a real registry."""

import io
import json
import random
import struct
import time
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import fastavro
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from schemas import (
    DeadLetter,
    Event,
    LlmInvocation,
    MeterMark,
    PaneFact,
    Position,
    Recorded,
    avro,
)
from streams import kafka as clients
from streams.codec import FOLDED, Undecodable, decode_value, frame
from streams.registry import Catalogue, Registry
from streams.topics import BY_NAME, TOPICS
from tests.support import bad, events
from tools.verify.log import Log, Record, SchemaTexts
from tools.verify.records import CARRIES, CHECKS, Decoder, Fields

UNHEADED = (PaneFact, MeterMark)
CARRIED = [(topic, event) for topic in TOPICS for event in topic.events]

BAD_TEXTS: tuple[Any, ...] = (
    "",
    "a" * 129,
    "../etc",
    "a..b",
    "a\n",
    "a\x00",
    "\u202eabc",
    "'; DROP TABLE x;--",
    "=cmd|'/c calc'!A1",
    "-a",
    "é",
    "00000000-0000-0000-0000-000000000000",
    "x" * 4097,
)
BAD_LONGS: tuple[Any, ...] = (
    *(-1, 0, -(2**63), 2**63 - 1, 10**9 + 1, 10**12 + 1, 1001, 10_001, 1, 1102, 1103, 2**31),
)
BAD_DOUBLES = (float("nan"), float("inf"), float("-inf"), -0.0, 1e308)


def good(event: type[Event], now_ms: int) -> Fields:
    return events.raw(event, **({"occurred_at_ms": now_ms} if event not in UNHEADED else {}))


def changes(schema: Any, value: Any, known: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """The value with one part of it replaced by what its Avro type can carry, good or bad.
    known: types that are referred to by name."""
    if isinstance(schema, list):
        yield None
        schema = next(kind for kind in schema if kind != "null")
    schema = (known or {}).get(schema, schema) if isinstance(schema, str) else schema
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind == "record":
        for field in schema["fields"]:
            for one in changes(field["type"], value[field["name"]], named(schema)):
                yield {**value, field["name"]: one}
    elif kind == "array":
        yield []
        yield [*value, *value[:1] * 32]
        for one in changes(schema["items"], value[0] if value else None):
            yield [one, *value[1:]]
            yield [*value, one]
    elif kind == "enum":
        yield from schema["symbols"]
    else:
        yield from {"string": BAD_TEXTS, "double": BAD_DOUBLES, "boolean": (True, False)}.get(
            kind, BAD_LONGS if kind in ("int", "long") else ()
        )


def named(record: Any) -> dict[str, Any]:
    """Types of a record's own fields, by name."""
    kinds = [
        kind
        for field in record["fields"]
        for kind in (field["type"] if isinstance(field["type"], list) else [field["type"]])
    ]
    return {kind["name"]: kind for kind in kinds if isinstance(kind, dict) and "name" in kind}


@cache
def loose(event: type[Event]) -> Any:
    """The event's schema with long for int: the same bytes, and numbers that no int may have."""
    return fastavro.parse_schema(
        json.loads(avro.schema_text(event).replace('"int"', '"long"')), named_schemas={}
    )


def datum(event: type[Event], fields: Fields) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, loose(event), fields)
    return out.getvalue()


def key_of(event: type[Event], fields: Fields) -> bytes:
    if event in FOLDED:
        return f"{fields['tenant']}/{fields['event_id']}".encode("utf-8", "replace")
    return b"k"


def cases(
    now_ms: int, frame_ids: dict[type[Event], int]
) -> Iterator[tuple[str, bytes | None, Any]]:
    """(topic, key, value): good records, and every row of the section that bytes can carry."""
    for topic, event in CARRIED:
        name, base, number = topic.name, good(event, now_ms), frame_ids[event]
        right = frame(number, datum(event, base))
        key = key_of(event, base)
        yield name, key, right
        yield name, None, right
        yield name, b"another", right
        for value in (
            None, b"", b"\x00", b"\x00\x00\x00", b"{}", b"Obj\x01", b"\xc3\x01" + right,
            b"\x01" + right[1:], right + b"\x00", right[:5],
            b"\x00" + struct.pack(">i", 0) + right[5:],
            b"\x00" + struct.pack(">I", 2**31 - 1) + right[5:],
            b"\x00\xff\xff\xff\xff" + right[5:],
            right[:5] + b"\xff" * 12, right[:5] + b"\x02\xff" + right[7:],
            b"\x00" + b"x" * (256 * 1024), b"x" * 900_000,
        ):  # fmt: skip
            yield name, key, value
        for cut in range(5, len(right)):
            yield name, key, right[:cut]
        for other, other_id in frame_ids.items():
            if other is not event:
                yield name, key, frame(other_id, right[5:])
        for changed in changes(avro.parsed(event), base):
            yield name, key_of(event, changed), frame(number, datum(event, changed))
        # The codec takes a bytes value of length 1 for part of a number; dead letters have some.
        for at in range(5, len(right) if event is not DeadLetter else 5):
            for run in (b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x02", b"\x80" * 10 + b"\x00"):
                yield name, key, right[:at] + run + right[at + 1 :]  # 64 bits, 65 bits, 11 bytes
        for _, across, _ in bad.ACROSS.get(event, ()):
            changed = {**base, **across}
            yield name, key_of(event, changed), frame(number, datum(event, changed))
        for apart in (-35 * 86_400_000, 5 * 60_000) if event not in UNHEADED else ():
            for more in (-60_000, 0, 60_000):  # they are sent some seconds from now
                changed = {**base, "occurred_at_ms": now_ms + apart + more}
                yield name, key_of(event, changed), frame(number, datum(event, changed))


def random_cases(
    chance: random.Random, now_ms: int, frame_ids: dict[type[Event], int], n: int
) -> Any:
    """Several wrong fields at once, and flipped bits: the first fault in field order counts."""
    for _ in range(n):
        topic, event = chance.choice(CARRIED)
        fields = good(event, now_ms)
        for field in chance.sample(avro.parsed(event)["fields"], 3):
            name = field["name"]
            changed = changes(field["type"], fields[name], named(avro.parsed(event)))
            fields[name] = chance.choice([fields[name], *changed])
        value = bytearray(frame(frame_ids[event], datum(event, fields)))
        if chance.random() < 0.3:
            value[chance.randrange(5, len(value))] ^= 1 << chance.randrange(8)
        yield topic.name, key_of(event, fields), bytes(value)


def theirs(catalogue: Catalogue, record: Record) -> Any:
    at = Position(record.topic, record.partition, record.offset, record.append_ms)
    outcome = decode_value(catalogue, at, record.key, record.value)
    if isinstance(outcome, Undecodable):
        return outcome.reason
    return outcome


def compare(catalogue: Catalogue, decode: Decoder, record: Record) -> str:
    """Both verdicts on one record; returns the reason, or the name of what it holds."""
    ours, other = decode(record), theirs(catalogue, record)
    about = (record.topic, record.key, (record.value or b"")[:300])
    if isinstance(other, Recorded):
        assert not isinstance(ours, str), (ours, *about)
        assert ours[0] == type(other.event).__name__
        assert json.loads(json.dumps(ours[1], default=str)) == json.loads(
            json.dumps(other.event.model_dump(), default=str)
        ), about
        return ours[0]
    assert ours == other, about
    return str(other)


EXPECTED = {
    "null_key",
    "empty_value",
    "bad_frame",
    "bad_magic",
    "schema_unknown",
    "schema_not_allowed",
    "decode_error",
    "trailing_bytes",
    "too_large",
    "not_finite",
    "out_of_range",
    "invalid_field",
    "ts_future",
    "ts_too_old",
}


def test_every_topic_and_record_of_the_log_is_known_here_too() -> None:
    """A new event without checks here would be a hole in the comparison."""
    declared = {t.name: tuple(e.__name__ for e in t.events) for t in TOPICS if t.events}
    assert dict(CARRIES) == declared
    assert set(CHECKS) == {name for names in declared.values() for name in names}
    for topic in declared:
        for event in BY_NAME[topic].events:
            fields = {field["name"] for field in avro.parsed(event)["fields"]}
            assert {name for name, _ in CHECKS[event.__name__]} <= fields


@pytest.mark.kafka
def test_verify_and_codec_judge_every_record_alike(kafka: str, registry: str) -> None:
    """Records of a real log (fresh topic), framed with ids of the real registry; the original
    topic's name is put back, so both sides take them for what they are."""
    with Registry(registry) as client:
        catalogue = Catalogue(client)
        ids = {event: catalogue.id_of(topic, event) for topic, event in CARRIED}
        texts = SchemaTexts(registry)
        decode = Decoder(texts)
        fresh = f"verify-records-{uuid.uuid4().hex[:8]}"
        admin = AdminClient({"bootstrap.servers": kafka})
        config = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": "2000000"}
        for future in admin.create_topics([NewTopic(fresh, 1, 1, config=config)]).values():
            future.result()
        out = clients.Outbound(clients.producer(kafka, **{"message.max.bytes": 2_000_000}))
        now_ms = time.time_ns() // 1_000_000
        sent = [
            *cases(now_ms, ids),
            *random_cases(random.Random(7), now_ms, ids, 4000),
        ]
        for _, key, value in sent:
            out.send(fresh, key, value)
        out.send(fresh, sent[0][1], sent[0][2], headers=[("roster-append-ms", b"1000")])
        out.flush()
        log = Log(kafka)
        try:
            ends = log.ends(fresh)
            assert ends == {0: len(sent) + 1}
            records = list(log.read(fresh, 0, ends[0]))
        finally:
            log.close()
        assert [r.offset for r in records] == list(range(len(sent) + 1))
        seen: set[str] = set()
        for (topic, key, value), record in zip(sent, records, strict=False):
            assert (record.key, record.value or None) == (key, value or None)
            seen.add(compare(catalogue, decode, record._replace(topic=topic)))
        assert seen >= EXPECTED | {event.__name__ for _, event in CARRIED}
        copied = records[-1]._replace(topic=sent[0][0])
        assert copied.append_ms == 1000  # a copied record counts by its original append time
        assert compare(catalogue, decode, copied) == "ts_future"
        texts.close()


@pytest.mark.kafka
def test_a_record_of_another_writer_schema_is_resolved_to_ours(registry: str) -> None:
    """A later version of an event: one field more, an outcome that is not known yet."""
    later = json.loads(avro.schema_text(LlmInvocation))
    later["fields"].append({"name": "added", "type": "string", "default": ""})
    for field in later["fields"]:
        if field["name"] == "outcome":
            field["type"]["symbols"].append("TELEPATHY")
    with Registry(registry) as client:
        catalogue = Catalogue(client)
        number = client.register(f"verify-later-{uuid.uuid4().hex[:8]}", json.dumps(later))
        texts = SchemaTexts(registry)
        decode = Decoder(texts)
        out = io.BytesIO()
        fields = {**good(LlmInvocation, 5), "outcome": "TELEPATHY", "added": "x"}
        fastavro.schemaless_writer(out, fastavro.parse_schema(later, named_schemas={}), fields)
        key = key_of(LlmInvocation, fields)
        record = Record("llm.invocation", 0, 0, 5, key, frame(number, out.getvalue()))
        assert compare(catalogue, decode, record) == "LlmInvocation"
        decoded = decode(record)
        assert not isinstance(decoded, str)
        assert decoded[1]["outcome"] == "UNKNOWN"
        texts.close()

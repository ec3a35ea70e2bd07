"""Classes and schemas say the same; schemas keep the rules; what was released stays as it is."""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Final, get_args

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from schemas import (
    EVENTS,
    ClockTick,
    DeadLetter,
    Event,
    HeadedEvent,
    LlmInvocation,
    ModelProfileUpdated,
)
from schemas.avro import TrailingBytes, decode, encode, full_name, parse, parsed, schema_text, stem
from schemas.budget import BudgetPeriod, CapAction
from schemas.model import RegistrationAction
from schemas.model_profile import ProfileAction, RankingStatus, RejectionKind
from schemas.quality import MetricDirection, MetricScale
from schemas.rate_card import PriceUnit
from schemas.scoring_policy import CostUnit, Severity
from schemas.values import Outcome
from streams.codec import FOLDED
from streams.topics import TOPICS
from tests.support.events import GOOD, WIRE_INT, events, good

RELEASED: Final = Path(__file__).parent / "released.txt"
AVSC: Final = sorted(
    path.name for path in (files("schemas") / "avsc").iterdir() if path.name.endswith(".avsc")
)
ENUMS: Final = (
    *(Outcome, BudgetPeriod, CapAction, ProfileAction, RejectionKind, RankingStatus),
    *(PriceUnit, CostUnit, Severity, MetricScale, MetricDirection, RegistrationAction),
)
LARGEST_ARRAY_OF_FLOATS: Final = 16  # reliability.md, 3: more belongs into no event
HOT: Final = (
    *("llm_invocation", "clock_tick", "model_fallback_used", "model_quality_observed"),
    *("pane_fact", "meter_mark"),
)
"""Events that come at rate, for decoders of whole batches (streams.md, 2.3)."""
HOT_TYPES: Final = {
    *("string", "int", "long", "float", "double", "boolean", "null"),
    *("enum", "array", "map", "record"),
}
HOT_LOGICAL: Final = {"date", "timestamp-millis", "timestamp-micros"}
SECRET: Final = re.compile(
    r"(^|_)(passw|passphrase|secret|token$|api_?key|private_?key|authorization|bearer|credential$)"
)

each_event = pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.NAME)
each_file = pytest.mark.parametrize("name", AVSC)


def raw_schema(name: str) -> Any:
    return json.loads((files("schemas") / "avsc" / name).read_text(encoding="utf-8"))


def nodes(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every type in a schema, with the path to it."""
    yield path, schema
    if isinstance(schema, list):
        for one in schema:
            yield from nodes(one, path)
    elif isinstance(schema, dict):
        for inner in ("items", "values"):
            if inner in schema:
                yield from nodes(schema[inner], f"{path}[]")
        for field in schema.get("fields", ()):
            yield from nodes(field["type"], f"{path}.{field['name']}")
        if isinstance(schema["type"], (dict, list)):
            yield from nodes(schema["type"], path)


def types(schema: Any) -> Iterator[tuple[str, str]]:
    for path, node in nodes(schema):
        if isinstance(node, str):
            yield path, node
        elif isinstance(node, dict) and isinstance(node["type"], str):
            yield path, node["type"]


def records(schema: Any) -> Iterator[Any]:
    return (n for _, n in nodes(schema) if isinstance(n, dict) and n["type"] == "record")


def flat(kind: Any) -> Any:
    """A field's type without null, an array as a list of its items."""
    if isinstance(kind, list):
        kind = next(one for one in kind if one != "null")
    return [kind["items"]] if isinstance(kind, dict) and kind["type"] == "array" else kind


def wire(name: str) -> Any:
    """Of a class of this name, its record in some schema."""
    found = [r for event in EVENTS for r in records(parsed_raw(event)) if r["name"] == name]
    assert found, name
    return found[0]


def parsed_raw(event: type[Event]) -> Any:
    return json.loads(schema_text(event))


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A class, and those of the records within it."""
    yield model
    for info in model.model_fields.values():
        for inner in arguments(info.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from models(inner)


def arguments(annotation: Any) -> Iterator[Any]:
    yield annotation
    for one in get_args(annotation):
        yield from arguments(one)


ALL_MODELS: Final = sorted({m for event in EVENTS for m in models(event)}, key=lambda m: m.__name__)
each_model = pytest.mark.parametrize("model", ALL_MODELS, ids=lambda model: model.__name__)


# --- class = schema


def versions(event: type[Event]) -> list[str]:
    """Files of an event, the oldest first; the newest is what its class says."""
    bare = stem(event).rpartition(".v")[0]
    return [f"{bare}.v{version}.avsc" for version in range(1, event.VERSION + 1)]


def test_every_schema_is_a_version_of_one_event() -> None:
    assert sorted(name for event in EVENTS for name in versions(event)) == AVSC


def test_every_event_has_one_topic_but_ticks_which_go_with_all_that_is_folded() -> None:
    carried = Counter(event for topic in TOPICS for event in topic.events)
    assert carried == Counter([*EVENTS, *[ClockTick] * (len(FOLDED) - 1)])
    assert all((ClockTick in t.events) == any(e in t.events for e in FOLDED) for t in TOPICS)


@each_event
def test_the_record_is_named_as_the_class_and_its_text_names_the_wire_name(
    event: type[Event],
) -> None:
    schema = parsed_raw(event)
    assert (schema["namespace"], schema["name"]) == ("roster", event.__name__)
    if issubclass(event, HeadedEvent):
        assert event.NAME in schema["doc"]
    assert f"v{event.VERSION}:" in schema["doc"], "the doc tells the history of the record"


@each_model
def test_fields_are_the_same_in_the_same_order(model: type[BaseModel]) -> None:
    assert [f["name"] for f in wire(model.__name__)["fields"]] == list(model.model_fields)


@each_model
def test_what_may_be_null_in_the_class_may_be_null_on_the_wire(model: type[BaseModel]) -> None:
    for field in wire(model.__name__)["fields"]:
        nullable = NoneType in get_args(model.model_fields[field["name"]].annotation)
        on_wire = isinstance(field["type"], list) and "null" in field["type"]
        # The header is one for all, so a class may demand more than the schema does.
        stricter = field["name"] == "tenant" and issubclass(model, HeadedEvent)
        assert on_wire == nullable or (on_wire and stricter), field["name"]
        if on_wire:
            assert field["type"][0] == "null", field["name"]
            assert "default" not in field or field["default"] is None, field["name"]


@each_model
def test_defaults_are_the_same_where_both_have_them(model: type[BaseModel]) -> None:
    for field in wire(model.__name__)["fields"]:
        info = model.model_fields[field["name"]]
        if "default" in field and not info.is_required():
            ours = info.get_default(call_default_factory=True)
            ours = list(ours) if isinstance(ours, tuple) else ours
            assert ours == field["default"], field["name"]
            assert ours is not PydanticUndefined


@each_model
def test_integers_of_a_class_fit_the_wire(model: type[BaseModel]) -> None:
    for field in wire(model.__name__)["fields"]:
        if flat(field["type"]) not in ("int", ["int"]):
            continue  # a long that no long can hold is refused by the encoder
        low, high = WIRE_INT["int"]
        for beyond in (low - 1, high + 1):
            value = [beyond] if flat(field["type"]) == ["int"] else beyond
            with pytest.raises(ValidationError) as refused:
                model.model_validate({field["name"]: value})
            mine = {e["type"] for e in refused.value.errors() if e["loc"][0] == field["name"]}
            assert mine, field["name"]
            assert mine <= {"greater_than_equal", "less_than", "less_than_equal", "literal_error"}


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_symbols_are_those_of_the_enum_and_an_unknown_one_is_read_as_unknown(enum: Any) -> None:
    found = [
        node
        for event in EVENTS
        for _, node in nodes(parsed_raw(event))
        if isinstance(node, dict) and node.get("name") == enum.__name__
    ]
    assert found
    for node in found:
        assert node["symbols"] == [member.value for member in enum]
        assert node["default"] == node["symbols"][0] == "UNKNOWN"


def test_every_enum_of_a_schema_has_a_class() -> None:
    named = {
        node["name"]
        for event in EVENTS
        for _, node in nodes(parsed_raw(event))
        if isinstance(node, dict) and node["type"] == "enum"
    }
    assert named == {enum.__name__ for enum in ENUMS}


# --- rules of schemas


@each_file
def test_items_have_a_width_so_that_few_bytes_cannot_become_many_elements(name: str) -> None:
    for path, node in nodes(raw_schema(name)):
        if isinstance(node, dict) and node["type"] in {"array", "map"}:
            inner = node.get("items", node.get("values"))
            empty = isinstance(inner, dict) and inner["type"] == "record" and not inner["fields"]
            fixed = isinstance(inner, dict) and inner["type"] == "fixed" and inner["size"] == 0
            assert inner != "null", path
            assert not empty, path
            assert not fixed, path


@each_file
def test_no_long_lists_of_floats(name: str) -> None:
    for path, node in nodes(raw_schema(name)):
        if isinstance(node, dict) and node["type"] == "array":
            assert node["items"] not in ("float", "double"), (
                f"{path}: more than {LARGEST_ARRAY_OF_FLOATS} floats belong into no event"
            )


@each_file
def test_only_dead_letters_carry_bytes(name: str) -> None:
    kinds = {kind for _, kind in types(raw_schema(name))}
    if name != f"{stem(DeadLetter)}.avsc":
        assert not kinds & {"bytes", "fixed"}


@each_file
def test_no_field_is_made_for_a_secret(name: str) -> None:
    for record in records(raw_schema(name)):
        for field in record["fields"]:
            assert not SECRET.search(field["name"]), field["name"]


@pytest.mark.parametrize("secret", ["api_key", "password", "auth_token", "client_secret"])
def test_the_rule_on_secrets_finds_them(secret: str) -> None:
    assert SECRET.search(secret)


@each_file
def test_every_record_and_field_is_explained(name: str) -> None:
    for record in records(raw_schema(name)):
        assert record["doc"].strip(), record["name"]
        for field in record["fields"]:
            assert field["doc"].strip().endswith("."), f"{record['name']}.{field['name']}"


@each_file
def test_names_are_plain(name: str) -> None:
    for record in records(raw_schema(name)):
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]*", record["name"])
        names = [field["name"] for field in record["fields"]]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", field) for field in names), names


@each_file
def test_a_nullable_field_has_one_other_type_and_a_null_default(name: str) -> None:
    schema = raw_schema(name)
    for record in records(schema):
        for field in record["fields"]:
            if isinstance(field["type"], list):
                assert len(field["type"]) == 2, field["name"]
                assert field["type"][0] == "null", field["name"]
                # Within arrays there is no evolution by default; on top there is.
                assert record is not schema or field["default"] is None, field["name"]


@pytest.mark.parametrize("name", [name for name in AVSC if name.partition(".v")[0] in HOT])
def test_hot_topics_use_only_what_the_batch_decoder_can_read(name: str) -> None:
    schema = raw_schema(name)
    assert {kind for _, kind in types(schema)} <= HOT_TYPES
    logical = {
        n["logicalType"] for _, n in nodes(schema) if isinstance(n, dict) and "logicalType" in n
    }
    assert logical <= HOT_LOGICAL


def test_the_header_is_the_same_in_every_event() -> None:
    headed = [event for event in EVENTS if issubclass(event, HeadedEvent)]
    assert len(headed) > 10
    n = len(HeadedEvent.model_fields)
    for event in headed:
        assert parsed_raw(event)["fields"][:n] == parsed_raw(headed[0])["fields"][:n]


@each_event
def test_a_record_is_one_name_with_one_meaning(event: type[Event]) -> None:
    mine = {r["name"]: r for r in records(parsed_raw(event))}
    for other in EVENTS:
        for record in records(parsed_raw(other)):
            assert mine.get(record["name"], record) == record, record["name"]


# --- versions

EACH_STEP: Final = [pair for event in EVENTS for pair in pairwise(versions(event))]


def without(newer: Any, older: Any) -> Any:
    """A newer schema less the texts for people and the fields that the older one does not have;
    each of those has a default, because old records lack it."""
    if isinstance(newer, list):
        return [without(one, two) for one, two in zip(newer, older, strict=True)]
    if not isinstance(newer, dict):
        return newer
    kept = {name: value for name, value in newer.items() if name != "doc"}
    if "fields" in newer:
        known = {field["name"]: field for field in older["fields"]}
        added = [field for field in newer["fields"] if field["name"] not in known]
        assert all("default" in field for field in added), [f["name"] for f in added]
        kept["fields"] = [without(f, known[f["name"]]) for f in newer["fields"] if f not in added]
    for name in {"type", "items", "values"} & set(newer):
        kept[name] = without(newer[name], older[name])
    return kept


@pytest.mark.parametrize(("older", "newer"), EACH_STEP, ids=[newer for _, newer in EACH_STEP])
def test_a_newer_version_only_adds_fields_with_defaults(older: str, newer: str) -> None:
    old, new = raw_schema(older), raw_schema(newer)
    assert without(new, old) == without(old, old)
    assert new["doc"].startswith(old["doc"]), "the doc tells the whole history of the record"


# --- released files


def released() -> dict[str, str]:
    """File -> SHA-256 of all released schemas."""
    lines = RELEASED.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


@each_file
def test_a_released_schema_is_never_edited(name: str) -> None:
    digest = hashlib.sha256((files("schemas") / "avsc" / name).read_bytes()).hexdigest()
    assert released().get(name) == digest, (
        f"schemas/avsc/{name} is not the file that was released. Records written with it are in"
        " logs for ever: take the change back and make it in a new file with the next version"
        f" (VERSION of the class), then add the line '{digest}  {name}' of the new file to"
        " tests/schemas/released.txt; lines there are only added."
    )


def test_no_released_schema_is_gone() -> None:
    assert set(released()) <= set(AVSC), "old records need their schema to be explained"


# --- round trip


@each_event
def test_any_event_survives_its_bytes(event: type[Event]) -> None:
    @settings(max_examples=15, deadline=None, database=None)
    @given(events(event))
    def law(one: Event) -> None:
        data = encode(one)
        again = event.model_validate(decode(data, parsed(event)))
        assert again == one
        assert encode(again) == data

    law()


OLDEST: Final = Path(__file__).parent / "oldest.txt"
"""One record per released schema: what the example of tests/support/events.py was, when it was."""


def oldest() -> dict[str, str]:
    """File -> hexadecimal bytes."""
    lines = OLDEST.read_text(encoding="utf-8").splitlines()
    return dict(line.split("  ", 1) for line in lines)


def test_of_every_released_schema_there_is_a_record() -> None:
    assert set(oldest()) == set(released())


def told(schema: Any, value: Any) -> Any:
    """Of a value what a schema has fields for."""
    kind = flat(schema)
    if value is None or not isinstance(kind, (dict, list)):
        return value
    if isinstance(kind, list):
        return [told(kind[0], one) for one in value]
    if kind["type"] != "record":
        return value
    return {field["name"]: told(field["type"], value[field["name"]]) for field in kind["fields"]}


@pytest.mark.parametrize("name", sorted(oldest()))
def test_the_oldest_bytes_are_read_as_what_was_said(name: str) -> None:
    data = bytes.fromhex(oldest()[name])
    event = next(e for e in EVENTS if name in versions(e))
    writer = parse(json.dumps(raw_schema(name)))
    said = event.model_validate(told(raw_schema(name), good(event).model_dump()))
    assert event.model_validate(decode(data, writer, parsed(event))) == said
    assert (said == good(event)) == (name == f"{stem(event)}.avsc"), "new fields have examples"


@each_event
def test_a_newer_record_is_read_by_what_it_shares_with_ours(event: type[Event]) -> None:
    newer = parsed_raw(event)
    added = {"name": "added_later", "type": "string", "default": "x", "doc": "New."}
    newer["fields"] = [added, *newer["fields"]]
    data = write(newer, {**good(event).model_dump(), "added_later": "new"})
    assert event.model_validate(decode(data, parse(json.dumps(newer)), parsed(event))) == good(
        event
    )


def test_an_older_record_gets_the_defaults() -> None:
    older = parsed_raw(LlmInvocation)
    kept = [f for f in older["fields"] if "default" not in f or f["name"] == "tenant"]
    older["fields"] = kept
    data = write(older, good(LlmInvocation).model_dump())
    found = decode(data, parse(json.dumps(older)), parsed(LlmInvocation))
    assert LlmInvocation.model_validate(found) == good(LlmInvocation)


def test_a_symbol_from_the_future_is_unknown() -> None:
    newer = parsed_raw(LlmInvocation)
    outcome = next(f for f in newer["fields"] if f["name"] == "outcome")
    outcome["type"]["symbols"].append("PARTIAL")
    data = write(newer, {**good(LlmInvocation).model_dump(), "outcome": "PARTIAL"})
    found = decode(data, parse(json.dumps(newer)), parsed(LlmInvocation))
    assert LlmInvocation.model_validate(found).outcome is Outcome.UNKNOWN


@pytest.mark.parametrize(
    "logical", ["timestamp-millis", "timestamp-micros", "local-timestamp-millis"]
)
def test_a_writers_logical_type_does_not_change_the_number(logical: str) -> None:
    other = parsed_raw(LlmInvocation)
    when = next(f for f in other["fields"] if f["name"] == "occurred_at_ms")
    when["type"] = {"type": "long", "logicalType": logical}
    found = decode(encode(good(LlmInvocation)), parse(json.dumps(other)), parsed(LlmInvocation))
    assert found["occurred_at_ms"] == GOOD[LlmInvocation]["occurred_at_ms"]


def write(schema: Any, fields: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema, named_schemas={}), fields)
    return out.getvalue()


# --- malformed data


@given(st.binary(min_size=1, max_size=20))
@settings(max_examples=30, deadline=None, database=None)
def test_what_follows_a_record_is_refused(junk: bytes) -> None:
    with pytest.raises(TrailingBytes):
        decode(encode(good(LlmInvocation)) + junk, parsed(LlmInvocation))


HUGE = b"\xff" * 9 + b"\x01"  # the most that 64 bits hold: -2**63


@pytest.mark.parametrize(
    ("number", "fits"),
    [
        (HUGE, True),
        (b"\x80" * 9 + b"\x00", True),
        (b"\xff" * 9 + b"\x02", False),
        (b"\xff" * 9 + b"\x7f", False),
        (b"\x80" * 10 + b"\x00", False),
        (b"\xff" * 12 + b"\x01", False),
        (b"\xff" * 60 + b"\x01", False),
    ],
)
def test_a_number_of_more_than_64_bits_is_malformed(number: bytes, fits: bool) -> None:
    plain = encode(good(LlmInvocation, event_id="e"))
    assert plain[:2] == b"\x02e"
    end = 2 + next(i for i, byte in enumerate(plain[2:]) if byte < 0x80) + 1
    data = plain[:2] + number + plain[end:]
    if fits:
        decode(data, parsed(LlmInvocation))
    else:
        with pytest.raises(ValueError, match="64 bits"):
            decode(data, parsed(LlmInvocation))


@given(st.text(st.characters(min_codepoint=0x80, codec="utf-8"), min_size=5, max_size=40))
@settings(max_examples=50, deadline=None, database=None)
def test_texts_of_high_bytes_are_no_numbers(text: str) -> None:
    one = good(ModelProfileUpdated, reason=text, extra=text, base_url=text, fallbacks=[text])
    assert decode(encode(one), parsed(ModelProfileUpdated))["extra"] == text


@pytest.mark.parametrize(
    "text",
    [
        '"string"',
        '{"type": "string"}',
        '["null", "string"]',
        '{"type": "enum", "name": "E", "symbols": ["A"]}',
        "{}",
        "no json",
        '{"type": "object"}',
    ],
)
def test_what_is_no_record_is_no_schema_of_ours(text: str) -> None:
    with pytest.raises(Exception, match=r".") as error:
        parse(text)
    assert not isinstance(error.value, AssertionError)


BOMBS: Final = {
    "items without bytes": {"type": "array", "items": "null"},
    "items of records without bytes": {
        "type": "array",
        "items": {"type": "record", "name": "Empty", "fields": [{"name": "a", "type": "null"}]},
    },
    "items of nothing fixed": {
        "type": "array",
        "items": {"type": "fixed", "name": "None", "size": 0},
    },
    "a list": {
        "type": "record",
        "name": "L",
        "fields": [{"name": "next", "type": ["null", "L"], "default": None}],
    },
    "a tree": {
        "type": "record",
        "name": "T",
        "fields": [{"name": "kids", "type": {"type": "array", "items": "T"}, "default": []}],
    },
}


def doubling(depth: int) -> Any:
    """A record of two of a record of two of ..., and of nothing in the end."""
    inner: Any = {"type": "record", "name": "R0", "fields": [{"name": "a", "type": "null"}]}
    for n in range(1, depth):
        fields = [{"name": "a", "type": inner}, {"name": "b", "type": f"R{n - 1}"}]
        inner = {"type": "record", "name": f"R{n}", "fields": fields}
    return inner


@pytest.mark.parametrize("bomb", [*BOMBS.values(), doubling(30)], ids=[*BOMBS, "doubling"])
def test_a_schema_by_which_few_bytes_become_endless_is_refused(bomb: Any) -> None:
    """Anybody may register a schema of our record's name; its reader must not loop or crash."""
    schema = parsed_raw(LlmInvocation)
    schema["fields"].insert(0, {"name": "bomb", "type": bomb})
    with pytest.raises(ValueError, match=r"no bytes|contains itself|more than"):
        parse(json.dumps(schema))


def test_names_are_full_names() -> None:
    assert full_name(LlmInvocation) == "roster.LlmInvocation"

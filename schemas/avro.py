"""Event <-> Avro datum, by the schemas of avsc/. No I/O but package data."""

import io
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any, Final

import fastavro

from schemas.envelope import Event

Schema = dict[str, Any]

MOST_TYPES: Final = 10_000  # of a schema, with all that it refers to written out
LONGEST_VARINT: Final = 10  # bytes of a long
SUSPICIOUS: Final = re.compile(rb"[\x80-\xff]{9}[\x02-\xff]")
"""What every varint of more than 64 bits contains; texts may contain it too."""


class TrailingBytes(ValueError):
    """A valid datum is followed by bytes that belong to nothing."""


def stem(event: type[Event]) -> str:
    """File stem of an event's schema: llm.invocation, version 1 -> llm_invocation.v1."""
    return f"{event.NAME.replace('.', '_')}.v{event.VERSION}"


@cache
def schema_text(event: type[Event]) -> str:
    """The newest schema of an event as JSON text, as it is registered."""
    raw = (files("schemas") / "avsc" / f"{stem(event)}.avsc").read_text(encoding="utf-8")
    return json.dumps(json.loads(raw), separators=(",", ":"), ensure_ascii=False)


@cache
def parsed(event: type[Event]) -> Schema:
    """The newest schema of an event, parsed by fastavro."""
    return parse(schema_text(event))


def parse(text: str) -> Schema:
    """A schema parsed on its own: the same record name may stand in other texts.

    Logical types are left out: the bytes are the same, and readers are promised plain numbers.
    Raises ValueError or what fastavro raises if it is no schema of a record, or one by which a
    few bytes would become endless or endlessly deep data.
    """
    schema = fastavro.parse_schema(_plain(json.loads(text)), named_schemas={})
    if not isinstance(schema, dict) or schema["type"] != "record":
        raise ValueError("not the schema of a record")
    _refuse_unbounded(schema)
    return schema


def _refuse_unbounded(schema: Schema) -> None:
    """Raises ValueError where items take no bytes, a record contains itself, or one becomes huge by
    what it refers to: the reader would loop for ever, or end the process."""
    named: Schema = {}
    seen = 0

    def takes_bytes(node: Any, within: tuple[str, ...]) -> bool:
        nonlocal seen
        seen += 1
        if seen > MOST_TYPES:
            raise ValueError(f"more than {MOST_TYPES} types")
        if isinstance(node, list):
            for one in node:
                takes_bytes(one, within)
            return True  # the number of the branch
        if isinstance(node, str):
            return takes_bytes(named[node], within) if node in named else node != "null"
        kind, name = node["type"], str(node.get("name", ""))
        if name:
            named[name] = node
        if kind == "record":
            if name in within:
                raise ValueError(f"{name} contains itself")
            inner = [takes_bytes(field["type"], (*within, name)) for field in node["fields"]]
            return any(inner)
        if kind == "array" and not takes_bytes(node["items"], within):
            raise ValueError("items that take no bytes")
        if kind == "map":
            takes_bytes(node["values"], within)
        if kind == "fixed":
            return bool(node["size"] > 0)
        return takes_bytes(kind, within) if isinstance(kind, (dict, list)) else kind != "null"

    takes_bytes(schema, ())


def _plain(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _plain(value) if name in ("type", "items", "values", "fields") else value
        for name, value in schema.items()
        if name != "logicalType"
    }


@cache
def full_name(event: type[Event]) -> str:
    """Full name of the record, for example roster.LlmInvocation."""
    return str(parsed(event)["name"])


def encode(event: Event) -> bytes:
    """Avro datum of an event, without a frame."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, parsed(type(event)), event.model_dump())
    return out.getvalue()


def decode(data: bytes, writer: Schema, reader: Schema | None = None) -> dict[str, Any]:
    """Fields of one Avro datum, resolved to the reader's schema where it is another one.

    Raises TrailingBytes when bytes are left over, and whatever fastavro raises on a malformed
    datum (EOFError, UnicodeDecodeError, IndexError and others: catch Exception).
    Numbers of more than 64 bits are malformed.
    """
    source = _Strict(data) if SUSPICIOUS.search(data) else io.BytesIO(data)
    fields = fastavro.schemaless_reader(source, writer, reader)
    if source.tell() != len(data):
        raise TrailingBytes(f"{len(data) - source.tell()} bytes after the record")
    assert isinstance(fields, dict)
    return fields


class _Strict(io.BytesIO):
    """Refuses varints of more than 64 bits: fastavro, which reads them byte by byte, would take
    what is left of them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._before = 0  # bytes of the present varint

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if size != 1 or not data or data[0] < 0x80:
            too_long = size == 1 and self._before == LONGEST_VARINT - 1 and data > b"\x01"
            self._before = 0
        else:
            self._before += 1
            too_long = self._before == LONGEST_VARINT
        if too_long:
            raise ValueError("a number of more than 64 bits")
        return data

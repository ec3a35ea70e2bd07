"""Event <-> Avro datum, by the schemas of avsc/. No I/O but package data."""

import io
import json
from functools import cache
from importlib.resources import files
from typing import Any

import fastavro

from schemas.envelope import Event

Schema = dict[str, Any]


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
    """A schema parsed on its own: the same record name may stand in other texts."""
    schema = fastavro.parse_schema(json.loads(text), named_schemas={})
    assert isinstance(schema, dict)
    return schema


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
    """
    source = io.BytesIO(data)
    fields = fastavro.schemaless_reader(source, writer, reader)
    if source.tell() != len(data):
        raise TrailingBytes(f"{len(data) - source.tell()} bytes after the record")
    assert isinstance(fields, dict)
    return fields

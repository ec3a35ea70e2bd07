"""Publishes events from JSON lines or an Avro object container file: all are checked before any
is sent, each is acknowledged."""

import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final
from uuid import UUID

import fastavro
from confluent_kafka import KafkaError, Message

from processors.tables import profiles
from schemas import (
    HeadedEvent,
    ModelFallbackUsed,
    ModelProfileUpdated,
    Position,
    Recorded,
)
from schemas.avro import full_name, parsed
from schemas.values import canonical_mode, canonical_role
from streams import kafka
from streams.codec import FOLDED, TIMED, checked, encode, tenant_key, time_verdict
from streams.errors import BadConfiguration, BadEvent, Unreachable
from streams.registry import Catalogue
from streams.topics import (
    BUDGET_UPDATED,
    LLM_INVOCATION,
    MODE_CHANGED,
    MODEL_FALLBACK_USED,
    MODEL_PROFILE_UPDATED,
    MODEL_QUALITY_OBSERVED,
    MODEL_REGISTERED,
    RATE_CARD_UPDATED,
    SCORING_POLICY_UPDATED,
    SLM_BENCHMARK_RESULTS,
    Topic,
)
from tools.defaults import control_key

SOURCE: Final = "roster-cli"
AVRO_MAGIC: Final = b"Obj\x01"
ACKNOWLEDGED_WITHIN_S: Final = 60.0

OPEN: Final = {
    topic.name: topic
    for topic in (
        LLM_INVOCATION,
        MODEL_FALLBACK_USED,
        MODEL_PROFILE_UPDATED,
        MODE_CHANGED,
        MODEL_REGISTERED,
        SCORING_POLICY_UPDATED,
        RATE_CARD_UPDATED,
        BUDGET_UPDATED,
        MODEL_QUALITY_OBSERVED,
        SLM_BENCHMARK_RESULTS,
    )
}
"""Topics that producers write; the others say what Roster itself concluded."""


@dataclass(frozen=True, slots=True)
class Ready:
    """An event of a file, checked. line: from 1; of an Avro file the record's number."""

    line: int
    event: HeadedEvent
    key: bytes


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that cannot be sent. error: field=value and what is allowed."""

    line: int
    error: str


@dataclass(slots=True)
class Batch:
    """What a file holds, in its order."""

    good: list[Ready] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)


def open_topic(name: str) -> Topic:
    """A topic that producers may write. Raises BadConfiguration with the allowed ones."""
    if name not in OPEN:
        near = get_close_matches(name, OPEN, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadConfiguration(f"topic is {name!r}; allowed: {', '.join(OPEN)}{hint}")
    return OPEN[name]


def read(topic: Topic, data: bytes, now_ms: int) -> Batch:
    """All events of a file, checked. now_ms: for header fields that are absent.

    Raises BadConfiguration if an Avro file cannot be read at all.
    """
    records = _avro(topic, data) if data.startswith(AVRO_MAGIC) else _lines(data)
    batch = Batch()
    for line, fields in records:
        try:
            if isinstance(fields, str):
                raise BadEvent(fields)
            event = checked_event(topic, fields, now_ms)
        except BadEvent as error:
            batch.bad.append(Bad(line, str(error)))
        else:
            batch.good.append(Ready(line, event, record_key(event)))
    return batch


def _lines(data: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number, and its JSON object or what is wrong with it; empty lines are none."""
    for number, raw in enumerate(data.split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            fields = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
        except UnicodeDecodeError as error:
            yield number, f"not UTF-8 at byte {error.start + 1}"
        except RecursionError:
            yield number, "nested too deeply"
        except ValueError as error:
            where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            yield number, f"not JSON{where}: {text}; allowed: one JSON object a line"
        else:
            yield (
                number,
                fields
                if isinstance(fields, dict)
                else f"a JSON {type(fields).__name__}; allowed: one JSON object a line",
            )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} stands there twice")
    return fields


def _avro(topic: Topic, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    wanted = topic.events[0]
    try:
        container = fastavro.reader(io.BytesIO(data), parsed(wanted))
        written = container.writer_schema
        name = written.get("name") if isinstance(written, dict) else None
        namespace = written.get("namespace") if isinstance(written, dict) else None
        full = name if not namespace or "." in str(name) else f"{namespace}.{name}"
        if full != full_name(wanted):
            raise BadConfiguration(
                f"the Avro file holds {full}; allowed on {topic.name}: {full_name(wanted)}"
            )
        for number, record in enumerate(container, 1):
            assert isinstance(record, dict)
            yield number, record
    except BadConfiguration:
        raise
    except Exception as error:  # malformed files raise errors of many kinds
        raise BadConfiguration(f"the Avro file cannot be read: {error}") from None


def checked_event(topic: Topic, fields: Mapping[str, Any], now_ms: int) -> HeadedEvent:
    """An event of a topic from given fields, header filled in. Raises BadEvent."""
    kind = topic.events[0]
    assert issubclass(kind, HeadedEvent)
    for name in fields:
        if name not in kind.model_fields:
            near = get_close_matches(name, kind.model_fields, 1)
            raise BadEvent(
                f"{name}={_shown(fields[name])}: unknown field; "
                + (f"did you mean {near[0]}?" if near else f"allowed: {_names(kind)}")
            )
    header = {"event_id": uuid7(now_ms), "occurred_at_ms": now_ms, "source": SOURCE}
    event = checked(kind, {**header, **fields})
    if isinstance(event, ModelProfileUpdated):
        event = _profile(event)
    if event.NAME in TIMED and time_verdict(event.occurred_at_ms, now_ms) is not None:
        raise BadEvent(
            f"occurred_at_ms={event.occurred_at_ms}: too far from now ({now_ms});"
            " allowed: 35 days back to 5 minutes ahead"
        )
    return event


def _profile(event: ModelProfileUpdated) -> ModelProfileUpdated:
    """The change under canonical names. Raises BadEvent for what the fold would reject as invalid:
    here it can still be mended."""
    event = event.model_copy(
        update={
            "role": canonical_role(event.role),
            "deployment_mode": canonical_mode(event.deployment_mode),
        }
    )
    anyhow = event.model_copy(update={"expected_version": None})  # only the log knows the version
    nowhere = Position(MODEL_PROFILE_UPDATED.name, 0, 0, 0)
    refused = profiles.evolve(None, Recorded(anyhow, nowhere, control_key(event))).rejected
    if refused is not None:
        raise BadEvent(f"{refused.field}={_shown(refused.value)}: {refused.allowed}")
    return event


def record_key(event: HeadedEvent) -> bytes:
    """Key of the event's record, as streams/topics.py and the folds expect it."""
    if isinstance(event, FOLDED):
        return tenant_key(event)
    if isinstance(event, ModelFallbackUsed):
        return f"{event.tenant}/{event.event_id}".encode()
    return control_key(event)


def send(
    bootstrap: str,
    catalogue: Catalogue,
    topic: Topic,
    events: Iterable[Ready],
    progress: Callable[[int], None] = lambda n: None,
) -> list[tuple[int, int]]:
    """Appends the events; (partition, offset) of each, in their order, when all are acknowledged.

    Raises BadEvent before anything is sent if one is too large, Unreachable if some were not
    acknowledged: the text says which lines stand in the log.
    """
    framed = [(ready, encode(catalogue, topic, ready.event)) for ready in events]
    for ready, value in framed:
        if len(value) > topic.max_bytes:
            raise BadEvent(
                f"line {ready.line}: {len(value)} bytes as Avro; allowed: {topic.max_bytes}"
            )
    client = kafka.producer(bootstrap, message_timeout_ms=int(ACKNOWLEDGED_WITHIN_S * 1000))
    placed: dict[int, tuple[int, int]] = {}
    said: list[str] = []

    def delivered(index: int, error: KafkaError | None, message: Message) -> None:
        if error is None:
            placed[index] = (message.partition() or 0, message.offset() or 0)
            progress(1)
        else:
            said.append(error.str())

    for index, (ready, value) in enumerate(framed):
        report = _reporter(delivered, index)
        while True:
            try:
                client.produce(topic.name, value=value, key=ready.key, on_delivery=report)
                break
            except BufferError:
                client.poll(0.05)
        if index % 1000 == 0:
            client.poll(0)
    client.flush(ACKNOWLEDGED_WITHIN_S + 5)
    missing = [ready.line for i, (ready, _) in enumerate(framed) if i not in placed]
    if missing:
        stand = [ready.line for i, (ready, _) in enumerate(framed) if i in placed]
        why = said[0] if said else "no answer in time"
        raise Unreachable(
            f"{len(missing)} of {len(framed)} events were not acknowledged ({why}):"
            f" lines {spans(missing)}; in the log stand lines {spans(stand) or 'none'}"
        )
    return [placed[index] for index in range(len(framed))]


def _reporter(
    delivered: Callable[[int, KafkaError | None, Message], None], index: int
) -> Callable[[KafkaError | None, Message], None]:
    return lambda error, message: delivered(index, error, message)


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers, short: 1-3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def uuid7(now_ms: int) -> str:
    """A UUID of version 7 (RFC 9562): its order is that of time."""
    number = (now_ms & (2**48 - 1)) << 80 | int.from_bytes(os.urandom(10))
    number = number & ~(0xF << 76) | 0x7 << 76
    return str(UUID(int=number & ~(0x3 << 62) | 0x2 << 62))


def now_ms() -> int:
    """Wall clock, milliseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000_000


def _names(kind: type[HeadedEvent]) -> str:
    return ", ".join(kind.model_fields)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

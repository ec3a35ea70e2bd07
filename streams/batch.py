"""Whole batches of the topics that the meter folds.

Of llm.invocation into Arrow, the data plane's way to decode; of model.quality.observed, whose rate
is low, record by record.

The fast way (pyruhvro, then checks on whole columns) only decides that rows are certainly good.
Every row that it cannot vouch for goes through streams.codec, record by record: so both ways give
each record the same one verdict, and the slow one alone says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyruhvro
from confluent_kafka import Message

from schemas import ClockTick, LlmInvocation, ModelQualityObserved, Position, Recorded
from schemas.avro import schema_text
from schemas.values import (
    FUTURE_LIMIT_MS,
    IDENTIFIER_PATTERN,
    MAX_LATENCY_US,
    MAX_TOKENS,
    NIL_UUID,
    PAST_LIMIT_MS,
)
from streams.codec import Undecodable, decode, frame
from streams.kafka import append_ms
from streams.registry import Catalogue
from streams.topics import LLM_INVOCATION

pc: Any = pyarrow.compute  # its stubs refuse plain scalars

WHERE: Final = ("partition", "offset", "append_ms", "stamped_ms")
CALL: Final = 10_240  # records per call of the decoder; it is fastest near this size
FEW: Final = 6  # below this many records fastavro is faster than the call's fixed cost

NAME: Final = r"^[^\x00-\x1f\x7f]{1,128}$"
PATTERNS: Final = {
    "event_id": IDENTIFIER_PATTERN,
    "source": IDENTIFIER_PATTERN,
    "tenant": IDENTIFIER_PATTERN,
    "persona": IDENTIFIER_PATTERN,
    "provider": IDENTIFIER_PATTERN,
    "model": IDENTIFIER_PATTERN,
    "role": NAME,
    "mode": NAME,
}
LONG_TEXTS: Final = ("trace_id", "budget_trace_id", "error_code", "request_id", "profile_key")
REPEATED: Final = ("source", "tenant", "persona", "provider", "model", "role", "mode")
VOUCHED: Final = 2**62 - 1
"""Larger numbers take ten bytes, and of those the decoder ignores what is beyond 64 bits."""
BOUNDS: Final = {
    "input_tokens": (0, MAX_TOKENS),
    "cached_tokens": (0, MAX_TOKENS),
    "output_tokens": (0, MAX_TOKENS),
    "latency_us": (1, MAX_LATENCY_US),
    "first_token_us": (1, MAX_LATENCY_US),
    "gpu_ms": (0, MAX_TOKENS),
    "reported_cost_picousd": (0, VOUCHED),
    "attempt": (1, 1000),
    "profile_version": (0, VOUCHED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What every batch has besides its good events. passed: highest offset seen per partition,
    whatever it held."""

    ticks: list[Recorded[ClockTick]]
    bad: list[Undecodable]
    passed: dict[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvocationBatch(Batch):
    """table: the good rows in input order: all fields of LlmInvocation, and WHERE. append_ms is
    the original's for a copy, stamped_ms the broker's own. bodies: the rows' record values."""

    table: pa.Table
    bodies: list[bytes]


@dataclass(frozen=True, slots=True)
class Observation:
    """A good record of model.quality.observed. stamped_ms: the broker's own stamp."""

    event: ModelQualityObserved
    at: Position
    stamped_ms: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationBatch(Batch):
    """rows: the good ones in input order."""

    rows: list[Observation]


@cache
def arrow_schema() -> pa.Schema:
    """Columns of InvocationBatch.table."""
    fields = list(pyruhvro.avro_to_arrow_schema(schema_text(LlmInvocation)))
    return pa.schema(
        [
            *(pa.field(f.name, pa.string() if f.name == "outcome" else f.type) for f in fields),
            pa.field("partition", pa.int32()),
            pa.field("offset", pa.int64()),
            pa.field("append_ms", pa.int64()),
            pa.field("stamped_ms", pa.int64()),
        ]
    )


def decode_invocations(catalogue: Catalogue, messages: Sequence[Message]) -> InvocationBatch:
    """Decodes records of llm.invocation (no error messages among them).

    Raises nothing on bad bytes; waits while the registry does not answer for an unknown id.
    """
    prefix = frame(catalogue.id_of(LLM_INVOCATION, LlmInvocation), b"")
    values: list[Any] = [m.value() for m in messages]
    offsets = np.fromiter((m.offset() or 0 for m in messages), np.int64, len(messages))
    parts = np.fromiter((m.partition() or 0 for m in messages), np.int32, len(messages))
    broker = np.fromiter((m.timestamp()[1] for m in messages), np.int64, len(messages))
    stamps = np.fromiter((append_ms(m) for m in messages), np.int64, len(messages))
    ours = np.fromiter(
        (v is not None and v[:5] == prefix and len(v) <= LLM_INVOCATION.max_bytes for v in values),
        bool,
        len(messages),
    )
    fast = np.flatnonzero(ours)
    tables: list[pa.Table] = []
    good: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    slow = [np.flatnonzero(~ours)]
    for start in range(0, len(fast), CALL):
        rows = fast[start : start + CALL]
        table = _decode_call([values[i][5:] for i in rows]) if len(rows) >= FEW else None
        if table is None:
            slow.append(rows)
            continue
        keys = pa.array([messages[i].key() for i in rows], pa.binary())
        sound = _sound(table, keys, stamps[rows])
        slow.append(rows[~sound])
        good.append(rows[sound])
        tables.append(table.take(np.flatnonzero(sound)))

    ticks: list[Recorded[ClockTick]] = []
    bad: list[Undecodable] = []
    late_rows: list[int] = []
    late_fields: list[dict[str, Any]] = []
    for index in np.sort(np.concatenate(slow)).tolist():
        outcome = decode(catalogue, messages[index])
        if isinstance(outcome, Undecodable):
            bad.append(outcome)
        elif isinstance(outcome, Recorded) and isinstance(outcome.event, ClockTick):
            ticks.append(Recorded(outcome.event, outcome.at, outcome.key))
        elif isinstance(outcome, Recorded) and isinstance(outcome.event, LlmInvocation):
            late_rows.append(index)
            late_fields.append(outcome.event.model_dump(mode="json"))
        else:
            raise AssertionError(f"llm.invocation carries no {type(outcome).__name__}")
    wire = arrow_schema()
    fields = pa.schema(
        [f for f in wire if f.name not in ("partition", "offset", "append_ms", "stamped_ms")]
    )
    if late_rows:
        tables.append(pa.Table.from_pylist(late_fields, schema=fields))
        good.append(np.array(late_rows, np.int64))
    order = np.concatenate(good) if good else np.empty(0, np.int64)
    # The decoder marks its columns as never null; those of single records are not marked.
    table = pa.concat_tables([t.cast(fields) for t in tables]) if tables else fields.empty_table()
    if late_rows and len(tables) > 1:
        sort = np.argsort(order, kind="stable")
        order, table = order[sort], table.take(sort)
    table = (
        table.append_column("partition", pa.array(parts[order]))
        .append_column("offset", pa.array(offsets[order]))
        .append_column("append_ms", pa.array(stamps[order]))
        .append_column("stamped_ms", pa.array(broker[order]))
    )
    passed = {int(p): int(offsets[parts == p].max()) for p in np.unique(parts)}
    bodies = [values[i] for i in order.tolist()]
    return InvocationBatch(table=table, bodies=bodies, ticks=ticks, bad=bad, passed=passed)


def decode_observations(catalogue: Catalogue, messages: Sequence[Message]) -> ObservationBatch:
    """Decodes records of model.quality.observed (no error messages among them).

    Raises nothing on bad bytes; waits while the registry does not answer for an unknown id.
    """
    rows: list[Observation] = []
    ticks: list[Recorded[ClockTick]] = []
    bad: list[Undecodable] = []
    passed: dict[int, int] = {}
    for message in messages:
        partition, offset = message.partition() or 0, message.offset() or 0
        passed[partition] = max(offset, passed.get(partition, -1))
        outcome = decode(catalogue, message)
        match outcome:
            case Undecodable():
                bad.append(outcome)
            case Recorded(event=ClockTick() as tick):
                ticks.append(Recorded(tick, outcome.at, outcome.key))
            case Recorded(event=ModelQualityObserved() as event):
                body = message.value()
                assert isinstance(body, bytes)
                rows.append(Observation(event, outcome.at, int(message.timestamp()[1]), body))
            case _:
                raise AssertionError(f"model.quality.observed carries no {type(outcome).__name__}")
    return ObservationBatch(rows=rows, ticks=ticks, bad=bad, passed=passed)


def _decode_call(data: list[bytes]) -> pa.Table | None:
    """Columns of these data, or None if any of them is not exactly one record."""
    text = schema_text(LlmInvocation)
    try:
        batch = pyruhvro.deserialize_array(data, text)
        # The decoder ignores bytes after a record; written again, such a batch is shorter.
        again = pyruhvro.serialize_record_batch(batch, text, 1)[0]
    except Exception:
        return None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a panic of its Rust side
            raise
        return None
    lengths = pc.sum(pc.binary_length(again)).as_py()
    if lengths != sum(map(len, data)):
        return None
    table = pa.Table.from_batches([batch])
    outcome = table.schema.get_field_index("outcome")
    return table.set_column(
        outcome, pa.field("outcome", pa.string()), table.column("outcome").cast(pa.string())
    )


def _sound(
    table: pa.Table, keys: Any, stamps: np.ndarray[Any, np.dtype[np.int64]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Rows that streams.codec would certainly take: shape (rows,), bool."""
    wanted = pc.binary_join_element_wise(table.column("tenant"), table.column("event_id"), "/")
    ok = _flags(pc.equal(keys, wanted.cast(pa.binary())))
    for name, pattern in PATTERNS.items():
        column: Any = table.column(name).combine_chunks()
        if name in REPEATED:
            coded: Any = pc.dictionary_encode(column)
            coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
            verdicts = _text_ok(coded.dictionary, pattern)
            codes = coded.indices.fill_null(len(verdicts)).to_numpy(zero_copy_only=False)
            missing = name in ("persona", "mode")  # nullable; a missing tenant is not
            ok &= np.append(verdicts, missing)[codes]
        else:
            ok &= _text_ok(column, pattern)
    ids = table.column("event_id")
    ok &= _flags(pc.not_equal(ids, NIL_UUID))
    for name in LONG_TEXTS:
        length = pc.fill_null(pc.utf8_length(table.column(name)), 0)
        ok &= _flags(pc.less_equal(length, 4096))
    for name, (low, high) in BOUNDS.items():
        column = pc.fill_null(table.column(name), low)
        ok &= _flags(pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high)))
    times = table.column("occurred_at_ms").to_numpy()
    ok &= (times >= stamps - PAST_LIMIT_MS) & (times <= stamps + FUTURE_LIMIT_MS) & (times >= 0)
    return ok


def _text_ok(column: Any, pattern: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    matches = pc.match_substring_regex(column, pattern)
    if pattern is IDENTIFIER_PATTERN:
        matches = pc.and_(matches, pc.invert(pc.match_substring(column, "..")))
    return _flags(matches)


def _flags(column: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """An Arrow boolean column as numpy, null as False; a fresh, writable array."""
    filled = pc.fill_null(column, False)
    array = filled.combine_chunks() if isinstance(filled, pa.ChunkedArray) else filled
    return np.array(array.to_numpy(zero_copy_only=False), dtype=bool)

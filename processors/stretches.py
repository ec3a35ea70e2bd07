"""Records of what the meter folds -> stretches, the pure fold's input."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from confluent_kafka import Message

from processors.columns import Columns, Invocations, observed_columns
from processors.pane_fold import Stretch
from schemas.values import OUTCOMES, canonical_mode, canonical_role
from streams.batch import (
    Batch,
    InvocationBatch,
    Observation,
    ObservationBatch,
    decode_invocations,
    decode_observations,
)
from streams.codec import tick_ms
from streams.registry import Catalogue
from streams.topics import LLM_INVOCATION, Topic

pc: Any = pyarrow.compute  # its stubs refuse plain scalars


def stretches(
    catalogue: Catalogue, topic: Topic, messages: Sequence[Message]
) -> dict[int, Stretch]:
    """Records of one topic as one stretch per partition."""
    if topic is LLM_INVOCATION:
        invocations = decode_invocations(catalogue, messages)
        return _stretches(invocations, _invoked(invocations))
    observations = decode_observations(catalogue, messages)
    return _stretches(observations, _observed(observations))


def _stretches(batch: Batch, good: dict[int, Columns]) -> dict[int, Stretch]:
    return {
        partition: Stretch(
            columns=good[partition],
            ticks=[
                (t.at.offset, tick_ms(t.event, t.at.append_ms))
                for t in batch.ticks
                if t.at.partition == partition
            ],
            dead=[b.at.offset for b in batch.bad if b.at.partition == partition],
            up_to_offset=up_to,
        )
        for partition, up_to in batch.passed.items()
    }


def _observed(batch: ObservationBatch) -> dict[int, Columns]:
    rows: dict[int, list[dict[str, Any]]] = {partition: [] for partition in batch.passed}
    for row in batch.rows:
        rows[row.at.partition].append(_row(row))
    return {partition: observed_columns(found) for partition, found in rows.items()}


def _row(observation: Observation) -> dict[str, Any]:
    event = observation.event
    return {
        "offset": observation.at.offset,
        "occurred_at_ms": event.occurred_at_ms,
        "append_ms": observation.stamped_ms,
        "tenant": event.tenant,
        "source": event.source,
        "event_id": event.event_id,
        "body": observation.body,
        "role": canonical_role(event.role),
        "mode": canonical_mode(event.mode or ""),
        "provider": event.provider,
        "model": event.model,
        "metric": event.metric,
        "n": event.n,
        "hits": event.hits,
    }


def _invoked(batch: InvocationBatch) -> dict[int, Columns]:
    columns = whole(batch.table, batch.bodies)
    partitions = batch.table.column("partition").to_numpy()
    return {p: columns.take(np.flatnonzero(partitions == p)) for p in batch.passed}


def whole(table: pa.Table, bodies: Sequence[bytes]) -> Columns:
    """Columns of a whole Arrow table; partitions are not told apart."""
    codes: np.ndarray[Any, np.dtype[np.int64]] = np.zeros(len(table), np.int64)
    levels: list[list[str]] = []
    for name, canonical in (
        ("role", canonical_role),
        ("mode", canonical_mode),
        ("provider", str),
        ("model", str),
    ):
        coded = pc.dictionary_encode(pc.fill_null(table.column(name), "")).combine_chunks()
        levels.append([canonical(value) for value in coded.dictionary.to_pylist()])
        index = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        codes = codes * max(1, len(levels[-1])) + index
    distinct, who = np.unique(codes, return_inverse=True)
    groups = []
    for code in distinct.tolist():
        parts = []
        rest = code
        for level in reversed(levels):
            rest, index = divmod(rest, max(1, len(level)))
            parts.append(level[index])
        groups.append((parts[3], parts[2], parts[1], parts[0]))
    outcomes = pc.dictionary_encode(table.column("outcome")).combine_chunks()
    known = np.array([OUTCOMES.index(o) for o in outcomes.dictionary.to_pylist()], np.int64)
    reported: Any = table.column("reported_cost_picousd")
    identity: Any = pc.binary_join_element_wise(
        table.column("tenant"), table.column("source"), table.column("event_id"), "\x00"
    )
    ids: Any = table.column("event_id")
    there = np.flatnonzero(pc.is_valid(reported).to_numpy())
    return Columns(
        offset=table.column("offset").to_numpy(),
        occurred_at_ms=table.column("occurred_at_ms").to_numpy(),
        append_ms=table.column("stamped_ms").to_numpy(),
        identity=identity.to_pylist(),
        event_id=ids.to_pylist(),
        body=bodies,
        who=who.astype(np.int64),
        groups=groups,
        amounts=Invocations(
            outcome=known[outcomes.indices.to_numpy(zero_copy_only=False)]
            if len(table)
            else np.empty(0, np.int64),
            units=np.stack(
                [
                    table.column(name).to_numpy()
                    for name in ("input_tokens", "cached_tokens", "output_tokens")
                ],
                axis=1,
            ),
            latency_us=table.column("latency_us").to_numpy(),
            reported=dict(zip(there.tolist(), reported.take(there).to_pylist(), strict=True)),
        ),
    )

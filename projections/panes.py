"""Evidence per pane of event time and tenant, as the meter counts it (M5): late events are left
out, and of one id in one pane only the first counts.

The meter's verdicts follow from a partition's own log, so they are drawn here again: from its
newest time so far, kept beside the offsets, and from the ledger, which knows every id. The ledger
refuses an id for ever, the meter within its pane: an id that comes again in another pane is counted
there, and noted so that it is counted once. A fact names so many models and metrics and no more,
since it is one record; rows may be many, so here each has its own name.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from projections import store
from projections.history import Judged
from projections.intake import Place
from projections.ledger import Filed
from schemas import ClockTick, HeadedEvent, ModelQualityObserved, Recorded
from schemas.latency import ESTIMATES_E9, LIMITS_US, OVERFLOW
from schemas.values import (
    BILLION,
    COMPLETE,
    MODE_ALIASES,
    OUTCOMES,
    canonical_mode,
    canonical_role,
)
from streams.codec import tick_ms
from streams.errors import BadConfiguration
from streams.topics import LLM_INVOCATION, MODEL_QUALITY_OBSERVED

pc: Any = pyarrow.compute  # its stubs refuse plain scalars
arrow: Any = pa  # and these numpy's arrays
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Tick = tuple[int, int, int]
"""Partition, offset, announced time in ms."""
Row = dict[str, Any]
Identity = tuple[int, str, str, str, int]
"""Partition, tenant, source, event id, pane."""

MERGE_AFTER: Final = 50_000  # partial rows appended since the last time
KEY: Final = ("tenant", "pane_start_ms", "role", "mode", "provider", "model")
NAMES: Final = tuple(name for name in KEY if name != "pane_start_ms")
UNITS: Final = ("input", "cached", "output")
LIMITS: Final = np.array(LIMITS_US, np.int64)
COMPLETE_CODES: Final = np.array([outcome in COMPLETE for outcome in OUTCOMES])
MOST_CODES: Final = 2**31
LIMB: Final = 21  # bits: products of two, summed over 2**20 rows, fit 62
I64_MAX: Final = 2**63 - 1
NEVER: Final = np.iinfo(np.int64).min // 2
"""Stands for minus infinity: no event time is below it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How event time is cut: as settings say, so that it is that of the meter."""

    pane_ms: int = 300_000
    bound_ms: int = 60_000
    grace_ms: int = 600_000


@dataclass(slots=True)
class Panes:
    """What is kept in memory. newest: latest event or tick per partition. partial: by table."""

    cut: Cut
    newest: dict[Place, int]
    partial: dict[str, "Partial"] = field(default_factory=dict)

    def appended(self, table: str, panes: Sequence[int]) -> None:
        """Notes partial rows. panes: that of each."""
        self.partial.setdefault(table, Partial()).append(Counter(panes))


@dataclass(slots=True)
class Partial:
    """What there is to merge in a table. again: panes that were appended to more than once; rows:
    how many of their rows came after the first time."""

    once: set[int] = field(default_factory=set)
    again: set[int] = field(default_factory=set)
    rows: int = 0

    def append(self, panes: Mapping[int, int]) -> None:
        """Takes panes with their number of new rows."""
        more = self.once & panes.keys()
        self.rows += sum(panes[pane] for pane in more)
        self.again |= more
        self.once |= panes.keys()


def load(
    db: duckdb.DuckDBPyConnection, cut: Cut, newest: Mapping[Place, int] | None = None
) -> Panes:
    """The state that follows from the file; a new file is cut by cut from now on.

    newest: latest event or tick per partition. Raises BadConfiguration if the file was cut
    otherwise.
    """
    rule = db.execute("SELECT pane_ms, bound_ms, grace_ms FROM pane_rule").fetchall()
    if not rule:
        with store.transaction(db):
            db.execute("INSERT INTO pane_rule VALUES (?, ?, ?)", _rule(cut))
            with store.batch(db, _buckets()):
                db.execute("INSERT INTO latency_buckets BY NAME SELECT * FROM batch")
            aliases = [{"alias": alias, "mode": mode} for alias, mode in MODE_ALIASES.items()]
            store.insert(db, "mode_aliases", aliases)
    elif rule[0] != _rule(cut):
        raise BadConfiguration(
            f"ROSTER_PANE_S, ROSTER_BOUND_S, ROSTER_GRACE_S are {_seconds(_rule(cut))}, the panes"
            f" of roster.duckdb were cut by {_seconds(rule[0])}: set these, or remove the file,"
            " and it is made again from the log"
        )
    return Panes(cut, dict(newest or {}))


def _rule(cut: Cut) -> tuple[int, int, int]:
    return (cut.pane_ms, cut.bound_ms, cut.grace_ms)


def _seconds(rule: tuple[int, ...]) -> str:
    return ", ".join(f"{ms / 1000:g}" for ms in rule)


def _buckets() -> pa.Table:
    estimates = [*ESTIMATES_E9, ESTIMATES_E9[-1]]
    return pa.table(
        {
            "bucket": pa.array(range(OVERFLOW + 1), pa.int16()),
            "lower_us": pa.array([0, *LIMITS_US], pa.int64()),
            "upper_us": pa.array([*LIMITS_US, None], pa.int64()),
            "estimate_e9": pa.array(estimates, pa.int64()),
            "estimate_us": pa.array([units / BILLION for units in estimates], pa.float64()),
        }
    )


def charge(
    db: duckdb.DuckDBPyConnection,
    panes: Panes,
    rows: pa.Table,
    filed: Filed,
    ticks: Sequence[Recorded[ClockTick]],
) -> None:
    """Counts invocations that the ledger has just filed; call it in its transaction.

    rows: streams.batch.InvocationBatch.table, per partition in offset order.
    """
    topic = LLM_INVOCATION.name
    partition = rows.column("partition").to_numpy()
    offset = rows.column("offset").to_numpy()
    occurred = rows.column("occurred_at_ms").to_numpy()
    late = _late(panes, topic, partition, offset, occurred, [_announced(t) for t in ticks])
    if filed.wire is None:
        return
    counts = filed.applied & ~late
    pane = occurred // panes.cut.pane_ms * panes.cut.pane_ms
    doubtful = [
        c.row
        for c in filed.conflicts
        if not late[c.row] and c.first_ms // panes.cut.pane_ms * panes.cut.pane_ms != pane[c.row]
    ]
    if doubtful:
        few = rows.select(["partition", "tenant", "source", "event_id"]).take(pa.array(doubtful))
        identities: list[Identity] = [
            (*identity.values(), int(pane[row]))
            for row, identity in zip(doubtful, few.to_pylist(), strict=True)
        ]
        counts[[doubtful[i] for i in _first_strays(db, topic, identities)]] = True
    if counts.any():
        _append(db, panes, filed.wire, pane, np.flatnonzero(counts))


def observe(
    db: duckdb.DuckDBPyConnection,
    panes: Panes,
    judged: Sequence[Judged],
    ticks: Sequence[Recorded[ClockTick]],
) -> None:
    """Counts observations of quality that have just been filed; call it in that transaction.

    judged: of model.quality.observed, per partition in offset order.
    """
    topic, cut = MODEL_QUALITY_OBSERVED.name, panes.cut
    events = [one.recorded.event for one in judged]
    places = [one.recorded.at for one in judged]
    late = _late(
        panes,
        topic,
        np.array([at.partition for at in places], np.int64),
        np.array([at.offset for at in places], np.int64),
        np.array([e.occurred_at_ms for e in events if isinstance(e, HeadedEvent)], np.int64),
        [_announced(tick) for tick in ticks],
    )
    counted: list[Row] = []
    strays: list[tuple[Identity, Row]] = []
    for one, event, is_late in zip(judged, events, late.tolist(), strict=True):
        assert isinstance(event, ModelQualityObserved)
        if is_late or one.verdict == "duplicate":
            continue
        pane = event.occurred_at_ms // cut.pane_ms * cut.pane_ms
        row = {
            "tenant": event.tenant,
            "pane_start_ms": pane,
            "role": canonical_role(event.role),
            "mode": canonical_mode(event.mode or ""),
            "provider": event.provider,
            "model": event.model,
            "metric": event.metric,
            "n": event.n,
            "hits": event.hits,
        }
        partition = one.recorded.at.partition
        if one.verdict == "applied":
            counted.append(row)
        elif _observed_ms(db, partition, one.first_offset) // cut.pane_ms * cut.pane_ms != pane:
            strays.append(((partition, event.tenant, event.source, event.event_id, pane), row))
    if strays:
        new = _first_strays(db, topic, [identity for identity, _ in strays])
        counted += [strays[i][1] for i in new]
    if counted:
        store.insert(db, "quality_panes", counted)
        panes.appended("quality_panes", [row["pane_start_ms"] for row in counted])


def _observed_ms(db: duckdb.DuckDBPyConnection, partition: int, offset: int) -> int:
    rows = db.execute(
        "SELECT occurred_at_ms FROM quality_observations"
        " WHERE src_partition = ? AND src_offset = ?",
        [partition, offset],
    ).fetchall()
    return int(rows[0][0])


def _announced(tick: Recorded[ClockTick]) -> Tick:
    return tick.at.partition, tick.at.offset, tick_ms(tick.event, tick.at.append_ms)


def _late(
    panes: Panes, topic: str, partition: Ints, offset: Ints, occurred: Ints, ticks: Sequence[Tick]
) -> Mask:
    """Which rows miss their pane, judged by what their own partition had seen before; moves the
    clocks. A late event cannot be the newest, so all rows may move them."""
    cut = panes.cut
    late = np.zeros(len(occurred), bool)
    told = {p: [(o, at) for q, o, at in ticks if q == p] for p, _, _ in ticks}
    for p in sorted({*np.unique(partition).tolist(), *told}):
        rows = np.flatnonzero(partition == p)
        times = np.concatenate(
            (occurred[rows], np.array([at for _, at in told.get(p, ())], np.int64))
        )
        offsets = np.concatenate(
            (offset[rows], np.array([o for o, _ in told.get(p, ())], np.int64))
        )
        order = np.argsort(offsets, kind="stable")
        start = panes.newest.get((topic, p), NEVER)
        seen = np.maximum.accumulate(np.concatenate(([start], times[order])))
        before = np.empty(len(order), np.int64)
        before[order] = seen[:-1] - cut.bound_ms - 1
        end = occurred[rows] // cut.pane_ms * cut.pane_ms + cut.pane_ms
        late[rows] = end + cut.grace_ms <= before[: len(rows)]
        panes.newest[topic, p] = int(seen[-1])
    return late


def _first_strays(
    db: duckdb.DuckDBPyConnection, topic: str, identities: Sequence[Identity]
) -> list[int]:
    """Indices of the ids that are new in their pane, which are noted. identities: of events that
    came after the first of their id, which stands in another pane."""
    columns = ("src_partition", "tenant", "source", "event_id", "pane_start_ms")
    probe = pa.table({"event_id": pa.array({i[3] for i in identities}, pa.string())})
    with store.batch(db, probe, "probe"):
        known = set(
            db.execute(
                f"SELECT {', '.join(columns)} FROM pane_strays SEMI JOIN probe USING (event_id)"
                " WHERE topic = ?",
                [topic],
            ).fetchall()
        )
    new: list[int] = []
    for index, identity in enumerate(identities):
        if identity not in known:
            known.add(identity)
            new.append(index)
    rows = [{"topic": topic, **dict(zip(columns, identities[i], strict=True))} for i in new]
    store.insert(db, "pane_strays", rows)
    return new


def _append(
    db: duckdb.DuckDBPyConnection, panes: Panes, wire: pa.Table, pane: Ints, rows: Ints
) -> None:
    """Appends the sums of rows. wire: columns of the table invocations. pane: of every row."""
    if len(rows) < wire.num_rows:
        wire, pane = wire.take(rows), pane[rows]
    order, starts = _grouped(wire, pane, panes.cut.pane_ms)
    names = wire.select(NAMES).take(order[starts])
    columns: dict[str, Any] = dict(zip(NAMES, names.columns, strict=True))
    columns["pane_start_ms"] = pa.array(pane[order[starts]])
    sums = pa.table({**columns, **_sums(wire, order, starts)})
    with store.batch(db, sums):
        db.execute("INSERT INTO metrics_panes BY NAME SELECT * FROM batch")
    panes.appended("metrics_panes", pane[order[starts]].tolist())


def _sums(wire: pa.Table, order: Ints, starts: Ints) -> dict[str, Any]:
    """The sums of metrics_panes: a value per group. Summed here and not in SQL, where a statement
    of so many sums takes 20 ms to plan, as long as all the rest of a small batch."""
    outcome = _codes_of(wire.column("outcome"))[order]
    complete = COMPLETE_CODES[outcome]
    cost_column = wire.column("reported_cost_picousd")
    reported = np.asarray(pc.is_valid(cost_column).to_numpy(), bool)[order] & complete
    priced = complete & ~reported
    tokens = {unit: wire.column(f"{unit}_tokens").to_numpy()[order] for unit in UNITS}
    found = {
        outcome_.value.lower(): _sum(outcome == code, starts)
        for code, outcome_ in enumerate(OUTCOMES)
    }
    found |= {f"{unit}_tokens": _sum(amount, starts) for unit, amount in tokens.items()}

    kept = {unit: np.where(priced, amount, 0) for unit, amount in tokens.items()}
    found["priced_n"] = _sum(priced, starts)
    found |= {f"priced_{unit}": _sum(amount, starts) for unit, amount in kept.items()}
    for i, a in enumerate(UNITS):
        for b in UNITS[i:]:
            found[f"priced_{a}_{b}"] = _product_sum(kept[a], kept[b], starts)

    all_tokens = np.where(reported, sum(tokens.values()), 0)
    cost = np.where(reported, pc.fill_null(cost_column, 0).to_numpy()[order], 0)
    found["reported_n"] = _sum(reported, starts)
    found["reported_cost"] = _product_sum(cost, reported.astype(np.int64), starts)
    found["reported_tokens"] = _sum(all_tokens, starts)
    found["reported_cost_cost"] = _product_sum(cost, cost, starts)
    found["reported_cost_tokens"] = _product_sum(cost, all_tokens, starts)
    found["reported_tokens_tokens"] = _product_sum(all_tokens, all_tokens, starts)

    bucket = np.searchsorted(LIMITS, wire.column("latency_us").to_numpy())[order]
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    cells, counts = np.unique((group * (OVERFLOW + 1) + bucket)[complete], return_counts=True)
    edges = np.searchsorted(cells, np.arange(len(starts) + 1) * (OVERFLOW + 1)).astype(np.int32)
    for name, values in (
        ("latency_buckets", (cells % (OVERFLOW + 1)).astype(np.int16)),
        ("latency_counts", counts.astype(np.int64)),
    ):
        found[name] = arrow.ListArray.from_arrays(edges, pa.array(values))
    return found


def _sum(values: Any, starts: Ints) -> Ints:
    return np.add.reduceat(values.astype(np.int64), starts)


def _product_sum(a: Ints, b: Ints, starts: Ints) -> Any:
    """Sums of products per group, exact: as integers where they cannot exceed 64 bits, else as
    texts of digits. a, b: at least 0; at most 2**20 rows."""
    if int(a.max()) * int(b.max()) * len(a) <= I64_MAX:
        return np.add.reduceat(a * b, starts)
    total: Any = np.zeros(len(starts), object)
    for i, x in _limbs(a):
        for j, y in _limbs(b):
            total += np.add.reduceat(x * y, starts).astype(object) << LIMB * (i + j)
    return pa.array([str(one) for one in total.tolist()], pa.string())


def _limbs(values: Ints) -> list[tuple[int, Ints]]:
    """(place, digits) of numbers in base 2**LIMB, without places where all are 0."""
    digits = ((i, values >> LIMB * i & (1 << LIMB) - 1) for i in range(3))
    return [(i, digit) for i, digit in digits if digit.any()]


def _grouped(wire: pa.Table, pane: Ints, pane_ms: int) -> tuple[Ints, Ints]:
    """(rows ordered by key, where each key begins in that order)."""
    code = (pane - pane.min()) // pane_ms
    size = int(code.max()) + 1
    for name in NAMES:
        coded = _coded(wire.column(name))
        if size * len(coded.dictionary) > MOST_CODES:
            distinct, code = np.unique(code, return_inverse=True)
            size = len(distinct)
        code = code * len(coded.dictionary) + coded.indices.to_numpy()
        size *= len(coded.dictionary)
    order = np.argsort(code, kind="stable")
    code = code[order]
    return order, np.flatnonzero(np.concatenate(([True], code[1:] != code[:-1])))


def _coded(column: Any) -> Any:
    """A column as one dictionary array."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return array if pa.types.is_dictionary(array.type) else pc.dictionary_encode(array)


def _codes_of(column: Any) -> Ints:
    """Outcomes as their places in OUTCOMES."""
    coded = _coded(column)
    names = [outcome.value for outcome in OUTCOMES]
    places = np.array([names.index(name) for name in coded.dictionary.to_pylist()], np.int64)
    found: Ints = places[coded.indices.to_numpy()]
    return found


def tidy(db: duckdb.DuckDBPyConnection, panes: Panes) -> None:
    """Merges partial rows where they have become many; call it in a transaction.

    Only panes that have got more rows are written again: a closed one never does.
    """
    for table, partial in panes.partial.items():
        if partial.rows > MERGE_AFTER:
            MERGES[table](db, sorted(partial.again))
            partial.rows = 0
            partial.again.clear()


def merge_metrics(db: duckdb.DuckDBPyConnection, panes: Sequence[int]) -> None:
    """One row per key of these panes."""
    key = ", ".join(KEY)
    sums = ", ".join(
        f"sum({name})::{kind} AS {name}"
        for name, kind, *_ in db.execute("DESCRIBE metrics_totals").fetchall()
        if name not in KEY
    )
    _replace(
        db,
        "metrics_panes",
        panes,
        f"SELECT m.*, coalesce(l.buckets, []) AS latency_buckets,"
        f" coalesce(l.counts, []) AS latency_counts"
        f" FROM (SELECT {key}, {sums} FROM partial GROUP BY {key}) m"
        f" LEFT JOIN (SELECT {key}, list(bucket ORDER BY bucket) AS buckets,"
        f" list(n ORDER BY bucket) AS counts FROM"
        f" (SELECT {key}, bucket, sum(n)::BIGINT AS n FROM"
        f" (SELECT {key}, unnest(latency_buckets) AS bucket, unnest(latency_counts) AS n"
        f" FROM partial) GROUP BY {key}, bucket) GROUP BY {key}) l USING ({key})",
    )


def merge_quality(db: duckdb.DuckDBPyConnection, panes: Sequence[int]) -> None:
    """One row per key and metric of these panes."""
    key = f"{', '.join(KEY)}, metric"
    _replace(
        db,
        "quality_panes",
        panes,
        f"SELECT {key}, sum(n)::BIGINT AS n, sum(hits)::BIGINT AS hits FROM partial GROUP BY {key}",
    )


MERGES: Final = {"metrics_panes": merge_metrics, "quality_panes": merge_quality}


def _replace(db: duckdb.DuckDBPyConnection, table: str, panes: Sequence[int], select: str) -> None:
    of_these = (
        f"{table}.pane_start_ms BETWEEN {panes[0]} AND {panes[-1]}"
        f" AND {table}.pane_start_ms IN ({', '.join(map(str, panes))})"
    )
    db.execute(
        f"CREATE OR REPLACE TEMP TABLE merged AS WITH partial AS"
        f" (SELECT * FROM {table} WHERE {of_these}) {select} ORDER BY pane_start_ms"
    )
    db.execute(f"DELETE FROM {table} WHERE {of_these}")
    db.execute(f"INSERT INTO {table} BY NAME SELECT * FROM merged")
    db.execute("DROP TABLE merged")

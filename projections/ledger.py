"""The ledger (M8, M10): one row per invocation, priced exactly; sums per pane beside it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute
import xxhash
from numpy.typing import NDArray

from projections import known_ids
from projections.known_ids import Fingerprints
from projections.store import batch
from schemas.pricing import PRICE_UNITS, PRICED_UNITS, Card, round_half_even
from schemas.rate_card import PriceUnit
from schemas.values import canonical_mode, canonical_role

pc: Any = pyarrow.compute  # its stubs refuse plain scalars

PANE_MS: Final = 300_000
COMPACT_AFTER: Final = 50_000  # partials appended since the last time
TOKENS: Final = ("input_tokens", "cached_tokens", "output_tokens")  # in the order of PRICE_UNITS
I64_MAX: Final = 2**63 - 1

Cards = dict[tuple[str, str, PriceUnit], list[Card]]
"""Cards of a provider, model and unit, ascending: of those that apply the last one counts."""
Positions = NDArray[np.int64]
First = tuple[int, int, bytes]
"""Offset, event time and body's hash of the first record of an id."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A good record whose id was charged before with another body."""

    row: int  # in the batch
    first_offset: int
    first_ms: int  # event time of the first


@dataclass(frozen=True, slots=True)
class Spend:
    """What a batch added to a tenant's pane, and its newest event time there."""

    tenant: str
    pane_start_ms: int
    cost_picousd: int
    newest_ms: int


@dataclass(frozen=True, slots=True)
class Filed:
    """What became of the good rows of a batch. applied: mask, shape (rows,). wire: all rows as
    columns of the table invocations; None: there are none."""

    applied: NDArray[np.bool_]
    duplicates: Positions  # rows
    conflicts: list[Conflict]
    partials: int  # rows appended to cost_panes
    spends: list[Spend]  # of the watched tenants
    wire: pa.Table | None


def load_known(db: duckdb.DuckDBPyConnection) -> Fingerprints:
    """Fingerprints of the filed ids that do not follow time."""
    known = Fingerprints()
    reader = db.sql(
        "SELECT event_id FROM invocations WHERE substr(id::VARCHAR, 15, 1) <> '7'"
    ).to_arrow_reader(1_000_000)
    for chunk in reader:
        known.add(known_ids.uuids(chunk.column(0).cast(pa.string())))
    return known


def add_card(cards: Cards, who: tuple[str, str], unit: PriceUnit, card: Card) -> None:
    """Files a card in its order."""
    of_unit = cards.setdefault((*who, unit), [])
    of_unit.append(card)
    of_unit.sort(key=lambda c: (c.version, c.offset))


def file(
    db: duckdb.DuckDBPyConnection,
    rows: pa.Table,
    bodies: Sequence[bytes],
    cards: Cards,
    known: Fingerprints,
    watched: Collection[str] = (),
) -> Filed:
    """Appends the rows that are new to the ledger and to its sums; call it in a transaction.

    rows: streams.batch.InvocationBatch.table, per partition in offset order. known grows by the
    ids of the batch, so after a rollback it is of no use any more. watched: tenants whose spend is
    wanted.
    """
    n = rows.num_rows
    if n == 0:
        none = np.empty(0, np.int64)
        return Filed(np.empty(0, bool), none, [], 0, [], None)
    hashes = _hashes(bodies)
    event_ids: Any = rows.column("event_id").combine_chunks()
    ids = known_ids.uuids(event_ids)
    first_of: dict[int, First] = {}  # repeated row -> the first
    _repeats_within(rows, event_ids, hashes, first_of)
    _repeats_of_filed(db, rows, ids, known, first_of)
    applied = np.ones(n, bool)
    duplicates, conflicts = [], []
    for row, (offset, occurred_at_ms, body) in sorted(first_of.items()):
        applied[row] = False
        if body == hashes[row].tobytes():
            duplicates.append(row)
        else:
            conflicts.append(Conflict(row, offset, occurred_at_ms))
    wire = _columns(rows, ids, hashes, cards)
    fresh = wire
    if first_of:
        fresh = wire.take(pa.array(np.flatnonzero(applied), pa.int64()))
    with batch(db, fresh):
        db.execute("INSERT INTO invocations BY NAME SELECT * FROM batch")
        partials = int(db.execute(SUM_UP).fetchall()[0][0])
        found = db.execute(SPENT, [list(watched)]).fetchall() if watched else []
    spends = [Spend(*row) for row in found]
    return Filed(applied, np.array(duplicates, np.int64), conflicts, partials, spends, wire)


SUM_UP: Final = f"""
INSERT INTO cost_panes
SELECT tenant, occurred_at_ms // {PANE_MS} * {PANE_MS}, role, mode, provider, model,
       count(*), count(*) - count(cost_picousd),
       sum(input_tokens), sum(cached_tokens), sum(output_tokens),
       coalesce(sum(cost_picousd::HUGEINT), 0)
FROM batch GROUP BY ALL
"""
SPENT: Final = f"""
SELECT tenant, occurred_at_ms // {PANE_MS} * {PANE_MS} AS pane_start_ms,
       sum(cost_picousd::HUGEINT), max(occurred_at_ms)
FROM batch WHERE tenant IN (SELECT unnest(?)) AND cost_picousd IS NOT NULL
GROUP BY ALL ORDER BY ALL
"""


def compact(db: duckdb.DuckDBPyConnection) -> None:
    """Merges the partial sums of each pane into one row; call it in a transaction."""
    db.execute(
        "CREATE OR REPLACE TEMP TABLE merged AS"
        " SELECT tenant, pane_start_ms, role, mode, provider, model, sum(n), sum(unpriced_n),"
        " sum(input_tokens), sum(cached_tokens), sum(output_tokens), sum(cost_picousd)"
        " FROM cost_panes GROUP BY ALL ORDER BY pane_start_ms"
    )
    db.execute("DELETE FROM cost_panes")
    db.execute("INSERT INTO cost_panes SELECT * FROM merged")
    db.execute("DROP TABLE merged")


def _hashes(bodies: Sequence[bytes]) -> NDArray[np.uint8]:
    joined = b"".join(map(xxhash.xxh3_128_digest, bodies))
    return np.frombuffer(joined, np.uint8).reshape(-1, 16)


def _repeats_within(
    rows: pa.Table,
    event_ids: Any,
    hashes: NDArray[np.uint8],
    first_of: dict[int, First],
) -> None:
    """Marks rows whose identity stands in an earlier row of the same batch."""
    coded = pc.dictionary_encode(event_ids)
    if len(coded.dictionary) == len(event_ids):
        return
    codes = coded.indices.to_numpy()
    doubtful = np.flatnonzero(np.bincount(codes)[codes] > 1)
    few = rows.select(
        ["partition", "offset", "occurred_at_ms", "tenant", "source", "event_id"]
    ).take(pa.array(doubtful, pa.int64()))
    seen: dict[tuple[Any, ...], First] = {}
    for row, found in zip(doubtful.tolist(), few.to_pylist(), strict=True):
        identity = tuple(found[k] for k in ("partition", "tenant", "source", "event_id"))
        mine = (found["offset"], found["occurred_at_ms"], hashes[row].tobytes())
        first = seen.setdefault(identity, mine)
        if first is not mine:
            first_of[row] = first


def _repeats_of_filed(
    db: duckdb.DuckDBPyConnection,
    rows: pa.Table,
    ids: NDArray[np.uint8],
    known: Fingerprints,
    first_of: dict[int, First],
) -> None:
    """Marks rows whose identity stands in the ledger."""
    by_time = known_ids.follow_time(ids)
    scattered = np.flatnonzero(~by_time)
    hits = scattered[known.maybe(ids[scattered])]
    known.add(ids[scattered])
    for doubtful in (np.flatnonzero(by_time), hits):
        if len(doubtful) == 0:
            continue
        low, high = known_ids.bounds(ids[doubtful])
        probe = pa.table({"row": pa.array(doubtful), "id": known_ids.as_arrow(ids[doubtful])})
        with batch(db, probe, "probe"):
            found = db.execute(
                "SELECT p.row, i.src_partition, i.src_offset, i.tenant, i.source, i.event_id,"
                " i.occurred_at_ms, i.body_hash FROM invocations i JOIN probe p ON i.id = p.id"
                f" WHERE i.id BETWEEN '{low}'::UUID AND '{high}'::UUID"
            ).fetchall()
        if not found:
            continue
        mine = rows.select(["partition", "tenant", "source", "event_id"]).take(
            pa.array([hit[0] for hit in found])
        )
        for hit, row in zip(found, mine.to_pylist(), strict=True):
            if (hit[1], *hit[3:6]) == tuple(row.values()):
                first_of[hit[0]] = (hit[2], hit[6], hit[7].bytes)


def _columns(
    rows: pa.Table, ids: NDArray[np.uint8], hashes: NDArray[np.uint8], cards: Cards
) -> pa.Table:
    """Columns of the table invocations."""
    provider, model = _coded(rows, "provider"), _coded(rows, "model")
    reported = rows.column("reported_cost_picousd").combine_chunks()
    by_card = _card_costs(rows, provider, model, cards)
    columns: dict[str, Any] = {
        "src_partition": rows.column("partition"),
        "src_offset": rows.column("offset"),
        "event_id": rows.column("event_id"),
        "id": known_ids.as_arrow(ids),
        "source": _coded(rows, "source"),
        "tenant": _coded(rows, "tenant"),
        "persona": _coded(rows, "persona"),
        "mode": _renamed(rows, "mode", canonical_mode),
        "role": _renamed(rows, "role", canonical_role),
        "provider": provider,
        "model": model,
        "outcome": _coded(rows, "outcome"),
        "card_cost_picousd": by_card,
        "cost_picousd": pc.coalesce(reported.cast(by_card.type), by_card),
        "body_hash": known_ids.as_arrow(hashes),
    }
    for name in (
        *("append_ms", "occurred_at_ms", *TOKENS, "latency_us", "first_token_us", "gpu_ms"),
        *("reported_cost_picousd", "error_code", "attempt", "request_id"),
        *("profile_key", "profile_version", "trace_id", "budget_trace_id"),
    ):
        columns[name] = rows.column(name)
    return pa.table(columns)


def _coded(rows: pa.Table, name: str) -> Any:
    """A column of few distinct values as a dictionary array."""
    return pc.dictionary_encode(rows.column(name).combine_chunks())


def _renamed(rows: pa.Table, name: str, rename: Callable[[str], str]) -> Any:
    """The same with every value renamed, a missing one as ''."""
    coded = pc.dictionary_encode(pc.fill_null(rows.column(name).combine_chunks(), ""))
    renamed = pa.array([rename(v) for v in coded.dictionary.to_pylist()], pa.string())
    return pa.DictionaryArray.from_arrays(coded.indices, renamed).dictionary_decode()


def _card_costs(rows: pa.Table, provider: Any, model: Any, cards: Cards) -> Any:
    """Cost by cards in pico-USD, null where a unit above 0 has no card; an Arrow array."""
    n = rows.num_rows
    occurred = rows.column("occurred_at_ms").to_numpy()
    appended = rows.column("append_ms").to_numpy()
    units = np.stack([rows.column(name).to_numpy() for name in TOKENS], axis=1)
    models = len(model.dictionary)
    codes = provider.indices.to_numpy().astype(np.int64) * models + model.indices.to_numpy()
    prices = np.zeros((n, len(PRICE_UNITS)), np.int64)
    priced = units == 0
    for code in np.unique(codes).tolist():
        mine = np.flatnonzero(codes == code)
        who = (provider.dictionary[code // models].as_py(), model.dictionary[code % models].as_py())
        for column, unit in enumerate(PRICE_UNITS):
            price, found = _prices(cards.get((*who, unit), ()), occurred[mine], appended[mine])
            prices[mine, column] = price
            priced[mine, column] |= found
    missing = ~priced.all(axis=1)
    if int(units.max(initial=0)) * int(prices.max(initial=0)) * len(PRICE_UNITS) <= I64_MAX:
        quotient, rest = np.divmod((units * prices).sum(axis=1), PRICED_UNITS)
        twice = 2 * rest
        quotient += (twice > PRICED_UNITS) | ((twice == PRICED_UNITS) & (quotient % 2 == 1))
        return pa.array(quotient, pa.int64(), mask=missing)
    exact = [
        None
        if unpriced
        else Decimal(round_half_even(sum(u * p for u, p in zip(us, ps, strict=True)), PRICED_UNITS))
        for us, ps, unpriced in zip(units.tolist(), prices.tolist(), missing.tolist(), strict=True)
    ]
    return pa.array(exact, pa.decimal128(38, 0))


def _prices(
    cards: Sequence[Card], occurred: Positions, appended: Positions
) -> tuple[Positions, NDArray[np.bool_]]:
    """schemas.pricing.choose for many rows of one provider, model and unit: price, found."""
    price = np.zeros(len(occurred), np.int64)
    found = np.zeros(len(occurred), bool)
    low, high = (int(occurred.min()), int(occurred.max())) if len(occurred) else (0, 0)
    for card in cards:  # ascending: the greatest that applies is written last
        if card.valid_from_ms > high or (card.valid_to_ms is not None and card.valid_to_ms <= low):
            continue
        applies = (card.valid_from_ms <= occurred) & (card.append_ms < appended)
        if card.valid_to_ms is not None:
            applies &= occurred < card.valid_to_ms
        price[applies] = card.price_picousd
        found |= applies
    return price, found

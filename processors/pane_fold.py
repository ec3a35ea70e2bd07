"""Pure fold of one source partition of llm.invocation: verdicts, sums, watermark (design, 2).

Batches of columns in, state and late events out. The same code folds ten events of a simulation
and ten thousand of a live broker.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from processors.sketch import BUCKETS, bucket_of
from processors.totals import UNIT_PAIRS, Totals
from processors.windows import (
    BOUND_MS,
    GRACE_MS,
    PANE_MS,
    is_closed,
    watermark_after,
)
from schemas.slm_metrics import MeterMark, PaneFact
from schemas.values import COMPLETE, OUTCOMES

Ints = NDArray[np.int64]
COMPLETE_CODES = np.array([o in COMPLETE for o in OUTCOMES])
NEVER = np.iinfo(np.int64).min // 2
"""Stands for minus infinity: no event time is below it."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Good events of one partition in offset order; all arrays have shape (rows,).

    who: index into groups, the distinct (role, mode, provider, model), roles and modes canonical.
    outcome: index into schemas.values.OUTCOMES. units: shape (rows, 3): input, cached, output
    tokens. reported: cost in pico-USD per row index, only where reported. identity: (tenant,
    source, event_id) as one string. body: the record's value. append_ms: as the broker stamped it,
    never a header: it is the base of ticks.
    """

    offset: Ints
    occurred_at_ms: Ints
    append_ms: Ints
    identity: Sequence[str]
    event_id: Sequence[str]
    body: Sequence[bytes]
    who: Ints
    groups: Sequence[tuple[str, str, str, str]]
    outcome: Ints
    units: Ints
    latency_us: Ints
    reported: dict[int, int]

    def part(self, start: int, stop: int) -> "Columns":
        """Rows start to stop."""
        rows = slice(start, stop)
        return Columns(
            self.offset[rows],
            self.occurred_at_ms[rows],
            self.append_ms[rows],
            self.identity[rows],
            self.event_id[rows],
            self.body[rows],
            self.who[rows],
            self.groups,
            self.outcome[rows],
            self.units[rows],
            self.latency_us[rows],
            {i - start: cost for i, cost in self.reported.items() if start <= i < stop},
        )


@dataclass(frozen=True, slots=True)
class Stretch:
    """What lies between the fold's position and up_to_offset (inclusive) in one partition.

    ticks: (offset, announced time in ms), in offset order. dead: number of dead-lettered records,
    by offset. Offsets of none of these are control records and holes.
    """

    columns: Columns
    ticks: Sequence[tuple[int, int]]
    dead: Sequence[int]
    up_to_offset: int


@dataclass(frozen=True, slots=True)
class Late:
    """An event that missed its pane."""

    offset: int
    append_ms: int
    event_id: str
    pane_ms: int
    watermark_ms: int


@dataclass(slots=True)
class Pane:
    """An open pane of one partition. ids: identity -> digest of the first body.
    totals: (role, mode) -> (provider, model) -> sums. dirty: keys changed since the last commit."""

    first_offset: int
    ids: dict[str, bytes] = field(default_factory=dict)
    totals: dict[tuple[str, str], dict[tuple[str, str], Totals]] = field(default_factory=dict)
    dirty: set[tuple[str, str]] = field(default_factory=set)


@dataclass(slots=True)
class Verdicts:
    """The conservation law: consumed is the sum of the others."""

    applied: int = 0
    duplicate: int = 0
    late: int = 0
    dead_lettered: int = 0
    conflict: int = 0
    control: int = 0


class PartitionFold:
    """State of one source partition. replayed: last offset whose verdict is already in the log;
    up to it panes are rebuilt, and nothing is counted or written."""

    def __init__(
        self, source: str, partition: int, generation: int, mark: MeterMark | None
    ) -> None:
        self.source, self.partition, self.generation = source, partition, generation
        self.replayed = -1 if mark is None else mark.up_to_offset
        self.position = 0 if mark is None else mark.replay_from  # next offset to fold
        self.watermark_ms = None if mark is None else mark.watermark_ms
        self.newest = (
            None
            if mark is None or mark.newest_event_ms is None or mark.newest_append_ms is None
            else (mark.newest_event_ms, mark.newest_append_ms)
        )
        self.kept_from_ms = None if mark is None else mark.kept_from_ms
        self.verdicts = (
            Verdicts()
            if mark is None
            else Verdicts(
                mark.applied,
                mark.duplicate,
                mark.late,
                mark.dead_lettered,
                mark.conflict,
                mark.control,
            )
        )
        self.panes: dict[int, Pane] = {}

    @property
    def up_to_offset(self) -> int:
        """Last offset whose verdict is known: while panes are rebuilt, that of the last committed
        mark, so that nothing is written before the fold has passed it."""
        return max(self.position - 1, self.replayed)

    @property
    def caught_up(self) -> bool:
        """Whether all that the last committed mark knew has been rebuilt."""
        return self.position > self.replayed

    def fold(self, stretch: Stretch) -> list[Late]:
        """Takes the next stretch of the partition's log; returns its late events."""
        columns = stretch.columns
        border = int(np.searchsorted(columns.offset, self.replayed, side="right"))
        if border:
            self._rebuild(columns.part(0, border))
        late: list[Late] = []
        if stretch.up_to_offset > self.replayed:
            late = self._count(
                columns.part(border, len(columns.offset)) if border else columns,
                [t for t in stretch.ticks if t[0] > self.replayed],
                sum(1 for offset in stretch.dead if offset > self.replayed),
                stretch.up_to_offset - max(self.position - 1, self.replayed),
            )
        self.position = max(self.position, stretch.up_to_offset + 1)
        return late

    def _rebuild(self, columns: Columns) -> None:
        """Ids and sums of panes that are open at the mark's watermark. None of their events was
        late: they were open then all the more."""
        panes = columns.occurred_at_ms // PANE_MS * PANE_MS
        kept = np.array(
            [i for i, pane in enumerate(panes.tolist()) if not is_closed(pane, self.watermark_ms)],
            dtype=np.int64,
        )
        self._add(columns, panes, self._first_seen(columns, panes, kept, None), dirty=False)

    def _count(
        self, columns: Columns, ticks: Sequence[tuple[int, int]], dead: int, passed: int
    ) -> list[Late]:
        rows = len(columns.offset)
        panes = columns.occurred_at_ms // PANE_MS * PANE_MS
        before = self._newest_before(columns, ticks) - BOUND_MS - 1
        is_late = panes + PANE_MS + GRACE_MS <= before
        late = [
            Late(
                int(columns.offset[i]),
                int(columns.append_ms[i]),
                columns.event_id[i],
                int(panes[i]),
                int(before[i]),
            )
            for i in np.flatnonzero(is_late).tolist()
        ]
        timely = np.flatnonzero(~is_late)
        applied = self._first_seen(columns, panes, timely, self.verdicts)
        self._add(columns, panes, applied, dirty=True)
        self.verdicts.late += len(late)
        self.verdicts.dead_lettered += dead
        self.verdicts.control += passed - rows - dead
        times = [t for _, t in ticks]
        moving = self.moves_time(timely, applied)
        if len(moving):
            newest = int(moving[np.argmax(columns.occurred_at_ms[moving])])
            at = int(columns.occurred_at_ms[newest])
            times.append(at)
            if self.newest is None or at > self.newest[0]:
                self.newest = (at, int(columns.append_ms[newest]))
        if times:
            moved = watermark_after(max(times))
            if self.watermark_ms is None or moved > self.watermark_ms:
                self.watermark_ms = moved
        return late

    def moves_time(self, timely: Ints, applied: Ints) -> Ints:
        """Rows that move the watermark: all that were in time, conflicts among them."""
        return timely

    def _newest_before(self, columns: Columns, ticks: Sequence[tuple[int, int]]) -> Ints:
        """Newest time (event or tick) that the partition had seen just before each row. A late
        event cannot be the newest, so it need not be left out."""
        start = NEVER if self.watermark_ms is None else self.watermark_ms + BOUND_MS + 1
        rows = len(columns.offset)
        if not ticks:
            seen = np.concatenate(([start], columns.occurred_at_ms))
            return np.maximum.accumulate(seen)[:rows]
        offsets = np.concatenate((columns.offset, np.array([o for o, _ in ticks], np.int64)))
        times = np.concatenate((columns.occurred_at_ms, np.array([t for _, t in ticks], np.int64)))
        order = np.argsort(offsets, kind="stable")
        seen = np.maximum.accumulate(np.concatenate(([start], times[order])))[:-1]
        result = np.empty(len(order), np.int64)
        result[order] = seen
        return result[:rows]

    def _first_seen(
        self, columns: Columns, panes: Ints, rows: Ints, verdicts: Verdicts | None
    ) -> Ints:
        """Those of the rows whose id is new in its pane; the others are duplicates or conflicts."""
        digest = xxhash.xxh3_128_digest
        new = []
        starts = panes[rows].tolist()
        pane_ms, pane = None, Pane(0)
        for row, start in zip(rows.tolist(), starts, strict=True):
            if start != pane_ms:
                pane_ms, pane = start, self._pane(start, int(columns.offset[row]))
            body = digest(columns.body[row])
            first = pane.ids.setdefault(columns.identity[row], body)
            if first is body:
                new.append(row)
            elif verdicts is not None:
                if first == body:
                    verdicts.duplicate += 1
                else:
                    verdicts.conflict += 1
        if verdicts is not None:
            verdicts.applied += len(new)
        return np.array(new, np.int64)

    def _pane(self, start: int, offset: int) -> Pane:
        pane = self.panes.get(start)
        if pane is None:
            pane = self.panes[start] = Pane(offset)
        return pane

    def _add(self, columns: Columns, panes: Ints, rows: Ints, *, dirty: bool) -> None:
        """Adds rows to the sums of their pane and group, a group at a time."""
        if not len(rows):
            return
        groups = len(columns.groups)
        base = int(panes[rows].min())
        cell = (panes[rows] - base) // PANE_MS * groups + columns.who[rows]
        order = np.argsort(cell, kind="stable")
        rows, cell = rows[order], cell[order]
        starts = np.flatnonzero(np.concatenate(([True], cell[1:] != cell[:-1])))
        stops = np.append(starts[1:], len(rows))
        complete = COMPLETE_CODES[columns.outcome[rows]]
        reported = np.zeros(len(rows), bool)
        if columns.reported:
            reported = np.isin(rows, np.fromiter(columns.reported, np.int64))
        priced = complete & ~reported
        units = columns.units[rows]
        token_sums = np.add.reduceat(units, starts, axis=0).tolist()
        masked = np.where(priced[:, None], units, 0)
        unit_sums = np.add.reduceat(masked, starts, axis=0).tolist()
        products = [_product_sums(masked[:, a], masked[:, b], starts) for a, b in UNIT_PAIRS]
        priced_n = np.add.reduceat(priced.astype(np.int64), starts).tolist()
        buckets = bucket_of(columns.latency_us[rows])
        for i, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            pane_index, who = divmod(int(cell[start]), groups)
            role, mode, provider, model = columns.groups[who]
            pane = self.panes[base + pane_index * PANE_MS]
            if dirty:
                pane.dirty.add((role, mode))
            models = pane.totals.setdefault((role, mode), {})
            totals = models.setdefault((provider, model), Totals())
            counts = np.bincount(columns.outcome[rows[start:stop]], minlength=len(OUTCOMES))
            for code, count in enumerate(counts.tolist()):
                totals.outcomes[code] += count
            totals.priced_n += priced_n[i]
            for unit in range(3):
                totals.tokens[unit] += token_sums[i][unit]
                totals.unit_sums[unit] += unit_sums[i][unit]
            for pair in range(6):
                totals.unit_products[pair] += products[pair][i]
            done = complete[start:stop]
            histogram = np.bincount(buckets[start:stop][done], minlength=BUCKETS)
            for bucket in np.flatnonzero(histogram).tolist():
                totals.latency[bucket] = totals.latency.get(bucket, 0) + int(histogram[bucket])
            for index in np.flatnonzero(reported[start:stop] & done).tolist():
                cost = columns.reported[int(rows[start + index])]
                tokens = int(units[start + index].sum())
                totals.reported_n += 1
                totals.reported_sums[0] += cost
                totals.reported_sums[1] += tokens
                totals.reported_products[0] += cost * cost
                totals.reported_products[1] += cost * tokens
                totals.reported_products[2] += tokens * tokens

    def replay_from(self) -> int:
        """Smallest first offset over all open panes; the next offset if none is open."""
        firsts = [
            pane.first_offset
            for start, pane in self.panes.items()
            if not is_closed(start, self.watermark_ms)
        ]
        return min(firsts, default=self.up_to_offset + 1)

    def facts(self) -> list[PaneFact]:
        """Totals of all keys changed since the last commit."""
        return [
            self._fact(start, pane, key)
            for start, pane in sorted(self.panes.items())
            for key in sorted(pane.dirty)
        ]

    def _fact(self, start: int, pane: Pane, key: tuple[str, str]) -> PaneFact:
        models = pane.totals[key]
        return PaneFact.model_construct(
            source_topic=self.source,
            source_partition=self.partition,
            generation=self.generation,
            role=key[0],
            mode=key[1],
            pane_start_ms=start,
            up_to_offset=self.up_to_offset,
            models=tuple(models[who].wire(*who) for who in sorted(models, key=_utf8)),
        )

    def mark(self, kept_from_ms: int | None, owner: str) -> MeterMark:
        """The mark that goes behind the facts."""
        v = self.verdicts
        return MeterMark.model_construct(
            source_topic=self.source,
            source_partition=self.partition,
            generation=self.generation,
            up_to_offset=self.up_to_offset,
            watermark_ms=self.watermark_ms,
            newest_event_ms=None if self.newest is None else self.newest[0],
            newest_append_ms=None if self.newest is None else self.newest[1],
            consumed=v.applied + v.duplicate + v.late + v.dead_lettered + v.conflict + v.control,
            applied=v.applied,
            duplicate=v.duplicate,
            late=v.late,
            dead_lettered=v.dead_lettered,
            conflict=v.conflict,
            control=v.control,
            replay_from=self.replay_from(),
            kept_from_ms=kept_from_ms,
            owner=owner,
        )

    def committed(self) -> None:
        """Facts and mark are in the log: nothing is dirty, and closed panes can go."""
        for start in list(self.panes):
            self.panes[start].dirty.clear()
            if is_closed(start, self.watermark_ms):
                del self.panes[start]


def _product_sums(a: Ints, b: Ints, starts: Ints) -> list[int]:
    """Exact sums of a*b (each factor at most 1e9) per group: halves are summed apart, since the
    sum of a few products already exceeds 64 bits."""
    product = a * b
    high = np.add.reduceat(product >> 32, starts).tolist()
    low = np.add.reduceat(product & 0xFFFFFFFF, starts).tolist()
    return [(h << 32) + rest for h, rest in zip(high, low, strict=True)]


def _utf8(who: tuple[str, str]) -> tuple[bytes, bytes]:
    return who[0].encode(), who[1].encode()


def columns_of(rows: Sequence[dict[str, Any]]) -> Columns:
    """Columns from plain rows: for tests and simulations, and for a partition of few events.

    Keys: offset, occurred_at_ms, append_ms, tenant, source, event_id, body, role, mode, provider,
    model, outcome, input_tokens, cached_tokens, output_tokens, latency_us, reported (or None).
    """
    groups = sorted({(r["role"], r["mode"], r["provider"], r["model"]) for r in rows})
    index = {group: i for i, group in enumerate(groups)}

    def ints(name: str) -> Ints:
        return np.array([r[name] for r in rows], np.int64)

    return Columns(
        offset=ints("offset"),
        occurred_at_ms=ints("occurred_at_ms"),
        append_ms=ints("append_ms"),
        identity=[f"{r['tenant']}\x00{r['source']}\x00{r['event_id']}" for r in rows],
        event_id=[r["event_id"] for r in rows],
        body=[r["body"] for r in rows],
        who=np.array(
            [index[r["role"], r["mode"], r["provider"], r["model"]] for r in rows], np.int64
        ),
        groups=groups,
        outcome=np.array([OUTCOMES.index(r["outcome"]) for r in rows], np.int64),
        units=np.array(
            [[r["input_tokens"], r["cached_tokens"], r["output_tokens"]] for r in rows], np.int64
        ).reshape(len(rows), 3),
        latency_us=ints("latency_us"),
        reported={i: r["reported"] for i, r in enumerate(rows) if r["reported"] is not None},
    )

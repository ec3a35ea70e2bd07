"""Pure fold of one source partition: verdicts, sums, watermark (design, 2).

Batches of columns in, state and late events out. The same code folds invocations and observations,
ten events of a simulation and ten thousand of a live broker.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
import xxhash

from processors.columns import Columns, Ints
from processors.totals import Totals
from processors.windows import STANDARD, Windowing
from schemas.slm_metrics import MeterMark, PaneFact

NEVER: Final = np.iinfo(np.int64).min // 2
"""Stands for minus infinity: no event time is below it."""
OTHERS: Final = ("~", "~")
"""Counts what further models of a pane did; no model can be called so."""


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

    most_models: ClassVar[int] = 480
    """Per pane, role and mode: the first so many in the log are counted under their names. With
    every number of theirs at its widest a fact takes 7 MB, and a record may be 8 MiB."""
    most_metrics: ClassVar[int] = 64
    """The same for the metrics of each of these models."""

    def __init__(
        self,
        source: str,
        partition: int,
        generation: int,
        mark: MeterMark | None,
        windowing: Windowing = STANDARD,
    ) -> None:
        self.source, self.partition, self.generation = source, partition, generation
        self.windowing = windowing
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
            self._rebuild(columns.take(np.arange(border)))
        late: list[Late] = []
        if stretch.up_to_offset > self.replayed:
            late = self._count(
                columns.take(np.arange(border, len(columns.offset))) if border else columns,
                [t for t in stretch.ticks if t[0] > self.replayed],
                sum(1 for offset in stretch.dead if offset > self.replayed),
                stretch.up_to_offset - max(self.position - 1, self.replayed),
            )
        self.position = max(self.position, stretch.up_to_offset + 1)
        return late

    def _panes_of(self, columns: Columns) -> Ints:
        return columns.occurred_at_ms // self.windowing.pane_ms * self.windowing.pane_ms

    def _is_closed(self, pane_ms: int) -> bool:
        return self.windowing.is_closed(pane_ms, self.watermark_ms)

    def _rebuild(self, columns: Columns) -> None:
        """Ids and sums of panes that are open at the mark's watermark. None of their events was
        late: they were open then all the more."""
        panes = self._panes_of(columns)
        kept = np.array(
            [i for i, pane in enumerate(panes.tolist()) if not self._is_closed(pane)], np.int64
        )
        self._add(columns, panes, self._first_seen(columns, panes, kept, None), dirty=False)

    def _count(
        self, columns: Columns, ticks: Sequence[tuple[int, int]], dead: int, passed: int
    ) -> list[Late]:
        rows = len(columns.offset)
        cut = self.windowing
        panes = self._panes_of(columns)
        before = self._newest_before(columns, ticks) - cut.bound_ms - 1
        is_late = panes + cut.pane_ms + cut.grace_ms <= before
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
            moved = cut.watermark_after(max(times))
            if self.watermark_ms is None or moved > self.watermark_ms:
                self.watermark_ms = moved
        return late

    def moves_time(self, timely: Ints, applied: Ints) -> Ints:
        """Rows that move the watermark: all that were in time, conflicts among them."""
        return timely

    def _newest_before(self, columns: Columns, ticks: Sequence[tuple[int, int]]) -> Ints:
        """Newest time (event or tick) that the partition had seen just before each row. A late
        event cannot be the newest, so it need not be left out."""
        bound = self.windowing.bound_ms
        start = NEVER if self.watermark_ms is None else self.watermark_ms + bound + 1
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
        """Adds rows to the sums of their pane and model, a model at a time."""
        if not len(rows):
            return
        groups = len(columns.groups)
        width = self.windowing.pane_ms
        base = int(panes[rows].min())
        cells, first, cell = np.unique(
            (panes[rows] - base) // width * groups + columns.who[rows],
            return_index=True,
            return_inverse=True,
        )
        # In the order of their first events: of too many models the first ones keep their names.
        slots: dict[tuple[int, tuple[str, str], tuple[str, str]], int] = {}
        slot_of = np.empty(len(cells), np.int64)
        for i in np.argsort(first).tolist():
            pane_index, who = divmod(int(cells[i]), groups)
            role, mode, provider, model = columns.groups[who]
            start = base + pane_index * width
            pane = self.panes[start]
            if dirty:
                pane.dirty.add((role, mode))
            models = pane.totals.setdefault((role, mode), {})
            name = self._counted_as((provider, model), models)
            models.setdefault(name, Totals())
            slot_of[i] = slots.setdefault((start, (role, mode), name), len(slots))
        slot = slot_of[cell]
        order = np.argsort(slot, kind="stable")  # events of further models, in one order again
        starts = np.searchsorted(slot[order], np.arange(len(slots)))
        sums = columns.amounts.sums(rows[order], starts)
        for (start, key, name), more in zip(slots, sums, strict=True):
            self.panes[start].totals[key][name].add(more, self.most_metrics)

    def _counted_as(
        self, who: tuple[str, str], models: dict[tuple[str, str], Totals]
    ) -> tuple[str, str]:
        """The name of a model while there is room for it."""
        full = len(models) - (OTHERS in models) >= self.most_models
        return OTHERS if full and who not in models else who

    def replay_from(self) -> int:
        """Smallest first offset over all open panes; the next offset if none is open."""
        firsts = [
            pane.first_offset for start, pane in self.panes.items() if not self._is_closed(start)
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
            if self._is_closed(start):
                del self.panes[start]


def _utf8(who: tuple[str, str]) -> tuple[bytes, bytes]:
    return who[0].encode(), who[1].encode()

"""The meter as a state machine, apart from all I/O (design, Exactness 2).

The shell (meter.py) and the simulation (tests) drive it alike:

    observe   a committed record of slm.metrics: marks of every source, keys of facts
    assign    a source is ours: where to read from, or None while a transaction of a former owner
              may still be under way
    fold      the next stretch of one of our sources
    flush     what one transaction shall hold: facts, then marks, then the consumer's offsets
    committed / reset     how that transaction ended; after an abort everything starts again from
              the last committed marks

A source is a partition of a topic. There may be several topics: one meter folds partitions of all
of them, and what it concludes from watermarks it concludes from those of all sources.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final
from zlib import crc32

from processors.pane_fold import Late, PartitionFold, Stretch
from processors.windows import STANDARD, Windowing
from schemas.slm_metrics import MeterMark, PaneFact

GENERATION: Final = 2
"""A changed fold, or a re-created topic, is the next generation, computed beside the old one."""
SEPARATOR: Final = "\x1f"

Source = tuple[str, int]
"""(topic, partition)."""


@dataclass(frozen=True, slots=True)
class Out:
    """A record for one partition of slm.metrics; value None is a tombstone."""

    partition: int
    key: bytes
    value: PaneFact | MeterMark | None


@dataclass(frozen=True, slots=True)
class Flush:
    """One transaction. records: facts and tombstones, then marks. offsets: the next one of each
    source, to be sent with the group's metadata."""

    records: tuple[Out, ...]
    late: tuple[tuple[Source, Late], ...]
    offsets: dict[Source, int]


def place(role: str, partitions: int) -> int:
    """Partition of slm.metrics for a role: all facts of a ranking key meet in one."""
    return crc32(role.encode()) % partitions


@dataclass(frozen=True, slots=True)
class FactKey:
    """What the key of a fact says."""

    source_topic: str
    source_partition: int
    generation: int
    role: str
    mode: str
    pane_ms: int


def fact_key(key: bytes) -> FactKey | None:
    """The key of a fact read back; None if it is no fact's."""
    parts = key.decode(errors="replace").split(SEPARATOR)
    if parts[0] != "fact" or len(parts) != 7:
        return None
    if not all(parts[i].isdecimal() and len(parts[i]) < 20 for i in (2, 3, 6)):
        return None
    return FactKey(parts[1], int(parts[2]), int(parts[3]), parts[4], parts[5], int(parts[6]))


class Meter:
    """One member of the meter's group. sources: partitions per source topic. All times are of the
    log; nothing here reads a clock."""

    fold_type: ClassVar[type[PartitionFold]] = PartitionFold

    def __init__(
        self,
        sources: Mapping[str, int],
        metrics_partitions: int,
        generation: int,
        owner: str,
        windowing: Windowing = STANDARD,
    ) -> None:
        self.sources = [
            (topic, p) for topic, count in sorted(sources.items()) for p in range(count)
        ]
        self.metrics_partitions = metrics_partitions
        self.generation = generation
        self.owner = owner
        self.windowing = windowing
        self.marks: dict[Source, MeterMark] = {}  # newest committed one of each source
        self.keys: dict[Source, dict[bytes, tuple[int, int]]] = {}  # fact -> (partition, pane)
        self.folds: dict[Source, PartitionFold] = {}
        self._late: list[tuple[Source, Late]] = []
        self._taken: dict[Source, int] = {}  # position of each fold at its last commit

    # --- what the log says

    def observe(self, partition: int, key: bytes, value: PaneFact | MeterMark | None) -> None:
        """Takes a committed record of slm.metrics, ours or another owner's."""
        if isinstance(value, MeterMark):
            source = (value.source_topic, value.source_partition)
            known = self.marks.get(source)
            ours = source in self.sources and value.generation == self.generation
            if ours and (known is None or value.up_to_offset > known.up_to_offset):
                self.marks[source] = value
            return
        fact = fact_key(key)
        if fact is None or fact.generation != self.generation:
            return
        source = (fact.source_topic, fact.source_partition)
        if source not in self.sources:
            return
        keys = self.keys.setdefault(source, {})
        if value is None:
            keys.pop(key, None)
        else:
            keys[key] = (partition, fact.pane_ms)

    # --- whose partitions

    def assign(self, source: Source, committed: int | None) -> int | None:
        """Offset to read from, or None: ask again when more of slm.metrics has been observed.

        committed: the group's stable committed offset, None if it has none. The marks are the
        truth; the offset only proves that no transaction with a newer mark is under way.
        """
        mark = self.marks.get(source)
        if not self.settled(mark, committed):
            return None
        fold = self.fold_type(*source, self.generation, mark, self.windowing)
        self.folds[source] = fold
        self._taken[source] = fold.up_to_offset + 1
        return self.start_of(fold, mark)

    def settled(self, mark: MeterMark | None, committed: int | None) -> bool:
        """Whether mark and committed offset tell the same. An offset that the broker has expired
        leaves the mark alone: then no transaction can be pending either."""
        if mark is None:
            return committed is None
        return committed is None or committed == mark.up_to_offset + 1

    def start_of(self, fold: PartitionFold, mark: MeterMark | None) -> int:
        """Where a fold begins to read: the first event of the oldest pane that was open."""
        return fold.position

    def revoke(self, sources: Iterable[Source]) -> None:
        """These are no longer ours. What was not committed, the next owner folds."""
        for source in sources:
            self.folds.pop(source, None)
            self._taken.pop(source, None)
        self._late = [entry for entry in self._late if entry[0] in self.folds]

    def reset(self) -> None:
        """A transaction was aborted: nothing in memory is to be trusted any more."""
        self.revoke(list(self.folds))

    # --- folding

    def fold(self, source: Source, stretch: Stretch) -> None:
        """Folds the next stretch of a source of ours."""
        late = self.folds[source].fold(stretch)
        self._late.extend((source, event) for event in late)

    # --- one transaction

    def flush(self) -> Flush | None:
        """What is to be committed now; None if nothing has changed."""
        moved = {s: f for s, f in sorted(self.folds.items()) if f.up_to_offset + 1 > self._taken[s]}
        if not moved:
            return None
        records: list[Out] = []
        marks: list[Out] = []
        floor = self._floor()
        for source, fold in moved.items():
            for fact in fold.facts():
                records.append(Out(place(fact.role, self.metrics_partitions), fact.key(), fact))
            for key, (where, pane) in self.keys.get(source, {}).items():
                if pane < self.gone_before(fold, floor):
                    records.append(Out(where, key, None))
            mark = fold.mark(_newer(fold.kept_from_ms, floor), self.owner)
            marks.extend(Out(p, mark.key(), mark) for p in range(self.metrics_partitions))
        late = tuple(entry for entry in self._late if entry[0] in moved)
        offsets = {s: f.up_to_offset + 1 for s, f in moved.items()}
        return Flush((*records, *marks), late, offsets)

    def gone_before(self, fold: PartitionFold, floor: int | None) -> int:
        """Facts of panes before this may be deleted: what a committed mark has announced."""
        return -1 if fold.kept_from_ms is None else fold.kept_from_ms

    def _floor(self) -> int | None:
        """Oldest pane that anyone may still need, by the smallest committed watermark of all
        sources; None while one of them has none."""
        marks = [self.marks.get(source) for source in self.held_by()]
        known = [m.watermark_ms for m in marks if m is not None and m.watermark_ms is not None]
        return self.windowing.kept_from(min(known)) if len(known) == len(marks) else None

    def held_by(self) -> Iterable[Source]:
        """The sources whose watermarks keep facts from being deleted."""
        return self.sources

    def committed(self, flush: Flush) -> None:
        """The transaction of a flush is in the log."""
        for out in flush.records:
            self.observe(out.partition, out.key, out.value)
            if isinstance(out.value, MeterMark):
                source = (out.value.source_topic, out.value.source_partition)
                self.folds[source].kept_from_ms = out.value.kept_from_ms
        for source, offset in flush.offsets.items():
            self.folds[source].committed()
            self._taken[source] = offset
        self._late = [entry for entry in self._late if entry[0] not in flush.offsets]

    # --- ticks

    def tick_base(self) -> tuple[int, int] | None:
        """(event time, append time) of the newest real event known anywhere: base of a tick."""
        known = [
            (m.newest_event_ms, m.newest_append_ms)
            for m in self.marks.values()
            if m.newest_event_ms is not None and m.newest_append_ms is not None
        ]
        return max(known, default=None)


def _newer(known: int | None, floor: int | None) -> int | None:
    if known is None or floor is None:
        return known if floor is None else floor
    return max(known, floor)

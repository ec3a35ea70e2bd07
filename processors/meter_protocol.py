"""The meter as a state machine, apart from all I/O (design, Exactness 2).

The shell (meter.py) and the simulation (tests) drive it alike:

    observe   a committed record of slm.metrics: marks of every partition, keys of facts
    assign    a source partition is ours: where to read from, or None while a transaction of a
              former owner may still be under way
    fold      the next stretch of one of our partitions
    flush     what one transaction shall hold: facts, then marks, then the consumer's offsets
    committed / reset     how that transaction ended; after an abort everything starts again from
              the last committed marks
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final
from zlib import crc32

from processors.pane_fold import Late, PartitionFold, Stretch
from processors.windows import PANE_MS, SLACK_MS, WINDOW_MS, pane_of
from schemas.slm_metrics import MeterMark, PaneFact

GENERATION: Final = 1
"""A changed fold, or a re-created topic, is the next generation, computed beside the old one."""
SEPARATOR: Final = "\x1f"


@dataclass(frozen=True, slots=True)
class Out:
    """A record for one partition of slm.metrics; value None is a tombstone."""

    partition: int
    key: bytes
    value: PaneFact | MeterMark | None


@dataclass(frozen=True, slots=True)
class Flush:
    """One transaction. records: facts and tombstones, then marks. late: (source partition, event).
    offsets: next offset per source partition, to be sent with the group's metadata."""

    records: tuple[Out, ...]
    late: tuple[tuple[int, Late], ...]
    offsets: dict[int, int]


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
    """One member of the meter's group. All times are of the log; nothing here reads a clock."""

    fold_type: ClassVar[type[PartitionFold]] = PartitionFold

    def __init__(
        self,
        source: str,
        source_partitions: int,
        metrics_partitions: int,
        generation: int,
        owner: str,
    ) -> None:
        self.source = source
        self.source_partitions = source_partitions
        self.metrics_partitions = metrics_partitions
        self.generation = generation
        self.owner = owner
        self.marks: dict[int, MeterMark] = {}  # newest committed one per source partition
        self.keys: dict[int, dict[bytes, tuple[int, int]]] = {}  # fact -> (partition, pane)
        self.folds: dict[int, PartitionFold] = {}
        self._late: list[tuple[int, Late]] = []
        self._taken: dict[int, int] = {}  # position of each fold at its last commit

    # --- what the log says

    def observe(self, partition: int, key: bytes, value: PaneFact | MeterMark | None) -> None:
        """Takes a committed record of slm.metrics, ours or another owner's."""
        if isinstance(value, MeterMark):
            known = self.marks.get(value.source_partition)
            ours = value.source_topic == self.source and value.generation == self.generation
            if ours and (known is None or value.up_to_offset > known.up_to_offset):
                self.marks[value.source_partition] = value
            return
        fact = fact_key(key)
        if fact is None or fact.source_topic != self.source or fact.generation != self.generation:
            return
        keys = self.keys.setdefault(fact.source_partition, {})
        if value is None:
            keys.pop(key, None)
        else:
            keys[key] = (partition, fact.pane_ms)

    # --- whose partitions

    def assign(self, partition: int, committed: int | None) -> int | None:
        """Offset to read from, or None: ask again when more of slm.metrics has been observed.

        committed: the group's stable committed offset, None if it has none. The marks are the
        truth; the offset only proves that no transaction with a newer mark is under way.
        """
        mark = self.marks.get(partition)
        if not self.settled(mark, committed):
            return None
        fold = self.fold_type(self.source, partition, self.generation, mark)
        self.folds[partition] = fold
        self._taken[partition] = fold.up_to_offset + 1
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

    def revoke(self, partitions: Sequence[int]) -> None:
        """These partitions are no longer ours. What was not committed, the next owner folds."""
        for partition in partitions:
            self.folds.pop(partition, None)
            self._taken.pop(partition, None)
        self._late = [entry for entry in self._late if entry[0] in self.folds]

    def reset(self) -> None:
        """A transaction was aborted: nothing in memory is to be trusted any more."""
        self.revoke(list(self.folds))

    # --- folding

    def fold(self, partition: int, stretch: Stretch) -> None:
        """Folds the next stretch of a partition of ours."""
        late = self.folds[partition].fold(stretch)
        self._late.extend((partition, event) for event in late)

    # --- one transaction

    def flush(self) -> Flush | None:
        """What is to be committed now; None if nothing has changed."""
        moved = {p: f for p, f in sorted(self.folds.items()) if f.up_to_offset + 1 > self._taken[p]}
        if not moved:
            return None
        records: list[Out] = []
        marks: list[Out] = []
        floor = self._floor()
        for partition, fold in moved.items():
            for fact in fold.facts():
                records.append(Out(place(fact.role, self.metrics_partitions), fact.key(), fact))
            for key, (where, pane) in self.keys.get(partition, {}).items():
                if pane < self.gone_before(fold, floor):
                    records.append(Out(where, key, None))
            mark = fold.mark(_newer(fold.kept_from_ms, floor), self.owner)
            marks.extend(Out(p, mark.key(), mark) for p in range(self.metrics_partitions))
        late = tuple(entry for entry in self._late if entry[0] in moved)
        offsets = {p: f.up_to_offset + 1 for p, f in moved.items()}
        return Flush((*records, *marks), late, offsets)

    def gone_before(self, fold: PartitionFold, floor: int | None) -> int:
        """Facts of panes before this may be deleted: what a committed mark has announced."""
        return -1 if fold.kept_from_ms is None else fold.kept_from_ms

    def _floor(self) -> int | None:
        """Oldest pane that anyone may still need, by the smallest committed watermark."""
        marks = [self.marks.get(p) for p in range(self.source_partitions)]
        watermarks = [m.watermark_ms for m in marks if m is not None and m.watermark_ms is not None]
        if len(watermarks) < self.source_partitions:
            return None
        return pane_of(max(0, min(watermarks) - WINDOW_MS - SLACK_MS - PANE_MS))

    def committed(self, flush: Flush) -> None:
        """The transaction of a flush is in the log."""
        for out in flush.records:
            self.observe(out.partition, out.key, out.value)
            if isinstance(out.value, MeterMark):
                self.folds[out.value.source_partition].kept_from_ms = out.value.kept_from_ms
        for partition, offset in flush.offsets.items():
            self.folds[partition].committed()
            self._taken[partition] = offset
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

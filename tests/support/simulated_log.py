"""An in-memory log with what the meter relies on: transactions, markers that arrive late, aborts,
compaction, a last stable offset, and a consumer group whose offsets are part of transactions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from processors.meter_protocol import Source
from schemas.slm_metrics import MeterMark, PaneFact

Value = PaneFact | MeterMark | None


@dataclass(slots=True)
class Entry:
    key: bytes
    value: Value
    txn: int


@dataclass(slots=True)
class MetricsPartition:
    """entries: None where compaction removed a record, or a marker stands.
    stable: as far as it is known to be stable; what is stable remains so."""

    entries: list[Entry | None] = field(default_factory=list)
    stable: int = 0


class Refused(Exception):
    """The coordinator refused a transaction: its group generation is stale."""


class SimulatedLog:
    """slm.metrics, transactions and one consumer group. All that is random comes from rng."""

    def __init__(self, partitions: int, rng: Random) -> None:
        self.rng = rng
        self.metrics = [MetricsPartition() for _ in range(partitions)]
        self.outcome: dict[int, bool] = {}  # transaction -> committed?
        self.markers: list[tuple[int, int]] = []  # (transaction, partition) still to be written
        self.marked: set[tuple[int, int]] = set()
        self.touched: dict[int, set[int]] = {}
        self.offsets: dict[Source, int] = {}
        self.pending_offsets: dict[int, dict[Source, int]] = {}
        self.generation = 0
        self.members: dict[str, int] = {}  # member -> generation it joined in
        self.assignment: dict[str, list[Source]] = {}
        self.next_txn = 0
        self.open: set[int] = set()
        self.committed_marks: list[MeterMark] = []

    # --- transactions

    def begin(self) -> int:
        self.next_txn += 1
        self.open.add(self.next_txn)
        self.touched[self.next_txn] = set()
        return self.next_txn

    def append(self, txn: int, partition: int, key: bytes, value: Value) -> None:
        if txn not in self.open:
            raise Refused("the transaction has been aborted")
        self.metrics[partition].entries.append(Entry(key, value, txn))
        self.touched[txn].add(partition)

    def send_offsets(
        self, txn: int, member: str, generation: int, offsets: dict[Source, int]
    ) -> None:
        if txn not in self.open or self.members.get(member) != generation:
            raise Refused("UNKNOWN_MEMBER_ID")
        if generation != self.generation:
            raise Refused("ILLEGAL_GENERATION")
        self.pending_offsets[txn] = dict(offsets)

    def end(self, txn: int, commit: bool) -> None:
        """Decides a transaction; its markers reach the partitions later, each in its own time."""
        if txn not in self.open:
            if commit:
                raise Refused("the transaction has been aborted")
            return
        self.open.discard(txn)
        self.outcome[txn] = commit
        if commit:
            self.committed_marks.extend(
                entry.value
                for partition in self.metrics
                for entry in partition.entries
                if entry is not None and entry.txn == txn and isinstance(entry.value, MeterMark)
            )
        self.markers.extend((txn, p) for p in self.touched[txn])
        self.markers.append((txn, -1))  # -1: the group's offsets

    def deliver(self, most: int | None = None) -> None:
        """Writes some (or all) of the markers that are under way."""
        self.rng.shuffle(self.markers)
        count = len(self.markers) if most is None else min(most, len(self.markers))
        for _ in range(count):
            txn, partition = self.markers.pop()
            self.marked.add((txn, partition))
            if partition >= 0:
                self.metrics[partition].entries.append(None)  # the marker itself
            elif (found := self.pending_offsets.pop(txn, None)) and self.outcome[txn]:
                self.offsets.update(found)

    # --- reading

    def stable_end(self, partition: int) -> int:
        log = self.metrics[partition]
        for entry in log.entries[log.stable :]:
            if entry is not None and (entry.txn, partition) not in self.marked:
                break
            log.stable += 1
        return log.stable

    def read(
        self, partition: int, start: int, most: int, committed_only: bool = True
    ) -> Iterator[tuple[int, Entry | None]]:
        """(next offset, record or None) of a reader; None: nothing a reader is shown."""
        entries = self.metrics[partition].entries
        stop = self.stable_end(partition) if committed_only else len(entries)
        for offset in range(start, min(stop, start + most)):
            entry = entries[offset]
            shown = entry is not None and (not committed_only or self.outcome.get(entry.txn, False))
            yield offset + 1, entry if shown else None

    def stable_offset(self, source: Source) -> int | None:
        """The group's offset; LookupError while a transaction with it is under way."""
        if any(source in offsets for offsets in self.pending_offsets.values()):
            raise LookupError
        return self.offsets.get(source)

    def compact(self, partition: int) -> None:
        """Keeps the newest committed record of each key below a random point of the stable part;
        tombstones go too, now or later."""
        entries = self.metrics[partition].entries
        end = self.rng.randint(0, self.stable_end(partition))
        newest: dict[bytes, int] = {}
        for offset in range(end):
            entry = entries[offset]
            if entry is not None and self.outcome.get(entry.txn, False):
                newest[entry.key] = offset
        for offset in range(end):
            entry = entries[offset]
            if entry is None:
                continue
            gone = newest.get(entry.key) != offset
            if gone or (entry.value is None and self.rng.random() < 0.5):
                entries[offset] = None

    # --- the group

    def rebalance(self, members: list[str], sources: Sequence[Source]) -> None:
        self.generation += 1
        self.members = dict.fromkeys(members, self.generation)
        shuffled = list(members)
        self.rng.shuffle(shuffled)
        self.assignment = {m: [] for m in members}
        for index, source in enumerate(sources):
            if shuffled:
                self.assignment[shuffled[index % len(shuffled)]].append(source)

"""Final rankings in the log against those recomputed from the positions they name."""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from streams import topics
from tools.verify import ranking
from tools.verify.compare import MISSING, Report
from tools.verify.log import Log, Record
from tools.verify.recompute import (
    GENERATION,
    GRACE_MS,
    PANE_MS,
    WINDOW_PANES,
    Cards,
    Meter,
    Pane,
    PaneKey,
    Totals,
    canonical_mode,
    canonical_role,
)
from tools.verify.records import Decoder, Fields, derived_id

SOURCE = topics.LLM_INVOCATION.name
TOPIC = topics.MODEL_PROFILE_SCORED.name
POLICIES = topics.SCORING_POLICY_UPDATED.name
CARDS = topics.RATE_CARD_UPDATED.name
LAST = "rankings: last final of every role and mode, to the last digit"
ALL = "rankings: every final in the log, to the last digit"
MARKS = "rankings: watermarks of the marks they name"
GAPS = "rankings: panes of which a final must be there"

REMEMBERED = 64  # windows

Key = tuple[str, str]  # role, deployment mode


@dataclass(frozen=True, slots=True)
class Final:
    """A final ranking as it stands in the log."""

    at: Record
    fields: Fields

    @property
    def where(self) -> str:
        f = self.fields
        return (
            f"{TOPIC}[{self.at.partition}]@{self.at.offset} {f['role']}/{f['deployment_mode']}"
            f" as of {f['as_of_ms']} revision {f['revision']}:"
        )


@dataclass(slots=True)
class Finals:
    """Finals of the log, record by record. every: all of them will be compared, not the last.

    last: newest (as_of, revision) per key. seen: as_of times per key. marks: watermarks that those
    to be compared name, by source partition and offset."""

    every: bool
    report: Report
    last: dict[Key, Final] = field(default_factory=dict)
    seen: dict[Key, set[int]] = field(default_factory=dict)
    marks: dict[tuple[int, int], set[int | None]] = field(default_factory=dict)

    def take(self, record: Record, f: Fields) -> None:
        """Takes the next ranking of the log."""
        if f["status"] != "FINAL":
            return
        if f["generation"] != GENERATION:
            self.report.remark(f"rankings of generation {f['generation']} were not compared")
            return
        key = (f["role"], f["deployment_mode"])
        self.seen.setdefault(key, set()).add(f["as_of_ms"])
        known = self.last.get(key)
        if known is None or _version(f) > _version(known.fields):
            self.last[key] = Final(record, f)
        if self.every:
            self.note_marks(f)

    def note_marks(self, f: Fields) -> None:
        """Remembers the watermarks that a final names, to be compared while the log is folded."""
        for mark in f["marks"]:
            place = (mark["source_partition"], mark["up_to_offset"])
            self.marks.setdefault(place, set()).add(mark["watermark_ms"])

    def close(self) -> None:
        """All finals have been taken."""
        if not self.every:
            for final in self.last.values():
                self.note_marks(final.fields)


def _version(f: Fields) -> tuple[int, int]:
    return f["as_of_ms"], f["revision"]


def every_final(bootstrap: str, decode: Decoder, ends: dict[int, int]) -> Iterator[Final]:
    """Every final of the log, the first record of each event_id; in the order of time, since
    those of one time share their windows."""
    logs = [Log(bootstrap) for _ in ends]
    try:
        for log in logs:
            log.ends(TOPIC)
        streams = [
            _finals(log, decode, p, end) for log, (p, end) in zip(logs, ends.items(), strict=True)
        ]
        yield from heapq.merge(
            *streams,
            key=lambda final: (final.fields["as_of_ms"], final.fields["role"]),
        )
    finally:
        for log in logs:
            log.close()


def _finals(log: Log, decode: Decoder, partition: int, end: int) -> Iterator[Final]:
    seen: set[str] = set()
    for record in log.read(TOPIC, partition, end):
        decoded = decode(record)
        if isinstance(decoded, str) or decoded[1]["status"] != "FINAL":
            continue
        if decoded[1]["event_id"] not in seen:
            seen.add(decoded[1]["event_id"])
            yield Final(record, decoded[1])


def due(made: Finals, partition: int, report: Report) -> list[tuple[int, Callable[[Meter], None]]]:
    """What to compare while one partition of llm.invocation is folded."""
    return [
        (up_to + 1, _watermarks(report, partition, up_to, found))
        for (p, up_to), found in made.marks.items()
        if p == partition
    ]


def _watermarks(
    report: Report, partition: int, up_to: int, found: set[int | None]
) -> Callable[[Meter], None]:
    def compare(meter: Meter) -> None:
        for watermark in found:
            where = f"{TOPIC}: mark of {SOURCE}[{partition}] at {up_to}"
            report.equal(MARKS, where, meter.watermark_ms, watermark)

    return compare


@dataclass(slots=True)
class Inputs:
    """What rankings follow from. evidence: of all partitions. policies: in log order."""

    partitions: int
    cards: Cards
    policies: dict[Key, list[tuple[int, int, Fields]]] = field(default_factory=dict)
    evidence: dict[str, dict[int, dict[str, Pane]]] = field(default_factory=dict)
    """Role -> start of the pane -> mode -> totals by model."""
    _windows: dict[tuple[str, int, frozenset[str], int], ranking.Evidence] = field(
        default_factory=dict
    )

    def policy(self, record: Record, f: Fields) -> None:
        """Takes the next policy of the log; its version is its number among those of its key."""
        key = (canonical_role(f["role"]), canonical_mode(f["deployment_mode"]))
        known = self.policies.setdefault(key, [])
        known.append((record.offset, len(known) + 1, f))

    def panes(self, panes: dict[PaneKey, Pane]) -> None:
        """Adds what one partition has counted."""
        for (role, mode, start), pane in panes.items():
            modes = self.evidence.setdefault(role, {}).setdefault(start, {})
            models = modes.setdefault(mode, {})
            for pair, totals in pane.items():
                models.setdefault(pair, Totals()).add(totals)

    def in_force(self, key: Key, at_ms: int, below: int) -> tuple[int, Fields] | None:
        """(version, policy) of a key at an event time, of those below an offset."""
        known = [
            (f["occurred_at_ms"], offset, version, f)
            for offset, version, f in self.policies.get(key, ())
            if offset < below and f["occurred_at_ms"] <= at_ms
        ]
        if not known:
            return None
        _, _, version, policy = max(known, key=lambda item: item[:2])
        return version, policy

    def window(self, role: str, last: int, modes: frozenset[str], below: int) -> ranking.Evidence:
        """Evidence of the window that ends with the pane `last`, priced by the cards below an
        offset. Rankings of one role mostly differ in their policies alone, so it is remembered."""
        asked = (role, last, modes, below)
        if asked not in self._windows:
            starts = range(last - (WINDOW_PANES - 1) * PANE_MS, last + 1, PANE_MS)
            panes = self.evidence.get(role, {})
            found: ranking.Window = [
                (start, pane)
                for start in starts
                for mode, pane in panes.get(start, {}).items()
                if not modes or mode in modes
            ]
            if len(self._windows) >= REMEMBERED:
                self._windows.clear()
            self._windows[asked] = ranking.evidence(found, self.cards, below)
        return self._windows[asked]


def compare(final: Final, inputs: Inputs, report: Report, subject: str) -> None:
    """Recomputes one final ranking and compares all of it."""
    f = final.fields
    key = (f["role"], f["deployment_mode"])
    below = {(i["topic"], i["partition"]): i["next_offset"] for i in f["inputs"]}
    last = f["window_end_ms"] - PANE_MS
    found = inputs.in_force(key, f["window_end_ms"], below.get((POLICIES, 0), 0))
    if found is None:
        report.differs(subject, final.where, "no ranking: no policy is in force", "a ranking")
        return
    version, policy = found
    named = sorted((m["source_topic"], m["source_partition"]) for m in f["marks"])
    report.equal(
        subject,
        f"{final.where} marks",
        [(SOURCE, p) for p in range(inputs.partitions)],
        named,
    )
    watermarks = [m["watermark_ms"] for m in f["marks"]]
    if None in watermarks or min(watermarks, default=0) < f["as_of_ms"]:
        report.differs(subject, final.where, f"all marks at {f['as_of_ms']} or later", watermarks)
    modes = frozenset(canonical_mode(mode) for mode in policy["evidence_modes"])
    as_of = last + PANE_MS + GRACE_MS
    wanted = {
        "event_id": derived_id(
            "model.profile.scored", "FINAL", *key, GENERATION, as_of, f["revision"]
        ),
        "occurred_at_ms": as_of,
        "as_of_ms": as_of,
        "window_start_ms": last - (WINDOW_PANES - 1) * PANE_MS,
        "window_end_ms": last + PANE_MS,
        "policy_event_id": policy["event_id"],
        "policy_version": version,
        "entries": ranking.entries(
            inputs.window(key[0], last, modes, below.get((CARDS, 0), 0)), policy
        ),
    }
    report.fields(subject, final.where, wanted, f)


def compare_gaps(
    made: Finals, inputs: Inputs, kept_from_ms: int, watermark_ms: int | None, report: Report
) -> None:
    """Between the first and the last final of a key there is one for every pane that enters or
    leaves the window with evidence; after the last one the scorer only lags."""
    report.subject(GAPS)
    behind = 0
    for key, seen in sorted(made.seen.items()):
        role = inputs.evidence.get(key[0], {})
        touched = {pane for start in role for pane in (start, start + WINDOW_PANES * PANE_MS)}
        as_of = {pane + PANE_MS + GRACE_MS for pane in touched}
        kept = kept_from_ms + WINDOW_PANES * PANE_MS + GRACE_MS
        for at in sorted(seen - as_of):
            report.differs(GAPS, f"{TOPIC} {'/'.join(key)} as of {at}", "none is due", "a final")
        due = {at for at in as_of if min(seen) <= at <= max(seen) and (at >= kept or at in seen)}
        for at in sorted(due - seen):
            report.differs(GAPS, f"{TOPIC} {'/'.join(key)} as of {at}", "a final", MISSING)
        report.count(GAPS, len(due & seen))
        if watermark_ms is not None:
            behind += sum(max(seen) < at <= watermark_ms for at in as_of)
    if behind:
        report.remark(
            f"the scorer lags: {behind:,} finals of panes that the marks have closed are due"
        )

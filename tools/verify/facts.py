"""The meter's facts and marks, and the agents' metrics table, against the fold of the log."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from streams import topics
from tools.verify.compare import MISSING, Report
from tools.verify.log import Log, Record
from tools.verify.recompute import Meter, Rules, fact_models
from tools.verify.records import Decoder, Fields

SOURCES = (topics.LLM_INVOCATION.name, topics.MODEL_QUALITY_OBSERVED.name)
TOPIC = topics.SLM_METRICS.name
TABLE = topics.changelog(topics.METRICS_TABLE)
MARKS = "meter: verdicts, watermark and replay_from of every mark"
FACTS = "meter: newest fact of every role, mode and pane"
ROWS = "agents: metrics table"

Place = tuple[str, int]  # source topic, its partition
VISIBLE_WITHIN_S = 5.0

Due = tuple[int, Callable[[Meter], None]]
"""(next offset of a partition, what to compare when the fold has come that far)."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact as it stands in slm.metrics."""

    at: Record
    fields: Fields


@dataclass(slots=True)
class Facts:
    """facts, rows: newest per key; marks: newest per (partition of slm.metrics, source); homes:
    partition of slm.metrics of each role."""

    rules: Rules
    facts: dict[bytes, Fact] = field(default_factory=dict)
    marks: dict[tuple[int, Place], Fields] = field(default_factory=dict)
    rows: dict[bytes, Fact] = field(default_factory=dict)
    homes: dict[str, int] = field(default_factory=dict)
    partitions: int = 0
    kept_from_ms: int = 0
    unreadable: list[tuple[Record, str]] = field(default_factory=list)

    def ours(self, f: Fields) -> bool:
        """Whether a fact or mark is of the computation that is compared."""
        return bool(f["generation"] == self.rules.generation and f["source_topic"] in SOURCES)

    def watermark(self, sources: list[Place]) -> int | None:
        """W: the smallest watermark of all source partitions by the newest marks; None: unknown."""
        newest: dict[Place, Fields] = {}
        for (_, place), mark in self.marks.items():
            if place not in newest or mark["up_to_offset"] > newest[place]["up_to_offset"]:
                newest[place] = mark
        times = [mark["watermark_ms"] for mark in newest.values()]
        return min(times) if sorted(newest) == sources and times and None not in times else None

    def up_to(self, place: Place) -> int | None:
        """Offset that all of slm.metrics has marks of; None: a mark is missing somewhere."""
        found = [self.marks.get((q, place)) for q in range(self.partitions)]
        known = [mark["up_to_offset"] for mark in found if mark is not None]
        return min(known) if known and len(known) == len(found) else None

    def newest_up_to(self, place: Place) -> int:
        """Highest offset that any mark has seen; -1: none."""
        return max(
            (m["up_to_offset"] for (_, p), m in self.marks.items() if p == place), default=-1
        )


def fact_key(f: Fields) -> bytes:
    """Key of a fact in slm.metrics."""
    parts = ("fact", f["source_topic"], f["source_partition"], f["generation"])
    return "\x1f".join(map(str, (*parts, f["role"], f["mode"], f["pane_start_ms"]))).encode()


def mark_key(f: Fields) -> bytes:
    """Key of a mark in slm.metrics."""
    parts = ("mark", f["source_topic"], f["source_partition"], f["generation"])
    return "\x1f".join(map(str, parts)).encode()


def read(log: Log, decode: Decoder, rules: Rules, report: Report) -> Facts:
    """Newest facts and marks as committed now."""
    made = Facts(rules)
    ends = log.ends(TOPIC)
    for subject in (MARKS, FACTS):
        report.subject(subject)
    if ends is None:
        report.remark(f"the meter was not compared: there is no topic {TOPIC}")
        return made
    made.partitions = len(ends)
    for partition, end in ends.items():
        for record, (kind, f) in _newest(log, decode, report, made, partition, end):
            where = f"{TOPIC}[{partition}]@{record.offset}"
            if not made.ours(f):
                report.remark(
                    f"facts of {f['source_topic']}, generation {f['generation']}, were not compared"
                )
            elif kind == "MeterMark":
                report.equal(MARKS, f"{where} key", mark_key(f), record.key)
                made.marks[partition, (f["source_topic"], f["source_partition"])] = f
                made.kept_from_ms = max(made.kept_from_ms, f["kept_from_ms"] or 0)
            else:
                report.equal(FACTS, f"{where} key", fact_key(f), record.key)
                home = made.homes.setdefault(f["role"], partition)
                if home != partition:
                    report.differs(FACTS, where, f"role {f['role']} in {home}", "here")
                made.facts[record.key or b""] = Fact(record, f)
    _wait_for_marks(log, decode, made, ends)
    return made


def _wait_for_marks(log: Log, decode: Decoder, made: Facts, ends: dict[int, int]) -> None:
    """A transaction comes to light in one partition after the other: reads on where the first mark
    of a source is in some of them only."""
    until = time.monotonic() + VISIBLE_WITHIN_S
    while time.monotonic() < until:
        sources = {source for _, source in made.marks}
        lacking = {q for q in ends for source in sources if (q, source) not in made.marks}
        if not lacking:
            return
        time.sleep(0.2)
        now = log.ends(TOPIC) or {}
        for q in sorted(lacking):
            for record in log.read(TOPIC, q, now[q]):
                decoded = "deleted" if record.value is None else decode(record)
                if isinstance(decoded, str) or decoded[0] != "MeterMark":
                    continue
                mark = decoded[1]
                if made.ours(mark):
                    source = (mark["source_topic"], mark["source_partition"])
                    made.marks.setdefault((q, source), mark)


def _newest(
    log: Log, decode: Decoder, report: Report, made: Facts, partition: int, end: int
) -> Iterator[tuple[Record, tuple[str, Fields]]]:
    """The newest good record of every key that has not been deleted since."""
    known: set[bytes | None] = set()
    for record in reversed(list(log.read(TOPIC, partition, end))):
        if record.key in known:
            continue
        decoded = "deleted" if record.value is None else decode(record)
        if not isinstance(decoded, str):
            yield record, decoded
        elif record.value is not None:
            where = f"{TOPIC}[{partition}]@{record.offset}"
            report.remark(f"{where} is no fact and no mark ({decoded}); readers skip it")
            made.unreadable.append((record, decoded))
            continue
        known.add(record.key)


def read_rows(log: Log, decode: Decoder, report: Report, made: Facts) -> None:
    """Newest rows of the agents' table, in step with the facts that were read before."""
    ends = log.ends(TABLE)
    report.subject(ROWS)
    if ends is None:
        report.remark(f"the agents' metrics table was not compared: there is no topic {TABLE}")
        return
    newest: dict[bytes, Record] = {}
    for partition, end in ends.items():
        for record in log.read(TABLE, partition, end):
            if record.value is None:
                newest.pop(record.key or b"", None)
            else:
                newest[record.key or b""] = record
    for key, record in newest.items():
        twin = made.facts.get(key)
        if twin is not None and twin.at.value == record.value:
            made.rows[key] = Fact(record, twin.fields)
            continue
        decoded = decode(record._replace(topic=TOPIC))
        if isinstance(decoded, str):
            where = f"{TABLE}[{record.partition}]@{record.offset}"
            report.differs(ROWS, where, "a fact", decoded)
        elif decoded[0] == "PaneFact" and made.ours(decoded[1]):
            made.rows[key] = Fact(record, decoded[1])
    behind = [
        key
        for key, fact in made.facts.items()
        if key not in made.rows
        or made.rows[key].fields["up_to_offset"] < fact.fields["up_to_offset"]
    ]
    if behind:
        report.remark(
            f"the agents' metrics table lags: {len(behind):,} of {len(made.facts):,} rows are"
            " behind slm.metrics; each row was compared at its own offset"
        )


def due(facts: Facts, place: Place, report: Report) -> list[Due]:
    """What to compare while one partition of a source is folded."""
    made: list[Due] = []
    for (q, p), mark in facts.marks.items():
        if p == place:
            made.append((mark["up_to_offset"] + 1, _mark(report, f"{TOPIC}[{q}]", p, mark)))
    for table, subject, of in ((TOPIC, FACTS, facts.facts), (TABLE, ROWS, facts.rows)):
        for key, fact in of.items():
            f = fact.fields
            if (f["source_topic"], f["source_partition"]) != place:
                continue
            twin = facts.facts.get(key)
            if table == TABLE and twin is not None and twin.at.value == fact.at.value:
                report.equal(subject, table, twin.at.key, fact.at.key)
                continue
            made.append((f["up_to_offset"] + 1, _fact(report, subject, table, fact)))
    up_to = facts.up_to(place)
    if up_to is not None:
        made.append((up_to + 1, _complete(report, facts, place)))
    elif facts.newest_up_to(place) >= 0:
        report.differs(
            MARKS,
            f"{TOPIC}: marks of {place[0]}[{place[1]}]",
            f"one in each of {facts.partitions} partitions",
            str(sorted(q for q, p in facts.marks if p == place)),
        )
    return made


def _mark(report: Report, where: str, place: Place, mark: Fields) -> Callable[[Meter], None]:
    def compare(meter: Meter) -> None:
        at = mark["up_to_offset"]
        report.fields(
            MARKS, f"{where} mark of {place[0]}[{place[1]}] at {at}:", meter.mark(at + 1), mark
        )

    return compare


def _fact(report: Report, subject: str, table: str, fact: Fact) -> Callable[[Meter], None]:
    def compare(meter: Meter) -> None:
        f = fact.fields
        key = (f["role"], f["mode"], f["pane_start_ms"])
        models = fact_models(meter.panes.get(key, {}))
        where = (
            f"{table}[{fact.at.partition}]@{fact.at.offset} {'/'.join(map(str, key))}"
            f" of {f['source_topic']}[{f['source_partition']}] up to {f['up_to_offset']}:"
        )
        if models == f["models"]:
            report.count(subject, 1)
        else:
            report.fields(subject, where, {"models": models}, f)

    return compare


def _complete(report: Report, facts: Facts, place: Place) -> Callable[[Meter], None]:
    """No pane's fact is missing, or older than the last event it must contain."""

    def compare(meter: Meter) -> None:
        for (role, mode, pane), changed in meter.changed_at.items():
            if pane < facts.kept_from_ms:
                continue
            key = fact_key(
                {
                    "source_topic": place[0],
                    "source_partition": place[1],
                    "generation": facts.rules.generation,
                    "role": role,
                    "mode": mode,
                    "pane_start_ms": pane,
                }
            )
            fact = facts.facts.get(key)
            if fact is None:
                report.differs(
                    FACTS,
                    f"{TOPIC} {role}/{mode}/{pane} of {place[0]}[{place[1]}]",
                    f"a fact with what stands at offset {changed}",
                    MISSING,
                )
            elif fact.fields["up_to_offset"] < changed:
                report.differs(
                    FACTS,
                    f"{TOPIC} {role}/{mode}/{pane} of {place[0]}[{place[1]}]",
                    f"a fact up to {changed} or later",
                    f"up to {fact.fields['up_to_offset']}",
                )

    return compare

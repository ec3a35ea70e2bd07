"""dead.letters and late.events against the verdicts of the log: one for each, none besides."""

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

from streams import topics
from tools.verify.compare import MISSING, Report
from tools.verify.log import Log, Record
from tools.verify.recompute import Rules
from tools.verify.records import Decoder, Fields, derived_id

DEAD_TOPIC = topics.DEAD_LETTERS.name
LATE_TOPIC = topics.LATE_EVENTS.name
DEAD = "dead letters: reason, key and value of every refused record"
LATE = "late events: one for every late verdict"
KEPT_BYTES = 64 * 1024
BEFORE_A_SCHEMA = frozenset({"null_key", "empty_value", "too_large", "bad_magic", "bad_frame"})

Place = tuple[str, int, int]  # topic, partition, offset


class Dead(NamedTuple):
    """What a dead letter must say; digests of the bytes, so that many take little memory."""

    reason: str
    append_ms: int
    schema_id: int | None
    key: bytes | None
    value: bytes | None
    value_length: int | None
    headers: tuple[tuple[str, bytes], ...]


class Late(NamedTuple):
    """What a late event must say."""

    event_id: str
    late_event_id: str
    append_ms: int
    pane_start_ms: int
    watermark_ms: int


@dataclass(slots=True)
class Letters:
    """What must stand in the two topics. optional: refused on topics that no projection files.
    projected, metered: how far the projector and the meter's newest marks have come (topic,
    partition); ends: how far the log was judged."""

    rules: Rules = field(default_factory=Rules)
    dead: dict[Place, Dead] = field(default_factory=dict)
    optional: dict[Place, Dead] = field(default_factory=dict)
    late: dict[Place, Late] = field(default_factory=dict)
    projected: dict[tuple[str, int], int] = field(default_factory=dict)
    metered: dict[tuple[str, int], int] = field(default_factory=dict)
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    outbox: set[str] = field(default_factory=set)

    def refuse(self, record: Record, reason: str, *, optional: bool = False) -> None:
        """A record that must have a dead letter."""
        place = (record.topic, record.partition, record.offset)
        (self.optional if optional else self.dead)[place] = dead(record, reason)


def dead(record: Record, reason: str) -> Dead:
    """The dead letter of a record."""
    value = record.value
    # A conflict is found after the record was understood: its schema is not what is at fault.
    framed = reason not in BEFORE_A_SCHEMA and reason != "id_conflict"
    return Dead(
        reason,
        record.append_ms,
        int.from_bytes((value or b"")[1:5], "big", signed=True) if framed else None,
        _digest(record.key if record.key is None or len(record.key) <= KEPT_BYTES else None),
        _digest(value),
        None if value is None else len(value),
        _kept(dict(record.headers)),
    )


def _kept(headers: dict[str, bytes]) -> tuple[tuple[str, bytes], ...]:
    """All of them, or none where they are too many."""
    size = sum(len(name.encode()) + len(value) for name, value in headers.items())
    return tuple(sorted(headers.items())) if size <= KEPT_BYTES else ()


def _digest(data: bytes | None) -> bytes | None:
    return None if data is None else hashlib.sha256(data).digest()


def _said(f: Fields) -> Dead:
    value = f["value"]
    kept = _digest(value)
    if value is None and f["value_sha256"] is not None:
        kept = bytes.fromhex(f["value_sha256"])
    return Dead(
        f["reason"],
        f["origin_append_ms"],
        f["schema_id"],
        _digest(f["key"]),
        kept,
        f["value_length"],
        tuple(sorted(f["headers"].items())),
    )


def compare(log: Log, decode: Decoder, letters: Letters, report: Report) -> None:
    """Both topics as they are now; read last, when what must be there has been sent."""
    report.subject(DEAD)
    report.subject(LATE)
    _compare_dead(log, decode, letters, report)
    _compare_late(log, decode, letters, report)


def _compare_dead(log: Log, decode: Decoder, letters: Letters, report: Report) -> None:
    found: set[tuple[Place, str]] = set()
    newer = 0
    for partition, end in (log.ends(DEAD_TOPIC) or {}).items():
        for record in log.read(DEAD_TOPIC, partition, end):
            decoded = decode(record)
            if isinstance(decoded, str):
                continue
            f = decoded[1]
            place = (f["origin_topic"], f["origin_partition"], f["origin_offset"])
            where = (
                f"{DEAD_TOPIC}[{partition}]@{record.offset} of {place[0]}[{place[1]}]@{place[2]}"
            )
            wanted = letters.dead.get(place) or letters.optional.get(place)
            if wanted is None and place[2] >= letters.ends.get(place[:2], 0):
                newer += 1
                continue
            if wanted is None:
                report.differs(DEAD, where, "no dead letter", f["reason"])
                continue
            report.equal(DEAD, where, wanted, _said(f))
            report.equal(DEAD, f"{where} event_id", dead_id(place, wanted.reason), f["event_id"])
            found.add((place, f["reason"]))
    waiting = 0
    for place, wanted in sorted(letters.dead.items()):
        if (place, wanted.reason) in found:
            continue
        if dead_id(place, wanted.reason) in letters.outbox:
            waiting += 1
        elif place[2] < letters.projected.get(place[:2], 0):
            where = f"{DEAD_TOPIC}: {place[0]}[{place[1]}]@{place[2]}"
            report.differs(DEAD, where, wanted.reason, MISSING)
    if waiting:
        report.remark(f"{waiting} dead letters wait in the projector's outbox")
    if newer:
        report.remark(f"{newer} dead letters are of records that were not compared")
    if not letters.projected:
        report.remark(
            "dead letters that are missing were not looked for: no projection says how far it is"
        )


def dead_id(place: Place, reason: str) -> str:
    """Id of the dead letter of a record."""
    return derived_id("dead.letter", *place, reason)


def late_id(place: Place, generation: int) -> str:
    """Id of the late event of a record."""
    return derived_id("late.event", *place, generation)


def _compare_late(log: Log, decode: Decoder, letters: Letters, report: Report) -> None:
    found: set[Place] = set()
    for partition, end in (log.ends(LATE_TOPIC) or {}).items():
        for record in log.read(LATE_TOPIC, partition, end):
            decoded = decode(record)
            if isinstance(decoded, str):
                continue
            f = decoded[1]
            if f["generation"] != letters.rules.generation:
                continue
            place = (f["origin_topic"], f["origin_partition"], f["origin_offset"])
            where = (
                f"{LATE_TOPIC}[{partition}]@{record.offset} of {place[0]}[{place[1]}]@{place[2]}"
            )
            if place[2] >= letters.ends.get(place[:2], 0):
                continue
            found.add(place)
            wanted = letters.late.get(place)
            said = Late(
                f["event_id"],
                f["late_event_id"],
                f["occurred_at_ms"],
                f["pane_start_ms"],
                f["watermark_ms"],
            )
            report.equal(LATE, where, wanted or "not late", said)
    for place, wanted in sorted(letters.late.items()):
        if place not in found and place[2] < letters.metered.get(place[:2], 0):
            where = f"{LATE_TOPIC}: {place[0]}[{place[1]}]@{place[2]}"
            report.differs(LATE, where, wanted, MISSING)

"""The profiles table, what is published of it, and what was refused, against the log's fold."""

import io
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import fastavro

from streams import topics
from tools.verify.compare import MISSING, Report
from tools.verify.log import Log, Record
from tools.verify.recompute import Profile, profile_step
from tools.verify.records import Decoder, Fields, derived_id

SOURCE = topics.MODEL_PROFILE_UPDATED.name
ACTIVE = topics.MODEL_PROFILE_ACTIVE.name
REJECTED = topics.MODEL_PROFILE_REJECTED.name
TABLE = topics.changelog(topics.PROFILES_TABLE)
ROWS = "agents: profiles table, at each row's own offset"
PUBLISHED = "profiles in force, as published"
REFUSED = "profile changes refused, as published"
SETTLES_S = 6.0  # publishing follows the table at once; after a crash it takes a restart

Place = tuple[int, bytes]  # partition of model.profile.updated, key


@dataclass(frozen=True, slots=True)
class Step:
    """What a record of model.profile.updated led to. row: the table's row after it."""

    offset: int
    verdict: str
    row: Fields
    active: Fields | None
    rejected: Fields | None


@dataclass(slots=True)
class History:
    """Every step of every key, in log order."""

    steps: dict[Place, list[Step]] = field(default_factory=dict)

    def at(self, place: Place, offset: int) -> Step | None:
        """The last step of a key up to an offset."""
        known = [step for step in self.steps.get(place, ()) if step.offset <= offset]
        return known[-1] if known else None

    def last_accepted(self, place: Place) -> Step | None:
        """The last step of a key that changed its row."""
        known = [step for step in self.steps.get(place, ()) if step.verdict == "applied"]
        return known[-1] if known else None


class Fold:
    """Takes model.profile.updated record by record."""

    def __init__(self) -> None:
        self.history = History()
        self._rows: dict[Place, Profile] = {}

    def step(self, record: Record, f: Fields) -> None:
        """Takes the next record of a partition."""
        place = (record.partition, record.key or b"")
        row = self._rows.setdefault(place, Profile())
        version = row.version
        verdict, field_ = profile_step(row, record, f)
        rejected = None
        if verdict in ("CONFLICT", "INVALID"):
            rejected = {
                "event_id": derived_id(REJECTED, record.topic, record.partition, record.offset),
                "occurred_at_ms": f["occurred_at_ms"],
                "tenant": f["tenant"],
                "scope": f["scope"],
                "role": f["role"],
                "deployment_mode": f["deployment_mode"],
                "rejected_event_id": f["event_id"],
                "kind": verdict,
                **({"field": field_} if verdict == "INVALID" else {}),
                "expected_version": f["expected_version"],
                "actual_version": version,
                "actor": f["actor"],
                "cause_topic": record.topic,
                "cause_partition": record.partition,
                "cause_offset": record.offset,
            }
        self.history.steps.setdefault(place, []).append(
            Step(record.offset, verdict, _row(row, record), _active(row), rejected)
        )


def _key_parts(f: Fields) -> Fields:
    return {name: f[name] for name in ("scope", "role", "deployment_mode")}


def _row(row: Profile, record: Record) -> Fields:
    cause = None
    if row.cause is not None and row.cause_fields is not None:
        cause = {
            "event_id": row.cause_fields["event_id"],
            "occurred_at_ms": row.cause_fields["occurred_at_ms"],
            "tenant": row.cause_fields["tenant"],
            "trace_id": row.cause_fields["trace_id"],
            "actor": row.cause_fields["actor"],
            "partition": row.cause.partition,
            "offset": row.cause.offset,
        }
    profile = None
    if row.fields is not None and row.cause_fields is not None:
        profile = {**_key_parts(row.cause_fields), **row.fields}
    return {
        "src": [{"partition": record.partition, "offset": record.offset}],
        "version": row.version,
        "deleted": row.version > 0 and row.fields is None,
        "event_ids": list(row.ids),
        "profile": profile,
        "cause": cause,
    }


def _active(row: Profile) -> Fields | None:
    if row.fields is None or row.cause is None or row.cause_fields is None:
        return None
    f, at = row.cause_fields, row.cause
    return {
        "event_id": derived_id(ACTIVE, at.topic, at.partition, at.offset),
        "occurred_at_ms": f["occurred_at_ms"],
        "tenant": f["tenant"],
        "trace_id": f["trace_id"],
        **_key_parts(f),
        "version": row.version,
        **row.fields,
        "actor": f["actor"],
        "cause_event_id": f["event_id"],
        "cause_partition": at.partition,
        "cause_offset": at.offset,
    }


Rows = dict[Place, tuple[Record, Fields | str]]


def read_rows(log: Log, report: Report) -> Rows:
    """Newest row per partition and key of the table's changelog; a text says why it is none."""
    ends = log.ends(TABLE)
    report.subject(ROWS)
    if ends is None:
        report.remark(f"the agents' profiles table was not compared: there is no topic {TABLE}")
        return {}
    schema = _row_schema()
    rows: Rows = {}
    for partition, end in ends.items():
        for record in log.read(TABLE, partition, end):
            place = (partition, record.key or b"")
            if record.value is None:
                rows.pop(place, None)
                continue
            source = io.BytesIO(record.value)
            try:
                decoded: Any = fastavro.schemaless_reader(source, schema, None)
                if source.tell() != len(record.value):
                    decoded = "trailing bytes"
            except Exception as error:  # malformed input raises errors of many kinds
                decoded = f"{type(error).__name__}: {error}"
            rows[place] = (record, decoded)
    return rows


def _row_schema() -> Any:
    text = (files("processors.tables") / "profiles.avsc").read_text(encoding="utf-8")
    return fastavro.parse_schema(json.loads(text), named_schemas={})


def compare_rows(rows: Rows, history: History, report: Report) -> None:
    """Each row against the fold up to the offset that the row says it has seen."""
    for place, (record, row) in sorted(rows.items()):
        where = f"{TABLE}[{record.partition}]@{record.offset} {_text(place[1])}:"
        if isinstance(row, str):
            report.differs(ROWS, where, "a row", row)
            continue
        seen = {s["partition"]: s["offset"] for s in row["src"]}.get(place[0], -1)
        step = history.at(place, seen)
        if step is None:
            report.differs(ROWS, where, "no row", row)
        else:
            report.fields(ROWS, where, step.row, row)
    behind = 0
    for place, steps in history.steps.items():
        _, row = rows.get(place, (None, {"src": []}))
        if isinstance(row, str):
            continue
        seen = max((s["offset"] for s in row["src"]), default=-1)
        behind += seen < steps[-1].offset
    if behind:
        report.remark(
            f"the agents' profiles table lags: {behind} of {len(history.steps)} rows have not"
            f" seen the end of {SOURCE}"
        )


def fold(log: Log, decode: Decoder) -> History:
    """All of model.profile.updated as it is now."""
    made = Fold()
    for partition, end in (log.ends(SOURCE) or {}).items():
        for record in log.read(SOURCE, partition, end):
            decoded = decode(record)
            if not isinstance(decoded, str):
                made.step(record, decoded[1])
    return made.history


def compare_published(log: Log, decode: Decoder, report: Report) -> None:
    """model.profile.active and .rejected: each record right, and none left out before another.

    What is missing behind the newest published record of a partition is lag; what is missing
    before it is a difference, if it stays so for a few seconds.
    """
    _settled(
        log,
        report,
        PUBLISHED,
        ACTIVE,
        lambda ends, attempt: _look_active(
            _read_active(log, decode, ends, attempt), fold(log, decode), attempt
        ),
    )
    _settled(
        log,
        report,
        REFUSED,
        REJECTED,
        lambda ends, attempt: _look_rejected(
            _read_rejected(log, decode, ends), fold(log, decode), attempt
        ),
    )


def _settled(
    log: Log,
    report: Report,
    subject: str,
    topic: str,
    look: Callable[[dict[int, int], Report], int],
) -> None:
    """Looks again for a few seconds while something is missing; look tells how many things."""
    until = time.monotonic() + SETTLES_S
    while True:
        ends = log.ends(topic)
        if ends is None:
            report.remark(f"{subject}: not compared, there is no topic {topic}")
            return
        attempt = Report()
        attempt.subject(subject)
        if look(ends, attempt) == 0 or time.monotonic() > until:
            report.merge(attempt)
            return
        time.sleep(0.5)


Active = dict[bytes, tuple[Record, Fields | None]]
Refusals = dict[tuple[int, int], tuple[Record, Fields]]


def _read_active(log: Log, decode: Decoder, ends: dict[int, int], report: Report) -> Active:
    newest: Active = {}
    for partition, end in ends.items():
        for record in log.read(ACTIVE, partition, end):
            if record.value is None:
                newest[record.key or b""] = (record, None)
                continue
            decoded = decode(record)
            if isinstance(decoded, str):
                report.remark(f"{ACTIVE}[{partition}]@{record.offset} cannot be read ({decoded})")
                continue
            newest[record.key or b""] = (record, decoded[1])
    return newest


def _look_active(newest: Active, history: History, report: Report) -> int:
    reached = _positions(
        (f["cause_partition"], f["cause_offset"]) for _, f in newest.values() if f is not None
    )
    behind = missing = 0
    for place, steps in sorted(history.steps.items()):
        step = history.last_accepted(place)
        if step is None:
            continue
        where = f"{ACTIVE} {_text(place[1])}:"
        _, said = newest.get(place[1], (None, None))
        late = step.offset > reached.get(place[0], -1)
        if said is not None and (late or said["cause_offset"] == step.offset):
            then = next((s for s in steps if s.offset == said["cause_offset"]), None)
            if then is None or then.active is None:
                report.differs(PUBLISHED, where, "no profile of that cause", said)
            else:
                report.fields(PUBLISHED, where, then.active, said)
            behind += said["cause_offset"] != step.offset
        elif step.active is None and said is None:
            report.count(PUBLISHED, 1)
        elif late:
            behind += 1
        else:
            missing += 1
            report.differs(PUBLISHED, where, step.active or "deleted", said or MISSING)
    keys = {key for _, key in history.steps}
    for key, (record, said) in sorted(newest.items()):
        if said is not None and key not in keys:
            where = f"{ACTIVE}[{record.partition}]@{record.offset} {_text(key)}"
            report.differs(PUBLISHED, where, "no profile", said)
    if behind:
        report.remark(f"{ACTIVE} lags: {behind} profiles are behind {SOURCE}")
    return missing


def _read_rejected(log: Log, decode: Decoder, ends: dict[int, int]) -> Refusals:
    found: Refusals = {}
    for partition, end in ends.items():
        for record in log.read(REJECTED, partition, end):
            decoded = decode(record)
            if not isinstance(decoded, str):
                f = decoded[1]
                found.setdefault((f["cause_partition"], f["cause_offset"]), (record, f))
    return found


def _look_rejected(found: Refusals, history: History, report: Report) -> int:
    reached = _positions(found)
    behind = missing = 0
    wanted = {
        (place[0], step.offset): step.rejected
        for place, steps in history.steps.items()
        for step in steps
        if step.rejected is not None
    }
    for at, rejected in sorted(wanted.items()):
        where = f"{REJECTED}: {SOURCE}[{at[0]}]@{at[1]}"
        if at in found:
            report.fields(REFUSED, where, rejected, found[at][1])
        elif at[1] > reached.get(at[0], -1):
            behind += 1
        else:
            missing += 1
            report.differs(REFUSED, where, rejected, MISSING)
    for at, (record, f) in sorted(found.items()):
        if at not in wanted:
            where = f"{REJECTED}[{record.partition}]@{record.offset}"
            report.differs(REFUSED, where, f"{SOURCE}[{at[0]}]@{at[1]} is not refused", f)
    if behind:
        report.remark(f"{REJECTED} lags: {behind} refusals are not published yet")
    return missing


def _positions(places: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Newest offset per partition."""
    made: dict[int, int] = {}
    for partition, offset in places:
        made[partition] = max(offset, made.get(partition, -1))
    return made


def _text(key: bytes) -> str:
    return key.decode("utf-8", "replace")

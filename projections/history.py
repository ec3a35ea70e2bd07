"""History: every record of the topics that are not charged, as rows, as it was said.

Statements (a profile, mode, model, policy, card or budget is set, a benchmark is reported) are
filed whenever they can be read, because folds take them by offset; a repeated id is counted and
said in `verdict`. Of everything else the first record of an id counts. Ticks are not filed.
"""

import base64
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import duckdb
import pyarrow as pa
import xxhash

from projections import store
from schemas import Event, HeadedEvent, ModelProfileScored, ModelRegistered, Recorded
from schemas.model_profile import LeaderState
from schemas.values import canonical_mode, canonical_role
from streams import topics
from streams.topics import Topic

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class File:
    """A topic and the table of its records.

    statement: filed whenever it can be read. ours: its ids are derived, so the same id with another
    body is the same thing concluded again, and no conflict.
    """

    topic: Topic
    table: str
    row: Callable[[HeadedEvent], Row]
    statement: bool = False
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """A record with its verdict: applied, duplicate or conflict."""

    recorded: Recorded[Event]
    verdict: str
    first_offset: int  # of the first record of its id


def _fields(event: HeadedEvent) -> Row:
    """All fields, modes and roles by their canonical names."""
    row = {k: v.value if isinstance(v, Enum) else v for k, v in event.model_dump().items()}
    if row["mode"] is not None:
        row["mode"] = canonical_mode(row["mode"])
    return row


def _of_role(event: HeadedEvent) -> Row:
    row = _fields(event)
    row["role"] = canonical_role(row["role"])
    if "deployment_mode" in row:
        row["deployment_mode"] = canonical_mode(row["deployment_mode"])
    return row


def _profile_change(event: HeadedEvent) -> Row:
    row = _fields(event)
    return {**row, "profile_key": f"{row['scope']}/{row['role']}/{row['deployment_mode']}"}


def _mode_change(event: HeadedEvent) -> Row:
    row = _fields(event)
    return {**row, "to_mode": canonical_mode(row["to_mode"])}


def _policy(event: HeadedEvent) -> Row:
    row = _of_role(event)
    return {**row, "benchmarks": _json(row["benchmarks"])}


def _benchmark(event: HeadedEvent) -> Row:
    row = _fields(event)
    return {**row, "role": row["role"] and canonical_role(row["role"])}


def _registration(event: HeadedEvent) -> Row:
    assert isinstance(event, ModelRegistered)
    return {**_fields(event), "roles": event.canonical_roles()}


def _ranking(event: HeadedEvent) -> Row:
    row = _fields(event)
    del row["entries"]
    leader, before = row.pop("leader"), row.pop("leader_before")
    state = leader or dict.fromkeys(LeaderState.model_fields)
    return {
        **row,
        "marks": _json(row["marks"]),
        "inputs": _json(row["inputs"]),
        "leader_provider": state["provider"],
        "leader_model": state["model"],
        "leader_since_ms": state["since_ms"],
        "challenger_provider": state["challenger_provider"],
        "challenger_model": state["challenger_model"],
        "challenger_closes": state["closes"],
        "leader_before": before and _json(before),
    }


def _threshold(event: HeadedEvent) -> Row:
    row = _fields(event)
    return {**row, "at_offsets": _json(row["at_offsets"])}


def _dead_letter(event: HeadedEvent) -> Row:
    row = _fields(event)
    row["record_key"] = row.pop("key")
    coded = {name: base64.b64encode(value).decode() for name, value in row["headers"].items()}
    return {**row, "headers": _json(coded)}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


FILES: Final[tuple[File, ...]] = (
    File(topics.MODEL_FALLBACK_USED, "fallbacks", _of_role),
    File(topics.MODEL_PROFILE_UPDATED, "profile_changes", _profile_change, statement=True),
    File(topics.MODEL_PROFILE_REJECTED, "profile_rejections", _fields, ours=True),
    File(topics.MODE_CHANGED, "mode_changes", _mode_change, statement=True),
    File(topics.MODEL_REGISTERED, "model_registrations", _registration, statement=True),
    File(topics.SCORING_POLICY_UPDATED, "policies", _policy, statement=True),
    File(topics.RATE_CARD_UPDATED, "rate_cards", _fields, statement=True),
    File(topics.BUDGET_UPDATED, "budget_updates", _fields, statement=True),
    File(topics.BUDGET_THRESHOLD_CROSSED, "budget_thresholds", _threshold, ours=True),
    File(topics.MODEL_PROFILE_SCORED, "rankings", _ranking, ours=True),
    File(topics.MODEL_PROFILE_RECOMMENDED, "recommendations", _fields, ours=True),
    File(topics.MODEL_QUALITY_OBSERVED, "quality_observations", _of_role),
    File(topics.SLM_BENCHMARK_RESULTS, "benchmark_results", _benchmark, statement=True),
    File(topics.LATE_EVENTS, "late_events", _fields, ours=True),
    File(topics.DEAD_LETTERS, "dead_letters", _dead_letter, ours=True),
)
LISTS: Final = ("terms", "benchmarks", "parts")
"""Of an entry of a ranking: filed as JSON."""
BY_TOPIC: Final = {file.topic.name: file for file in FILES}


def file(
    db: duckdb.DuckDBPyConnection,
    topic: str,
    records: Sequence[Recorded[Event]],
    bodies: Sequence[bytes],
) -> list[Judged]:
    """Appends the records of one topic to its table; call it in a transaction.

    records: per partition in offset order. bodies: their record values, aligned.
    """
    into = BY_TOPIC[topic]
    hashes = [str(uuid.UUID(bytes=xxhash.xxh3_128_digest(body))) for body in bodies]
    judged = _judge(db, into, records, hashes)
    rows, entries = [], []
    for verdict, body_hash in zip(judged, hashes, strict=True):
        if verdict.verdict != "applied" and not into.statement:
            continue
        event, place = verdict.recorded.event, verdict.recorded.at
        assert isinstance(event, HeadedEvent)
        row = {
            "src_partition": place.partition,
            "src_offset": place.offset,
            "append_ms": place.append_ms,
            "body_hash": body_hash,
            **into.row(event),
        }
        rows.append({**row, "verdict": verdict.verdict} if into.statement else row)
        if isinstance(event, ModelProfileScored):
            entries.extend(_entries(row, event))
    store.insert(db, into.table, rows)
    store.insert(db, "ranking_entries", entries)
    return judged


def _judge(
    db: duckdb.DuckDBPyConnection,
    into: File,
    records: Sequence[Recorded[Event]],
    hashes: Sequence[str],
) -> list[Judged]:
    """Verdicts by the first record of each id, in this batch or in the table."""
    identities = [_identity(into, recorded) for recorded in records]
    first = _filed(db, into, identities)
    judged = []
    for recorded, identity, body in zip(records, identities, hashes, strict=True):
        mine = (recorded.at.offset, body)
        found = first.setdefault(identity, mine)
        if found is mine:
            verdict = "applied"
        else:
            verdict = "duplicate" if found[1] == body or into.ours else "conflict"
        judged.append(Judged(recorded, verdict, found[0]))
    return judged


Identity = tuple[int, str, str | None, str, str]


def _identity(into: File, recorded: Recorded[Event]) -> Identity:
    """Partition, source, tenant and id; of profile changes also the key, as their fold has it."""
    event = recorded.event
    assert isinstance(event, HeadedEvent)
    key = into.row(event)["profile_key"] if into.table == "profile_changes" else ""
    return (recorded.at.partition, event.source, event.tenant, event.event_id, key)


def _filed(
    db: duckdb.DuckDBPyConnection, into: File, identities: Sequence[Identity]
) -> dict[Identity, tuple[int, str]]:
    """Offset and body of the first filed record of each identity."""
    key = "profile_key" if into.table == "profile_changes" else "''"
    probe = pa.table({"event_id": pa.array({i[3] for i in identities}, pa.string())})
    with store.batch(db, probe, "probe"):
        found = db.execute(
            f"SELECT src_partition, source, tenant, event_id, {key}, src_offset,"
            f" body_hash::VARCHAR FROM {into.table} SEMI JOIN probe USING (event_id)"
            " ORDER BY src_offset"
        ).fetchall()
    first: dict[Identity, tuple[int, str]] = {}
    for row in found:
        first.setdefault(row[:5], (row[5], row[6]))
    return first


def _entries(row: Row, event: ModelProfileScored) -> list[Row]:
    """The models of a ranking as rows of ranking_entries."""
    shared = {
        k: row[k]
        for k in ("src_partition", "src_offset", "event_id", "role", "deployment_mode", "as_of_ms")
    }
    return [
        {
            **shared,
            "ranking_status": event.status.value,
            "position": position,
            **entry.model_dump(exclude=set(LISTS)),
            **{name: _json([one.model_dump() for one in getattr(entry, name)]) for name in LISTS},
        }
        for position, entry in enumerate(event.entries)
    ]

"""Rankings as they were published, by time, by id, by stretch: from the projector's tables while it
runs, else from the log. The policies they name alike.

`Ask` is a question in SQL to the tables; the read path over HTTP asks with the same functions.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, cast

import httpx
from confluent_kafka import Message

from schemas import ModeChanged, ModelProfileScored, Position, Recorded, ScoringPolicyUpdated
from schemas.model_profile import RankingStatus
from schemas.values import canonical_mode, canonical_role
from streams import kafka
from streams.codec import decode
from streams.errors import RosterError, Unreachable
from streams.ranking_header import Summary, summary
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.topics import MODE_CHANGED, MODEL_PROFILE_SCORED, SCORING_POLICY_UPDATED
from tools import sql
from tools.log_reader import NEWEST_RANKINGS, events

MOST: Final = 1_000
"""Rankings that are taken from the tables at a time: a whole one is some tens of KB."""
SHOWN: Final = ("FINAL", "PROVISIONAL")

Row = dict[str, Any]
Ask = Callable[[str, int], list[Row]]
"""A reading statement and how many rows at most -> rows. Raises RosterError or what it likes."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rankings; None: any. at_ms: as_of at most that. from_ms, to_ms: as_of from, below."""

    role: str | None = None
    mode: str | None = None
    status: Sequence[str] = SHOWN
    at_ms: int | None = None
    from_ms: int | None = None
    to_ms: int | None = None

    def takes(self, key: str, status: str, as_of_ms: int) -> bool:
        """Whether a ranking of that key, role/mode, is one of them."""
        return (
            (self.role is None or key.startswith(f"{self.role}/"))
            and (self.mode is None or key.endswith(f"/{self.mode}"))
            and status in self.status
            and (self.at_ms is None or as_of_ms <= self.at_ms)
            and (self.from_ms is None or as_of_ms >= self.from_ms)
            and (self.to_ms is None or as_of_ms < self.to_ms)
        )


class Source(Protocol):
    """Where rankings are found. They come by role and mode, finals first, then by time."""

    def standing(self, wanted: Wanted) -> list[ModelProfileScored]:
        """Of each role, mode and status the newest: of its newest time the highest revision."""

    def history(self, wanted: Wanted) -> list[ModelProfileScored]:
        """Of each role, mode, status and time the highest revision."""

    def by_id(self, event_id: str) -> ModelProfileScored | None:
        """The first ranking of that id."""

    def policy(self, event_id: str) -> Recorded[ScoringPolicyUpdated] | None:
        """The first policy of that id."""


# --- the projector's tables

ENTRIES: Final = (
    "(SELECT to_json(list(e ORDER BY e.position)) FROM ranking_entries e"
    " WHERE e.src_partition = r.src_partition AND e.src_offset = r.src_offset) AS entries"
)
NEWEST_GENERATION: Final = "generation DESC, as_of_ms DESC, revision DESC, src_offset"


@dataclass(frozen=True, slots=True)
class Tables:
    """From the tables of the projector."""

    ask: Ask

    def standing(self, wanted: Wanted) -> list[ModelProfileScored]:
        return self._rankings(wanted, "role, deployment_mode, status")

    def history(self, wanted: Wanted) -> list[ModelProfileScored]:
        return self._rankings(wanted, "role, deployment_mode, status, as_of_ms")

    def by_id(self, event_id: str) -> ModelProfileScored | None:
        where = f"event_id = {quoted(event_id)} ORDER BY src_partition, src_offset LIMIT 1"
        rows = self.ask(f"SELECT r.*, {ENTRIES} FROM rankings r WHERE {where}", 1)
        return ranking_of(rows[0]) if rows else None

    def policy(self, event_id: str) -> Recorded[ScoringPolicyUpdated] | None:
        rows = self.ask(
            f"SELECT * FROM policies WHERE event_id = {quoted(event_id)}"
            " ORDER BY src_offset LIMIT 1",
            1,
        )
        return policy_of(rows[0]) if rows else None

    def _rankings(self, wanted: Wanted, key: str) -> list[ModelProfileScored]:
        statuses = ", ".join(quoted(status) for status in wanted.status)
        tests = [f"status IN ({statuses})"]
        for column, sign, value in (
            ("role", "=", wanted.role),
            ("deployment_mode", "=", wanted.mode),
            ("as_of_ms", "<=", wanted.at_ms),
            ("as_of_ms", ">=", wanted.from_ms),
            ("as_of_ms", "<", wanted.to_ms),
        ):
            if value is not None:
                literal = quoted(value) if isinstance(value, str) else str(value)
                tests.append(f"{column} {sign} {literal}")
        found: list[ModelProfileScored] = []
        while True:
            rows = self.ask(
                f"WITH chosen AS (SELECT * FROM rankings WHERE {' AND '.join(tests)}"
                f" QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {NEWEST_GENERATION}) = 1"
                f" ORDER BY role, deployment_mode, as_of_ms, status"
                f" LIMIT {MOST} OFFSET {len(found)})"
                f" SELECT r.*, {ENTRIES} FROM chosen r",
                MOST,
            )
            found += [ranking_of(row) for row in rows]
            if len(rows) < MOST:
                return sorted(found, key=_place)


def quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def ranking_of(row: Row) -> ModelProfileScored:
    """A ranking from its row of `rankings` with its entries as a JSON list."""
    leader = None
    if row["challenger_closes"] is not None:  # the others are null where no model qualified
        leader = {
            "provider": row["leader_provider"],
            "model": row["leader_model"],
            "since_ms": row["leader_since_ms"],
            "challenger_provider": row["challenger_provider"],
            "challenger_model": row["challenger_model"],
            "closes": row["challenger_closes"],
        }
    before = row["leader_before"]
    fields = {
        **row,
        "marks": json.loads(row["marks"]),
        "inputs": json.loads(row["inputs"]),
        "leader": leader,
        "leader_before": None if before is None else json.loads(before),
        "entries": [_entry(entry) for entry in json.loads(row["entries"] or "[]")],
    }
    known = ModelProfileScored.model_fields
    return ModelProfileScored.model_validate({k: v for k, v in fields.items() if k in known})


def _entry(row: Row) -> Row:
    from schemas.model_profile import RankingEntry

    lists = {name: row[name] for name in ("terms", "benchmarks", "parts")}
    texts = {k: json.loads(v) if isinstance(v, str) else v for k, v in lists.items()}
    return {k: v for k, v in {**row, **texts}.items() if k in RankingEntry.model_fields}


def policy_of(row: Row) -> Recorded[ScoringPolicyUpdated]:
    """A policy from its row of `policies`."""
    known = ScoringPolicyUpdated.model_fields
    fields = {k: v for k, v in row.items() if k in known}
    at = Position(
        SCORING_POLICY_UPDATED.name, row["src_partition"], row["src_offset"], row["append_ms"]
    )
    event = ScoringPolicyUpdated.model_validate(
        {**fields, "benchmarks": json.loads(row["benchmarks"])}
    )
    return Recorded(event, at, None)


# --- the log

Rank = tuple[int, int, int, int]  # generation, as_of, revision, -offset: the first of an id counts


@dataclass(frozen=True, slots=True)
class Log:
    """From the topics: reads what it is asked for anew each time."""

    settings: Settings

    def standing(self, wanted: Wanted) -> list[ModelProfileScored]:
        if wanted.at_ms is None:  # most often the newest of all stands near the end
            near = self._read(wanted, lambda as_of_ms: None, self._near_end())
            if _complete(near, wanted):
                return near
        return self._read(wanted, lambda as_of_ms: None)

    def history(self, wanted: Wanted) -> list[ModelProfileScored]:
        return self._read(wanted, lambda as_of_ms: as_of_ms)

    def by_id(self, event_id: str) -> ModelProfileScored | None:
        text = event_id.encode()
        with Registry(self.settings.need_registry()) as registry:
            catalogue = Catalogue(registry, topics=())
            for message in self._messages(None):
                value = message.value()
                if isinstance(value, bytes) and text in value[:1024]:
                    found = _decoded(catalogue, message)
                    if found is not None and found.event_id == event_id:
                        return found
        return None

    def policy(self, event_id: str) -> Recorded[ScoringPolicyUpdated] | None:
        found = events(self.settings, SCORING_POLICY_UPDATED, ScoringPolicyUpdated)
        return next((r for r in found if r.event.event_id == event_id), None)

    def _near_end(self) -> dict[int, int]:
        client = kafka.consumer(self.settings.need_kafka(), "roster-reader")
        name = MODEL_PROFILE_SCORED.name
        try:
            return {
                p: max(first, end - NEWEST_RANKINGS)
                for p in kafka.partitions(client, name)
                for first, end in [kafka.watermarks(client, name, p)]
            }
        finally:
            client.close()

    def _messages(self, start: dict[int, int] | None) -> Iterator[Message]:
        return kafka.read_to_end(self.settings.need_kafka(), MODEL_PROFILE_SCORED.name, start)

    def _read(
        self,
        wanted: Wanted,
        group: Callable[[int], int | None],
        start: dict[int, int] | None = None,
    ) -> list[ModelProfileScored]:
        """The best ranking per key, status and group of its time; only these are decoded."""
        best: dict[tuple[bytes, str, int | None], tuple[Rank, Message]] = {}
        with Registry(self.settings.need_registry()) as registry:
            catalogue = Catalogue(registry, topics=())
            for message in self._messages(start):
                key, said = message.key(), _summary(catalogue, message)
                if said is None or not isinstance(key, bytes):
                    continue
                if not wanted.takes(key.decode("utf-8", "replace"), said.status, said.as_of_ms):
                    continue
                rank = (said.generation, said.as_of_ms, said.revision, -(message.offset() or 0))
                place = (key, said.status, group(said.as_of_ms))
                if place not in best or rank > best[place][0]:
                    best[place] = rank, message
            found = [_decoded(catalogue, message) for _, message in best.values()]
        return sorted((r for r in found if r is not None), key=_place)


def _summary(catalogue: Catalogue, message: Message) -> Summary | None:
    said = summary(message)
    if said is not None:
        return said
    event = _decoded(catalogue, message)
    if event is None:
        return None
    return Summary(event.status.value, event.as_of_ms, event.revision, event.generation)


def _decoded(catalogue: Catalogue, message: Message) -> ModelProfileScored | None:
    found = decode(catalogue, message)
    return cast(ModelProfileScored, found.event) if isinstance(found, Recorded) else None


def _complete(found: Sequence[ModelProfileScored], wanted: Wanted) -> bool:
    """Whether what stands near the end is all that was asked for: one role and mode, every
    status."""
    if wanted.role is None or wanted.mode is None:
        return False
    return {r.status.value for r in found} == set(wanted.status)


def _place(ranking: ModelProfileScored) -> tuple[str, str, bool, int]:
    final = ranking.status is RankingStatus.FINAL
    return ranking.role, ranking.deployment_mode, not final, ranking.as_of_ms


# --- either


def answered(settings: Settings, question: Callable[[Source], T]) -> T:
    """The answer of the projector's tables if it runs, else of the log. Raises RosterError."""
    address = sql.api_address(settings)
    if address is not None:
        try:
            return question(Tables(lambda text, most: rows(sql.post(address, text, most))))
        except (httpx.TransportError, RosterError):
            pass  # it has just ended, or cannot answer: the log can
    return question(Log(settings))


def rows(answer: Row) -> list[Row]:
    """An answer of the read path as rows by column."""
    return [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]


def mode_change(
    settings: Settings, deployment: str, at_ms: int | None = None
) -> Recorded[ModeChanged] | None:
    """The change that a deployment's mode follows from at an event time, as in the view `modes`;
    None: now."""
    until = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    return max(
        (
            recorded
            for recorded in events(settings, MODE_CHANGED, ModeChanged)
            if recorded.event.deployment == deployment and recorded.event.occurred_at_ms <= until
        ),
        key=lambda r: (r.event.occurred_at_ms, r.at.partition, r.at.offset),
        default=None,
    )


def mode_in_force(settings: Settings, at_ms: int | None = None) -> str:
    """Mode of this deployment at an event time; None: now. Raises Unreachable if it had set none
    by then."""
    found = mode_change(settings, settings.deployment, at_ms)
    if found is None:
        when = "has never set a mode" if at_ms is None else "had set no mode by then"
        raise Unreachable(f"deployment {settings.deployment} {when}: name one with --mode")
    return canonical_mode(found.event.to_mode)


def chosen(role: str | None, mode: str | None, **more: Any) -> Wanted:
    """Rankings of a role and mode under their canonical names."""
    return Wanted(
        None if role is None else canonical_role(role),
        None if mode is None else canonical_mode(mode),
        **more,
    )

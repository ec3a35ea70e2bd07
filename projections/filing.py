"""One fetch -> one transaction: rows, sums, conclusions, counters and next offsets together."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
from confluent_kafka import Message

from projections import budgets, history, ledger, outbox, panes
from projections.intake import Fetched, Place
from projections.known_ids import Fingerprints
from projections.outbox import Letter
from projections.store import batch
from schemas import BudgetUpdated, ClockTick, Event, HeadedEvent, RateCardUpdated, Recorded
from schemas.budget import SourceOffset
from schemas.pricing import Card, card_of
from schemas.rate_card import PriceUnit
from streams.batch import InvocationBatch, decode_invocations
from streams.codec import Undecodable, decode, encode, position
from streams.registry import Catalogue
from streams.topics import (
    BUDGET_THRESHOLD_CROSSED,
    BUDGET_UPDATED,
    DEAD_LETTERS,
    LLM_INVOCATION,
    MODEL_QUALITY_OBSERVED,
    RATE_CARD_UPDATED,
)

SOURCE: Final = "projector"
STANDARD: Final = panes.Cut()


@dataclass(slots=True)
class Counters:
    """Conservation of one partition: consumed is the sum of the six that follow it."""

    next_offset: int
    first_offset: int
    consumed: int = 0
    applied: int = 0
    duplicate: int = 0
    late: int = 0
    dead_lettered: int = 0
    conflict: int = 0
    control: int = 0
    newest_ms: int | None = None  # latest event or tick, where panes are counted

    def count(self, verdict: str) -> None:
        """Adds one record of a verdict."""
        setattr(self, verdict, getattr(self, verdict) + 1)


COLUMNS: Final = tuple(f.name for f in fields(Counters))
LAW: Final = tuple(name for name in COLUMNS if not name.endswith(("_offset", "_ms")))


@dataclass(slots=True)
class State:
    """What is kept in memory. All of it follows from the file; after a rollback load it again."""

    counters: dict[Place, Counters]
    cards: ledger.Cards
    budgets: budgets.Budgets
    outbox: outbox.Outbox
    known: Fingerprints
    partials: int  # rows of cost_panes appended since they were merged
    panes: panes.Panes

    def law(self) -> dict[str, int]:
        """The conservation counters, summed over all partitions."""
        return {name: sum(getattr(c, name) for c in self.counters.values()) for name in LAW}


def load(db: duckdb.DuckDBPyConnection, cut: panes.Cut = STANDARD) -> State:
    """The state that follows from the file. Raises BadConfiguration if its panes were cut
    otherwise."""
    counters = {
        (topic, partition): Counters(*values)
        for topic, partition, *values in db.execute(
            f"SELECT topic, partition, {', '.join(COLUMNS)} FROM projection_offsets"
        ).fetchall()
    }
    cards: ledger.Cards = {}
    for provider, model, unit, *card in db.execute(
        "SELECT provider, model, unit, version, src_offset, append_ms, valid_from_ms, valid_to_ms,"
        " price_picousd_per_million FROM counted_rate_cards"
    ).fetchall():
        ledger.add_card(cards, (provider, model), PriceUnit(unit), Card(*card))
    newest = {place: c.newest_ms for place, c in counters.items() if c.newest_ms is not None}
    return State(
        counters=counters,
        cards=cards,
        budgets=budgets.load(db),
        outbox=outbox.load(db),
        known=ledger.load_known(db),
        partials=0,
        panes=panes.load(db, cut, newest),
    )


@dataclass(frozen=True, slots=True)
class Decoded:
    """A fetch as values. others: topic -> events and their records, aligned."""

    invocations: InvocationBatch
    others: dict[str, tuple[list[Recorded[Event]], list[Message]]]
    bad: list[Undecodable]

    def events(self, topic: str) -> list[Recorded[Event]]:
        """The events of one of the other topics."""
        return self.others.get(topic, ([], []))[0]


def decoded(catalogue: Catalogue, fetched: Fetched) -> Decoded:
    """Decodes a fetch. Waits while the registry does not answer for an unknown schema id."""
    hot: list[Message] = []
    rest = list(fetched.statements)
    for message in fetched.records:
        (hot if message.topic() == LLM_INVOCATION.name else rest).append(message)
    invocations = decode_invocations(catalogue, hot)
    others: dict[str, tuple[list[Recorded[Event]], list[Message]]] = {}
    bad = list(invocations.bad)
    for message in rest:
        outcome = decode(catalogue, message)
        if isinstance(outcome, Recorded):
            events, messages = others.setdefault(outcome.at.topic, ([], []))
            events.append(outcome)
            messages.append(message)
        else:
            assert isinstance(outcome, Undecodable), "tombstones stand on internal topics only"
            bad.append(outcome)
    return Decoded(invocations, others, bad)


def apply(
    db: duckdb.DuckDBPyConnection,
    catalogue: Catalogue,
    state: State,
    fetched: Fetched,
    values: Decoded,
) -> None:
    """Files a fetch; call it in a transaction. After a rollback state is of no use any more."""
    holes = fetched.holes({place: c.next_offset for place, c in state.counters.items()})
    for place, offset in fetched.next_offsets.items():
        mine = state.counters[place]
        mine.control += holes[place]
        mine.consumed += offset - mine.next_offset
        mine.next_offset = offset
    letters: list[Letter] = []
    for bad in values.bad:
        state.counters[bad.at.topic, bad.at.partition].dead_lettered += 1
        letters.extend(_dead_letter(catalogue, bad))
    statements: dict[str, list[Recorded[Event]]] = {}  # those whose id is new
    for topic in values.others:
        judged, conflicts = _file_history(db, catalogue, state, topic, values)
        statements[topic] = [j.recorded for j in judged if j.verdict == "applied"]
        letters.extend(conflicts)
    for card in statements.get(RATE_CARD_UPDATED.name, ()):
        assert isinstance(card.event, RateCardUpdated)
        who = (card.event.provider, card.event.model)
        ledger.add_card(state.cards, who, card.event.unit, card_of(card.event, card.at))
    updates = [
        record.event
        for record in statements.get(BUDGET_UPDATED.name, ())
        if isinstance(record.event, BudgetUpdated)
    ]
    letters.extend(_charge(db, catalogue, state, fetched, values, updates))
    outbox.post(db, state.outbox, letters)
    if state.partials > ledger.COMPACT_AFTER:
        ledger.compact(db)
        state.partials = 0
    panes.tidy(db, state.panes)
    for place in fetched.next_offsets:
        state.counters[place].newest_ms = state.panes.newest.get(place)
    save(db, {place: state.counters[place] for place in fetched.next_offsets})


def _file_history(
    db: duckdb.DuckDBPyConnection, catalogue: Catalogue, state: State, topic: str, values: Decoded
) -> tuple[list[history.Judged], list[Letter]]:
    """Files the records of one of the other topics: verdicts, and the dead letters of conflicts."""
    told, framed = values.others[topic]
    records: list[Recorded[Event]] = []
    messages: list[Message] = []
    ticks: list[Recorded[ClockTick]] = []
    for record, message in zip(told, framed, strict=True):
        if isinstance(record.event, ClockTick):
            state.counters[topic, record.at.partition].control += 1
            ticks.append(Recorded(record.event, record.at, record.key))
        else:
            records.append(record)
            messages.append(message)
    judged = history.file(db, topic, records, [_value(m) for m in messages])
    if topic == MODEL_QUALITY_OBSERVED.name:
        panes.observe(db, state.panes, judged, ticks)
    letters: list[Letter] = []
    for one, message in zip(judged, messages, strict=True):
        state.counters[topic, one.recorded.at.partition].count(one.verdict)
        if one.verdict == "conflict":
            letters.extend(_dead_letter(catalogue, _conflict(message, one.first_offset)))
    if topic in outbox.TOPICS:
        headed = (r.event for r in records)
        outbox.shown(db, state.outbox, [e.event_id for e in headed if isinstance(e, HeadedEvent)])
    return judged, letters


def _charge(
    db: duckdb.DuckDBPyConnection,
    catalogue: Catalogue,
    state: State,
    fetched: Fetched,
    values: Decoded,
    new_budgets: list[BudgetUpdated],
) -> Iterator[Letter]:
    """Files the invocations; yields the dead letters of conflicts, and the thresholds crossed."""
    invocations = values.invocations
    rows = invocations.table
    watched = state.budgets.tenants() | {budget.tenant for budget in new_budgets}
    filed = ledger.file(db, rows, invocations.bodies, state.cards, state.known, watched)
    state.partials += filed.partials
    panes.charge(db, state.panes, rows, filed, invocations.ticks)

    partition = rows.column("partition").to_numpy()
    counters = {p: c for (topic, p), c in state.counters.items() if topic == LLM_INVOCATION.name}
    for p, n in enumerate(np.bincount(partition[filed.applied]).tolist()):
        if n:
            counters[p].applied += n
    for row in filed.duplicates.tolist():
        counters[int(partition[row])].duplicate += 1
    for tick in invocations.ticks:
        counters[tick.at.partition].control += 1
    if filed.conflicts:
        offset = rows.column("offset").to_numpy()
        first = {
            (int(partition[c.row]), int(offset[c.row])): c.first_offset for c in filed.conflicts
        }
        for message in fetched.records:
            place = (message.partition() or 0, message.offset() or 0)
            if message.topic() == LLM_INVOCATION.name and place in first:
                counters[place[0]].conflict += 1
                yield from _dead_letter(catalogue, _conflict(message, first[place]))

    at_offsets = tuple(
        SourceOffset(topic=LLM_INVOCATION.name, partition=p, next_offset=counters[p].next_offset)
        for p in sorted(counters)
    )
    for crossing in budgets.crossed(db, state.budgets, new_budgets, filed.spends, at_offsets):
        yield Letter(
            crossing.event_id,
            BUDGET_THRESHOLD_CROSSED.name,
            f"{crossing.tenant}/{crossing.budget}".encode(),
            encode(catalogue, BUDGET_THRESHOLD_CROSSED, crossing),
        )


def _value(message: Message) -> bytes:
    value = message.value()
    assert isinstance(value, bytes), "a decoded record has a value"
    return value


def _conflict(message: Message, first_offset: int) -> Undecodable:
    key = message.key()
    return Undecodable(
        position(message),
        key if isinstance(key, bytes) else None,
        _value(message),
        tuple(message.headers() or ()),  # type: ignore[arg-type]  # client stubs: header values
        "id_conflict",
        f"the same id with another body stands at offset {first_offset}; the first one counts",
    )


def _dead_letter(catalogue: Catalogue, bad: Undecodable) -> Iterator[Letter]:
    """The dead letter of a record; none for a bad record among the dead letters themselves."""
    if bad.at.topic != DEAD_LETTERS.name:
        event = bad.as_event(SOURCE)
        key = f"{bad.at.topic}/{bad.at.partition}/{bad.at.offset}".encode()
        yield Letter(event.event_id, DEAD_LETTERS.name, key, encode(catalogue, DEAD_LETTERS, event))


def save(db: duckdb.DuckDBPyConnection, counters: dict[Place, Counters]) -> None:
    """Writes counters and next offsets of partitions; call it in a transaction."""
    if not counters:
        return
    columns: dict[str, list[str] | list[int] | list[int | None]] = {
        "topic": [topic for topic, _ in counters],
        "partition": [partition for _, partition in counters],
    }
    for name in COLUMNS:
        columns[name] = [getattr(c, name) for c in counters.values()]
    with batch(db, pa.table(columns)):
        db.execute("INSERT OR REPLACE INTO projection_offsets BY NAME SELECT * FROM batch")


def begin(db: duckdb.DuckDBPyConnection, state: State, next_offsets: dict[Place, int]) -> None:
    """Makes and writes counters for partitions that the file does not know yet."""
    fresh = {p: Counters(o, o) for p, o in next_offsets.items() if p not in state.counters}
    state.counters.update(fresh)
    save(db, fresh)

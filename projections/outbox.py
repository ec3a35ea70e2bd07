"""What the projection concludes, on its way into the log.

A row enters with the transaction that concluded it and leaves with the transaction that files it
from its topic: the log itself acknowledges. So after a crash nothing is lost, and what had arrived
is not sent again, once the topics have been read to the end they had at the start.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import duckdb
import pyarrow as pa

from projections.store import batch, insert
from streams.kafka import Outbound
from streams.topics import BUDGET_THRESHOLD_CROSSED, DEAD_LETTERS

TOPICS: Final = (BUDGET_THRESHOLD_CROSSED.name, DEAD_LETTERS.name)
"""Topics that the projection writes, and files like any other."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A record to be sent."""

    event_id: str
    topic: str
    record_key: bytes
    value: bytes


@dataclass(slots=True)
class Outbox:
    """Letters that the log has not yet shown. A cache of the table: loaded again after a rollback.

    sent: ids that this process has handed to the broker.
    """

    waiting: dict[str, Letter] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)

    def send(self, outbound: Outbound) -> int:
        """Sends what was not sent yet; returns how many. Raises Unreachable; then try again."""
        due = [letter for key, letter in self.waiting.items() if key not in self.sent]
        for letter in due:
            outbound.send(letter.topic, letter.record_key, letter.value)
        if due:
            outbound.flush()
            self.sent.update(letter.event_id for letter in due)
        return len(due)


def load(db: duckdb.DuckDBPyConnection) -> Outbox:
    """The letters that the file holds, in their order."""
    rows = db.execute("SELECT event_id, topic, record_key, value FROM outbox").fetchall()
    return Outbox({row[0]: Letter(row[0], row[1], bytes(row[2]), bytes(row[3])) for row in rows})


def post(db: duckdb.DuckDBPyConnection, outbox: Outbox, letters: Sequence[Letter]) -> None:
    """Adds letters, but for those that the log has shown already; call it in a transaction."""
    fresh = {v.event_id: v for v in letters if v.event_id not in outbox.waiting}
    if not fresh:
        return
    with batch(db, pa.table({"event_id": pa.array(list(fresh), pa.string())}), "probe"):
        shown = db.execute(
            "SELECT event_id FROM dead_letters SEMI JOIN probe USING (event_id)"
            " UNION ALL SELECT event_id FROM budget_thresholds SEMI JOIN probe USING (event_id)"
        ).fetchall()
    for (event_id,) in shown:
        fresh.pop(event_id, None)
    insert(
        db,
        "outbox",
        [
            {"event_id": v.event_id, "topic": v.topic, "record_key": v.record_key, "value": v.value}
            for v in fresh.values()
        ],
    )
    outbox.waiting |= fresh


def shown(db: duckdb.DuckDBPyConnection, outbox: Outbox, event_ids: Iterable[str]) -> None:
    """Removes letters that have been filed from the log; call it in the same transaction."""
    gone = [event_id for event_id in event_ids if event_id in outbox.waiting]
    if not gone:
        return
    with batch(db, pa.table({"event_id": pa.array(gone, pa.string())}), "probe"):
        db.execute("DELETE FROM outbox WHERE event_id IN (SELECT event_id FROM probe)")
    for event_id in gone:
        del outbox.waiting[event_id]
        outbox.sent.discard(event_id)

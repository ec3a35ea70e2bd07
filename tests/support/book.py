"""A projector's file that takes events without a broker."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from projections import filing, history, ledger, panes, store
from projections.filing import Counters
from projections.known_ids import Fingerprints
from schemas import Event, HeadedEvent, LlmInvocation, Position, Recorded
from schemas.avro import encode
from streams import topics
from streams.batch import arrow_schema
from streams.topics import Topic

APPENDED = 1_900_000_000_000


class Book:
    """Its methods file events at growing offsets of partition 0."""

    def __init__(self, folder: Path) -> None:
        self.db = store.connect(folder / store.FILE)
        self.panes = filing.load(self.db).panes
        self.known = Fingerprints()
        self.ends: dict[str, int] = defaultdict(int)

    def say(self, topic: Topic, *events: HeadedEvent) -> None:
        records: list[Recorded[Event]] = []
        for event in events:
            at = Position(topic.name, 0, self.ends[topic.name], self.ends[topic.name])
            self.ends[topic.name] += 1
            records.append(Recorded(event, at, b"key"))
        judged = history.file(self.db, topic.name, records, [encode(e) for e in events])
        if topic is topics.MODEL_QUALITY_OBSERVED:
            panes.observe(self.db, self.panes, judged, [])
        self._save(topic)

    def call(self, *events: LlmInvocation) -> None:
        rows = [
            {**e.model_dump(mode="json"), "partition": 0, "offset": i, "append_ms": APPENDED}
            for i, e in enumerate(events, self.ends[topics.LLM_INVOCATION.name])
        ]
        self.ends[topics.LLM_INVOCATION.name] += len(rows)
        table = pa.Table.from_pylist(rows, schema=arrow_schema())
        filed = ledger.file(self.db, table, [encode(e) for e in events], {}, self.known)
        panes.charge(self.db, self.panes, table, filed, [])
        self._save(topics.LLM_INVOCATION)

    def _save(self, topic: Topic) -> None:
        place = (topic.name, 0)
        newest = self.panes.newest.get(place)
        filing.save(self.db, {place: Counters(self.ends[topic.name], 0, newest_ms=newest)})

    def rows(self, sql: str) -> list[Any]:
        return self.db.execute(sql).fetchall()

    def table(self, sql: str) -> list[dict[str, Any]]:
        found = self.db.execute(sql)
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

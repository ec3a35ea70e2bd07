"""The projector's way into the log: every filed topic, from the positions that the file holds."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from streams.errors import LogDamaged, Unreachable
from streams.kafka import consumer, drain, partitions, sound
from streams.topics import BUDGET_UPDATED, LLM_INVOCATION, RATE_CARD_UPDATED, TOPICS

Place = tuple[str, int]
"""Topic and partition."""

FILED: Final = tuple(topic for topic in TOPICS if topic.events and not topic.internal)
STATEMENTS: Final = (RATE_CARD_UPDATED.name, BUDGET_UPDATED.name)
"""Read to their end after each fetch of invocations, before these are priced (design, Exactness):
a card that was appended before an invocation is then known, whenever either is read."""
MOST: Final = 122_880  # records per transaction: DuckDB's row group
BUSY: Final = 2_000  # so many at once are a backlog: larger transactions are cheaper
FILL_S: Final = 0.25
END_WITHIN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """invocation-and-other records, statements, and where reading now stands."""

    records: list[Message]
    statements: list[Message]
    next_offsets: dict[Place, int]  # of the partitions that moved
    seen: Counter[Place]  # records per partition

    def holes(self, before: Mapping[Place, int]) -> dict[Place, int]:
        """Per moved partition the offsets without a record: markers of transactions."""
        return {
            place: offset - before[place] - self.seen[place]
            for place, offset in self.next_offsets.items()
        }


class Intake:
    """Two consumers with assigned positions. Not thread-safe."""

    def __init__(self, bootstrap: str, stored: Mapping[Place, int]) -> None:
        """stored: next offset per partition; others are read from their beginning.

        Raises Unreachable; LogDamaged if the log does not hold what the positions ask for.
        """
        self._main = consumer(bootstrap, "roster-projector", queued_min_messages=200_000)
        self._statements = consumer(bootstrap, "roster-projector-statements")
        self.note = ""
        try:
            self.next = self._positions(stored)
            for client, mine in ((self._main, False), (self._statements, True)):
                client.assign(
                    [
                        TopicPartition(topic, partition, offset)
                        for (topic, partition), offset in self.next.items()
                        if (topic in STATEMENTS) is mine
                    ]
                )
        except BaseException:
            self.close()
            raise

    def _positions(self, stored: Mapping[Place, int]) -> dict[Place, int]:
        found = {}
        for topic in FILED:
            for partition in partitions(self._main, topic.name):
                low, high = self._span(self._main, (topic.name, partition))
                wanted = stored.get((topic.name, partition), low)
                if not low <= wanted <= high:
                    raise LogDamaged(
                        f"{topic.name}[{partition}]: the projection stands at offset {wanted}, the"
                        f" log holds {low} to {high}; if that log is the right one, remove"
                        " roster.duckdb and it is made again from what is left"
                    )
                found[topic.name, partition] = wanted
        return found

    def _span(self, client: Consumer, place: Place) -> tuple[int, int]:
        try:
            low, high = client.get_watermark_offsets(TopicPartition(*place), timeout=10.0)
        except KafkaException as error:
            raise Unreachable(f"the broker does not answer: {error.args[0].str()}") from None
        return int(low), int(high)

    def ends(self, topics: Iterable[str]) -> dict[Place, int]:
        """Where the partitions of these topics end now."""
        return {
            place: self._span(self._main, place)[1] for place in self.next if place[0] in topics
        }

    def fetch(self, wait_s: float) -> Fetched:
        """What is there now, waiting up to wait_s for the first record. Moves on: what is fetched
        must be filed, or the intake be made anew."""
        records = self._sound(drain(self._main, wait_s))
        if len(records) >= BUSY:
            until = time.monotonic() + FILL_S
            while len(records) < MOST and time.monotonic() < until:
                few = min(10_000, MOST - len(records))
                records.extend(self._sound(self._main.consume(few, timeout=0.02)))
        priced = any(m.topic() == LLM_INVOCATION.name for m in records)
        statements = self._to_end() if priced else self._sound(drain(self._statements, 0))
        seen = Counter((m.topic() or "", m.partition() or 0) for m in (*records, *statements))
        moved = self._moved()
        self.next |= moved
        return Fetched(records, statements, moved, seen)

    def _sound(self, messages: list[Message]) -> list[Message]:
        """Records only. What the client reports besides is noted until records come again."""
        good, said = sound(messages)
        if good or said:
            self.note = said
        return good

    def _to_end(self) -> list[Message]:
        """Statements up to their end as it is now."""
        ends = {
            place: self._span(self._statements, place)[1]
            for place in self.next
            if place[0] in STATEMENTS
        }
        found: list[Message] = []
        until = time.monotonic() + END_WITHIN_S
        while True:
            found.extend(self._sound(drain(self._statements, 0)))
            here = self._moved(statements=True)
            if all(here.get(place, self.next[place]) >= end for place, end in ends.items()):
                return found
            if time.monotonic() > until:
                raise Unreachable(f"{', '.join(STATEMENTS)}: their end could not be read")
            found.extend(self._sound(drain(self._statements, 0.005)))

    def _moved(self, *, statements: bool | None = None) -> dict[Place, int]:
        """New positions of partitions that moved; they pass trailing markers of transactions."""
        found = {}
        for client, mine in ((self._main, False), (self._statements, True)):
            if statements is not None and statements is not mine:
                continue
            asked = [TopicPartition(t, p) for t, p in self.next if (t in STATEMENTS) is mine]
            for at in client.position(asked):
                if at.offset > self.next[at.topic, at.partition]:
                    found[at.topic, at.partition] = at.offset
        return found

    def lags(self) -> dict[Place, int]:
        """Records that are there and not yet fetched, as far as the client knows."""
        found = {}
        for (topic, partition), offset in self.next.items():
            client = self._statements if topic in STATEMENTS else self._main
            try:
                _, high = client.get_watermark_offsets(
                    TopicPartition(topic, partition), cached=True
                )
            except KafkaException:
                continue
            found[topic, partition] = max(0, int(high) - offset)
        return found

    def close(self) -> None:
        """Closes both consumers."""
        self._main.close()
        self._statements.close()

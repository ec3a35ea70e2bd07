"""Reads control topics to their end: all events, the newest of each key, the newest rankings."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar, cast

from confluent_kafka import Consumer, Message, TopicPartition

from schemas import Event, HeadedEvent, ModelProfileScored, Recorded
from schemas.model_profile import RankingStatus
from streams import kafka
from streams.codec import Tombstone, Undecodable, decode
from streams.ranking_header import summary
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.topics import MODEL_PROFILE_SCORED, Topic

NEWEST_RANKINGS: Final = 2_000
"""Records per partition that are looked through from the end: far more than the keys' number."""

E = TypeVar("E", bound=Event)
Rank = tuple[int, int, bool, int, int]  # generation, as_of, final, revision, offset


def records(
    settings: Settings, topic: Topic
) -> Iterator[Recorded[Event] | Tombstone | Undecodable]:
    """Every record of a small topic up to its present end, in the order of each partition.

    Raises Unreachable, LogDamaged (no such topic)."""
    with Registry(settings.need_registry()) as registry:
        catalogue = Catalogue(registry, topics=())
        for message in kafka.read_to_end(settings.need_kafka(), topic.name):
            yield decode(catalogue, message)


def events(settings: Settings, topic: Topic, kind: type[E]) -> list[Recorded[E]]:
    """The good events of one type, of each id the first. Raises as records."""
    return [
        found
        for found in _first_of_id(records(settings, topic))
        if isinstance(found, Recorded) and isinstance(found.event, kind)
    ]


def _first_of_id(found: Iterable[Any]) -> Iterator[Any]:
    """Without repeats: whatever bears an id again, same or other body, no fold takes."""
    seen: set[tuple[object, ...]] = set()
    for record in found:
        if isinstance(record, Recorded) and isinstance(record.event, HeadedEvent):
            event = record.event
            identity = (record.at.partition, event.tenant, event.source, event.event_id)
            if identity in seen:
                continue
            seen.add(identity)
        yield record


def newest(settings: Settings, topic: Topic, kind: type[E]) -> dict[bytes, Recorded[E]]:
    """The newest event of each key, by key; a tombstone removes one. Raises as records."""
    found: dict[bytes, Recorded[E]] = {}
    for record in _first_of_id(records(settings, topic)):
        if isinstance(record, Tombstone):
            found.pop(record.key, None)
        elif isinstance(record, Recorded) and isinstance(record.event, kind):
            found[record.key or b""] = record
    return dict(sorted(found.items()))


class Rankings:
    """The newest ranking of each role and mode. Records are decoded only when they are asked for:
    while the past is filled in, thousands are out of date before anybody looks."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._newest: dict[bytes, tuple[Rank, Message]] = {}
        self._decoded: dict[bytes, tuple[Rank, ModelProfileScored]] = {}
        self.seen = 0

    def take(self, messages: list[Message]) -> None:
        """Notes records of model.profile.scored."""
        for message in messages:
            key = message.key()
            rank = self._rank(message)
            if rank is None or not isinstance(key, bytes):
                continue
            with self._lock:
                self.seen += 1
                known = self._newest.get(key)
                if known is None or rank >= known[0]:
                    self._newest[key] = (rank, message)

    def now(self) -> list[ModelProfileScored]:
        """The newest ranking of each key, by role and mode."""
        with self._lock:
            wanted = list(self._newest.items())
        found = []
        for key, (rank, message) in wanted:
            known = self._decoded.get(key)
            if known is None or known[0] != rank:
                record = decode(self._catalogue, message)
                if not isinstance(record, Recorded):
                    continue
                known = (rank, cast(ModelProfileScored, record.event))
                self._decoded[key] = known
            found.append(known[1])
        return sorted(found, key=lambda r: (r.role, r.deployment_mode))

    def _rank(self, message: Message) -> Rank | None:
        offset = message.offset() or 0
        said = summary(message)
        if said is not None:
            final = said.status == RankingStatus.FINAL
            return said.generation, said.as_of_ms, final, said.revision, offset
        found = decode(self._catalogue, message)
        if not isinstance(found, Recorded) or not isinstance(found.event, ModelProfileScored):
            return None
        event = found.event
        final = event.status is RankingStatus.FINAL
        return event.generation, event.as_of_ms, final, event.revision, offset


def newest_rankings(settings: Settings) -> list[ModelProfileScored]:
    """The newest ranking of each role and mode, by role and mode. Raises as records."""
    bootstrap = settings.need_kafka()
    client = kafka.consumer(bootstrap, "roster-reader")
    try:
        start = {
            p: max(first, end - NEWEST_RANKINGS)
            for p in kafka.partitions(client, MODEL_PROFILE_SCORED.name)
            for first, end in [_watermarks(client, p)]
        }
    finally:
        client.close()
    with Registry(settings.need_registry()) as registry:
        rankings = Rankings(Catalogue(registry, topics=()))
        rankings.take(list(kafka.read_to_end(bootstrap, MODEL_PROFILE_SCORED.name, start)))
        return rankings.now()


def _watermarks(client: Consumer, partition: int) -> tuple[int, int]:
    at = TopicPartition(MODEL_PROFILE_SCORED.name, partition)
    first, end = client.get_watermark_offsets(at, timeout=10.0)
    return first, end

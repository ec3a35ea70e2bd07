"""How inputs are read: what a batch says, and that none is taken out of turn."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from confluent_kafka.cimpl import NewTopic
from faust.types import TP

from streams import kafka as clients
from streams.app import Batch, Reading, build, drain
from streams.settings import load


def record(offset: int) -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord("t", 0, offset, 0, 0, b"k", b"v", None, 1, 1, ())


def batch(start: int, end: int, *offsets: int) -> Batch:
    return Batch("t", 0, start, end, tuple(record(n) for n in offsets))


def test_a_batch_that_begins_where_the_reading_stands_is_taken_whole() -> None:
    assert Reading(0, 9, 4).admit(batch(4, 7, 4, 6)) == (record(4), record(6))


def test_of_a_batch_that_begins_below_only_the_rest_is_taken() -> None:
    assert Reading(0, 9, 5).admit(batch(2, 8, 2, 4, 5, 7)) == [record(5), record(7)]
    assert Reading(0, 9, 9).admit(batch(2, 8, 2, 4)) == []


def test_a_batch_that_begins_above_shows_that_something_is_missing() -> None:
    assert Reading(0, 9, 4).admit(batch(5, 7, 5)) is None
    assert Reading(0, 9, 4).admit(batch(5, 7)) is None


def test_a_reading_has_caught_up_at_the_end_that_was_there_when_it_began() -> None:
    assert not Reading(0, 3, 2).caught_up
    assert Reading(0, 3, 3).caught_up
    assert Reading(0, 0, 0).caught_up


@contextmanager
def topic(bootstrap: str) -> Iterator[str]:
    """A topic of one partition with 5 committed, 3 aborted and 2 committed records."""
    name = f"drain-{uuid4().hex}"
    admin = clients.admin(bootstrap)
    for future in admin.create_topics([NewTopic(name, 1, 1)]).values():
        future.result()
    producer = clients.producer(bootstrap, transactional_id=name)
    producer.init_transactions(30)
    for count, committed in ((5, True), (3, False), (2, True)):
        producer.begin_transaction()
        for n in range(count):
            producer.produce(name, b"%d" % n, b"key")
        producer.flush()
        producer.commit_transaction(30) if committed else producer.abort_transaction(30)
    yield name
    for future in admin.delete_topics([name]).values():
        future.result()


@pytest.mark.kafka
def test_batches_join_without_a_gap_over_markers_and_aborted_records(kafka: str) -> None:
    """Offsets 0-4 records, 5 marker, 6-8 aborted, 9 marker, 10-11 records, 12 marker."""

    async def read(name: str) -> list[Batch]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        consumer.assign([TopicPartition(name, 0)])
        await consumer.start()
        try:
            fetcher: Any = consumer._fetcher
            active: set[TP] = set()
            assert await drain(fetcher, active, 0.5, 3) == {}  # empty: none, not all
            assert fetcher._records != OrderedDict()  # and nothing was thrown away
            active.add(TP(name, 0))
            found: list[Batch] = []
            while not found or found[-1].end < 13:
                found.extend((await drain(fetcher, active, 5.0, 3)).values())
            return found
        finally:
            await consumer.stop()

    with topic(kafka) as name:
        found = asyncio.run(read(name))
    assert [b.start for b in found] == [0, *(b.end for b in found[:-1])]
    assert [r.offset for b in found for r in b.records] == [0, 1, 2, 3, 4, 10, 11]
    assert max(len(b.records) for b in found) == 3


def test_the_app_is_built_as_exactness_needs_it(tmp_path: Path) -> None:
    given = {
        "ROSTER_KAFKA": "localhost:1,localhost:2",
        "ROSTER_REGISTRY": "http://x",
        "ROSTER_DATA": str(tmp_path),
    }
    app = build(load(given), instance="one")
    assert [str(url) for url in app.conf.broker] == ["kafka://localhost:1", "kafka://localhost:2"]
    assert not app.in_transaction
    assert (app.conf.broker_session_timeout, app.conf.broker_rebalance_timeout) == (10.0, 3.0)
    assert app.conf.consumer_group_instance_id == "one"
    assert not app.conf.topic_allow_declare
    assert not app.conf.web_enabled
    assert type(app.transport).__name__ == "WholeLogTransport"

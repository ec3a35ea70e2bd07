"""Reading on and on, on a real broker."""

import threading
import time
from uuid import uuid4

from confluent_kafka import Message
from confluent_kafka.cimpl import NewTopic

from streams import kafka as clients
from streams.live_reader import LiveReader


def make(kafka: str, name: str, partitions: int) -> None:
    admin = clients.admin(kafka)  # named: it must outlive the request
    admin.create_topics([NewTopic(name, partitions, 1)])[name].result(10)


def fresh_topic(kafka: str) -> str:
    name = f"live-{uuid4().hex}"
    make(kafka, name, 2)
    return name


def fill(kafka: str, topic: str, numbers: range, **settings: object) -> None:
    outbound = clients.Outbound(clients.producer(kafka, **settings))
    for n in numbers:
        outbound.send(topic, b"k", str(n).encode(), partition=0)
    outbound.flush()


def test_it_takes_all_that_was_there_and_then_goes_on(kafka: str) -> None:
    topic = fresh_topic(kafka)
    fill(kafka, topic, range(1_000))
    seen: list[int] = []

    def take(messages: list[Message]) -> None:
        seen.extend(int(m.value() or b"") for m in messages)

    with LiveReader(kafka, [topic], take) as reader:
        assert reader.wait_ready(20)
        assert seen == list(range(1_000))
        fill(kafka, topic, range(1_000, 1_100))
        until = time.monotonic() + 10
        while len(seen) < 1_100 and time.monotonic() < until:
            time.sleep(0.01)
        assert seen == list(range(1_100))


def test_it_may_begin_near_the_end(kafka: str) -> None:
    topic = fresh_topic(kafka)
    fill(kafka, topic, range(100))
    seen: list[int] = []

    def take(messages: list[Message]) -> None:
        seen.extend(int(m.value() or b"") for m in messages)

    with LiveReader(kafka, [topic], take, {topic: 7}) as reader:
        assert reader.wait_ready(20)
    assert seen == list(range(93, 100))


def test_an_empty_topic_is_ready_and_a_marker_at_the_end_does_not_hold_it_up(kafka: str) -> None:
    topic = fresh_topic(kafka)
    with LiveReader(kafka, [topic], lambda _: None) as reader:
        assert reader.wait_ready(20)
    producer = clients.producer(kafka, transactional_id=f"t-{uuid4().hex}")
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(topic, b"1", b"k", partition=0)
    producer.commit_transaction(20)
    with LiveReader(kafka, [topic], lambda _: None) as reader:
        assert reader.wait_ready(20)
        until = time.monotonic() + 10
        while reader.staleness_ms() is None and time.monotonic() < until:
            time.sleep(0.01)
        staleness = reader.staleness_ms()
        assert staleness is not None and staleness < 5_000


def test_a_topic_that_comes_later_is_read_then(kafka: str) -> None:
    name = f"live-{uuid4().hex}"
    seen: list[bytes] = []
    with LiveReader(kafka, [name], lambda ms: seen.extend(m.value() or b"" for m in ms)) as reader:
        assert not reader.wait_ready(1.5)
        assert reader.trouble is not None and name in reader.trouble
        make(kafka, name, 1)
        fill(kafka, name, range(3))
        assert reader.wait_ready(20)
        assert reader.trouble is None
    assert not [t for t in threading.enumerate() if t.name == "roster-live-reader"]

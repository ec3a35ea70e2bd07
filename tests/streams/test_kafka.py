"""Clients on the real broker: partitions, committed reads, acknowledgements, ends."""

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from aiokafka.partitioner import DefaultPartitioner
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.cimpl import NewTopic

from streams import kafka as clients
from streams.errors import LogDamaged, Unreachable
from streams.kafka import COPIED_HEADER, Outbound, append_ms, copied_ms

NOWHERE = "127.0.0.1:1"


def make(bootstrap: str, partitions: int = 1, **config: str) -> str:
    """A fresh topic, asked for and not waited for: a leader may still be missing."""
    name = f"test-kafka-{uuid4().hex[:12]}"
    dotted = {k.replace("_", "."): v for k, v in config.items()}
    new = NewTopic(name, num_partitions=partitions, replication_factor=1, config=dotted)
    admin = clients.admin(bootstrap)  # must live until its future is done
    admin.create_topics([new])[name].result(20)
    return name


@pytest.fixture
def out(kafka: str) -> Iterator[Outbound]:
    made = Outbound(clients.producer(kafka))
    yield made
    made.flush()


def values(found: Iterator[Message]) -> list[bytes | str | None]:
    return [m.value() for m in found]


# --- partitions


def test_a_key_goes_where_java_and_aiokafka_would_send_it(kafka: str, out: Outbound) -> None:
    """1,000 keys: every language's producers and the agents' tables agree on the partition."""
    topic = make(kafka, partitions=7)
    keys = [f"tenant-{i}/{uuid4()}".encode() for i in range(990)]
    keys += [
        b"\x00",
        b"\xff" * 3,
        "ключ".encode(),
        b"a",
        b"ab",
        b"abc",
        b"abcd",
        b" ",
        b"/",
        b"x" * 999,
    ]
    for key in keys:
        out.send(topic, key, b"v")
    out.flush()
    found = {m.key(): m.partition() for m in clients.read_to_end(kafka, topic)}
    theirs = DefaultPartitioner()
    everything = list(range(7))
    assert found == {key: theirs(key, everything, everything) for key in keys}
    assert set(found.values()) == set(everything)


def test_partitions_are_told_in_order(kafka: str) -> None:
    topic = make(kafka, partitions=5)
    assert clients.partitions(clients.admin(kafka), topic) == [0, 1, 2, 3, 4]
    with pytest.raises(LogDamaged, match="roster topics --create"):
        clients.partitions(clients.admin(kafka), f"nowhere-{uuid4()}")
    with pytest.raises(Unreachable, match="broker"):
        clients.partitions(clients.admin(NOWHERE), topic, timeout_s=0.3)


# --- ends


def test_ends_are_told_at_once_of_a_topic_that_was_just_made(kafka: str) -> None:
    client = clients.consumer(kafka, "test-ends")
    try:
        for _ in range(3):
            topic = make(kafka, partitions=4)
            assert clients.end_offsets(client, topic) == {0: 0, 1: 0, 2: 0, 3: 0}
    finally:
        client.close()


def test_ends_follow_what_is_written(kafka: str, out: Outbound) -> None:
    topic = make(kafka, partitions=2)
    for _ in range(3):
        out.send(topic, b"k", b"v", partition=1)
    out.flush()
    client = clients.consumer(kafka, "test-ends")
    try:
        assert clients.end_offsets(client, topic) == {0: 0, 1: 3}
        assert clients.watermarks(client, topic, 1) == (0, 3)
    finally:
        client.close()


def test_the_silence_of_a_broker_is_one_line() -> None:
    client = clients.consumer(NOWHERE, "test-ends")
    try:
        with pytest.raises(Unreachable) as error:
            clients.watermarks(client, "t", 0, timeout_s=0.3)
        assert "\n" not in str(error.value)
    finally:
        client.close()


# --- reading


def test_reading_brings_every_record_once_and_in_order(kafka: str, out: Outbound) -> None:
    topic = make(kafka, partitions=3)
    for i in range(3_000):
        out.send(topic, b"k", str(i).encode(), partition=i % 3)
    out.flush()
    told: list[int] = []
    found = list(clients.read_to_end(kafka, topic, progress=told.append))
    for p in range(3):
        mine = [m.value() for m in found if m.partition() == p]
        assert mine == [str(i).encode() for i in range(p, 3_000, 3)]
    assert sum(told) == 3_000


def test_reading_starts_and_ends_where_it_is_told(kafka: str, out: Outbound) -> None:
    topic = make(kafka, partitions=2)
    for i in range(20):
        out.send(topic, b"k", str(i).encode(), partition=i % 2)
    out.flush()
    part = clients.read_to_end(kafka, topic, start={0: 3}, end={0: 6, 1: 2})
    got = sorted((m.partition(), m.offset()) for m in part)
    assert got == [(0, 3), (0, 4), (0, 5), (1, 0), (1, 1)]
    assert values(clients.read_to_end(kafka, topic, start={0: 10, 1: 10})) == []
    assert values(clients.read_to_end(kafka, make(kafka))) == []


def test_what_comes_after_the_end_was_taken_is_left(kafka: str, out: Outbound) -> None:
    topic = make(kafka)
    for i in range(5):
        out.send(topic, b"k", str(i).encode())
    out.flush()
    reading = clients.read_to_end(kafka, topic)
    first = next(reading)
    for _ in range(5):
        out.send(topic, b"k", b"later")
    out.flush()
    assert [first.value(), *values(reading)] == [b"0", b"1", b"2", b"3", b"4"]


def test_only_committed_records_are_read(kafka: str, out: Outbound) -> None:
    """Aborted ones and the markers of both are passed; an open transaction hides what follows."""
    topic = make(kafka)
    transactional = clients.producer(kafka, transactional_id=f"test-{uuid4()}")
    transactional.init_transactions(20)

    def write(*said: bytes, commit: bool | None) -> None:
        transactional.begin_transaction()
        for value in said:
            transactional.produce(topic, value=value, key=b"k")
        transactional.flush(20)
        if commit is True:
            transactional.commit_transaction(20)
        elif commit is False:
            transactional.abort_transaction(20)

    write(b"a", b"b", commit=True)
    write(b"c", b"d", commit=False)
    out.send(topic, b"k", b"e")
    out.flush()
    assert values(clients.read_to_end(kafka, topic)) == [b"a", b"b", b"e"]
    write(b"f", commit=False)  # the log ends with a marker
    found = list(clients.read_to_end(kafka, topic))
    assert [m.offset() for m in found] == [0, 1, 6]
    write(b"g", commit=None)
    out.send(topic, b"k", b"h")
    out.flush()
    assert values(clients.read_to_end(kafka, topic)) == [b"a", b"b", b"e"]
    client = clients.consumer(kafka, "test-ends")
    assert clients.end_offsets(client, topic) == {0: 9}  # the last stable offset
    client.close()
    transactional.commit_transaction(20)
    assert values(clients.read_to_end(kafka, topic)) == [b"a", b"b", b"e", b"g", b"h"]


def test_an_offset_that_is_gone_is_not_skipped(kafka: str, out: Outbound) -> None:
    topic = make(kafka)
    for _ in range(10):
        out.send(topic, b"k", b"v")
    out.flush()
    admin = clients.admin(kafka)
    deleted = admin.delete_records([TopicPartition(topic, 0, 6)])
    assert next(iter(deleted.values())).result(20).low_watermark == 6
    assert len(list(clients.read_to_end(kafka, topic))) == 4
    with pytest.raises(LogDamaged):
        list(clients.read_to_end(kafka, topic, start={0: 2}))


def test_draining_takes_what_is_there(kafka: str, out: Outbound) -> None:
    topic = make(kafka)
    client = clients.consumer(kafka, "test-drain")
    try:
        client.assign([TopicPartition(topic, 0, 0)])
        begun = time.monotonic()
        assert clients.drain(client, 0.2) == []
        assert time.monotonic() - begun < 2
        for i in range(50):
            out.send(topic, b"k", str(i).encode())
        out.flush()
        found: list[Message] = []
        until = time.monotonic() + 20
        while len(found) < 50 and time.monotonic() < until:
            found += clients.drain(client, 1.0, most=20)
        assert [m.value() for m in found] == [str(i).encode() for i in range(50)]
    finally:
        client.close()


def test_errors_of_the_client_are_raised() -> None:
    good = Message(topic="t", partition=0, offset=1, value=b"v")
    assert clients.check(good) is good
    for code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        gone = Message(topic="t", partition=0, error=KafkaError(code))
        with pytest.raises(LogDamaged, match=r"t\[0\]"):
            clients.check(gone)
    with pytest.raises(KafkaException):
        clients.check(Message(topic="t", error=KafkaError(KafkaError._ALL_BROKERS_DOWN)))


def test_records_are_told_from_what_a_client_reports_besides() -> None:
    """A broker that starts again ends nobody; a lost offset, a lost topic and a client that is
    done for do."""
    one, two = (Message(topic="t", partition=0, offset=n, value=b"v") for n in (1, 2))
    assert clients.sound([one, two]) == ([one, two], "")
    passing = [KafkaError(code) for code in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT)]
    down = [Message(topic="t", error=error) for error in passing]
    assert clients.sound([one, *down, two]) == ([one, two], passing[-1].str())
    for code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.UNKNOWN_TOPIC_OR_PART):
        with pytest.raises(LogDamaged, match="t"):
            clients.sound([one, Message(topic="t", partition=0, error=KafkaError(code))])
    for fatal in (KafkaError(KafkaError._FATAL), KafkaError(KafkaError._STATE, fatal=True)):
        with pytest.raises(Unreachable, match="refuses"):
            clients.sound([one, Message(topic="t", error=fatal)])


def member(bootstrap: str, topic: str, group: str, **settings: object) -> Consumer:
    """A member of a group that reads the topic from its beginning, with its partition."""
    client = clients.consumer(bootstrap, group, session_timeout_ms=6_000, **settings)

    def assigned(one: Consumer, partitions: list[TopicPartition]) -> None:
        one.assign([TopicPartition(tp.topic, tp.partition, 0) for tp in partitions])

    client.subscribe([topic], on_assign=assigned)
    until = time.monotonic() + 30
    while not client.assignment():
        assert clients.sound(clients.drain(client, 0.1))[0] == []
        assert time.monotonic() < until
    return client


def test_a_member_that_was_too_slow_says_so_and_reads_on(kafka: str, out: Outbound) -> None:
    """As a meter that waited for the registry for longer than its group waits for it."""
    topic = make(kafka)
    client = member(kafka, topic, f"test-{uuid4()}", max_poll_interval_ms=6_000)
    time.sleep(6.5)
    out.send(topic, b"k", b"v")
    out.flush()
    read: list[Message] = []
    told: list[str] = []
    until = time.monotonic() + 30
    while not read:
        good, said = clients.sound(clients.drain(client, 0.1))
        read += good
        told += [said] if said else []
        assert time.monotonic() < until
    client.close()
    assert "maximum poll interval" in " ".join(told)
    assert [m.value() for m in read] == [b"v"]


def test_a_static_member_whose_name_another_took_is_done_for(kafka: str) -> None:
    """Else it would report the same for ever, and never read again."""
    topic, group = make(kafka), f"test-{uuid4()}"
    static = {"group_instance_id": "a", "heartbeat_interval_ms": 500}
    first = member(kafka, topic, group, **static)
    second = member(kafka, topic, group, **static)
    try:
        with pytest.raises(Unreachable, match="refuses"):
            until = time.monotonic() + 20
            while time.monotonic() < until:
                clients.sound(clients.drain(first, 0.1))
    finally:
        second.close()
        first.close()


# --- append times


def test_the_broker_stamps_records_and_a_copy_says_its_original_time(
    kafka: str, out: Outbound
) -> None:
    topic = make(kafka, message_timestamp_type="LogAppendTime")
    out.send(topic, b"k", b"v")
    out.send(topic, b"k", b"v", headers=[("x", b"1"), (COPIED_HEADER, b"1000")])
    out.flush()
    first, copy = clients.read_to_end(kafka, topic)
    assert abs(append_ms(first) - time.time() * 1000) < 60_000
    assert append_ms(copy) == 1000


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"0", 0),
        (b"999", 999),
        (b"1000", 1000),
        (b"1001", 1000),
        (b"", 1000),
        (b"-1", 1000),
        (b"1.5", 1000),
        (b" 7", 1000),
        ("٣".encode(), 1000),
        (b"9" * 10_000, 1000),
    ],
)
def test_a_copy_is_never_newer_than_its_own_append_time(header: bytes, expected: int) -> None:
    assert copied_ms(header, 1000) == expected


# --- writing


def test_nothing_counts_as_written_that_was_not_acknowledged() -> None:
    nowhere = Outbound(clients.producer(NOWHERE, message_timeout_ms=60_000))
    nowhere.send("t", b"k", b"v")
    begun = time.monotonic()
    with pytest.raises(Unreachable, match=r"1 records were not acknowledged within 0 s"):
        nowhere.flush(0.3)
    assert time.monotonic() - begun < 5
    nowhere.client.purge()
    with pytest.raises(Unreachable, match="not acknowledged, first: t: "):
        nowhere.flush(5)
    nowhere.flush(5)  # told once


def test_a_record_that_timed_out_is_told(kafka: str) -> None:
    nowhere = Outbound(clients.producer(NOWHERE, message_timeout_ms=300))
    for _ in range(3):
        nowhere.send("t", b"k", b"v")
    with pytest.raises(Unreachable, match="3 records were not acknowledged, first: t: "):
        nowhere.flush(20)


def test_a_topic_that_is_not_there_is_told_and_not_made(kafka: str) -> None:
    topic = f"nowhere-{uuid4().hex}"
    out = Outbound(clients.producer(kafka, message_timeout_ms=1_000))
    out.send(topic, b"k", b"v")
    with pytest.raises(Unreachable, match=topic):
        out.flush(20)
    assert topic not in clients.admin(kafka).list_topics(timeout=10).topics


def test_sending_waits_while_the_queue_is_full(kafka: str) -> None:
    topic = make(kafka)
    small = Outbound(clients.producer(kafka, queue_buffering_max_messages=10))
    for i in range(200):
        small.send(topic, b"k", str(i).encode())
    small.flush()
    assert values(clients.read_to_end(kafka, topic)) == [str(i).encode() for i in range(200)]


def test_producers_and_consumers_are_as_exactness_needs_them() -> None:
    assert clients.PRODUCER["enable.idempotence"] is True
    assert clients.PRODUCER["acks"] == "all"
    assert clients.CONSUMER["isolation.level"] == "read_committed"
    assert clients.CONSUMER["auto.offset.reset"] == "error"
    assert clients.CONSUMER["enable.auto.commit"] is False

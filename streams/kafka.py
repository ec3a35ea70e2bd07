"""Clients of the broker, with the settings that exactness and speed need (streams.md, 1.1)."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from schemas.values import MAX_RECORD_BYTES, OWN_RECORD_BYTES
from streams.errors import LogDamaged, Unreachable

CONSUMER: Final[dict[str, Any]] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",  # a lost offset must be seen, not skipped
    "fetch.queue.backoff.ms": 5,  # the default stops fetching for a second when the queue is full
    "fetch.wait.max.ms": 100,
    "queued.min.messages": 100_000,
    "queued.max.messages.kbytes": 65_536,
    "allow.auto.create.topics": False,
}
PRODUCER: Final[dict[str, Any]] = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",  # agrees with Java and aiokafka
    "compression.type": "lz4",
    "linger.ms": 2,
    "queue.buffering.max.messages": 500_000,
    "message.timeout.ms": 60_000,
    "message.max.bytes": OWN_RECORD_BYTES + MAX_RECORD_BYTES,
}
QUIET: Final[dict[str, Any]] = {"log_level": 0, "log.connection.close": False}
"""Errors reach us as exceptions and reports; the library would print each failed connect."""


def consumer(bootstrap: str, group: str, **settings: Any) -> Consumer:
    """A consumer that reads committed records and owns its positions itself."""
    dotted = {k.replace("_", "."): v for k, v in settings.items()}
    return Consumer(
        {**QUIET, **CONSUMER, "bootstrap.servers": bootstrap, "group.id": group, **dotted}
    )


def producer(bootstrap: str, **settings: Any) -> Producer:
    """An idempotent producer, acknowledged by all replicas."""
    dotted = {k.replace("_", "."): v for k, v in settings.items()}
    return Producer({**QUIET, **PRODUCER, "bootstrap.servers": bootstrap, **dotted})


def admin(bootstrap: str) -> AdminClient:
    """An admin client."""
    return AdminClient({**QUIET, "bootstrap.servers": bootstrap})


def partitions(
    client: Consumer | AdminClient | Producer, topic: str, timeout_s: float = 10.0
) -> list[int]:
    """Partition numbers of a topic, ascending.

    Raises Unreachable if the broker does not answer, LogDamaged if the topic is not there.
    """
    try:
        found = client.list_topics(topic, timeout=timeout_s).topics[topic]
    except KafkaException as error:
        raise Unreachable(f"the broker does not answer: {error.args[0].str()}") from None
    if found.error is not None or not found.partitions:
        raise LogDamaged(f"topic {topic} does not exist: `roster topics --create` makes it")
    return sorted(found.partitions)


def end_offsets(client: Consumer, topic: str, timeout_s: float = 10.0) -> dict[int, int]:
    """Per partition the offset after the last record that a reader can see (committed reads:
    the last stable offset). Raises Unreachable, LogDamaged (no such topic)."""
    return {p: watermarks(client, topic, p, timeout_s)[1] for p in partitions(client, topic)}


def watermarks(
    client: Consumer, topic: str, partition: int, timeout_s: float = 10.0
) -> tuple[int, int]:
    """(first offset, offset after the last visible record) of a partition.

    Just after a topic was made, or while it moves, its leader may not know it yet: that is waited
    for, up to timeout_s. Raises Unreachable after it.
    """
    until = time.monotonic() + timeout_s
    while True:
        try:
            found: tuple[int, int] = client.get_watermark_offsets(
                TopicPartition(topic, partition), timeout=timeout_s
            )
            return found
        except KafkaException as error:
            if error.args[0].code() not in NO_LEADER_YET or time.monotonic() > until:
                raise Unreachable(f"{topic}[{partition}]: {error.args[0].str()}") from None
            time.sleep(0.05)


NO_LEADER_YET: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_PARTITION,
    }
)


def check(message: Message) -> Message:
    """The message itself, or an exception if it stands for an error of the client.

    Raises LogDamaged when the wanted offset is gone, KafkaException otherwise.
    """
    error = message.error()
    if error is None:
        return message
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        raise LogDamaged(f"{message.topic()}[{message.partition()}]: {error.str()}")
    raise KafkaException(error)


def sound(messages: Iterable[Message]) -> tuple[list[Message], str]:
    """The records among what a client brings, and what it reports besides them ("": nothing).

    A client goes on by itself after most errors, as a broker that starts again; they end no
    process. Raises LogDamaged when the wanted offset or the topic is gone, Unreachable when the
    client is done for.
    """
    good, said = [], ""
    for message in messages:
        error = message.error()
        if error is None:
            good.append(message)
            continue
        if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise LogDamaged(f"{message.topic()}: the topic is gone; `roster topics --create`")
        try:
            check(message)
        except KafkaException:
            if error.fatal() or error.code() in DONE_FOR:
                raise Unreachable(f"the broker refuses this client: {error.str()}") from None
            said = error.str()
    return good, said


DONE_FOR: Final = frozenset({KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID})
"""What the library reports of itself as fatal comes in messages without that flag."""


def append_ms(message: Message) -> int:
    """Append time that the broker stamped; the original's for a copied record (see HEADER)."""
    stamped = int(message.timestamp()[1])
    headers: Any = message.headers() or ()  # a list of pairs; the stub says more
    for name, value in headers:
        if name == COPIED_HEADER and isinstance(value, bytes):
            return copied_ms(value, stamped)
    return stamped


def copied_ms(header: bytes, stamped: int) -> int:
    """Append time of the original by the header of a copy; the copy's own where it says none."""
    plausible = header.isdigit() and len(header) <= 15  # int() refuses thousands of digits
    return min(int(header), stamped) if plausible else stamped


SILENCE_S: Final = 30.0
"""After this long without an answer a reading that has an end is given up."""

COPIED_HEADER: Final = "roster-append-ms"
"""A copied record (re-drive, mirror, import) carries its original append time here."""


def drain(client: Consumer, wait_s: float, most: int = 10_000) -> list[Message]:
    """Records that are there now: waits up to wait_s for the first, then takes what is queued.

    Of all ways to read this one is the freshest (streams.md, 1.3).
    """
    first = client.poll(wait_s)
    if first is None:
        return []
    return [first, *client.consume(min(most, 10_000) - 1, timeout=0)]


def read_to_end(
    bootstrap: str,
    topic: str,
    start: dict[int, int] | None = None,
    end: dict[int, int] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Message]:
    """Every committed record of a topic from start (default: the beginning) up to end (exclusive;
    default: the end as it is now). In order within a partition."""
    client = consumer(bootstrap, "roster-reader", **{"enable.partition.eof": True})
    try:
        last = end_offsets(client, topic) if end is None else end
        begin = {p: (start or {}).get(p, watermarks(client, topic, p)[0]) for p in last}
        open_ = {p for p in last if begin[p] < last[p]}
        if not open_:
            return
        client.assign([TopicPartition(topic, p, begin[p]) for p in sorted(open_)])
        heard = time.monotonic()
        while open_:
            messages = client.consume(5_000, timeout=0.2)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_S:
                raise Unreachable(f"{topic}: the broker has sent nothing for {SILENCE_S:.0f} s")
            for message in messages:
                p, offset = message.partition() or 0, message.offset() or 0
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    open_.discard(p)
                    continue
                check(message)
                if p not in open_ or offset >= last[p]:
                    open_.discard(p)
                    continue
                yield message
                if progress is not None:
                    progress(1)
                if offset + 1 >= last[p]:
                    open_.discard(p)
    finally:
        client.close()


class Outbound:
    """Sends records and raises if any of them is not acknowledged."""

    def __init__(self, client: Producer) -> None:
        self.client = client
        self._failed: list[str] = []
        self._lock = threading.Lock()

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            with self._lock:
                self._failed.append(f"{message.topic()}: {error.str()}")

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = -1,
    ) -> None:
        """Queues a record; waits while the queue is full."""
        while True:
            try:
                self.client.produce(
                    topic,
                    value=value,
                    key=key,
                    headers=list(headers),
                    partition=partition,
                    on_delivery=self._report,
                )
                return
            except BufferError:
                self.client.poll(0.05)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Returns when the broker has acknowledged everything. Raises Unreachable if not."""
        left = self.client.flush(timeout_s)
        with self._lock:
            failed, self._failed = self._failed, []
        if failed:
            raise Unreachable(f"{len(failed)} records were not acknowledged, first: {failed[0]}")
        if left:
            raise Unreachable(f"{left} records were not acknowledged within {timeout_s:.0f} s")

"""The log as plain tuples, read with a consumer of its own: committed records only."""

import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import httpx
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.errors import LogDamaged, Unreachable
from streams.settings import is_near

COPIED: Final = "roster-append-ms"  # a copied record carries its original append time here
NO_SUCH_ID: Final = (400, 404, 422)
PATIENCE_S: Final = 30.0
TIMEOUT_S: Final = 10.0


class Record(NamedTuple):
    """A record as it stands in the log; append_ms as the broker stamped it, or the original's."""

    topic: str
    partition: int
    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    stamped_ms: int | None = None  # by the broker, also on a copy; None: as append_ms

    @property
    def broker_ms(self) -> int:
        """What the broker stamped: the base of ticks, which no header may move."""
        return self.append_ms if self.stamped_ms is None else self.stamped_ms


class Log:
    """Reads topics from their beginning up to a fixed end. Raises Unreachable, LogDamaged."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._client = self._consumer()
        self._begins: dict[tuple[str, int], int] = {}

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "roster-verify",  # never joined, nothing is committed
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,  # a question waits behind a fetch that is under way
                "fetch.queue.backoff.ms": 5,
                "queued.max.messages.kbytes": 65_536,
                "allow.auto.create.topics": False,
                "log_level": 0,  # what goes wrong is raised, in one line
            }
        )

    def ends(self, topic: str) -> dict[int, int] | None:
        """Per partition the offset after the last committed record; None: no such topic."""
        try:
            found = self._client.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
            if found.error is not None or not found.partitions:
                return None
            spans = {p: self._span(topic, p) for p in sorted(found.partitions)}
        except KafkaException as error:
            raise Unreachable(f"the broker does not answer: {error.args[0].str()}") from None
        self._begins |= {(topic, p): begin for p, (begin, _) in spans.items()}
        return {p: end for p, (_, end) in spans.items()}

    def _span(self, topic: str, partition: int) -> tuple[int, int]:
        at = TopicPartition(topic, partition)
        begin, end = self._client.get_watermark_offsets(at, timeout=TIMEOUT_S)
        return int(begin), int(end)

    def begins(self, topic: str, partition: int) -> int:
        """First offset that was there when the topic's ends were asked for."""
        return self._begins[topic, partition]

    def read(
        self, topic: str, partition: int, end: int, progress: Callable[[int], None] | None = None
    ) -> Iterator[Record]:
        """Every committed record of one partition below end (as ends() told it), in order."""
        begin = self.begins(topic, partition)
        if begin >= end:
            return
        self._client.assign([TopicPartition(topic, partition, begin)])
        moved = time.monotonic()
        try:
            while True:
                first = self._client.poll(0.1)  # consume() alone would wait out its time
                messages = [] if first is None else [first, *self._client.consume(9_999, timeout=0)]
                if messages:
                    moved = time.monotonic()
                elif time.monotonic() - moved > PATIENCE_S:
                    raise Unreachable(
                        f"{topic}[{partition}]: nothing came for {PATIENCE_S:.0f} s before"
                        f" offset {end}: is the broker up?"
                    )
                for message in messages:
                    error = message.error()
                    if error is not None:
                        if error.code() == KafkaError._PARTITION_EOF:
                            if (message.offset() or 0) >= end:
                                return
                            continue
                        if error.code() in (
                            KafkaError._AUTO_OFFSET_RESET,
                            KafkaError.OFFSET_OUT_OF_RANGE,
                        ):
                            raise LogDamaged(f"{topic}[{partition}]: {error.str()}")
                        if error.retriable():
                            continue
                        raise Unreachable(f"{topic}[{partition}]: {error.str()}")
                    offset = message.offset() or 0
                    if offset >= end:
                        return
                    key, value = message.key(), message.value()
                    headers = _headers(message.headers())
                    yield Record(
                        topic,
                        partition,
                        offset,
                        _append_ms(int(message.timestamp()[1]), headers),
                        key if isinstance(key, bytes) else None,
                        value if isinstance(value, bytes) else None,
                        headers,
                        int(message.timestamp()[1]),
                    )
                    if offset + 1 >= end:
                        return
                if progress is not None and messages:
                    progress(len(messages))
        finally:
            self._client.unassign()

    def close(self) -> None:
        """Ends the consumer."""
        self._client.close()


def _headers(found: object) -> tuple[tuple[str, bytes], ...]:
    if not isinstance(found, list):
        return ()
    return tuple((name, value) for name, value in found if isinstance(value, bytes))


def _append_ms(stamped: int, headers: tuple[tuple[str, bytes], ...]) -> int:
    for name, value in headers:
        if name == COPIED:
            plausible = value.isdigit() and len(value) <= 15
            return min(int(value), stamped) if plausible else stamped
    return stamped


class SchemaTexts:
    """Schema texts by id, asked of the registry once each. Raises Unreachable."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(timeout=TIMEOUT_S, trust_env=not is_near(url))
        self._known: dict[int, str | None] = {}

    def __call__(self, schema_id: int) -> str | None:
        """Text of a schema; None if the registry does not know the id."""
        if schema_id not in self._known:
            self._known[schema_id] = self._ask(schema_id)
        return self._known[schema_id]

    def _ask(self, schema_id: int) -> str | None:
        begun = time.monotonic()
        while True:
            try:
                response = self._http.get(f"{self._url}/schemas/ids/{schema_id}")
                if response.status_code == 200:
                    return str(response.json()["schema"])
                if response.status_code in NO_SUCH_ID:
                    return None
                problem = f"status {response.status_code}"
            except httpx.HTTPError as error:
                problem = str(error)
            if time.monotonic() - begun > PATIENCE_S:
                raise Unreachable(f"the schema registry at {self._url} failed: {problem}")
            time.sleep(0.5)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

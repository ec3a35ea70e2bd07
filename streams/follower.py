"""Follows whole topics from their start in a thread: what an agent must know beside its inputs."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, Message, TopicPartition

from streams import kafka
from streams.topics import Topic


class Follower:
    """Every committed record of some topics, in order within each partition.

    Thread-safe. What its thread cannot go on from is raised by the next call.
    """

    def __init__(
        self,
        bootstrap: str,
        topics: Sequence[Topic],
        prepare: Callable[[Message], None] = lambda message: None,
    ) -> None:
        """prepare: called with each record in the thread, before anyone may take it: what would
        make its reader wait, waits here."""
        self._bootstrap = bootstrap
        self._prepare = prepare
        self._topics = topics
        self._lock = threading.Lock()
        self._records: list[Message] = []
        self._next: dict[tuple[str, int], int] = {}  # after the last record
        self._reached: dict[tuple[str, int], int] = {}  # also past offsets without a record
        self._asked: list[threading.Event] = []
        self._error: Exception | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def sync(self, timeout_s: float) -> bool:
        """Waits until all that is in the topics now has been read; False: not in time."""
        done = threading.Event()
        with self._lock:
            self._asked.append(done)
        in_time = done.wait(0 if self._error else timeout_s)
        self._raise()
        return in_time

    def take(self) -> tuple[list[Message], Mapping[tuple[str, int], int]]:
        """Records read since the last call, and the next offset of every partition after them."""
        self._raise()
        with self._lock:
            records, self._records = self._records, []
            return records, dict(self._next)

    def close(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join(timeout=5.0)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        client = kafka.consumer(
            self._bootstrap, "roster-follower", enable_partition_eof=True, fetch_wait_max_ms=20
        )
        try:
            self._follow(client)
        except Exception as error:
            self._error = error
            for done in self._asked:
                done.set()
        finally:
            client.close()

    def _follow(self, client: Any) -> None:
        wanted = [(t.name, p) for t in self._topics for p in kafka.partitions(client, t.name)]
        first = {tp: _ends(client, tp)[0] for tp in wanted}
        self._next, self._reached = dict(first), dict(first)
        client.assign([TopicPartition(*tp, offset) for tp, offset in first.items()])
        waiting: list[tuple[threading.Event, dict[tuple[str, int], int]]] = []
        while not self._stopped.is_set():
            with self._lock:
                asked, self._asked = self._asked, []
            if asked:
                ends = {tp: _ends(client, tp)[1] for tp in wanted}
                waiting.extend((done, ends) for done in asked)
            self._read(kafka.drain(client, 0.05))
            for done, ends in waiting:
                if all(self._reached[tp] >= end for tp, end in ends.items()):
                    done.set()
            waiting = [(done, ends) for done, ends in waiting if not done.is_set()]

    def _read(self, messages: list[Message]) -> None:
        for message in messages:
            if message.error() is None:
                self._prepare(message)
        with self._lock:
            for message in messages:
                tp = (message.topic() or "", message.partition() or 0)
                offset = message.offset() or 0
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    self._reached[tp] = max(self._reached[tp], offset)
                    continue
                self._records.append(kafka.check(message))
                self._next[tp] = self._reached[tp] = offset + 1


def _ends(client: Any, tp: tuple[str, int]) -> tuple[int, int]:
    first, last = client.get_watermark_offsets(TopicPartition(*tp), timeout=10.0)
    return int(first), int(last)

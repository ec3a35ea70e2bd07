"""Reads topics in a thread of its own and goes on, so that what they say is known without a
network. Unlike streams.follower it outlives any outage and says how stale it is.

    with LiveReader(bootstrap, ["mode.changed"], take) as reader:
        reader.wait_ready(10)

`take` gets batches of committed records in that thread; streams/profiles_reader.py shows it.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from streams import kafka
from streams.errors import RosterError

HEARD_MS: Final = 250  # how often the client tells when it last heard from which broker
RETRY_S: Final = 0.5
PATIENCE_S: Final = 2.0  # with one request; below CLOSE_WITHIN_S, so that close need not wait
CLOSE_WITHIN_S: Final = 5.0

Place = tuple[str, int]  # topic, partition


class LiveReader:
    """Reads topics from their beginning (or `newest` records before their end) and goes on.

    take is called with non-empty batches, each in the order of its partition's log; it must not
    raise on bad records. The thread begins at once and outlives any outage of the broker.
    """

    def __init__(
        self,
        bootstrap: str,
        topics: Sequence[str],
        take: Callable[[list[Message]], None],
        newest: Mapping[str, int] | None = None,
    ) -> None:
        self._bootstrap, self._topics, self._take = bootstrap, tuple(topics), take
        self._newest = dict(newest or {})
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._taken: dict[Place, int] = {}  # next offset, by what was taken or the end reported
        self._goal: dict[Place, int] = {}  # the ends as they were at the start
        self._goal_at = 0.0  # monotonic: not later than they were so
        self._fresh_at: float | None = None  # monotonic: all up to that moment has been taken
        self.trouble: str | None = None  # why it could not read just now, None if it can
        self._thread = threading.Thread(target=self._run, name="roster-live-reader", daemon=True)
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether all that was in the topics at the start has been taken within timeout_s."""
        return self._ready.wait(timeout_s)

    def staleness_ms(self) -> int | None:
        """Milliseconds since the reader last had everything and the broker said so; None: never.

        About 500 at most while all is well.
        """
        fresh = self._fresh_at
        return None if fresh is None else max(0, int((time.monotonic() - fresh) * 1000))

    def close(self) -> None:
        """Ends thread and connection; may be called twice, not from `take`."""
        self._stop.set()
        self._thread.join(CLOSE_WITHIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        client = Consumer(
            {
                **kafka.QUIET,
                **kafka.CONSUMER,
                "bootstrap.servers": self._bootstrap,
                "group.id": "roster-live-reader",  # commits nothing, joins no group
                "auto.offset.reset": "earliest",  # a topic made anew is read anew
                "queued.min.messages": 5_000,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": HEARD_MS,
                "statistics.interval.ms": HEARD_MS,
                "log_level": 0,  # `trouble` says it
                "stats_cb": self._heard,
                "error_cb": self._error,
            }
        )
        try:
            while not self._stop.is_set() and not self._assigned(client):
                self._stop.wait(RETRY_S)
            while not self._stop.is_set():
                self._batch(kafka.drain(client, 0.1, 2_000))
        finally:
            client.close()

    def _assigned(self, client: Consumer) -> bool:
        self._goal_at = time.monotonic()
        try:
            places = [(t, p) for t in self._topics for p in kafka.partitions(client, t, PATIENCE_S)]
            ends = {
                at: client.get_watermark_offsets(TopicPartition(*at), timeout=PATIENCE_S)[1]
                for at in places
                if not self._stop.is_set()
            }
            start = [
                TopicPartition(t, p, max(0, end - self._newest[t]))
                if t in self._newest
                else TopicPartition(t, p, OFFSET_BEGINNING)
                for (t, p), end in ends.items()
            ]
            client.assign(start)
        except (RosterError, KafkaException) as error:
            self.trouble = str(error)
            return False
        self._goal = {place: end for place, end in ends.items() if end > 0}
        self.trouble = None
        self._look()
        return True

    def _batch(self, messages: list[Message]) -> None:
        good = []
        for message in messages:
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            error = message.error()
            if error is None:
                good.append(message)
            elif error.code() != KafkaError._PARTITION_EOF:
                self.trouble = error.str()
                continue
            assert topic is not None and partition is not None and offset is not None
            # The end counts too: behind the last record may stand markers that are no records.
            self._taken[topic, partition] = offset + (error is None)
        if good:
            self._take(good)
        if messages:
            self._look()

    def _look(self) -> None:
        if not self._ready.is_set() and all(
            self._taken.get(place, 0) >= end for place, end in self._goal.items()
        ):
            self._fresh_at = self._goal_at
            self._ready.set()

    def _error(self, error: KafkaError) -> None:
        self.trouble = error.str()

    def _heard(self, text: str) -> None:
        """Statistics of the client: how long ago the brokers of our partitions last answered,
        and whether anything is left to take. Called by poll, so in our thread."""
        now = time.monotonic()
        state: dict[str, Any] = json.loads(text)
        brokers = {b["nodeid"]: b for b in state["brokers"].values() if b["nodeid"] >= 0}
        oldest_us = 0
        seen = 0
        for topic in self._topics:
            for number, part in state["topics"].get(topic, {}).get("partitions", {}).items():
                if int(number) < 0:
                    continue
                broker = brokers.get(part["broker"])
                if broker is None or broker["state"] != "UP" or broker["rxidle"] < 0:
                    return
                # Before the first answer there is no end to compare with (-1001).
                if not 0 <= part["ls_offset"] <= self._taken.get((topic, int(number)), 0):
                    return
                oldest_us = max(oldest_us, int(broker["rxidle"]))
                seen += 1
        if seen and self._ready.is_set():
            self._fresh_at = now - oldest_us / 1e6
            self.trouble = None

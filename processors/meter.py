"""The meter's shell: what is folded (llm.invocation, model.quality.observed) -> cumulative facts
and marks in slm.metrics.

All that decides is in meter_protocol.py and pane_fold.py; here are the clients. One transaction
holds facts, marks, late events and the group's offsets, so a stale owner is refused by the broker.
"""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from processors.columns import columns_of
from processors.configured import windowing
from processors.meter_protocol import Flush, Meter, Source
from processors.pane_fold import Late, Stretch
from processors.stretches import stretches
from schemas import ClockTick, LateEvent, MeterMark, PaneFact, Recorded
from schemas.values import derived_id
from streams import kafka
from streams.codec import decode, encode
from streams.errors import LogDamaged, Stopped, Unreachable
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.status import StatusFile
from streams.topics import BY_NAME, FOLDED, LATE_EVENTS, SLM_METRICS

log = logging.getLogger("roster.meter")

FLUSH_S: Final = 0.2
FOLD_AT: Final = 5_000  # records
TICK_AFTER_S: Final = 5.0
LAW: Final = ("consumed", "applied", "duplicate", "late", "dead_lettered", "conflict", "control")
SESSION_MS: Final = 10_000
DISAGREE_S: Final = 60.0
TRANSACTION_MS: Final = 10_000
"""A dead owner's open transaction hides what follows it for at most this long."""


class MeterShell:
    """One process of the group. instance: stable name; two live processes must not share it.
    stopped: whether it is to end."""

    def __init__(self, settings: Settings, instance: str, stopped: Callable[[], bool]) -> None:
        bootstrap = settings.need_kafka()
        self._registry = Registry(settings.need_registry())
        self._stopped = stopped
        topics = (*FOLDED, SLM_METRICS, LATE_EVENTS)
        self._catalogue = Catalogue(self._registry, topics, stopped)
        self._group = f"roster-meter-g{settings.generation}"
        self._follower = kafka.consumer(bootstrap, f"{self._group}-follower")
        metrics = kafka.partitions(self._follower, SLM_METRICS.name)
        sources = {t.name: len(kafka.partitions(self._follower, t.name)) for t in FOLDED}
        self._follower.assign([TopicPartition(SLM_METRICS.name, p, 0) for p in metrics])
        self._followed = dict.fromkeys(metrics, 0)
        self._meter = Meter(
            sources, len(metrics), settings.generation, f"meter-{instance}", windowing(settings)
        )
        self._consumer = kafka.consumer(
            bootstrap,
            self._group,
            **{
                "group.instance.id": f"meter-{instance}",
                "session.timeout.ms": SESSION_MS,
                "heartbeat.interval.ms": 2_000,
                "partition.assignment.strategy": "range",
            },
        )
        self._producer = kafka.producer(
            bootstrap,
            **{
                "transactional.id": f"{self._group}-{instance}",
                "transaction.timeout.ms": TRANSACTION_MS,
                "message.timeout.ms": TRANSACTION_MS - 1_000,
            },
        )
        self._ticker = kafka.producer(bootstrap)
        self._status = StatusFile(settings.data, f"meter-{instance}")
        self._waiting: list[Source] = []  # assigned, not yet folding
        self._waiting_since = 0.0
        self._ends: dict[int, int] = {}  # of slm.metrics, since the assignment
        self._metadata: Any = None
        self._moved: dict[Source, tuple[int | None, float]] = {}  # watermark, and since when
        self._read: list[Message] = []  # not yet folded
        self._in = self._out = 0
        self._note = ""

    # --- group membership

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Metadata is captured here and never later: a transaction of a former life must carry
        the old generation, by which the broker refuses it."""
        consumer.assign([])  # nothing is read before marks and offsets agree
        self._metadata = consumer.consumer_group_metadata()
        self._settle_later([(tp.topic, tp.partition) for tp in partitions])

    def _settle_later(self, sources: list[Source]) -> None:
        self._waiting = sorted(sources)
        self._waiting_since = time.monotonic()
        self._ends = {}

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._meter.reset()
        self._waiting = []
        self._moved.clear()
        consumer.unassign()

    def _settle(self) -> None:
        """Starts folding once every source's mark and committed offset agree."""
        if not self._waiting:
            return
        if not self._ends:
            self._ends = kafka.end_offsets(self._follower, SLM_METRICS.name)
        self._follow()
        if any(self._followed[p] < end for p, end in self._ends.items()):
            return
        wanted = [TopicPartition(*source) for source in self._waiting]
        try:
            found = self._consumer.committed(wanted, timeout=5)
        except KafkaException as error:
            if _passing(error.args[0]):
                return  # a transaction is under way: its outcome is not known yet
            raise
        starts = []
        for tp in found:
            committed = tp.offset if tp.error is None and tp.offset >= 0 else None
            if tp.error is not None:
                return
            source = (tp.topic, tp.partition)
            start = self._meter.assign(source, committed)
            if start is None:
                self._meter.reset()
                self._ends = {}
                self._complain(source, committed)
                return
            starts.append(TopicPartition(*source, start))
        told = ", ".join(f"{tp.topic}[{tp.partition}] from {tp.offset}" for tp in starts)
        log.info("folding %s", told or "none")
        self._waiting = []
        self._read = []  # of a former assignment
        now = time.monotonic()
        self._moved = {s: (fold.watermark_ms, now) for s, fold in self._meter.folds.items()}
        self._consumer.assign(starts)

    def _complain(self, source: Source, committed: int | None) -> None:
        """Raises LogDamaged when mark and offset have not agreed for far longer than any
        transaction lasts."""
        if time.monotonic() - self._waiting_since < DISAGREE_S:
            return
        mark = self._meter.marks.get(source)
        raise LogDamaged(
            f"{source[0]}[{source[1]}]: the newest mark in {SLM_METRICS.name} says"
            f" {'nothing' if mark is None else mark.up_to_offset + 1}, group {self._group} says"
            f" {committed}: were offsets or the topic changed by hand? set them equal again"
        )

    # --- reading

    def _follow(self) -> None:
        """Takes the committed records of slm.metrics, other owners' among them."""
        while True:
            messages = self._follower.consume(5_000, timeout=0)
            for message in self._sound(messages):
                self._observe(message)
            if len(messages) < 5_000:
                break
        for tp in self._follower.position(self._follower.assignment()):
            # The position passes markers of transactions, which are no records.
            self._followed[tp.partition] = max(tp.offset, self._followed[tp.partition])

    def _sound(self, messages: Sequence[Message]) -> list[Message]:
        """Records only. What a client reports besides is noted until records come again."""
        good, said = kafka.sound(messages)
        if said and said != self._note:
            log.warning("the broker: %s", said)
        if good or said:
            self._note = said
        return good

    def _observe(self, message: Message) -> None:
        key = message.key()
        assert isinstance(key, bytes)
        partition = message.partition() or 0
        if key.startswith(b"mark"):
            outcome = decode(self._catalogue, message)
            if isinstance(outcome, Recorded) and isinstance(outcome.event, MeterMark):
                self._meter.observe(partition, key, outcome.event)
            # What cannot be read the agents put with the dead letters; it proves nothing here.
        elif message.value() is None:
            self._meter.observe(partition, key, None)
        else:
            self._meter.observe(partition, key, PRESENT)

    def _fold(self, messages: Sequence[Message]) -> None:
        folds = self._meter.folds
        ours: dict[str, list[Message]] = {}
        for message in self._sound(messages):
            source = (message.topic() or "", message.partition() or 0)
            if source in folds and (message.offset() or 0) >= folds[source].position:
                ours.setdefault(source[0], []).append(message)
        for topic, found in ours.items():
            self._in += len(found)
            for partition, stretch in stretches(self._catalogue, BY_NAME[topic], found).items():
                self._meter.fold((topic, partition), stretch)

    def _pass_holes(self) -> None:
        """Folds what lies behind the last record: markers of transactions, which are no records.
        Else such a partition would seem unread for ever, and never be given a tick."""
        folds = self._meter.folds
        for tp in self._consumer.position([TopicPartition(*source) for source in folds]):
            source = (tp.topic, tp.partition)
            if tp.error is None and tp.offset > folds[source].position:
                self._meter.fold(source, Stretch(columns_of([]), [], [], tp.offset - 1))

    # --- writing

    def _flush(self) -> None:
        flush = self._meter.flush()
        if flush is None:
            return
        try:
            self._commit(flush)
        except KafkaException as error:
            self._abort(error.args[0])
            return
        self._meter.committed(flush)
        self._out += len(flush.records)

    def _commit(self, flush: Flush) -> None:
        failed: list[KafkaError] = []

        def report(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        def send(topic: str, key: bytes, value: bytes | None, partition: int) -> None:
            while True:
                try:
                    self._producer.produce(
                        topic, value=value, key=key, partition=partition, on_delivery=report
                    )
                    return
                except BufferError:
                    self._producer.poll(0.05)

        self._producer.begin_transaction()
        for source, late in flush.late:
            event = late_event(source, late, self._meter.generation)
            datum = encode(self._catalogue, LATE_EVENTS, event)
            send(LATE_EVENTS.name, event.event_id.encode(), datum, 0)
        for out in flush.records:
            value = None if out.value is None else encode(self._catalogue, SLM_METRICS, out.value)
            send(SLM_METRICS.name, out.key, value, out.partition)
        left = self._producer.flush(TRANSACTION_MS / 1000)
        if failed or left:
            raise KafkaException(failed[0] if failed else KafkaError(KafkaError._MSG_TIMED_OUT))
        offsets = [TopicPartition(*source, offset) for source, offset in flush.offsets.items()]
        self._producer.send_offsets_to_transaction(offsets, self._metadata, 10)
        self._producer.commit_transaction(10)

    def _abort(self, error: KafkaError) -> None:
        """Ends the transaction and starts again from the last committed marks.

        Raises the error if this producer is done for; a fresh process takes over then.
        """
        log.warning("transaction given up: %s", error.str())
        if error.fatal():
            raise KafkaException(error)
        self._producer.abort_transaction(10)
        sources = list(self._meter.folds)
        self._meter.reset()
        self._consumer.assign([])
        self._settle_later(sources)

    def _tick(self) -> None:
        """Moves time on in partitions of ours that are read to their end and have been silent."""
        base = self._meter.tick_base()
        now = time.monotonic()
        for source, fold in self._meter.folds.items():
            watermark, since = self._moved.get(source, (None, now))
            if fold.watermark_ms != watermark or source not in self._moved:
                self._moved[source] = (fold.watermark_ms, now)
                continue
            if base is None or now - since < TICK_AFTER_S or not fold.caught_up:
                continue
            try:
                _, end = self._consumer.get_watermark_offsets(TopicPartition(*source), timeout=5)
            except KafkaException:
                return  # the broker is busy: the next look will do
            if fold.position < end:
                continue
            topic, partition = source
            tick = ClockTick(
                event_id=derived_id("clock.tick", topic, partition, end),
                occurred_at_ms=base[0],
                source=self._meter.owner,
                base_occurred_at_ms=base[0],
                base_append_ms=base[1],
            )
            value = encode(self._catalogue, BY_NAME[topic], tick)
            self._ticker.produce(topic, value=value, key=b"clock", partition=partition)
            self._moved[source] = (watermark, now)
        self._ticker.poll(0)

    # --- life

    def _report(self, *, force: bool = False) -> None:
        lag = 0
        for source, fold in self._meter.folds.items():
            try:
                _, end = self._consumer.get_watermark_offsets(TopicPartition(*source), cached=True)
            except KafkaException:
                end = -1
            lag += max(0, end - fold.position)
        self._status.write(
            records_in=self._in,
            records_out=self._out,
            lag=lag,
            note=self._note or ("" if self._meter.folds else "waiting for partitions"),
            law=law_of(self._meter),
            force=force,
        )

    def run(self) -> None:
        """Works until stopped. What is not committed then, the next start folds again.

        Raises Stopped if that happens while it waits for the registry.
        """
        self._producer.init_transactions(30)
        self._consumer.subscribe(
            [topic.name for topic in FOLDED],
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._revoked,
        )
        flushed = time.monotonic()
        while not self._stopped():
            wait = max(0.0, flushed + FLUSH_S - time.monotonic())
            self._read += kafka.drain(self._consumer, 0.05 if self._waiting else wait)
            due = time.monotonic() - flushed >= FLUSH_S
            if due or len(self._read) >= FOLD_AT:  # many small batches cost far more than one
                messages, self._read = self._read, []
                self._fold(messages)
            if due:
                self._follow()
                self._pass_holes()
                self._flush()
                flushed = time.monotonic()
                self._tick()
                self._report()
            self._settle()
        self._flush()
        self._report(force=True)

    def close(self) -> None:
        """Closes the clients."""
        self._ticker.flush(5)
        self._consumer.close()
        self._follower.close()
        self._registry.close()


PRESENT: Final = PaneFact.model_construct()
"""Stands for the value of a fact of which only the key is wanted."""


def _passing(error: KafkaError) -> bool:
    """Whether an error is one that waiting mends."""
    return bool(error.retriable()) or error.code() in (
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError._TIMED_OUT,
        KafkaError._WAIT_COORD,
        KafkaError.REBALANCE_IN_PROGRESS,
    )


def law_of(meter: Meter) -> dict[str, int]:
    """Conservation counters of the partitions that are ours: each is told by its owner alone."""
    marks = [mark for partition, mark in meter.marks.items() if partition in meter.folds]
    return {name: sum(getattr(mark, name) for mark in marks) for name in LAW} if marks else {}


def late_event(source: Source, late: Late, generation: int) -> LateEvent:
    """The event that says that one of a source missed its pane; made again it is the same."""
    topic, partition = source
    return LateEvent(
        event_id=derived_id("late.event", topic, partition, late.offset, generation),
        occurred_at_ms=late.append_ms,
        source="roster-meter",
        late_event_id=late.event_id,
        origin_topic=topic,
        origin_partition=partition,
        origin_offset=late.offset,
        pane_start_ms=late.pane_ms,
        watermark_ms=late.watermark_ms,
        generation=generation,
    )


def run(settings: Settings, *, instance: str) -> int:
    """Runs a meter in the foreground until SIGTERM or SIGINT; returns the exit status.

    Raises BadConfiguration and Unreachable as the clients do.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopping: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stopping.append(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    shell = MeterShell(settings, instance, lambda: bool(stopping))
    try:
        with contextlib.suppress(Stopped):
            shell.run()
    except KafkaException as error:
        raise Unreachable(f"meter {instance}: {error.args[0].str()}") from None
    finally:
        shell.close()
    return 0

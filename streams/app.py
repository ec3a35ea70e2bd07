"""The Faust app from Settings, without agents; and how its inputs are read.

Stock faust skips input: what a fetch hands out while partitions are revoked is thrown away, and
the position has moved on. Here

- every input is read from its start at each assignment; group offsets are neither written nor
  read, so nothing depends on when faust would have committed;
- records come as one Batch per partition and fetch, which says from where to where in the log it
  reaches. Whoever applies them keeps the position itself (Reading) and asks for a rewind when a
  batch begins above it: whatever is dropped on the way is fetched again;
- inputs are handed out only after faust has emptied its queues for the last time (perform_seek);
- an empty set of active partitions means none (drain), so that nothing is dropped needlessly,
  changelogs included, whose loss would leave recovery waiting for ever;
- reads are committed;
- a watchdog ends the process when nothing moves although there is something to read.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from streams import compat  # before faust: it chooses the build of faust and checks versions

import faust  # isort: skip
from aiokafka import ConsumerRecord
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import ConsumerStoppedError, IllegalStateError
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from faust.sensors.monitor import Monitor
from faust.tables.manager import TableManager
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP, ConsumerMessage

from schemas.values import MAX_RECORD_BYTES, OWN_RECORD_BYTES
from streams import kafka
from streams.settings import Settings
from streams.topics import AGENTS_APP

EX_SOFTWARE: Final = 70  # exit status of a worker that ends itself; the supervisor starts it again
POLL_RECORDS: Final = 5_000  # most records that one fetch hands out
FETCH_WAIT_MS: Final = 200  # faust's 1,500 would delay each seek by as much
IDLE_S: Final = 0.05
BUSY_LIMIT_S: Final = 300.0  # applying one slice of records never takes this long
START_LIMIT_S: Final = 60.0  # neither does the first assignment

log = logging.getLogger("roster.agents")


@dataclass(frozen=True, slots=True)
class Batch:
    """All committed records of one partition between two positions of its log.

    start, end: the log was read from start up to, not including, end; transaction markers and
    what was aborted or compacted away lie in between without a record.
    """

    topic: str
    partition: int
    start: int
    end: int
    records: tuple[ConsumerRecord, ...]


@dataclass(slots=True)
class Reading:
    """One partition since it was last begun at its start; a new one at each assignment.

    end: where the log ended when it was begun. next: everything below has been applied.
    """

    start: int
    end: int
    next: int

    @property
    def caught_up(self) -> bool:
        """Whether all that was there at the beginning has been applied."""
        return self.next >= self.end

    def admit(self, batch: Batch) -> Sequence[ConsumerRecord] | None:
        """Records of a batch that are still to be applied; None: something before it is missing."""
        if batch.start > self.next:
            return None
        if batch.start == self.next:
            return batch.records
        return [record for record in batch.records if record.offset >= self.next]


@dataclass(slots=True)
class Vitals:
    """What the watchdog looks at. moved: counts whatever gets done; busy_since: monotonic
    seconds, while records are being applied. ready_once: inputs were begun at least once.
    rewinds: times that a batch began too high. lag: offsets behind the committed ends."""

    readings: dict[TP, Reading] = field(default_factory=dict)
    moved: int = 0
    rewinds: int = 0
    busy_since: float | None = None
    ready_once: bool = False
    lag: int | None = None


async def drain(fetcher: Any, active: set[TP], timeout_s: float, most: int) -> dict[TP, Batch]:
    """What aiokafka's Fetcher.fetched_records gives, as batches that know where they begin and
    end. `active` may change while this waits; an empty one means no partition at all.

    Runs in the consumer's thread. Raises what a fetch raised.
    """
    deadline = time.monotonic() + timeout_s
    subscriptions = fetcher._subscriptions
    if subscriptions.reassignment_in_progress:
        await asyncio.sleep(IDLE_S)
        return {}
    assignment = subscriptions.subscription.assignment
    while True:
        # Who waits for this belongs to the old assignment and would not take records of a new one.
        if (
            subscriptions.reassignment_in_progress
            or subscriptions.subscription.assignment is not assignment
        ):
            return {}
        drained: dict[TP, Batch] = {}
        for tp in list(fetcher._records):
            if tp not in active:
                if not subscriptions.is_assigned(tp):
                    del fetcher._records[tp]
                continue
            result = fetcher._records[tp]
            if type(result) is not FetchResult:
                if drained:
                    return drained  # the error is raised by the next call
                del fetcher._records[tp]
                fetcher._notify(fetcher._wait_consume_future)
                result.check_raise()
                continue
            if result.has_more() and result.check_assignment(tp):
                source = result._partition_records
                start = source.next_fetch_offset
                records = tuple(result.getall(most))
                drained[TP(tp.topic, tp.partition)] = Batch(
                    tp.topic, tp.partition, start, source.next_fetch_offset, records
                )
                most -= len(records)
            if not result.has_more():
                del fetcher._records[tp]
                fetcher._notify(fetcher._wait_consume_future)
            if most <= 0:
                break
        left = deadline - time.monotonic()
        if drained or left <= 0 or fetcher._closed:
            return drained
        waiter = fetcher._create_fetch_waiter()
        done, _ = await asyncio.wait([waiter], timeout=left)
        if not done:
            waiter.cancel()
            return {}
        waiter.result()  # raises what the coordinator found, for example a lost permission


class WholeLogApp(faust.App):
    """A Faust app whose consumer reads every input from its start."""

    vitals: Vitals

    @property
    def whole_log(self) -> "WholeLogConsumer":
        """Its consumer."""
        assert isinstance(self.consumer, WholeLogConsumer)
        return self.consumer


class CommittedThread(AIOKafkaConsumerThread):
    """The consumer's thread: reads committed records, drains without dropping."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        client = super()._create_worker_consumer(transport)
        assert client._isolation_level == "read_uncommitted"
        client._isolation_level = "read_committed"
        client._fetch_max_wait_ms = FETCH_WAIT_MS
        return client

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Any:
        if not self.consumer.flow_active:
            return {}
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError()
        with fetcher._subscriptions.fetch_context():
            return await drain(
                fetcher, active_partitions, timeout or 0.0, max_records or POLL_RECORDS
            )

    async def begin(self, tps: Iterable[TP]) -> dict[TP, Reading]:
        """Seeks partitions to their start."""
        return await self.call_thread(self._begin, list(tps))  # type: ignore[no-any-return]  # faust is untyped

    async def _begin(self, tps: list[TP]) -> dict[TP, Reading]:
        client = self._ensure_consumer()
        first = await client.beginning_offsets(tps)
        last = await client.end_offsets(tps)  # committed reads: of the last finished transaction
        for tp in tps:
            client.seek(tp, first[tp])
        return {tp: Reading(first[tp], last[tp], first[tp]) for tp in tps}

    async def rewind(self, tp: TP, offset: int) -> None:
        """Seeks one partition; nothing if it is no longer ours."""
        await self.call_thread(self._rewind, tp, offset)

    async def _rewind(self, tp: TP, offset: int) -> None:
        try:
            self._ensure_consumer().seek(tp, offset)
        except IllegalStateError:
            return


class WholeLogConsumer(Consumer):
    """Reads every input from its start, in batches. app.vitals tells how far."""

    @property
    def vitals(self) -> Vitals:
        """Those of the app."""
        assert isinstance(self.app, WholeLogApp)
        return self.app.vitals

    def _new_consumer_thread(self) -> CommittedThread:
        return CommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """Called when tables have been recovered: begins every input anew.

        Inputs are held back until resume_flow: right before it faust empties the agents' queues,
        and what was fetched after the seek would be lost there, the position beyond it.
        """
        inputs = {tp for tp in self.assignment() if not self._is_changelog_tp(tp)}
        self.pause_partitions(inputs)
        self._buffered_partitions.clear()  # else a queue that runs empty resumes its partition
        thread: Any = self._thread
        self.vitals.readings = await thread.begin(inputs)
        self.vitals.ready_once = True
        self.vitals.moved += 1

    def resume_flow(self) -> None:
        """Called when tables are about to be recovered, and after perform_seek."""
        super().resume_flow()
        self.resume_partitions(self.vitals.readings)

    async def rewind(self, tp: TP, offset: int) -> None:
        """Has the partition read again from an offset."""
        thread: Any = self._thread
        await thread.rewind(tp, offset)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """What is still queued for revoked partitions is not applied any more."""
        self.vitals.readings = {}
        self.vitals.moved += 1
        await super().on_partitions_revoked(revoked)

    def _new_offset(self, tp: TP) -> int | None:
        """Nothing is ever committed; the lists of acknowledged offsets must not grow."""
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        self._gap[tp].clear()
        return None

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """One message per partition and fetch for inputs, one per record for changelogs."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)  # type: ignore[arg-type]  # mode: asyncio's Event will do
        active = self._get_active_partitions()
        if not active:
            await self.sleep(IDLE_S)
            return
        fetched: Any = await self._getmany(active_partitions=active, timeout=timeout)
        batches: dict[TP, Batch] = fetched
        generation = self.app.consumer_generation_id

        def stale() -> bool:
            return bool(
                self.should_stop
                or not self.flow_active
                or self.app.consumer_generation_id != generation
            )

        for tp, batch in batches.items():
            if tp not in active and tp not in self._buffered_partitions:
                continue
            changelog = self._is_changelog_tp(tp)
            messages = (
                (self._to_message(tp, record) for record in batch.records)
                if changelog
                else (self._batch_message(tp, batch),)
            )
            for message in messages:
                if stale():
                    return
                # Else faust drops what is below the last offset it saw; after a seek to the start
                # that is everything. Recovery and Reading know what they have seen.
                self._read_offset[tp] = None
                self.vitals.moved += changelog
                yield tp, message

    def _batch_message(self, tp: TP, batch: Any) -> ConsumerMessage:
        return ConsumerMessage(
            batch.topic,
            batch.partition,
            batch.start,
            0.0,
            0,
            None,
            None,
            batch,
            None,
            -1,
            -1,
            tp,
            generation_id=self.app.consumer_generation_id,
        )


class WholeLogTransport(Transport):
    Consumer = WholeLogConsumer


class PromptTables(TableManager):
    """Without the second that faust waits for tables: all are declared before the app starts."""

    async def on_start(self) -> None:
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


class StrictMonitor(Monitor):
    """A row that did not reach its changelog must not be lost in silence."""

    def on_send_error(self, producer: Any, exc: BaseException, state: Any) -> None:
        fatal(f"a changelog record was not acknowledged: {exc!r}")


def fatal(reason: str) -> NoReturn:
    """Ends the process at once, before faust acknowledges what was not applied."""
    log.error("%s; ending, to be started again", reason)
    sys.stderr.flush()
    os._exit(EX_SOFTWARE)


def build(
    settings: Settings,
    *,
    app_id: str = AGENTS_APP,
    session_s: float = 10.0,
    rebalance_s: float = 3.0,
    instance: str | None = None,
) -> WholeLogApp:
    """A Faust app without agents.

    session_s: a worker that was killed is missed after this time. rebalance_s: the others wait
    this long for one that does not join. instance: a stable name of this worker (static
    membership: a restart within session_s causes no rebalance).
    Raises BadConfiguration without a broker's address.
    """
    app = WholeLogApp(
        app_id,
        broker=[f"kafka://{one.strip()}" for one in settings.need_kafka().split(",")],
        store="memory://",
        datadir=str(settings.data / "faust"),
        processing_guarantee="at_least_once",
        Monitor=StrictMonitor,
        TableManager=PromptTables,
        autodiscover=False,
        web_enabled=False,
        worker_redirect_stdouts=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_replication_factor=settings.replication,
        table_standby_replicas=0,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=min(3.0, session_s / 6),
        broker_rebalance_timeout=rebalance_s,
        broker_request_timeout=30.0,
        broker_commit_interval=1.0,
        broker_max_poll_records=POLL_RECORDS,
        consumer_group_instance_id=instance,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        producer_linger=0.005,
        producer_max_batch_size=131_072,
        producer_max_request_size=OWN_RECORD_BYTES + MAX_RECORD_BYTES,
        producer_request_timeout=30.0,
        producer_compression_type="lz4",
        stream_buffer_maxsize=64,  # batches, of up to POLL_RECORDS records each
    )
    app.transport = WholeLogTransport(app.conf.broker_consumer, app)
    app.vitals = Vitals()
    return app


LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {
        "roster": {"level": "INFO"},
        "faust": {"level": "ERROR"},
        "mode": {"level": "ERROR"},
        "aiokafka": {"level": "ERROR"},  # it warns at each rebalance
    },
}


class Watchdog(threading.Thread):
    """Ends the process when nothing moves for stall_s although there is something to do.

    It asks the broker itself, by a client of its own: what the consumer believes may be what is
    wrong. While the broker does not answer it judges nothing.
    """

    def __init__(self, app: WholeLogApp, bootstrap: str, stall_s: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._app = app
        self._broker = bootstrap
        self._stall_s = stall_s
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends the thread; the client closes with it."""
        self._stopped.set()

    def run(self) -> None:
        client = kafka.consumer(
            self._broker, "roster-watchdog", enable_partition_eof=True, fetch_wait_max_ms=10
        )
        try:
            self._watch(client)
        finally:
            client.close()

    def _watch(self, client: Any) -> None:
        vitals = self._app.vitals
        seen, since = vitals.moved, time.monotonic()
        while not self._stopped.wait(1.0):
            now = time.monotonic()
            if vitals.moved != seen:
                seen, since = vitals.moved, now
            still = now - since
            if vitals.busy_since is not None:
                if now - vitals.busy_since > BUSY_LIMIT_S:
                    fatal(f"one slice of records takes longer than {BUSY_LIMIT_S:.0f} s")
                since = now
            elif not vitals.ready_once and still > START_LIMIT_S:
                fatal(f"no partitions were assigned within {still:.0f} s")
            elif self._app.rebalancing or self._app.in_recovery:
                if vitals.ready_once and still > self._stall_s:
                    fatal(f"a rebalance has made no progress for {still:.0f} s")
            else:
                try:
                    stuck = self._stuck(client, dict(vitals.readings), still > self._stall_s)
                except KafkaException:
                    since = now  # no answer, no verdict
                    continue
                if stuck:
                    fatal(f"{', '.join(stuck)}: no progress for {still:.0f} s")

    def _stuck(self, client: Any, readings: Mapping[TP, Reading], look: bool) -> list[str]:
        """Notes the lag; if told to look, also names partitions with a record not yet applied:
        behind the last record there may be offsets without any, and those are no lag."""
        ends = {
            tp: client.get_watermark_offsets(TopicPartition(*tp), timeout=5.0)[1] for tp in readings
        }
        behind = [tp for tp in readings if readings[tp].next < ends[tp]]
        self._app.vitals.lag = sum(ends[tp] - readings[tp].next for tp in behind)
        return [
            f"{tp.topic}[{tp.partition}] at {readings[tp].next}"
            for tp in behind
            if look and self._has_record(client, tp, readings[tp].next)
        ]

    def _has_record(self, client: Any, tp: TP, offset: int) -> bool:
        client.assign([TopicPartition(tp.topic, tp.partition, offset)])
        try:
            message = client.poll(5.0)
        finally:
            client.unassign()
        if message is None:
            return False
        error = message.error()
        if error is None:
            return True
        if error.code() == KafkaError._PARTITION_EOF:
            return False
        raise KafkaException(error)


__all__ = ["Batch", "Reading", "Vitals", "Watchdog", "build", "compat", "drain", "fatal"]

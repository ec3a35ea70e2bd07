"""Private names of faust, aiokafka and mode that streams/app.py relies on, checked at import.

A bump of one of the three is a code change: these names and lines carry exactness (no record
skipped at a rebalance, committed reads, no group offsets), and nothing but a look at the new
source and the tests of workers that join and leave says whether they still mean the same.
"""

import inspect
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final

os.environ["NO_CYTHON"] = "1"  # one code path instead of two, and not a slower one; before faust
import aiokafka
import mode
from aiokafka.consumer.consumer import AIOKafkaConsumer
from aiokafka.consumer.fetcher import Fetcher, FetchError, FetchResult, PartitionRecords
from aiokafka.consumer.subscription_state import SubscriptionState
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer, ThreadDelegateConsumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as KafkaConsumer
from faust.worker import Worker
from mode.utils.queues import FlowControlEvent

from streams.errors import BadConfiguration

VERSIONS: Final = {
    "faust-streaming": "0.15.3",
    "aiokafka": "0.14.0",
    "mode-streaming": "0.7.1",
}

NAMES: Final[tuple[tuple[type, tuple[str, ...]], ...]] = (
    (
        AIOKafkaConsumerThread,
        ("_create_worker_consumer", "_fetch_records", "_ensure_consumer", "call_thread"),
    ),
    (KafkaConsumer, ("_new_consumer_thread", "_to_message")),
    (ThreadDelegateConsumer, ("_getmany",)),
    (
        Consumer,
        (
            *("getmany", "perform_seek", "_new_offset", "_get_active_partitions"),
            *("_is_changelog_tp", "on_partitions_revoked", "_drain_messages"),
            *("pause_partitions", "resume_partitions", "resume_flow"),
        ),
    ),
    (AIOKafkaConsumer, ("beginning_offsets", "end_offsets", "seek")),
    (Fetcher, ("_create_fetch_waiter", "_notify")),
    (FetchResult, ("check_assignment", "getall", "has_more")),
    (FetchError, ("check_raise",)),
    (SubscriptionState, ("fetch_context", "is_assigned", "reassignment_in_progress")),
    (TableManager, ("on_start", "_update_channels")),
    (Recovery, ("on_recovery_completed",)),
    (Worker, ("_on_sigint", "_on_sigterm")),
)
"""Methods and properties that are called or overridden."""

LINES: Final[tuple[tuple[Callable[..., Any] | type, str, str], ...]] = (
    (
        Fetcher.fetched_records,
        "if partitions and tp not in partitions:",
        "an empty set of partitions means all of them: the reason for streams.app.drain",
    ),
    (Fetcher.__init__, "self._records = collections.OrderedDict()", "what was fetched"),
    (Fetcher.__init__, "self._wait_consume_future = None", "wakes the fetching task"),
    (
        FetchResult.__init__,
        "self._partition_records = partition_records",
        "records of a fetch, with the position they begin at",
    ),
    (
        FetchResult.check_assignment,
        "if position != self._partition_records.next_fetch_offset:",
        "records are given out only from where the position stands",
    ),
    (
        PartitionRecords._unpack_records,
        "self.next_fetch_offset = next_batch.next_offset",
        "the position passes transaction markers, aborted and compacted records",
    ),
    (AIOKafkaConsumer.__init__, "self._isolation_level = isolation_level", "committed reads"),
    (AIOKafkaConsumer.__init__, "self._fetch_max_wait_ms = fetch_max_wait_ms", "quick seeks"),
    (
        AIOKafkaConsumerThread._create_worker_consumer,
        'isolation_level: str = "read_uncommitted"',
        "stock faust reads uncommitted",
    ),
    (Consumer._drain_messages, "if r_offset is None or offset >= r_offset:", "repeats are dropped"),
    (Consumer.__init__, "self._acked = defaultdict(list)", "acknowledged offsets"),
    (Consumer.__init__, "self._acked_index = defaultdict(set)", "the same, indexed"),
    (Consumer.__init__, "self._gap = defaultdict(IntervalTree)", "holes between them"),
    (Consumer.__init__, "self._read_offset = defaultdict(lambda: None)", "last offset delivered"),
    (
        Recovery.on_recovery_completed,
        "consumer.perform_seek()",
        "inputs are placed after the tables were recovered",
    ),
    (FlowControlEvent.resume, "self.clear()", "queues are emptied when the flow is resumed"),
    (
        Recovery.on_recovery_completed,
        "self.app.flow_control.resume()\n        consumer.resume_flow()",
        "after the seek queues are emptied, then inputs may come: at once, and in this order",
    ),
    (
        Consumer.__init__,
        "self._buffered_partitions = set()",
        "partitions held back while a queue is full",
    ),
)
"""Source lines whose meaning is relied on or replaced, each with the reason."""


def check() -> None:
    """Raises BadConfiguration if a version, a name or a line is not the one relied on."""
    for package, wanted in VERSIONS.items():
        found = version(package)
        if found != wanted:
            raise BadConfiguration(
                f"{package} is {found}; allowed: {wanted}, because private names of it are used:"
                " install the pinned requirements"
            )
    for owner, names in NAMES:
        for name in names:
            if not hasattr(owner, name):
                raise BadConfiguration(f"{owner.__module__}.{owner.__name__} lacks {name}")
    for place, line, why in LINES:
        if line not in inspect.getsource(place):
            raise BadConfiguration(f"{place.__qualname__} lacks the line {line!r} ({why})")


check()

__all__ = ["LINES", "NAMES", "VERSIONS", "aiokafka", "check", "mode"]

"""The meter's process on the real broker, with both topics that it folds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from processors.columns import columns_of
from processors.pane_fold import PartitionFold, Stretch
from processors.stretches import stretches
from schemas import Event, LlmInvocation, MeterMark, ModelQualityObserved, PaneFact, Recorded
from streams import kafka as clients
from streams import topics
from streams.codec import decode, encode, tenant_key
from streams.registry import Catalogue, Registry
from streams.topics import FOLDED, LLM_INVOCATION, MODEL_QUALITY_OBSERVED, SLM_METRICS, Topic
from tests.support.events import good

SOURCES = {(topic.name, p) for topic in FOLDED for p in range(topic.partitions)}


class Bench:
    """A broker with topics, and meters of a generation that nobody else uses."""

    def __init__(self, kafka: str, catalogue: Catalogue, registry: str, data: Path) -> None:
        self.kafka, self.catalogue, self.data = kafka, catalogue, data
        self.generation = 10**6 + uuid4().int % 10**6
        self.env = {
            **os.environ,
            "ROSTER_KAFKA": kafka,
            "ROSTER_REGISTRY": registry,
            "ROSTER_DATA": str(data),
            "ROSTER_GENERATION": str(self.generation),
        }
        self.out = clients.Outbound(clients.producer(kafka))

    @contextmanager
    def meter(self) -> Iterator[subprocess.Popen[bytes]]:
        """A meter; killed in the end, if it is still there."""
        command = [sys.executable, "-m", "tools", "meter", "--instance", f"t{self.generation}"]
        with (self.data / "log").open("ab") as log:
            process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)

    def say(self, topic: Topic, *events: LlmInvocation | ModelQualityObserved) -> None:
        """Events into partition 0, acknowledged."""
        for event in events:
            value = encode(self.catalogue, topic, event)
            self.out.send(topic.name, tenant_key(event), value, partition=0)
        self.out.flush()

    def metrics(self) -> dict[bytes, Event]:
        """Newest facts and marks of the generation, by key."""
        found: dict[bytes, Event] = {}
        for message in clients.read_to_end(self.kafka, SLM_METRICS.name):
            item = decode(self.catalogue, message)
            if (
                isinstance(item, Recorded)
                and isinstance(item.event, PaneFact | MeterMark)
                and item.event.generation == self.generation
            ):
                found[item.event.key()] = item.event
        return found

    def marks(self) -> dict[tuple[str, int], MeterMark]:
        """Newest mark of every source."""
        return {
            (m.source_topic, m.source_partition): m
            for m in self.metrics().values()
            if isinstance(m, MeterMark)
        }

    def watermark(self) -> int | None:
        """W; None while any source has none."""
        known = [m.watermark_ms for m in self.marks().values() if m.watermark_ms is not None]
        return min(known) if len(known) == len(SOURCES) else None

    def until(self, what: Callable[[], object], within_s: float = 60.0) -> None:
        """Waits until something holds."""
        end = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < end, (self.data / "log").read_text()
            time.sleep(0.3)

    def folded(self, topic: Topic, up_to: int) -> PartitionFold:
        """Partition 0 folded in one go up to an offset."""
        messages = list(
            clients.read_to_end(self.kafka, topic.name, start={0: 0}, end={0: up_to + 1})
        )
        fold = PartitionFold(topic.name, 0, self.generation, None)
        if messages:
            fold.fold(stretches(self.catalogue, topic, messages)[0])
        if fold.up_to_offset < up_to:
            fold.fold(Stretch(columns_of([]), [], [], up_to))
        return fold


@pytest.fixture
def bench(kafka: str, registry: str, tmp_path: Path) -> Iterator[Bench]:
    topics.create(clients.admin(kafka), 1)
    with Registry(registry) as client:
        yield Bench(kafka, Catalogue(client), registry, tmp_path)


def observed(number: int, role: str, **fields: object) -> ModelQualityObserved:
    now = time.time_ns() // 1_000_000
    given = {
        "event_id": f"{role}-q{number}",
        "occurred_at_ms": now,
        "role": role,
        "n": 4,
        "hits": 3,
    }
    return good(ModelQualityObserved, **{**given, "metric": "quality", **fields})


def invoked(number: int, role: str) -> LlmInvocation:
    now = time.time_ns() // 1_000_000
    return good(LlmInvocation, event_id=f"{role}-i{number}", occurred_at_ms=now, role=role)


def test_both_topics_are_folded_through_a_sigkill_and_silence_does_not_stop_time(
    bench: Bench,
) -> None:
    role = f"role-{uuid4()}"
    first = [observed(i, role) for i in range(20)]
    bench.say(LLM_INVOCATION, *(invoked(i, role) for i in range(30)))
    bench.say(MODEL_QUALITY_OBSERVED, *first)
    with bench.meter() as meter:
        # Most partitions are silent, of both topics: only ticks give them a watermark.
        bench.until(lambda: bench.watermark() is not None)
        before = bench.watermark()
        assert before is not None
        bench.until(lambda: (bench.watermark() or 0) > before)
        more = [observed(i, role, metric="policy_compliance", hits=4) for i in range(20, 50)]
        bench.say(MODEL_QUALITY_OBSERVED, *more, *first[:7])
        bench.say(MODEL_QUALITY_OBSERVED, first[0].model_copy(update={"hits": 0}))
        meter.send_signal(signal.SIGKILL)
        meter.wait(10)
        bench.say(LLM_INVOCATION, invoked(30, role))
        bench.say(MODEL_QUALITY_OBSERVED, observed(50, role, hits=0))
    ends = {
        topic.name: clients.watermarks(clients.consumer(bench.kafka, "ends"), topic.name, 0)[1]
        for topic in FOLDED
    }
    with bench.meter():
        bench.until(
            lambda: all(bench.marks()[t, 0].up_to_offset >= end - 1 for t, end in ends.items())
        )

    found = bench.metrics()
    marks = bench.marks()
    assert set(marks) == SOURCES
    for topic in FOLDED:
        mark = marks[topic.name, 0]
        plain = bench.folded(topic, mark.up_to_offset)
        told = mark.model_copy(update={"owner": "x", "kept_from_ms": None})
        assert told == plain.mark(None, "x")
        for fact in plain.facts():
            again = found[fact.key()]
            assert isinstance(again, PaneFact)
            assert again.models == fact.models
    facts = [f for f in found.values() if isinstance(f, PaneFact) and f.role == role]
    models = [m for fact in facts for m in fact.models]
    assert sum(sum(m.outcomes) for m in models) == 31
    sums: dict[str, tuple[int, int]] = {}
    for count in (c for m in models for c in m.quality):
        n, hits = sums.get(count.metric, (0, 0))
        sums[count.metric] = (n + count.n, hits + count.hits)
    assert sums == {"quality": (84, 60), "policy_compliance": (120, 120)}

"""How long an event takes until a published ranking has seen it: python -m tools.bench

Starts a broker, a registry, a meter and the agents of its own in a temporary folder, loads them at
a steady rate over loopback for some seconds per rate, and stops. An event is sampled from every
batch; its delay ends when a record of model.profile.scored for its role arrives whose marks reach
the event's offset. Policies publish every change, without throttle.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyruhvro
from confluent_kafka import Message, TopicPartition

from schemas import LlmInvocation, MeterMark, ModelProfileScored, RateCardUpdated, Recorded
from schemas.avro import schema_text
from schemas.rate_card import PriceUnit
from schemas.values import MODES, ROLES, derived_id
from streams import kafka, settings, topics
from streams.codec import decode, encode, frame
from streams.registry import Catalogue, Registry, register_all
from streams.settings import Settings
from streams.topics import (
    LLM_INVOCATION,
    MODEL_PROFILE_SCORED,
    RATE_CARD_UPDATED,
    SCORING_POLICY_UPDATED,
    SLM_METRICS,
)
from tools import stack, up
from tools.defaults import policy
from tools.supervisor import Supervisor

BATCH_S: Final = 0.01
WARM_S: Final = 3.0
KEYS_ROLES, KEYS_MODES = ROLES[:7], MODES[:4]  # 28 ranking keys
MODELS: Final = tuple(("bench", f"model-{i}") for i in range(6))


@dataclass(slots=True)
class Heard:
    """Records as they arrived, undecoded, with the time of arrival."""

    messages: list[tuple[float, Message]] = field(default_factory=list)


@dataclass(slots=True)
class Sample:
    """One event: which role, where it stands (known when it is acknowledged), when it was sent."""

    role: str
    sent: float
    partition: int = -1
    offset: int = -1


@contextmanager
def system() -> Iterator[tuple[Settings, Supervisor]]:
    """Broker, registry, meter and agents of our own, with policies and prices."""
    with tempfile.TemporaryDirectory(prefix="roster-bench-") as folder:
        loaded = settings.load({})
        stack.prepare(loaded.cache, say=lambda text: print(text, file=sys.stderr))
        addresses, children = stack.local(Path(folder), loaded.cache, usual=None)
        own = replace(
            loaded,
            kafka=addresses.kafka,
            registry=addresses.registry,
            data=Path(folder),
            api=None,
        )
        with Supervisor(own.data) as supervisor:
            supervisor.add(*children)
            supervisor.wait_ready(within_s=stack.READY_WITHIN_S)
            topics.create(kafka.admin(own.need_kafka()), 1)
            with Registry(own.need_registry()) as registry:
                publish_statements(own, register_all(registry))
            supervisor.add(up.child("agents", own), up.child("meter", own, "--instance", "0"))
            supervisor.wait_ready(within_s=stack.READY_WITHIN_S)
            yield own, supervisor


def publish_statements(own: Settings, catalogue: Catalogue) -> None:
    """Policies that publish every change, and prices of all models."""
    out = kafka.Outbound(kafka.producer(own.need_kafka()))
    for role in KEYS_ROLES:
        for mode in KEYS_MODES:
            rules = policy(role, mode).model_copy(
                update={"emit_epsilon_e9": 0, "emit_min_interval_ms": 0}
            )
            key = f"{role}/{mode}".encode()
            out.send(
                SCORING_POLICY_UPDATED.name,
                key,
                encode(catalogue, SCORING_POLICY_UPDATED, rules),
            )
    for provider, model in MODELS:
        for unit in (PriceUnit.INPUT_TOKEN, PriceUnit.CACHED_TOKEN, PriceUnit.OUTPUT_TOKEN):
            card = RateCardUpdated(
                event_id=derived_id("bench", provider, model, unit.value),
                occurred_at_ms=0,
                source="bench",
                provider=provider,
                model=model,
                unit=unit,
                price_picousd_per_million=10**11,
                valid_from_ms=0,
            )
            key = f"{provider}/{model}".encode()
            out.send(RATE_CARD_UPDATED.name, key, encode(catalogue, RATE_CARD_UPDATED, card))
    out.flush()


def batch(rng: np.random.Generator, number: int, first: int, now_ms: int) -> dict[str, Any]:
    """Columns of so many invocations."""
    size = number
    role = rng.integers(len(KEYS_ROLES), size=size)
    pair = rng.integers(len(MODELS), size=size)
    failed = rng.integers(50, size=size) == 0
    return {
        "event_id": [f"{now_ms}-{first + i}" for i in range(size)],
        "occurred_at_ms": np.full(size, now_ms),
        "source": pa.repeat("bench", size),
        "tenant": pa.repeat("acme", size),
        "mode": pa.array(KEYS_MODES).take(rng.integers(len(KEYS_MODES), size=size)),
        "role": pa.array(KEYS_ROLES).take(role),
        "provider": pa.repeat("bench", size),
        "model": pa.array([m for _, m in MODELS]).take(pair),
        "outcome": pa.array(["SUCCESS", "FAILURE"]).take(failed.astype(np.int64)),
        "input_tokens": rng.integers(100, 4000, size=size),
        "cached_tokens": np.zeros(size, np.int64),
        "output_tokens": rng.integers(10, 400, size=size),
        "latency_us": rng.lognormal(13.5, 0.5, size=size).astype(np.int64) + 1,
        "attempt": np.ones(size, np.int64),
    }


class Load:
    """A steady stream of invocations."""

    def __init__(self, own: Settings, catalogue: Catalogue) -> None:
        self.out = kafka.producer(own.need_kafka(), linger_ms=1)
        self.head = frame(catalogue.id_of(LLM_INVOCATION, LlmInvocation), b"")
        self.schema = pyruhvro.avro_to_arrow_schema(schema_text(LlmInvocation))
        self.rng = np.random.default_rng(7)
        self.sent = 0

    def run(self, rate: int, seconds: float) -> list[Sample]:
        """Sends for so long; the samples, with their places."""
        samples: list[Sample] = []
        begun = time.monotonic()
        size = max(1, round(rate * BATCH_S))
        for turn in count():
            due = begun + turn * size / rate
            if due - begun >= seconds:
                break
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            samples.append(self.send(size))
        self.out.flush(30)
        return samples

    def send(self, size: int) -> Sample:
        """Sends a batch; its first event is the sample."""
        columns = batch(self.rng, size, self.sent, time.time_ns() // 1_000_000)
        self.sent += size
        given = {name: columns.get(name) for name in self.schema.names}
        record = pa.RecordBatch.from_arrays(
            [
                (pa.nulls(size) if values is None else pa.array(values)).cast(f.type)
                for f, values in zip(self.schema, given.values(), strict=True)
            ],
            schema=self.schema,
        )
        (data,) = pyruhvro.serialize_record_batch(record, schema_text(LlmInvocation), 1)
        sample = Sample(columns["role"][0].as_py(), time.monotonic())

        def placed(_: Any, message: Message) -> None:
            sample.partition, sample.offset = message.partition() or 0, message.offset() or 0

        for i, (event_id, datum) in enumerate(
            zip(columns["event_id"], data.to_pylist(), strict=True)
        ):
            self.out.produce(
                LLM_INVOCATION.name,
                key=f"acme/{event_id}",
                value=self.head + datum,
                on_delivery=placed if i == 0 else None,
            )
        self.out.poll(0)
        return sample


@contextmanager
def hearing(own: Settings, topic: str) -> Iterator[Heard]:
    """Hears every record that a topic takes meanwhile."""
    heard, ended = Heard(), threading.Event()
    client = kafka.consumer(own.need_kafka(), "roster-bench", fetch_wait_max_ms=5)
    ends = kafka.end_offsets(client, topic)
    client.assign([TopicPartition(topic, p, at) for p, at in ends.items()])

    def hear() -> None:
        while not ended.is_set():
            for message in client.consume(100, timeout=0.005):
                heard.messages.append((time.monotonic(), message))

    thread = threading.Thread(target=hear)
    thread.start()
    try:
        yield heard
    finally:
        ended.set()
        thread.join()
        client.close()


Reached = dict[tuple[str, int], tuple[list[int], list[float]]]
"""(role, partition of llm.invocation) -> offsets, ascending, and when they had been reached."""


def ranked(heard: Heard, catalogue: Catalogue) -> Reached:
    """When rankings of a role had seen which offsets."""
    reached: Reached = {}
    for at, message in heard.messages:
        found = decode(catalogue, message)
        if isinstance(found, Recorded) and isinstance(found.event, ModelProfileScored):
            for mark in found.event.marks:
                if mark.source_topic == LLM_INVOCATION.name:
                    where = (found.event.role, mark.source_partition)
                    _reach(reached, where, mark.up_to_offset, at)
    return reached


def folded(heard: Heard, catalogue: Catalogue) -> Reached:
    """When marks of the meter had been committed, the same for all roles."""
    reached: Reached = {}
    for at, message in heard.messages:
        found = decode(catalogue, message)
        if isinstance(found, Recorded) and isinstance(found.event, MeterMark):
            mark = found.event
            if mark.source_topic == LLM_INVOCATION.name:
                for role in KEYS_ROLES:
                    _reach(reached, (role, mark.source_partition), mark.up_to_offset, at)
    return reached


def _reach(reached: Reached, where: tuple[str, int], offset: int, at: float) -> None:
    offsets, times = reached.setdefault(where, ([], []))
    if not offsets or offset > offsets[-1]:
        offsets.append(offset)
        times.append(at)


def delays(samples: Sequence[Sample], reached: Reached) -> tuple[list[float], int]:
    """Seconds of each sample until it had been reached; how many never were."""
    took, missed = [], 0
    for sample in samples:
        offsets, times = reached.get((sample.role, sample.partition), ([], []))
        i = bisect_left(offsets, sample.offset)
        if i == len(offsets):
            missed += 1
        else:
            took.append(times[i] - sample.sent)
    return took, missed


def quantiles_ms(took: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    return {f"p{q}": round(float(np.quantile(took, q / 100)) * 1000, 1) for q in (50, 99)}


def measure(rates: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """One row per rate."""
    rows = []
    with system() as (own, _), Registry(own.need_registry()) as registry:
        catalogue = Catalogue(registry)
        load = Load(own, catalogue)
        load.run(rates[0], WARM_S)
        written = log_bytes(own)
        for rate in rates:
            before = load.sent
            with (
                hearing(own, SLM_METRICS.name) as marks,
                hearing(own, MODEL_PROFILE_SCORED.name) as rankings,
            ):
                load.run(rate, WARM_S)
                samples = load.run(rate, seconds)
                time.sleep(2.0)
            took, missed = delays(samples, ranked(rankings, catalogue))
            now = log_bytes(own)
            row = {
                "rate": rate,
                "events": load.sent - before,
                "fold_ms": quantiles_ms(delays(samples, folded(marks, catalogue))[0]),
                "ranking_ms": quantiles_ms(took),
                "missed": missed,
                "rankings_per_s": round(len(rankings.messages) / (seconds + WARM_S), 1),
                "metrics_mb_per_million": round((now - written) / (load.sent - before), 2),
            }
            rows.append(row)
            written = now
            print(json.dumps(row), flush=True)
    return rows


def log_bytes(own: Settings) -> int:
    """Bytes of slm.metrics on the broker's disk."""
    folders = (own.data / "kafka" / "log").glob(f"{SLM_METRICS.name}-*")
    return sum(f.stat().st_size for folder in folders for f in folder.glob("*.log"))


def main() -> None:
    """Measures and prints one line per rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default="1000,10000,50000", help="events per second")
    parser.add_argument("--seconds", type=float, default=20, help="per rate")
    given = parser.parse_args()
    measure([int(rate) for rate in given.rates.split(",")], given.seconds)


if __name__ == "__main__":
    main()

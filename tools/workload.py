"""The sample workload: recorded arrivals and calls, replayed for 24 h and then at their own pace.

`events` (tools/sample/traffic.py) says what was asked, `story` what an operator does meanwhile;
the constants of both are in tools/sample/script.py. `run` publishes both, in the order of event
time: what lies behind the clock as fast as the broker takes it, the rest when it is due.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro

from schemas import (
    BudgetUpdated,
    Event,
    HeadedEvent,
    LlmInvocation,
    ModeChanged,
    ModelFallbackUsed,
    ModelProfileUpdated,
    ModelQualityObserved,
)
from schemas.avro import schema_text
from schemas.budget import BudgetPeriod, CapAction
from schemas.envelope import Recorded
from schemas.model_profile import ProfileAction
from schemas.rate_card import PriceUnit
from schemas.values import derived_id
from streams import kafka
from streams.codec import decode, encode, frame
from streams.errors import BadConfiguration
from streams.registry import Catalogue, Registry
from streams.settings import Settings
from streams.status import StatusFile
from streams.topics import (
    BUDGET_UPDATED,
    LLM_INVOCATION,
    MODE_CHANGED,
    MODEL_FALLBACK_USED,
    MODEL_PROFILE_UPDATED,
    MODEL_QUALITY_OBSERVED,
    Topic,
)
from tools.defaults import (
    BUDGET,
    PRICE_KEYS,
    PRODUCTION_CHAINS,
    Chain,
    cards,
    control_key,
    publish_defaults,
)
from tools.sample.script import (
    JOINED,
    MODE_FALLS,
    MODE_RISES,
    MOVED_CHAIN,
    PILOT_AT_CAP,
    PROFILE_MOVES,
    PROFILE_RETURNS,
    SOURCE,
    pilot,
)
from tools.sample.traffic import Batch, events

__all__ = ["JOINED", "SOURCE", "Batch", "events", "resume_ms", "run", "story"]

MAX_RATE: Final = 10_000
MAX_BACKFILL_H: Final = 24 * 30  # within what the codec accepts (35 days)


def encoded(batch: pa.RecordBatch, event: type[Event], schema_id: int) -> list[bytes]:
    """Record values of a batch of columns, framed."""
    if not batch.num_rows:
        return []
    (data,) = pyruhvro.serialize_record_batch(batch, schema_text(event), 1)
    head = frame(schema_id, b"")
    return [head + datum for datum in data.to_pylist()]


def keys(batch: pa.RecordBatch) -> list[bytes]:
    """Record keys of a batch of columns: tenant/event_id."""
    parts: tuple[Any, ...] = (batch["tenant"], batch["event_id"], "/")  # the stubs want one type
    return list(pc.binary_join_element_wise(*parts).cast(pa.binary()).to_pylist())


# The story: what an operator does. ---------------------------------------------------------------


def story(seed: int, start_ms: int, deployment: str, rate: float = 1.0) -> list[HeadedEvent]:
    """The operator's events of a run, in order of time. It opens with the state that it assumes,
    since an earlier run may have ended in the middle of it."""

    def header(ms: int, what: str) -> dict[str, Any]:
        mode = "DEVELOPMENT" if MODE_FALLS < ms <= MODE_RISES else "PRODUCTION"
        return {
            "event_id": derived_id(SOURCE, what, seed, start_ms, ms),
            "occurred_at_ms": start_ms + ms,
            "source": SOURCE,
            "mode": mode,
            "actor": "operator",
        }

    def turn(ms: int, to_mode: str, reason: str) -> ModeChanged:
        return ModeChanged(
            **header(ms, "mode"), deployment=deployment, to_mode=to_mode, reason=reason
        )

    def move(ms: int, chain: Chain, reason: str) -> ModelProfileUpdated:
        return ModelProfileUpdated(
            **header(ms, "profile"),
            scope="system",
            role="code",
            deployment_mode="PRODUCTION",
            action=ProfileAction.SET,
            model=chain[0],
            fallbacks=chain[1:],
            temperature=0.1,
            max_tokens=2048,
            reason=reason,
        )

    return [
        BudgetUpdated(
            **header(0, "budget"),
            tenant=pilot(start_ms),
            budget=BUDGET,
            cap_picousd=max(1, pilot_spend_picousd(seed, start_ms, rate)),
            period=BudgetPeriod.DAY,
            at_cap=CapAction.DENY,
        ),
        turn(0, "PRODUCTION", "the sample run begins"),
        move(0, PRODUCTION_CHAINS["code"], "the sample run begins"),
        move(PROFILE_MOVES, MOVED_CHAIN, "anyscale fails"),
        turn(MODE_FALLS, "DEVELOPMENT", "cheaper models while anyscale fails"),
        turn(MODE_RISES, "PRODUCTION", "enough capacity elsewhere"),
        move(PROFILE_RETURNS, PRODUCTION_CHAINS["code"], "anyscale answers again"),
    ]


def pilot_spend_picousd(seed: int, start_ms: int, rate: float = 1.0) -> int:
    """What the tenant on trial will have spent at PILOT_AT_CAP, by the shipped prices."""
    price = {
        (*pair, card.unit.value): card.price_picousd_per_million
        for pair in PRICE_KEYS
        for card in cards(*pair)
        if card.valid_to_ms is None
    }
    units = ((PriceUnit.INPUT_TOKEN, "input_tokens"), (PriceUnit.OUTPUT_TOKEN, "output_tokens"))
    spent = 0
    for batch in events(seed, start_ms, start_ms, start_ms + PILOT_AT_CAP, rate):
        mine = pc.equal(batch.invocations["tenant"], pa.scalar(pilot(start_ms)))
        for row in batch.invocations.filter(mine).to_pylist():
            pair = (row["provider"], row["model"])
            if PRICE_KEYS[pair] is not None:
                cost = sum(row[column] * price[*pair, unit.value] for unit, column in units)
                spent += round(Fraction(cost, 10**6))
    return spent


# The run. ----------------------------------------------------------------------------------------


def resume_ms(start_ms: int, backfill_ms: int, newest: tuple[int, int] | None) -> int:
    """Where a run takes up: newest is (event time, append time) of this source's newest event.

    The log's own clock goes on from the newest event with the append time passed since, as ticks
    do: after a live run that is now, and the gap stays empty; after a back-fill that was cut off
    it is where that ended, and what follows is late for no one.
    """
    earliest = start_ms - backfill_ms
    if newest is None:
        return earliest
    occurred_ms, appended_ms = newest
    return max(earliest, occurred_ms + 1, occurred_ms + start_ms - appended_ms)


def newest_own(bootstrap: str, catalogue: Catalogue) -> tuple[int, int] | None:
    """(event time, append time) of the newest invocation of this source in the log, if any.

    Each partition is in order of event time, so its last one counts; the tail that is read grows
    until it holds one, or is the whole partition.
    """
    client = kafka.consumer(bootstrap, "roster-reader")
    try:
        end = kafka.end_offsets(client, LLM_INVOCATION.name)
    finally:
        client.close()
    found: dict[int, tuple[int, int]] = {}
    tail = 250
    while end:
        start = {p: max(0, last - tail) for p, last in end.items()}
        for message in kafka.read_to_end(bootstrap, LLM_INVOCATION.name, start, end):
            value = message.value()
            if not isinstance(value, bytes) or SOURCE.encode() not in value:
                continue
            record = decode(catalogue, message)
            if (
                isinstance(record, Recorded)
                and isinstance(record.event, LlmInvocation)
                and record.event.source == SOURCE
            ):
                event, at = record.event, record.at
                found[at.partition] = (event.occurred_at_ms, at.append_ms)
        end = {p: start[p] for p in end if p not in found and start[p] > 0}
        tail *= 20
    return max(found.values(), default=None)


def run(
    settings: Settings,
    *,
    seed: int = 7,
    rate: float = 1.0,
    backfill_h: float = 24,
    stop: Callable[[], bool] | None = None,
) -> int:
    """Publishes until stop says so (default: SIGTERM or SIGINT); 0 when all is acknowledged.

    rate: how many times the trace's pace. backfill_h: hours of event time filled in first, once
    per log. Raises BadConfiguration, Unreachable (also if a record was not acknowledged),
    LogDamaged (a topic is missing).
    """
    if not 0 < rate <= MAX_RATE:
        raise BadConfiguration(f"rate is {rate:g}; allowed: above 0, up to {MAX_RATE}")
    if not 0 <= backfill_h <= MAX_BACKFILL_H:
        raise BadConfiguration(f"backfill is {backfill_h:g} h; allowed: 0 to {MAX_BACKFILL_H}")
    if stop is None:
        with _signalled() as asked:
            return run(settings, seed=seed, rate=rate, backfill_h=backfill_h, stop=asked)
    bootstrap = settings.need_kafka()
    publish_defaults(settings)
    with Registry(settings.need_registry()) as registry:
        catalogue = Catalogue(registry)
        newest = newest_own(bootstrap, catalogue)
        start_ms = time.time_ns() // 10**6
        from_ms = resume_ms(start_ms, round(backfill_h * 3_600_000), newest)
        operator = story(seed, start_ms, settings.deployment, rate)
        sender = _Sender(bootstrap, catalogue, StatusFile(settings.data, "workload"))
        for batch in events(seed, start_ms, from_ms, from_ms + 10**12, rate):
            live = batch.to_ms > start_ms
            if live and sender.behind:
                sender.caught_up(max(0, start_ms - from_ms))
            if not _wait_until(batch.to_ms, stop):
                break
            while operator and operator[0].occurred_at_ms < batch.to_ms:
                sender.control(operator.pop(0))
            sender.batch(batch)
            if live:
                sender.outbound.flush()
            done = min(1.0, (batch.to_ms - from_ms) / max(1, start_ms - from_ms))
            sender.report(f"live, {rate:g} x the trace" if live else f"back-fill {done:.0%}")
        sender.finish()
    return 0


_TOPIC_OF: Final[dict[type[Event], Topic]] = {
    BudgetUpdated: BUDGET_UPDATED,
    ModeChanged: MODE_CHANGED,
    ModelProfileUpdated: MODEL_PROFILE_UPDATED,
}


class _Sender:
    """Sends events and says how it goes: to the live view, and to standard error."""

    def __init__(self, bootstrap: str, catalogue: Catalogue, status: StatusFile) -> None:
        self.outbound = kafka.Outbound(kafka.producer(bootstrap, linger_ms=5))
        self.behind = True
        self._catalogue, self._status = catalogue, status
        self._sent = 0
        self._began = self._reported = time.monotonic()
        self._at_report = 0

    def control(self, event: HeadedEvent) -> None:
        topic = _TOPIC_OF[type(event)]
        value = encode(self._catalogue, topic, event)
        self.outbound.send(topic.name, control_key(event), value)
        self._sent += 1

    def batch(self, batch: Batch) -> None:
        for topic, event, columns in (
            (LLM_INVOCATION, LlmInvocation, batch.invocations),
            (MODEL_FALLBACK_USED, ModelFallbackUsed, batch.fallbacks),
            (MODEL_QUALITY_OBSERVED, ModelQualityObserved, batch.observations),
        ):
            values = encoded(columns, event, self._catalogue.id_of(topic, event))
            for key, value in zip(keys(columns), values, strict=True):
                self.outbound.send(topic.name, key, value)
            self._sent += len(values)
        self.outbound.client.poll(0)

    def caught_up(self, span_ms: int) -> None:
        """The back-fill is out: waits for its acknowledgement."""
        self.outbound.flush()
        self.behind = False
        took = time.monotonic() - self._began
        filled = f"filled in {span_ms / 3_600_000:.1f} h, {self._sent:,} events in {took:.1f} s"
        print(f"workload: {filled if self._sent else 'goes on'}; live now", file=sys.stderr)

    def report(self, note: str) -> None:
        """Counts, for the live view and, on a terminal, once a second on one line."""
        acknowledged = self._sent - len(self.outbound.client)
        self._status.write(records_in=0, records_out=acknowledged, note=note)
        now = time.monotonic()
        if now - self._reported >= 1 and sys.stderr.isatty():
            rate = (acknowledged - self._at_report) / (now - self._reported)
            self._reported, self._at_report = now, acknowledged
            line = f"\rworkload: {note}, {acknowledged:,} events, {rate:,.0f}/s\x1b[K"
            print(line, end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Waits until all is acknowledged, and says so."""
        self.outbound.flush()
        self._status.write(records_in=0, records_out=self._sent, note="stopped", force=True)
        start = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{start}workload: stopped, {self._sent:,} events acknowledged", file=sys.stderr)


def _wait_until(ms: int, stop: Callable[[], bool]) -> bool:
    """False as soon as stop says so, True when the clock has reached ms."""
    while not stop():
        left_s = ms / 1000 - time.time()
        if left_s <= 0:
            return True
        time.sleep(min(left_s, 0.05))
    return False


@contextmanager
def _signalled() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT came since."""
    asked = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: asked.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

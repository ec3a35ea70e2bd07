"""Panes hold what the meter counts: told again here in the plainest way, event by event."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projections import filing, panes, store
from projections.intake import Fetched
from projections.panes import Cut
from schemas import ClockTick, LlmInvocation, ModelQualityObserved
from schemas.latency import LIMITS_US
from schemas.values import COMPLETE, MAX_LATENCY_US, MAX_PICOUSD, MAX_TOKENS, OUTCOMES, Outcome
from streams.codec import encode, tenant_key
from streams.errors import BadConfiguration
from streams.topics import LLM_INVOCATION, MODEL_QUALITY_OBSERVED

pytestmark = pytest.mark.kafka
MINUTE = 60_000
START = 1_771_200_000_000 // 300_000 * 300_000
APPENDED = START + 300 * MINUTE
SMALL = Cut(pane_ms=2 * MINUTE, bound_ms=MINUTE, grace_ms=3 * MINUTE)
UNITS = ("input", "cached", "output")
PAIRS = [(a, b) for i, a in enumerate(UNITS) for b in UNITS[i:]]
Step = dict[str, Any]

steps = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["call"] * 6 + ["bit"] * 3 + ["tick", "rubbish"]),
            "partition": st.integers(0, 1),
            "shift": st.integers(-9 * MINUTE, 2 * MINUTE) | st.integers(-MINUTE, MINUTE),
            "id": st.integers(0, 12),
            "again": st.booleans(),
            "tenant": st.sampled_from(["acme", "zeta"]),
            "mode": st.sampled_from(["prod", "PRODUCTION", None]),
            "model": st.sampled_from(["m", "n"]),
            "outcome": st.sampled_from([Outcome.SUCCESS] * 6 + list(OUTCOMES)[1:]),
            "tokens": st.tuples(*[st.integers(0, 9) | st.integers(0, MAX_TOKENS)] * 3),
            "latency": st.integers(1, 100) | st.integers(1, MAX_LATENCY_US),
            "cost": st.none() | st.integers(0, 10**10) | st.integers(0, MAX_PICOUSD),
            "n": st.integers(1, 5),
        }
    ),
    min_size=1,
    max_size=60,
)


def record(catalogue: Any, step: Step, index: int, offset: int) -> tuple[Message, Any]:
    """A step as a record, and its event (None: rubbish)."""
    at = START + index * MINUTE + step["shift"]
    shared = {
        "event_id": f"id-{step['id']}",
        "occurred_at_ms": at,
        "source": "gateway",
        "tenant": step["tenant"],
        "mode": step["mode"],
        "role": "chat",
        "provider": "p",
        "model": step["model"],
    }
    topic = MODEL_QUALITY_OBSERVED if step["kind"] == "bit" else LLM_INVOCATION
    event: Any = None
    key = b"none"
    if step["kind"] == "call":
        given_ = dict(zip((f"{unit}_tokens" for unit in UNITS), step["tokens"], strict=True))
        event = LlmInvocation(
            **shared,
            **given_,
            outcome=step["outcome"],
            latency_us=step["latency"],
            reported_cost_picousd=step["cost"],
        )
        key = tenant_key(event)
    elif step["kind"] == "bit":
        event = ModelQualityObserved(**shared, n=step["n"], hits=step["n"] // 2)
        key = tenant_key(event)
    elif step["kind"] == "tick":
        topic = MODEL_QUALITY_OBSERVED if step["again"] else LLM_INVOCATION
        event = ClockTick(
            event_id=f"tick-{index}",
            occurred_at_ms=at,
            source="meter",
            base_occurred_at_ms=at - 7,
            base_append_ms=APPENDED - 7,
        )
    value = b"rubbish" if event is None else encode(catalogue, topic, event)
    message = Message(
        topic=topic.name,
        partition=step["partition"],
        offset=offset,
        key=key,
        value=value,
        headers=[],
        timestamp=(2, APPENDED),
    )
    return message, event


def written(catalogue: Any, told: list[Step]) -> list[tuple[Message, Any]]:
    """The log of these steps; half of the repeated ids repeat the whole record. Offsets rise by
    two, as past markers."""
    log: list[tuple[Message, Any]] = []
    ends: Counter[tuple[str, int]] = Counter()
    seen: dict[Any, tuple[Step, int]] = {}
    for index, step in enumerate(told):
        identity = (step["kind"], step["partition"], step["tenant"], step["id"])
        which = (step, index)
        if step["again"] and identity in seen and step["kind"] in ("call", "bit"):
            which = seen[identity]
        seen.setdefault(identity, which)
        topic = MODEL_QUALITY_OBSERVED.name if step["kind"] == "bit" else LLM_INVOCATION.name
        if step["kind"] == "tick" and step["again"]:
            topic = MODEL_QUALITY_OBSERVED.name
        place = (topic, step["partition"])
        log.append(record(catalogue, *which, ends[place]))
        ends[place] += 2
    return log


def counted(log: list[tuple[Message, Any]], cut: Cut) -> list[tuple[int, Any]]:
    """(pane, event) of what the meter applies, by the rules of M5."""
    watermark: dict[Any, int] = {}
    seen: set[Any] = set()
    found = []
    for message, event in log:
        place = (message.topic(), message.partition())
        before = watermark.get(place)
        if event is None:
            continue
        at = event.occurred_at_ms  # a tick of these tests announces its own time
        pane = at // cut.pane_ms * cut.pane_ms
        if not isinstance(event, ClockTick):
            if before is not None and pane + cut.pane_ms + cut.grace_ms <= before:
                continue
            identity = (place, event.tenant, event.source, event.event_id, pane)
            if identity not in seen:
                seen.add(identity)
                found.append((pane, event))
        watermark[place] = max(before if before is not None else at, at - cut.bound_ms - 1)
        if before is None:
            watermark[place] = at - cut.bound_ms - 1
    return found


def key_of(pane: int, event: Any) -> tuple[Any, ...]:
    mode = "" if event.mode is None else "PRODUCTION"
    return (event.tenant, pane, "dialogue", mode, event.provider, event.model)


def sums_of(found: list[tuple[int, Any]]) -> dict[Any, list[int]]:
    """Columns of metrics_totals by key."""
    sums: dict[Any, list[int]] = defaultdict(lambda: [0] * (9 + 3 + 1 + 3 + 6 + 6))
    for pane, event in found:
        if not isinstance(event, LlmInvocation):
            continue
        row = sums[key_of(pane, event)]
        units = dict(
            zip(UNITS, (event.input_tokens, event.cached_tokens, event.output_tokens), strict=True)
        )
        adds = [int(event.outcome is outcome) for outcome in OUTCOMES] + list(units.values())
        cost, tokens = event.reported_cost_picousd, sum(units.values())
        priced = [1, *units.values(), *(units[a] * units[b] for a, b in PAIRS)]
        reported = [0] * 6
        if cost is not None:
            priced = [0] * 10
            reported = [1, cost, tokens, cost * cost, cost * tokens, tokens * tokens]
        if event.outcome not in COMPLETE:
            priced, reported = [0] * 10, [0] * 6
        for i, add in enumerate([*adds, *priced, *reported]):
            row[i] += add
    return dict(sums)


def bucket(latency_us: int) -> int:
    return next((i for i, limit in enumerate(LIMITS_US) if limit >= latency_us), 1102)


def percentile(latencies: list[int], pct: int) -> float | None:
    if not latencies:
        return None
    i = min(bucket(sorted(latencies)[pct * (len(latencies) - 1) // 100]), 1101)
    return round(Fraction(99 * 101**i, 100 * 99**i) * 10**9) / 10**9


class File:
    """A projection that takes batches, and may lose what it was doing or be started again."""

    def __init__(self, folder: Path, catalogue: Any, cut: Cut) -> None:
        self.path, self.catalogue, self.cut = folder / store.FILE, catalogue, cut
        self.open()

    def open(self) -> None:
        self.db = store.connect(self.path)
        self.state = filing.load(self.db, self.cut)
        places = [(t.name, p) for t in (LLM_INVOCATION, MODEL_QUALITY_OBSERVED) for p in (0, 1)]
        filing.begin(self.db, self.state, dict.fromkeys(places, 0))

    def restart(self) -> None:
        self.db.close()
        self.open()

    def take(self, messages: list[Message], *, crash: bool = False) -> None:
        ends: dict[Any, int] = {}
        seen: Counter[Any] = Counter()
        for message in messages:
            place = (message.topic(), message.partition())
            ends[place] = (message.offset() or 0) + 1
            seen[place] += 1
        fetched = Fetched(messages, [], ends, seen)
        values = filing.decoded(self.catalogue, fetched)
        try:
            with store.transaction(self.db):
                filing.apply(self.db, self.catalogue, self.state, fetched, values)
                if crash:
                    raise InterruptedError
        except InterruptedError:
            self.restart()

    def rows(self, sql: str, *given_: Any) -> list[Any]:
        return self.db.execute(sql, list(given_)).fetchall()

    def sums(self) -> dict[Any, list[int]]:
        found = self.rows("SELECT * FROM metrics_totals")
        return {row[:6]: [int(value) for value in row[6:]] for row in found}

    def latencies(self) -> dict[Any, int]:
        found = self.rows("SELECT * FROM latency_totals")
        return {row[:7]: row[7] for row in found}

    def quality(self) -> dict[Any, tuple[int, int]]:
        return {
            row[:7]: row[7:]
            for row in self.rows(
                "SELECT tenant, pane_start_ms, role, mode, provider, model, metric,"
                " sum(n)::BIGINT, sum(hits)::BIGINT FROM quality_panes GROUP BY ALL"
            )
        }


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


def agrees(file: File, found: list[tuple[int, Any]]) -> None:
    """The law: the file holds the sums of exactly these events."""
    calls = [(pane, e) for pane, e in found if isinstance(e, LlmInvocation)]
    assert file.sums() == sums_of(found)
    assert file.latencies() == Counter(
        (*key_of(pane, e), bucket(e.latency_us)) for pane, e in calls if e.outcome in COMPLETE
    )
    bits: dict[Any, tuple[int, int]] = {}
    for pane, e in found:
        if isinstance(e, ModelQualityObserved):
            n, hits = bits.get((*key_of(pane, e), e.metric), (0, 0))
            bits[(*key_of(pane, e), e.metric)] = (n + e.n, hits + e.hits)
    assert file.quality() == bits


@settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    told=steps,
    cuts=st.lists(st.tuples(st.integers(1, 20), st.sampled_from(["", "", "restart", "crash"]))),
    merge_after=st.sampled_from([0, 3, 50_000]),
    span=st.tuples(st.integers(-20, 60), st.integers(0, 80)),
)
def test_panes_hold_the_sums_of_what_the_meter_counts_in_any_batches_and_after_any_crash(
    log: Any,
    tmp_path_factory: pytest.TempPathFactory,
    told: list[Step],
    cuts: list[tuple[int, str]],
    merge_after: int,
    span: tuple[int, int],
) -> None:
    folder = tmp_path_factory.mktemp("panes")
    wrote = written(log.catalogue, told)
    file = File(folder, log.catalogue, SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panes, "MERGE_AFTER", merge_after)
        rest = [message for message, _ in wrote]
        for size, event in [*cuts, (len(rest), "")]:
            batch, rest = rest[:size], rest[size:]
            if event == "crash" and batch:
                file.take(batch, crash=True)
            if batch:
                file.take(batch)
            if event == "restart":
                file.restart()
    found = counted(wrote, SMALL)
    agrees(file, found)
    law = file.state.law()
    assert law["consumed"] == sum(v for name, v in law.items() if name != "consumed")

    low, high = START + span[0] * MINUTE, START + (span[0] + span[1]) * MINUTE
    for model in ("m", "n"):
        for tenant in (None, "acme"):
            for mode in (None, "", "PRODUCTION"):
                latencies = [
                    e.latency_us
                    for pane, e in found
                    if isinstance(e, LlmInvocation)
                    and e.outcome in COMPLETE
                    and e.model == model
                    and tenant in (None, e.tenant)
                    and mode in (None, key_of(pane, e)[3])
                    and low <= pane < high
                ]
                for pct in (50, 95, 99):
                    asked = file.rows(
                        "SELECT percentile_us('dialogue', ?, 'p', ?, ?, ?, ?, of_tenant := ?)",
                        *(mode, model, low, high, pct, tenant),
                    )
                    assert asked == [(percentile(latencies, pct),)]
    file.db.close()
    shutil.rmtree(folder)


def call(minute: float, event_id: str, **fields: Any) -> Step:
    return {
        "kind": "call",
        "partition": 0,
        "shift": int(minute * MINUTE),
        "id": event_id,
        "again": False,
        "tenant": "acme",
        "mode": "prod",
        "model": "m",
        "outcome": Outcome.SUCCESS,
        "tokens": (10, 0, 5),
        "latency": 1000,
        "cost": None,
        "n": 3,
        **fields,
    }


def told(file: File, *story: Step) -> None:
    """Files a story, one record a batch; every step has its own time."""
    ends: Counter[Any] = Counter()
    for step in story:
        topic = MODEL_QUALITY_OBSERVED.name if step["kind"] == "bit" else LLM_INVOCATION.name
        message, _ = record(file.catalogue, step, 0, ends[topic])
        ends[topic] += 1
        file.take([message])


@pytest.mark.parametrize("kind", ["call", "bit"])
def test_late_repeated_and_conflicting_events(log: Any, folder: Path, kind: str) -> None:
    """Cut: 2 min, 1 min, 3 min. An id counts once a pane, late not at all, in another pane again
    once: the one difference to the ledger, which takes it once for ever."""
    file = File(folder, log.catalogue, SMALL)
    first = call(0, "a", kind=kind)
    told(
        file,
        first,
        first,  # duplicate
        call(0.5, "a", kind=kind),  # conflict in the same pane
        call(2, "a", kind=kind),  # conflict in another pane: counts there,
        call(2, "a", kind=kind),  # once
        call(3, "a", kind=kind),
        call(6.1, "b", kind=kind),  # W_p is 5.1 min less 1 ms: pane 0 closes at 5 min
        call(1, "c", kind=kind),  # late
        call(4, "d", kind=kind),
    )
    if kind == "call":
        counts = [(row[0][1], row[1][1]) for row in sorted(file.sums().items())]
    else:
        counts = [(key[1], n // 3) for key, (n, _) in sorted(file.quality().items())]
    assert counts == [(START + m * MINUTE, 1) for m in (0, 2, 4, 6)]
    law = file.state.law()
    assert (law["duplicate"], law["conflict"]) == (1, 4)
    file.db.close()


def test_a_tick_closes_panes(log: Any, folder: Path) -> None:
    file = File(folder, log.catalogue, SMALL)
    tick = call(6.1, "t", kind="tick")
    told(file, call(0, "a"), tick, call(0, "b"), call(2, "c"))
    assert [row[0][1] for row in sorted(file.sums().items())] == [START, START + 2 * MINUTE]
    assert sum(row[1] for row in file.sums().values()) == 2
    file.db.close()


def test_a_file_that_was_cut_otherwise_is_refused(log: Any, folder: Path) -> None:
    file = File(folder, log.catalogue, SMALL)
    file.db.close()
    with (
        duckdb.connect(str(folder / store.FILE)) as db,
        pytest.raises(BadConfiguration, match="were cut by 120, 60, 180: set these, or remove"),
    ):
        filing.load(db, Cut())

"""Whole batches give every record the verdict that the codec gives it alone."""

import io
import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import uuid4

import fastavro
import pyarrow as pa
import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import ClockTick, LlmInvocation, ModelQualityObserved, Recorded
from schemas.avro import schema_text
from schemas.values import FUTURE_LIMIT_MS, NIL_UUID, PAST_LIMIT_MS, Outcome
from streams import batch
from streams.batch import InvocationBatch, decode_invocations, decode_observations
from streams.codec import Undecodable, decode, encode, frame, tenant_key
from streams.kafka import COPIED_HEADER
from streams.registry import Catalogue, Registry
from streams.topics import LLM_INVOCATION, MODE_CHANGED, MODEL_QUALITY_OBSERVED, Topic
from tests.support import bad
from tests.support.events import events, good

NOW: Final = 1_760_000_000_000
quick = settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Raw(NamedTuple):
    """A record before it has its offset."""

    key: bytes | None
    value: bytes | None
    partition: int = 0
    now_ms: int = NOW
    headers: tuple[tuple[str, bytes], ...] = ()


def messages(raws: Sequence[Raw], topic: Topic = LLM_INVOCATION) -> list[Message]:
    """Records as a client hands them over; offsets rise by two, as past markers."""
    return [
        Message(
            topic=topic.name,
            partition=raw.partition,
            offset=100 + 2 * i,
            key=raw.key,
            value=raw.value,
            headers=list(raw.headers),
            timestamp=(2, raw.now_ms),
        )
        for i, raw in enumerate(raws)
    ]


def one(**changes: Any) -> LlmInvocation:
    return good(LlmInvocation, **{"occurred_at_ms": NOW, **changes})


def raw(catalogue: Catalogue, event: LlmInvocation, partition: int = 0) -> Raw:
    return Raw(tenant_key(event), encode(catalogue, LLM_INVOCATION, event), partition)


def agrees(catalogue: Catalogue, raws: Sequence[Raw]) -> InvocationBatch:
    """The law: nothing else than record by record, in order, with bodies and positions."""
    sent = messages(raws)
    made = decode_invocations(catalogue, sent)
    outcomes = [decode(catalogue, m) for m in sent]
    events = [o for o in outcomes if isinstance(o, Recorded)]
    invocations = [o for o in events if isinstance(o.event, LlmInvocation)]
    stamped = {(m.partition(), m.offset()): m.timestamp()[1] for m in sent}
    wanted = [
        {
            **o.event.model_dump(mode="json"),
            "partition": o.at.partition,
            "offset": o.at.offset,
            "append_ms": o.at.append_ms,
            "stamped_ms": stamped[o.at.partition, o.at.offset],
        }
        for o in invocations
    ]
    assert made.table.to_pylist() == wanted
    assert made.table.schema == batch.arrow_schema()
    by_place = {(m.partition(), m.offset()): m.value() for m in sent}
    assert made.bodies == [by_place[o.at.partition, o.at.offset] for o in invocations]
    assert made.ticks == [o for o in events if isinstance(o.event, ClockTick)]
    assert made.bad == [o for o in outcomes if isinstance(o, Undecodable)]
    ends = {p: max(o or 0 for q, o in by_place if q == p) for p, _ in by_place}
    assert made.passed == ends
    return made


def faults(catalogue: Catalogue) -> list[Raw]:
    """Every fault of a record of llm.invocation."""
    other = catalogue.id_of(MODE_CHANGED, MODE_CHANGED.events[0])
    rows = [
        *bad.framing(catalogue, LLM_INVOCATION, one(), other),
        *bad.of_fields(catalogue, LLM_INVOCATION, LlmInvocation, NOW),
        *bad.of_fields(catalogue, LLM_INVOCATION, ClockTick, NOW),
    ]
    return [Raw(row.key, row.value) for row in rows]


def test_no_records_are_an_empty_batch(catalogue: Catalogue) -> None:
    made = agrees(catalogue, [])
    assert (made.table.num_rows, made.passed) == (0, {})


@pytest.mark.parametrize("n", [1, batch.FEW - 1, batch.FEW, 50])
def test_few_and_many_records_are_the_same(catalogue: Catalogue, n: int) -> None:
    made = agrees(catalogue, [raw(catalogue, one(event_id=f"e-{i}"), i % 3) for i in range(n)])
    assert made.table.num_rows == n


def test_every_fault_is_found_among_good_records_and_spoils_none(catalogue: Catalogue) -> None:
    wrong = faults(catalogue)
    mixed = []
    for i, fault in enumerate(wrong):
        mixed += [raw(catalogue, one(event_id=f"e-{i}"), i % 4), fault._replace(partition=i % 4)]
    made = agrees(catalogue, mixed)
    assert made.table.num_rows == len(wrong)
    assert len(made.bad) == len(wrong)


def test_each_fault_alone_is_found(catalogue: Catalogue) -> None:
    """One bad record among few: the whole call fails, or a single row is doubted."""
    for i, fault in enumerate(faults(catalogue)):
        around = [raw(catalogue, one(event_id=f"e-{i}-{j}")) for j in range(batch.FEW)]
        made = agrees(catalogue, [*around[:3], fault, *around[3:]])
        assert len(made.bad) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": NIL_UUID, "source": NIL_UUID},
        {"event_id": "a" * 128},
        {"role": "ж" * 128, "mode": "=cmd|'/c calc'!A1"},
        {"role": "\x80\x9f\u2028\u2029\ufeff\U0010ffff"},
        {"trace_id": "\x00" * 4096, "error_code": "é" * 4096},
        {"trace_id": "", "request_id": "\n"},
        {"input_tokens": 10**9, "cached_tokens": 0, "output_tokens": 10**9},
        {"latency_us": 10**12, "first_token_us": 1, "gpu_ms": 0},
        {"reported_cost_picousd": 2**62 - 1, "profile_version": 2**62 - 1},
        {"reported_cost_picousd": 0, "profile_version": 0, "attempt": 1000},
        {"occurred_at_ms": NOW - PAST_LIMIT_MS},
        {"occurred_at_ms": NOW + FUTURE_LIMIT_MS},
    ],
)
def test_values_at_the_edge_take_the_fast_way(
    catalogue: Catalogue, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "decode", fail)  # the slow way
    events = [one(**{"event_id": f"e-{i}", **changes}) for i in range(batch.FEW)]
    made = decode_invocations(catalogue, messages([raw(catalogue, e) for e in events]))
    kept = made.table.drop_columns(list(batch.WHERE)).to_pylist()
    assert kept == [e.model_dump(mode="json") for e in events]


@pytest.mark.parametrize("apart", [-PAST_LIMIT_MS - 1, FUTURE_LIMIT_MS + 1])
def test_a_millisecond_beyond_the_bounds_is_beyond_them(catalogue: Catalogue, apart: int) -> None:
    beyond = raw(catalogue, one(occurred_at_ms=NOW + apart))
    made = agrees(catalogue, [beyond] * batch.FEW + [raw(catalogue, one())])
    assert (made.table.num_rows, len(made.bad)) == (1, batch.FEW)


@pytest.mark.parametrize("last", [0x01, 0x02, 0x03, 0x7F])
def test_what_is_beyond_64_bits_of_a_number_is_not_ignored(catalogue: Catalogue, last: int) -> None:
    event = one(reported_cost_picousd=2**63 - 1)
    right = encode(catalogue, LLM_INVOCATION, event)
    number = b"\xfe" + b"\xff" * 8
    assert right.count(number + b"\x01") == 1
    value = right.replace(number + b"\x01", number + bytes([last]))
    made = agrees(catalogue, [Raw(tenant_key(event), value)] * 8)
    assert len(made.bad) == (0 if last == 0x01 else 8)


def fail(*_: object) -> None:
    raise AssertionError("a good record went the slow way")


def test_any_mixture_is_judged_as_record_by_record(catalogue: Catalogue) -> None:
    wrong = faults(catalogue)
    plain = [f"e-{i}" for i in range(5)]
    ticks = good(ClockTick, occurred_at_ms=NOW)
    tick = Raw(b"tick", encode(catalogue, LLM_INVOCATION, ticks))
    good_ones = events(LlmInvocation).map(lambda e: e.model_copy(update={"occurred_at_ms": NOW}))
    record = st.one_of(
        st.sampled_from(plain).map(lambda i: raw(catalogue, one(event_id=i))),
        good_ones.map(lambda e: raw(catalogue, e)),
        st.sampled_from(wrong),
        st.just(tick),
    )
    placed = st.tuples(record, st.integers(0, 7)).map(lambda r: r[0]._replace(partition=r[1]))

    @quick
    @given(st.lists(placed, max_size=30))
    def law(raws: list[Raw]) -> None:
        agrees(catalogue, raws)

    law()


def test_bytes_changed_at_random_are_judged_as_record_by_record(catalogue: Catalogue) -> None:
    right = encode(catalogue, LLM_INVOCATION, one())

    @quick
    @given(
        st.lists(
            st.tuples(st.integers(5, len(right) - 1), st.integers(0, 255)), min_size=6, max_size=20
        )
    )
    def law(flips: list[tuple[int, int]]) -> None:
        raws = []
        for place, byte in flips:
            value = bytearray(right)
            value[place] = byte
            raws.append(Raw(b"acme/e-1", bytes(value)))
        agrees(catalogue, raws)

    law()


def test_every_combination_of_nulls_decodes_as_in_the_codec(catalogue: Catalogue) -> None:
    nullable = {
        "persona": "petr",
        "mode": "prod",
        "trace_id": "t",
        "budget_trace_id": "b",
        "first_token_us": 5,
        "gpu_ms": 7,
        "reported_cost_picousd": 11,
        "error_code": "é",
        "request_id": "🦊",
        "profile_key": "k",
        "profile_version": 3,
    }
    rows = []
    for bits in range(2 ** len(nullable)):
        chosen = {n: v for i, (n, v) in enumerate(nullable.items()) if bits >> i & 1}
        outcome = list(Outcome)[bits % len(Outcome)]
        rows.append(raw(catalogue, one(event_id=f"e-{bits}", outcome=outcome, **chosen)))
    made = agrees(catalogue, rows)
    assert made.table.num_rows == 2 ** len(nullable)


def test_more_records_than_one_call_takes_keep_their_order(catalogue: Catalogue) -> None:
    n = batch.CALL + 300
    raws = [raw(catalogue, one(event_id=f"e-{i}"), i % 8) for i in range(n)]
    for place in (0, 5_000, batch.CALL - 1, batch.CALL, n - 1):
        raws[place] = raws[place]._replace(value=b"\x00junk!")
    raws[7_000] = raws[7_000]._replace(value=(raws[7_000].value or b"") + b"\x00")  # fails its call
    made = decode_invocations(catalogue, messages(raws))
    ids = made.table.column("event_id").to_pylist()
    broken = {0, 5_000, 7_000, batch.CALL - 1, batch.CALL, n - 1}
    assert ids == [f"e-{i}" for i in range(n) if i not in broken]
    assert [b.reason for b in made.bad].count("trailing_bytes") == 1
    assert len(made.bad) == len(broken)
    assert made.bodies == [raws[i].value for i in range(n) if i not in broken]
    assert made.table.column("offset").to_pylist() == [
        100 + 2 * i for i in range(n) if i not in broken
    ]
    assert len(made.passed) == 8


def test_records_of_another_version_stand_among_ours(catalogue: Catalogue, registry: str) -> None:
    schema = json.loads(schema_text(LlmInvocation))
    schema["fields"].insert(0, {"name": "region", "type": "string", "default": ""})
    with Registry(registry) as client:
        schema_id = client.register(f"test-{uuid4()}", json.dumps(schema))
    parsed = fastavro.parse_schema(schema, named_schemas={})
    raws = []
    for i in range(20):
        event = one(event_id=f"e-{i}", gpu_ms=i if i % 2 else None)
        if i % 3:
            raws.append(raw(catalogue, event))
            continue
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, {**event.model_dump(), "region": "eu"})
        raws.append(Raw(tenant_key(event), frame(schema_id, out.getvalue())))
    assert agrees(catalogue, raws).table.num_rows == 20


def test_the_append_time_of_a_copy_counts(catalogue: Catalogue) -> None:
    old = one(occurred_at_ms=NOW - PAST_LIMIT_MS)
    base = raw(catalogue, old)._replace(now_ms=NOW + 10_000)
    for header in (str(NOW).encode(), b"9" * 10_000, b"", b"\xff"):
        kept = base._replace(headers=((COPIED_HEADER, header),))
        agrees(catalogue, [base, kept] * 4)
    made = agrees(catalogue, [base._replace(headers=((COPIED_HEADER, str(NOW).encode()),))] * 8)
    assert made.table.column("append_ms").to_pylist() == [NOW] * 8
    assert made.table.column("stamped_ms").to_pylist() == [NOW + 10_000] * 8


def test_types_are_those_that_sums_need() -> None:
    wire = batch.arrow_schema()
    for name in batch.BOUNDS:
        assert wire.field(name).type in (pa.int64(), pa.int32())
    assert set(batch.PATTERNS) | set(batch.LONG_TEXTS) | set(batch.BOUNDS) | {
        *("outcome", "occurred_at_ms", *batch.WHERE)
    } == set(wire.names), "a new field needs its check on the fast way, too"


def test_observations_are_decoded_record_by_record_and_no_fault_spoils_another(
    catalogue: Catalogue,
) -> None:
    topic = MODEL_QUALITY_OBSERVED
    first = good(ModelQualityObserved, occurred_at_ms=NOW)
    other = catalogue.id_of(MODE_CHANGED, MODE_CHANGED.events[0])
    wrong = [
        *bad.framing(catalogue, topic, first, other),
        *bad.of_fields(catalogue, topic, ModelQualityObserved, NOW),
        *bad.of_fields(catalogue, topic, ClockTick, NOW),
    ]
    tick = encode(catalogue, topic, bad.good_now(ClockTick, NOW))
    copied = ((COPIED_HEADER, str(NOW - 7).encode()),)
    raws = []
    for i, fault in enumerate(wrong):
        event = good(ModelQualityObserved, occurred_at_ms=NOW, event_id=f"e-{i}")
        value = encode(catalogue, topic, event)
        raws += [
            Raw(tenant_key(event), value, i % 3, headers=copied if i % 2 else ()),
            Raw(fault.key, fault.value, i % 3),
            Raw(b"clock", tick, i % 3),
        ]
    sent = messages(raws, topic)
    made = decode_observations(catalogue, sent)
    outcomes = [decode(catalogue, m) for m in sent]
    assert made.bad == [o for o in outcomes if isinstance(o, Undecodable)]
    assert len(made.bad) == len(made.ticks) == len(made.rows) == len(wrong)
    events = [o for o in outcomes if isinstance(o, Recorded)]
    assert made.ticks == [o for o in events if isinstance(o.event, ClockTick)]
    rows = [(row.event, row.at) for row in made.rows]
    assert rows == [(o.event, o.at) for o in events if not isinstance(o.event, ClockTick)]
    assert [row.body for row in made.rows] == [raw.value for raw in raws[::3]]
    # A header may say when the original was appended; the broker's own stamp stays beside it.
    assert {(row.at.append_ms, row.stamped_ms) for row in made.rows} == {(NOW, NOW), (NOW - 7, NOW)}
    assert made.passed == {m.partition(): m.offset() for m in sent}  # the last one of each
    assert decode_observations(catalogue, []).passed == {}

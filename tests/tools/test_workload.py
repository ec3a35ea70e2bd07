"""The sample workload: deterministic, true to its records, and published once."""

import uuid
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import Event, HeadedEvent, LlmInvocation, ModelFallbackUsed, Position
from schemas import avro as datum
from schemas.budget import BudgetUpdated
from schemas.envelope import Recorded
from schemas.values import Outcome
from streams import kafka as client
from streams import status, topics
from streams.codec import Undecodable, decode, decode_value
from streams.errors import BadConfiguration
from streams.registry import Catalogue, Registry, register_all
from streams.settings import load
from tools import defaults, sample, workload
from tools.sample import script, traffic

START = 1_795_258_800_000 + 1_234_567
HOUR = 3_600_000
SCHEMA_ID = 5

Row = dict[str, Any]


def columns(event: type[Event], *span: int, seed: int = 7, rate: float = 1.0) -> pa.Table:
    from_ms, to_ms = span
    batches = list(workload.events(seed, START, START + from_ms, START + to_ms, rate))
    return pa.Table.from_batches(
        [b.invocations if event is LlmInvocation else b.fallbacks for b in batches]
    )


def rows(event: type[Event], *span: int, rate: float = 1.0) -> list[Row]:
    found: list[Row] = columns(event, *span, rate=rate).to_pylist()
    return found


def wire(*cuts: int, seed: int = 7) -> dict[type[Event], list[tuple[bytes, bytes]]]:
    """Key and value of every record, topic by topic, of the spans between the cuts one after the
    other."""
    found: dict[type[Event], list[tuple[bytes, bytes]]] = {LlmInvocation: [], ModelFallbackUsed: []}
    for begin, end in pairwise(cuts):
        for batch in workload.events(seed, START, START + begin, START + end):
            for event, part in (
                (LlmInvocation, batch.invocations),
                (ModelFallbackUsed, batch.fallbacks),
            ):
                values = workload.encoded(part, event, SCHEMA_ID)
                found[event] += zip(workload.keys(part), values, strict=True)
    return found


SPAN = (-150_000, 20_000)
WHOLE = wire(*SPAN)


def test_the_same_seed_gives_the_same_bytes_and_another_one_gives_others() -> None:
    assert wire(*SPAN) == WHOLE
    assert wire(*SPAN, seed=8) != WHOLE
    assert min(map(len, WHOLE.values())) > 20


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(SPAN[0] + 1, SPAN[1] - 1), min_size=1, max_size=4, unique=True))
def test_time_may_be_cut_anywhere(cuts: list[int]) -> None:
    assert wire(SPAN[0], *sorted(cuts), SPAN[1]) == WHOLE


@pytest.mark.parametrize("rate", [0.37, 50.0])
def test_time_may_be_cut_anywhere_at_any_rate(rate: float) -> None:
    whole = columns(LlmInvocation, -1000, 20_001, rate=rate)
    cut = [columns(LlmInvocation, *span, rate=rate) for span in ((-1000, 7_003), (7_003, 20_001))]
    assert pa.concat_tables(cut).combine_chunks() == whole.combine_chunks()


def test_batches_are_in_order_of_event_time_and_hold_it_between_their_ends() -> None:
    newest = 0
    for batch in workload.events(7, START, START - HOUR, START + 30_000):
        times: list[int] = batch.invocations.to_pydict()["occurred_at_ms"]
        assert times == sorted(times)
        assert all(max(newest, batch.from_ms) <= t < batch.to_ms for t in times)
        newest = max([newest, *times])


def test_an_hour_holds_every_request_of_the_trace_with_its_tokens() -> None:
    def arrived(row: Row) -> int:
        return uuid.UUID(row["request_id"]).int >> 80

    begin = START - 5 * HOUR
    found = [
        row
        for row in rows(LlmInvocation, -5 * HOUR, -4 * HOUR + traffic.LONGEST_US // 1000 + 1)
        if begin <= arrived(row) < begin + HOUR
    ]
    assert sum(row["attempt"] == 1 for row in found) == 8819
    answered = Counter(
        (row["input_tokens"], row["output_tokens"]) for row in found if row["outcome"] == "SUCCESS"
    )
    trace = sample.arrivals()
    recorded = Counter(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
    assert answered <= recorded
    assert answered.total() > 0.99 * recorded.total()


def test_outside_of_outages_every_call_is_a_recorded_call_of_its_pair() -> None:
    calls = sample.calls()
    recorded = defaultdict(set)
    for number, pair in enumerate(calls.pairs):
        for call in range(calls.first[number], calls.first[number] + calls.count[number]):
            recorded[pair].add(
                (
                    calls.error_code[call] or None,
                    max(1, int(calls.latency_us[call])),
                    int(calls.first_token_us[call]) or None,
                )
            )
    found = rows(LlmInvocation, -HOUR, 0)
    assert len({(row["provider"], row["model"]) for row in found}) == 19
    for row in found:
        pair = (row["provider"], row["model"])
        assert (row["error_code"], row["latency_us"], row["first_token_us"]) in recorded[pair]


def test_a_rate_limit_is_no_failure_and_any_other_error_is_one() -> None:
    verdicts = {(row["error_code"], row["outcome"]) for row in rows(LlmInvocation, -HOUR, 0)}
    assert {(None, "SUCCESS"), ("429", "RATE_LIMITED"), ("-100", "FAILURE")} <= verdicts
    assert verdicts <= {
        (None, "SUCCESS"),
        ("429", "RATE_LIMITED"),
        ("-100", "FAILURE"),
        ("-1", "FAILURE"),
    }


def test_ids_are_unique_version_7_and_hold_the_event_time() -> None:
    found = rows(LlmInvocation, -HOUR, 60_000) + rows(ModelFallbackUsed, -HOUR, 60_000)
    assert len({row["event_id"] for row in found}) == len(found)
    for row in found:
        parsed = uuid.UUID(row["event_id"])
        assert parsed.version == 7
        assert parsed.variant == uuid.RFC_4122
        assert parsed.int >> 80 == row["occurred_at_ms"]


def test_what_was_not_answered_is_asked_elsewhere_and_the_switch_is_an_event() -> None:
    """Requests of an hour with an outage, up to the third attempt."""
    span = (-360 * 60_000, -320 * 60_000)
    requests = defaultdict(list)
    for row in rows(LlmInvocation, span[0], span[1] + traffic.LONGEST_US // 1000 + 1):
        requests[row["request_id"]].append(row)
    switches = {row["invocation_id"]: row for row in rows(ModelFallbackUsed, *span)}
    assert len(switches) > 100
    seen = 0
    for calls in requests.values():
        if calls[0]["attempt"] != 1 or calls[0]["occurred_at_ms"] >= START + span[1]:
            continue
        assert [call["attempt"] for call in calls] == list(range(1, len(calls) + 1))
        assert len({call["provider"] for call in calls}) == len(calls)
        assert calls[-1]["outcome"] == "SUCCESS" or len(calls) == script.ATTEMPTS
        spent = 0
        for before, call in pairwise(calls):
            assert before["outcome"] != "SUCCESS"
            spent += before["latency_us"]
            switch = switches.get(call["event_id"])
            if switch is None:  # it ended after the span
                continue
            seen += 1
            assert switch["reason"] == str(before["outcome"]).lower()
            assert switch["from_model"] == f"{before['provider']}/{before['model']}"
            assert switch["to_model"] == f"{call['provider']}/{call['model']}"
            assert switch["added_latency_us"] == spent
            assert switch["attempt"] == call["attempt"]
    assert seen > 100


@pytest.mark.parametrize(("provider", "begin", "end"), script.OUTAGES)
def test_a_provider_that_is_out_fails_most_of_its_calls(
    provider: str, begin: int, end: int
) -> None:
    timeouts = max(script.OUTAGE_US.values()) // 1000
    during = Counter(
        row["outcome"]
        for row in rows(LlmInvocation, begin + timeouts, end)
        if row["provider"] == provider
    )
    bad = during[Outcome.FAILURE] + during[Outcome.TIMEOUT]
    assert during[Outcome.TIMEOUT] > 0
    assert 0.75 < bad / during.total() < 0.98


def test_the_story_falls_into_the_first_minute_but_for_its_end() -> None:
    told = workload.story(7, START, "main")
    times = [event.occurred_at_ms - START for event in told]
    assert times == sorted(times)
    assert all(0 <= t <= 60_000 for t in times[:-1])
    assert len({event.event_id for event in told}) == len(told)
    assert told == workload.story(7, START, "main")


def test_the_mode_of_an_invocation_is_that_of_the_story() -> None:
    for row in rows(LlmInvocation, 0, 90_000):
        since = row["occurred_at_ms"] - START
        expected = script.MODE_FALLS <= since < script.MODE_RISES
        assert row["mode"] == ("DEVELOPMENT" if expected else "PRODUCTION")


@pytest.mark.parametrize("rate", [1.0, 50.0])
def test_the_tenant_on_trial_crosses_80_and_100_percent_of_its_cap(rate: float) -> None:
    (budget,) = (e for e in workload.story(7, START, "main", rate) if isinstance(e, BudgetUpdated))
    price = {
        (*pair, card.unit.value): card.price_picousd_per_million
        for pair in defaults.PRICE_KEYS
        for card in defaults.cards(*pair)
        if card.valid_to_ms is None
    }
    spent = Fraction(0)
    crossed: dict[int, int] = {}
    for row in rows(LlmInvocation, 0, 90_000, rate=rate):
        pair = (row["provider"], row["model"])
        if row["tenant"] != budget.tenant or (*pair, "INPUT_TOKEN") not in price:
            continue
        for unit, column in (("INPUT_TOKEN", "input_tokens"), ("OUTPUT_TOKEN", "output_tokens")):
            spent += Fraction(row[column] * price[*pair, unit], 10**6)
        for threshold in budget.thresholds:
            if spent * 100 >= threshold * budget.cap_picousd:
                crossed.setdefault(threshold, row["occurred_at_ms"] - START)
    assert 20_000 < crossed[80] < crossed[100] < script.PILOT_AT_CAP
    assert crossed[100] - crossed[80] > 2_000


def test_each_run_has_a_trial_tenant_of_its_own() -> None:
    assert script.pilot(START) != script.pilot(START + 1000)


@pytest.mark.kafka
def test_every_record_reads_back_equal_and_is_taken(registry: str) -> None:
    with Registry(registry) as http:
        catalogue = register_all(http)
        for topic, event in (
            (topics.LLM_INVOCATION, LlmInvocation),
            (topics.MODEL_FALLBACK_USED, ModelFallbackUsed),
        ):
            schema_id = catalogue.id_of(topic, event)
            count = 0
            for batch in workload.events(7, START, START - HOUR, START + 60_000):
                part = batch.invocations if event is LlmInvocation else batch.fallbacks
                values = workload.encoded(part, event, schema_id)
                for row, key, value in zip(
                    part.to_pylist(), workload.keys(part), values, strict=True
                ):
                    assert datum.decode(value[5:], datum.parsed(event)) == row
                    at = Position(topic.name, 0, count, row["occurred_at_ms"] + 250)
                    record = decode_value(catalogue, at, key, value)
                    assert isinstance(record, Recorded), record
                    assert datum.encode(record.event) == value[5:]
                    count += 1
            assert count > 300


@pytest.mark.parametrize(
    ("newest", "expected"),
    [
        (None, START - HOUR),  # nothing there: the whole back-fill
        ((START - 500, START - 300), START - 200),  # live until just now
        ((START - HOUR - 100, START - HOUR), START - 100),  # live until an hour ago: the gap stays
        ((START - HOUR // 2, START - 5_000), START - HOUR // 2 + 5_000),  # cut off half-way
        ((START - 9 * HOUR, START - 5_000), START - HOUR),  # cut off long before
        ((START + 50, START + 60), START + 51),  # a clock that went back
    ],
)
def test_a_run_takes_up_where_the_clock_of_the_log_stands(
    newest: tuple[int, int] | None, expected: int
) -> None:
    assert workload.resume_ms(START, HOUR, newest) == expected


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_rate_is_told_with_what_is_allowed(rate: float, tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"rate is .*; allowed: above 0"):
        workload.run(load({"ROSTER_DATA": str(tmp_path)}), rate=rate)


def own(bootstrap: str, catalogue: Catalogue, topic: topics.Topic) -> list[HeadedEvent]:
    """Events of the workload in a topic; whatever else is there belongs to other tests."""
    records = [decode(catalogue, m) for m in client.read_to_end(bootstrap, topic.name)]
    assert not [
        r for r in records if isinstance(r, Undecodable) and b"workload" in (r.value or b"")
    ]
    events = [r.event for r in records if isinstance(r, Recorded)]
    return [e for e in events if isinstance(e, HeadedEvent) and e.source == workload.SOURCE]


@pytest.mark.kafka
def test_two_runs_publish_each_event_of_theirs_once(
    kafka: str, registry: str, tmp_path: Path
) -> None:
    topics.create(client.admin(kafka), 1)
    environ = {"ROSTER_KAFKA": kafka, "ROSTER_REGISTRY": registry, "ROSTER_DATA": str(tmp_path)}

    def live() -> bool:
        told = status.read_all(tmp_path).get("workload", {})
        return str(told.get("note")).startswith("live") and told["records_out"] > 200

    topic_of = {LlmInvocation: topics.LLM_INVOCATION, ModelFallbackUsed: topics.MODEL_FALLBACK_USED}
    with Registry(registry) as http:
        catalogue = register_all(http)
        known = {e.event_id for topic in topic_of.values() for e in own(kafka, catalogue, topic)}
        starts = {e.event_id for e in own(kafka, catalogue, topics.BUDGET_UPDATED)}
        for _ in range(2):
            assert workload.run(load(environ), rate=50, backfill_h=0.25, stop=live) == 0
            (opening,) = (
                e for e in own(kafka, catalogue, topics.BUDGET_UPDATED) if e.event_id not in starts
            )
            starts.add(opening.event_id)
            sent = 0
            for event, topic in topic_of.items():
                fresh = [e for e in own(kafka, catalogue, topic) if e.event_id not in known]
                ids = Counter(e.event_id for e in fresh)
                assert ids, "the run published nothing"
                assert set(ids.values()) == {1}
                times = [e.occurred_at_ms for e in fresh]
                expected: set[str] = set()
                for batch in workload.events(
                    7, opening.occurred_at_ms, min(times), max(times) + 1, 50
                ):
                    part = batch.invocations if event is LlmInvocation else batch.fallbacks
                    expected.update(part.to_pydict()["event_id"])
                assert set(ids) == expected
                known |= expected
                sent += len(ids)
            told = status.read_all(tmp_path)["workload"]
            assert told["records_out"] >= sent  # and what the operator did
            newest = workload.newest_own(kafka, catalogue)
            assert newest is not None
            assert newest[0] == max(
                e.occurred_at_ms for e in own(kafka, catalogue, topic_of[LlmInvocation])
            )

"""Checking of what is to be published (pure), and its delivery on a real broker."""

import io
import json
from typing import Any
from uuid import UUID, uuid4

import fastavro
import pytest

from schemas import LlmInvocation, Recorded
from schemas.avro import parsed
from streams import kafka as clients
from streams import topics
from streams.codec import decode
from streams.errors import BadConfiguration, Unreachable
from streams.registry import Catalogue, Registry
from streams.topics import (
    BUDGET_UPDATED,
    LLM_INVOCATION,
    MODE_CHANGED,
    MODEL_PROFILE_UPDATED,
    MODEL_QUALITY_OBSERVED,
    MODEL_REGISTERED,
    RATE_CARD_UPDATED,
    SCORING_POLICY_UPDATED,
    SLM_BENCHMARK_RESULTS,
)
from tools.publish import Ready, open_topic, read, send, spans, uuid7

NOW = 1_790_000_000_000
INVOCATION: dict[str, Any] = {
    "tenant": "acme",
    "role": "code",
    "provider": "p",
    "model": "m",
    "outcome": "SUCCESS",
    "input_tokens": 1,
    "output_tokens": 2,
    "latency_us": 3,
}
PROFILE: dict[str, Any] = {
    "scope": "system",
    "role": "Chat",
    "deployment_mode": "prod",
    "action": "SET",
    "model": "p/m",
    "actor": "ann",
}


def lines(*records: object) -> bytes:
    return "\n".join(r if isinstance(r, str) else json.dumps(r) for r in records).encode()


def errors(topic: topics.Topic, *records: object) -> list[tuple[int, str]]:
    return [(bad.line, bad.error) for bad in read(topic, lines(*records), NOW).bad]


def test_absent_header_fields_are_filled_in() -> None:
    (ready,) = read(LLM_INVOCATION, lines(INVOCATION), NOW).good
    assert (ready.event.occurred_at_ms, ready.event.source) == (NOW, "roster-cli")
    assert UUID(ready.event.event_id).version == 7
    given = {**INVOCATION, "event_id": "mine", "occurred_at_ms": NOW - 5, "source": "gateway"}
    (ready,) = read(LLM_INVOCATION, lines(given), NOW).good
    assert (ready.event.event_id, ready.event.occurred_at_ms) == ("mine", NOW - 5)


def test_an_error_names_line_field_value_and_what_is_allowed() -> None:
    found = errors(
        LLM_INVOCATION,
        INVOCATION,
        {**INVOCATION, "latency_us": -1},
        "",
        {**INVOCATION, "latncy_us": 5},
        {**INVOCATION, "outcome": "GOOD"},
        {k: v for k, v in INVOCATION.items() if k != "role"},
        "{",
        "[1]",
        '{"tenant": "a", "tenant": "b"}',
        {**INVOCATION, "input_tokens": 10**12},
        {**INVOCATION, "occurred_at_ms": 5},
        '{"tenant": NaN}',
    )
    assert [line for line, _ in found] == [2, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    by_line = dict(found)
    assert by_line[2].startswith("latency_us=-1: ")
    assert "greater than or equal to 1" in by_line[2]
    assert "did you mean latency_us" in by_line[4]
    assert "outcome='GOOD'" in by_line[5] and "'SUCCESS'" in by_line[5]
    assert "role" in by_line[6] and "required" in by_line[6]
    assert "not JSON at column" in by_line[7]
    assert "JSON list" in by_line[8]
    assert "'tenant' stands there twice" in by_line[9]
    assert "input_tokens=1000000000000" in by_line[10] and "1000000000" in by_line[10]
    assert "occurred_at_ms=5" in by_line[11] and "35 days" in by_line[11]


def test_a_profile_that_the_fold_would_reject_is_refused_before() -> None:
    for field, value in [
        ("model", "no-provider"),
        ("temperature", 9),
        ("extra", "[1]"),
        ("scope", "galaxy"),
        ("base_url", "ftp://x"),
        ("credential_ref", "sk-secret"),
    ]:
        ((_, error),) = errors(MODEL_PROFILE_UPDATED, {**PROFILE, field: value})
        assert error.startswith(f"{field}="), error


def test_profiles_are_published_under_canonical_names_with_the_key_the_fold_expects() -> None:
    (ready,) = read(MODEL_PROFILE_UPDATED, lines(PROFILE), NOW).good
    assert ready.key == b"system/dialogue/PRODUCTION"


def test_each_topic_has_its_key() -> None:
    def key(topic: topics.Topic, record: dict[str, Any]) -> bytes:
        batch = read(topic, lines({"event_id": "e1", **record}), NOW)
        assert batch.bad == []
        return batch.good[0].key

    policy = {
        "role": "code",
        "deployment_mode": "TEST",
        "weight_quality": 4000,
        "weight_cost": 2000,
        "weight_latency": 2000,
        "weight_reliability": 2000,
        "cost_unit": "PER_REQUEST",
        "reference_cost_picousd": 1,
        "reference_latency_us": 1,
        "actor": "ann",
    }
    card = {
        "provider": "p",
        "model": "m",
        "unit": "INPUT_TOKEN",
        "price_picousd_per_million": 1,
        "valid_from_ms": 0,
    }
    budget = {
        "tenant": "acme",
        "budget": "daily",
        "cap_picousd": 1,
        "period": "DAY",
        "at_cap": "DENY",
        "actor": "ann",
    }
    mode = {"deployment": "main", "to_mode": "TEST", "actor": "ann"}
    model = {"provider": "p", "model": "m", "action": "SET", "actor": "ann"}
    assert key(LLM_INVOCATION, INVOCATION) == b"acme/e1"
    assert key(SCORING_POLICY_UPDATED, policy) == b"code/TEST"
    assert key(RATE_CARD_UPDATED, card) == b"p/m"
    assert key(MODEL_REGISTERED, model) == b"p/m"
    assert key(BUDGET_UPDATED, budget) == b"acme/daily"
    assert key(MODE_CHANGED, mode) == b"main"


def test_an_avro_file_is_read_as_lines_are() -> None:
    first = read(LLM_INVOCATION, lines(INVOCATION, {**INVOCATION, "role": "dialogue"}), NOW)
    out = io.BytesIO()
    fields = [ready.event.model_dump() for ready in first.good]
    fastavro.writer(out, parsed(LlmInvocation), fields)
    again = read(LLM_INVOCATION, out.getvalue(), NOW)
    assert again.bad == []
    assert [ready.event for ready in again.good] == [ready.event for ready in first.good]
    with pytest.raises(BadConfiguration, match="RateCardUpdated"):
        read(RATE_CARD_UPDATED, out.getvalue(), NOW)
    with pytest.raises(BadConfiguration, match="cannot be read"):
        read(LLM_INVOCATION, out.getvalue()[:-9], NOW)


def test_observations_and_benchmarks_stand_under_their_keys() -> None:
    seen = {"tenant": "acme", "role": "code", "provider": "p", "model": "m", "hits": 1}
    (ready,) = read(MODEL_QUALITY_OBSERVED, lines({**seen, "event_id": "e"}), NOW).good
    assert (ready.key, ready.event.occurred_at_ms) == (b"acme/e", NOW)
    run = {"provider": "p", "model": "m", "name": "wer", "value": 9, "scale": "PERCENT"}
    (ready,) = read(SLM_BENCHMARK_RESULTS, lines({**run, "direction": "LOWER"}), NOW).good
    assert ready.key == b"p/m/wer"
    old = {**seen, "occurred_at_ms": NOW - 36 * 86_400_000}
    assert "too far from now" in errors(MODEL_QUALITY_OBSERVED, old)[0][1]
    assert errors(MODEL_QUALITY_OBSERVED, {**seen, "hits": 2}, {**seen, "n": 0}) == [
        (1, "hits must be at most n, 1"),
        (2, "n=0: Input should be greater than or equal to 1"),
    ]
    (first, second, third) = errors(
        SLM_BENCHMARK_RESULTS,
        {**run, "direction": "HIGHER"},
        {**run, "direction": "LOWER", "value": 1001},
        {**run, "direction": "LOWER", "seed": 2**63},
    )
    assert "direction of wer must be LOWER" in first[1]
    assert "value must be 0 to 1000 in scale PERCENT" in second[1]
    assert third[1].startswith("seed=9223372036854775808: ")


def test_topics_that_roster_concludes_are_closed() -> None:
    for concluded in ("model.profile.recommended", "model.profile.scored"):
        with pytest.raises(BadConfiguration, match=concluded):
            open_topic(concluded)
    with pytest.raises(BadConfiguration, match=r"did you mean llm\.invocation"):
        open_topic("llm.invocations")
    with pytest.raises(BadConfiguration, match=r"allowed: llm\.invocation"):
        open_topic("slm.metrics")


def test_ids_are_ordered_by_their_time() -> None:
    ids = [uuid7(NOW + n) for n in range(50)]
    assert ids == sorted(ids)
    assert len({uuid7(NOW) for _ in range(1000)}) == 1000


def test_line_numbers_are_shown_as_spans() -> None:
    assert spans([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert spans([]) == ""


def test_a_sent_event_stands_where_the_answer_says(kafka: str, registry: str) -> None:
    topics.create(clients.admin(kafka), 1)
    deployment = f"d{uuid4().hex}"
    records = [{"deployment": deployment, "to_mode": f"m{n}", "actor": "a"} for n in range(200)]
    good = read(MODE_CHANGED, lines(*records), NOW).good
    counted: list[int] = []
    with Registry(registry) as client:
        catalogue = Catalogue(client, [MODE_CHANGED])
        placed = send(kafka, catalogue, MODE_CHANGED, good, counted.append)
        assert sum(counted) == len(placed) == 200
        found = {
            (message.partition(), message.offset()): decode(catalogue, message)
            for message in clients.read_to_end(kafka, MODE_CHANGED.name)
        }
    for ready, at in zip(good, placed, strict=True):
        recorded = found[at]
        assert isinstance(recorded, Recorded)
        assert (recorded.event, recorded.key) == (ready.event, deployment.encode())


def test_what_was_not_acknowledged_is_named_by_line(
    registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.publish.ACKNOWLEDGED_WITHIN_S", 1.0)
    (ready,) = read(
        MODE_CHANGED, lines({"deployment": "d", "to_mode": "TEST", "actor": "a"}), NOW
    ).good
    with Registry(registry) as client, pytest.raises(Unreachable, match=r"lines 4, 8"):
        events = [Ready(4, ready.event, ready.key), Ready(8, ready.event, ready.key)]
        send("127.0.0.1:1", Catalogue(client, [MODE_CHANGED]), MODE_CHANGED, events)

"""What is scraped is what the tables say; Prometheus' own parser reads it."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from projections import runner
from projections.queries import ask as asked
from schemas import LlmInvocation, RateCardUpdated
from schemas.model_profile import LeaderState
from streams import kafka as clients
from streams import settings, topics
from streams.codec import encode, tenant_key
from streams.registry import Registry, register_all
from tests.support.book import Book
from tests.support.events import good
from tests.support.rankings import entries, evidence, final, policy
from tools.api import metrics
from tools.publish import now_ms

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
PANE = 1_771_200_000_000
MODEL = "org/llama-2:70b"


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    yield made
    made.db.close()


def scraped(book: Book, at_ms: int = 0, **report: Any) -> Samples:
    """One scrape of a file."""

    def ask(sql: str, most: int) -> list[dict[str, Any]]:
        found = asked(book.db.cursor(), sql, most)
        return [dict(zip(found.columns, row, strict=True)) for row in found.rows]

    app = FastAPI()
    app.include_router(metrics.router(ask, lambda: report, lambda: at_ms))
    with TestClient(app) as client:
        answer = client.get("/metrics")
        wanted = {"accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"}
        other = client.get("/metrics", headers=wanted)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert other.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    found = samples(answer.text)
    families = openmetrics(other.text)  # type: ignore[no-untyped-call]  # this parser has no types
    again = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    assert again == found
    return found


def samples(text: str) -> Samples:
    """Samples of a scrape; each family is told once, with help and a type."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type in ("gauge", "counter", "summary"), family
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            assert "tenant" not in sample.labels
            assert sample.name.endswith("_total") is (family.type == "counter")
            found[key] = sample.value
    return found


def one(found: Samples, name: str, **labels: str) -> float | None:
    """The sample of these labels."""
    return found.get((name, frozenset(labels.items())))


def call(model: str, n: int, **fields: Any) -> LlmInvocation:
    given = {
        "event_id": f"{model}-{n}",
        "occurred_at_ms": PANE + n,
        "role": "code",
        "mode": "prod",
        "provider": "p",
        "model": model,
        "outcome": "SUCCESS",
        "input_tokens": 300,
        "cached_tokens": 0,
        "output_tokens": 200,
        "latency_us": 1_500_000,
        "reported_cost_picousd": None,
    }
    return good(LlmInvocation, **{**given, **fields})


def test_service_levels_and_counters_are_in_base_units(book: Book) -> None:
    of = {"role": "code", "mode": "PRODUCTION", "provider": "p", "model": MODEL}
    for unit, usd in (("INPUT_TOKEN", 2), ("OUTPUT_TOKEN", 7)):
        card = good(
            RateCardUpdated,
            event_id=unit,
            provider="p",
            model=MODEL,
            unit=unit,
            price_picousd_per_million=usd * 10**12,
            valid_from_ms=0,
            valid_to_ms=None,
        )
        book.say(topics.RATE_CARD_UPDATED, card)
    book.call(
        *(call(MODEL, n) for n in range(8)),
        call(MODEL, 8, outcome="FAILURE", input_tokens=0, output_tokens=0),
        call(MODEL, 9, outcome="RATE_LIMITED", input_tokens=0, output_tokens=0),
        call("free", 0),
    )
    found = scraped(book, lags={"llm.invocation": {"0": 5}})
    assert one(found, "roster_success_ratio", **of) == 8 / 9
    assert one(found, "roster_cost_usd_per_1k_tokens", **of) == pytest.approx(0.004, rel=1e-15)
    for quantile in ("0.5", "0.95", "0.99"):  # one duration: the estimate of its bucket, within 1 %
        value = one(found, "roster_latency_seconds", **of, quantile=quantile)
        assert value == pytest.approx(1.5, rel=0.01)
        assert value == book.rows("SELECT p99_us / 1e6 FROM slis WHERE model <> 'free'")[0][0]
    assert one(found, "roster_invocations_total", **of) == 10
    assert one(found, "roster_tokens_total", **of, kind="input") == 2400
    assert one(found, "roster_tokens_total", **of, kind="cached") == 0
    assert one(found, "roster_tokens_total", **of, kind="output") == 1600
    free = {**of, "model": "free"}
    assert one(found, "roster_invocations_total", **free) == 1
    assert one(found, "roster_unpriced_invocations_total", **free) == 1
    assert one(found, "roster_cost_usd_per_1k_tokens", **free) is None  # unpriced is not free
    assert one(found, "roster_lag_records", topic="llm.invocation", partition="0") == 5
    watermark = {"topic": "llm.invocation", "partition": "0"}
    newest = (PANE + 9 - 60_001) / 1000
    assert one(found, "roster_watermark_timestamp_seconds", **watermark) == newest


def test_the_newest_ranking_is_told_with_ties_and_leader(book: Book) -> None:
    rules = policy(role="code")
    panel = {
        "a": evidence([1_500_000] * 80, quality=(150, 200)),
        "b": evidence([1_500_000] * 80, quality=(151, 200)),
        "far": evidence([9_500_000] * 80, cost=10**11, quality=(10, 200)),
        "none": evidence([], failed=9),
    }
    ranked = entries(panel, rules)
    assert {e.model: e.rank for e in ranked} == {"a": 1, "b": 1, "far": 3, "none": None}
    led = LeaderState(provider="p", model="a", since_ms=5)
    first = final(ranked[:1], rules, leader=led)
    book.say(topics.MODEL_PROFILE_SCORED, first)
    second = final(ranked, rules, window_end_ms=first.window_end_ms + 300_000, leader=led)
    theirs = final(
        ranked[:1], rules, window_end_ms=first.window_end_ms + 600_000, tenant="acme", revision=9
    )
    book.say(topics.MODEL_PROFILE_SCORED, second, theirs)
    found = scraped(book, second.as_of_ms + 2500)
    key = {"role": "code", "mode": "PRODUCTION"}
    assert one(found, "roster_ranking_age_seconds", **key) == 2.5
    for entry in ranked:
        of = {**key, "provider": "p", "model": entry.model}
        assert one(found, "roster_score", **of) == entry.score
        assert one(found, "roster_score_standard_error", **of) == entry.score_se
        assert one(found, "roster_rank", **of) == entry.rank
        assert one(found, "roster_quality_ratio", **of) == entry.quality
        assert one(found, "roster_leader", **of) == (1 if entry.model == "a" else 0)


def test_an_empty_file_has_no_samples_and_too_many_rows_are_said(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {name for name, _ in scraped(book)} == {"roster_rows_omitted"}
    book.call(call("a", 0), call("b", 0))
    assert one(scraped(book), "roster_rows_omitted", of="roster_invocations") == 0
    monkeypatch.setattr(metrics, "MOST", 1)
    found = scraped(book)
    assert one(found, "roster_rows_omitted", of="roster_invocations") == 1
    assert [labels for name, labels in found if name == "roster_invocations_total"] == [
        frozenset({"role": "code", "mode": "PRODUCTION", "provider": "p", "model": "a"}.items())
    ]


def test_a_projector_serves_what_its_tables_say(kafka: str, registry: str, tmp_path: Path) -> None:
    here = replace(settings.load({"ROSTER_DATA": str(tmp_path)}), kafka=kafka, registry=registry)
    topics.create(clients.admin(kafka), 1)
    out = clients.Outbound(clients.producer(kafka))
    role = f"role-{uuid4().hex}"
    with Registry(registry) as client:
        catalogue = register_all(client)
    event = call("m", 0, event_id=str(uuid4()), role=role, occurred_at_ms=now_ms())
    for _ in range(2):  # the second is a duplicate
        value = encode(catalogue, topics.LLM_INVOCATION, event)
        out.send(topics.LLM_INVOCATION.name, tenant_key(event), value)
    out.flush()
    ready, stop, address = threading.Event(), threading.Event(), []

    def say(at: str) -> None:
        address.append(at)
        ready.set()

    thread = threading.Thread(
        target=runner.run,
        args=(here,),
        kwargs={"ready": say, "stop": stop, "further": [metrics.mounted]},
        daemon=True,
    )
    thread.start()
    assert ready.wait(60)
    with httpx.Client(base_url=address[0], timeout=30, trust_env=False) as http:
        of = {"role": role, "mode": "PRODUCTION", "provider": "p", "model": "m"}
        until = time.monotonic() + 60
        found: Samples = {}
        while (one(found, "roster_invocations_total", **of), _lag(found)) != (1, 0):
            assert time.monotonic() < until
            time.sleep(0.2)
            found = samples(http.get("/metrics").text)
        verdicts = (
            "SELECT topic, consumed, applied, duplicate FROM (SELECT topic, sum(consumed)::BIGINT"
            " AS consumed, sum(applied)::BIGINT AS applied, sum(duplicate)::BIGINT AS duplicate"
            " FROM projection_offsets GROUP BY topic)"
        )
        rows = http.post("/v1/sql", json={"sql": verdicts}).json()["rows"]
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert {topic for topic, *_ in rows} >= {"llm.invocation", "model.profile.scored"}
    for topic, consumed, applied, duplicate in rows:
        assert one(found, "roster_consumed_offsets_total", topic=topic) == consumed
        assert one(found, "roster_events_total", topic=topic, verdict="applied") == applied
        assert one(found, "roster_events_total", topic=topic, verdict="duplicate") == duplicate
        told = (
            one(found, "roster_events_total", topic=topic, verdict=verdict)
            for verdict in metrics.VERDICTS
        )
        assert sum(n or 0 for n in told) == consumed
    assert one(found, "roster_events_total", topic="llm.invocation", verdict="duplicate")


def _lag(found: Samples) -> float:
    return sum(value for (name, _), value in found.items() if name == "roster_lag_records")

"""Views say what a plain fold over the same rows says."""

import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import pytest

from projections import store
from schemas import (
    LlmInvocation,
    ModeChanged,
    ModelFallbackUsed,
    ModelProfileRejected,
    ModelProfileScored,
    ModelProfileUpdated,
    ModelQualityObserved,
    RateCardUpdated,
    ScoringPolicyUpdated,
)
from schemas.values import COMPLETE, FAILED, Outcome
from streams import topics
from tests.support.book import Book
from tests.support.events import GOOD, good

PANE = 300_000
DAY = 86_400_000
START = 1_771_200_000_000 // DAY * DAY


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    yield made
    made.db.close()


def call(event_id: str, at_ms: int = START, **fields: Any) -> LlmInvocation:
    return good(LlmInvocation, event_id=event_id, occurred_at_ms=at_ms, **fields)


def profile(event_id: str, scope: str, model: str = "p/m", **fields: Any) -> ModelProfileUpdated:
    return good(ModelProfileUpdated, event_id=event_id, scope=scope, model=model, **fields)


def test_profiles_are_the_changes_that_were_accepted(book: Book) -> None:
    book.say(
        topics.MODEL_PROFILE_UPDATED,
        profile("a", "system", "p/one"),
        profile("b", "mode", "p/two"),
        profile("a", "system", "p/again"),  # a repeated id
        profile("c", "system", "p/refused"),
        profile("d", "system", "p/three"),
        profile("e", "mode", action="DELETE"),
    )
    book.say(
        topics.MODEL_PROFILE_REJECTED,
        good(ModelProfileRejected, cause_partition=0, cause_offset=3),
    )
    assert book.rows("SELECT scope, model, version FROM profiles") == [("system", "p/three", 2)]
    assert book.rows("SELECT scope, model, version FROM profile_versions ORDER BY src_offset") == [
        ("system", "p/one", 1),
        ("mode", "p/two", 1),
        ("system", "p/three", 2),
        ("mode", "p/m", 2),
    ]


def test_modes_are_intervals_of_event_time_whatever_the_order_of_the_log(book: Book) -> None:
    def change(event_id: str, at_ms: int, to: str) -> ModeChanged:
        return good(ModeChanged, event_id=event_id, occurred_at_ms=at_ms, to_mode=to)

    book.say(
        topics.MODE_CHANGED,
        change("a", 100, "qa"),
        change("b", 300, "prod"),
        change("c", 200, "local"),
        change("d", 300, "training"),
        change("a", 900, "local"),  # a repeated id
    )
    assert book.rows("SELECT mode, from_ms, to_ms FROM modes ORDER BY from_ms") == [
        ("TEST", 100, 200),
        ("LOCAL", 200, 300),
        ("TRAINING", 300, None),
    ]


def test_policies_have_the_version_of_the_log_and_are_in_force_by_event_time(book: Book) -> None:
    def policy(event_id: str, at_ms: int) -> ScoringPolicyUpdated:
        return good(ScoringPolicyUpdated, event_id=event_id, occurred_at_ms=at_ms)

    book.say(topics.SCORING_POLICY_UPDATED, policy("a", 100), policy("b", 500), policy("c", 300))
    assert book.rows(
        "SELECT event_id, version, from_ms, to_ms FROM policy_versions ORDER BY from_ms"
    ) == [("a", 1, 100, 300), ("c", 3, 300, 500), ("b", 2, 500, None)]


def entry(model: str, **fields: Any) -> dict[str, Any]:
    shown = dict(GOOD[ModelProfileScored]["entries"][0])
    return {**shown, "model": model, **fields}


def final(event_id: str, as_of_ms: int, *entries: dict[str, Any], **fields: Any) -> Any:
    return good(
        ModelProfileScored,
        event_id=event_id,
        as_of_ms=as_of_ms,
        policy_event_id="policy",
        entries=entries,
        **fields,
    )


def test_the_trend_is_that_of_the_finals_that_count(book: Book) -> None:
    book.say(
        topics.SCORING_POLICY_UPDATED,
        good(ScoringPolicyUpdated, event_id="policy", latency_percentile=99),
    )
    book.say(
        topics.MODEL_PROFILE_SCORED,
        final("f1", 1, entry("m", score=0.5), generation=2),
        final("f2", 2, entry("m", score=0.6), generation=2),
        final("f2b", 2, entry("m", score=0.7), revision=1, generation=2),
        final("old", 2, entry("m", score=0.1), revision=9, generation=1),
        final("p", 3, entry("m", score=0.9), status="PROVISIONAL", generation=2),
    )
    assert book.rows("SELECT as_of_ms, score, latency_percentile FROM trend ORDER BY 1") == [
        (1, 0.5, 99),
        (2, 0.7, 99),
    ]


def test_breaches_are_what_fails_the_tests_of_the_service_level(book: Book) -> None:
    book.say(
        topics.SCORING_POLICY_UPDATED,
        good(
            ScoringPolicyUpdated,
            event_id="policy",
            sla_success=9000,
            sla_latency_us=200,
            sla_cost_picousd_per_1k=100,
            severity="PAGE",
        ),
    )
    good_one = {"success_low": 0.9, "success_high": 1.0, "latency_high_us": 200.0}
    book.say(
        topics.MODEL_PROFILE_SCORED,
        final(
            "f",
            1,
            entry("keeps", **good_one, cost_picousd_per_1k_tokens=100.0),
            entry("doubtful", success_low=0.8, success_high=0.95, latency_high_us=None),
            entry("certain", success_low=0.1, success_high=0.2, latency_high_us=None),
            entry("slow", **{**good_one, "latency_low_us": 150.0, "latency_high_us": 201.0}),
            entry("dear", **good_one, cost_picousd_per_1k_tokens=100.5),
        ),
    )
    assert book.rows(
        "SELECT model, sla, expected, observed, certain, severity FROM sla_breaches ORDER BY 1"
    ) == [
        ("certain", "success", 0.9, 0.1, True, "PAGE"),
        ("dear", "cost", 100.0, 100.5, True, "PAGE"),
        ("doubtful", "success", 0.9, 0.8, False, "PAGE"),
        ("slow", "latency", 200.0, 201.0, False, "PAGE"),
    ]


def test_wins_were_served_at_once_and_not_found_poor(book: Book) -> None:
    book.call(
        call("win"),
        call("judged-win"),
        call("failed", outcome="FAILURE"),
        call("fallback", attempt=2),
        call("fallback-too"),
        call("poor"),
        call("limited", outcome="RATE_LIMITED"),
        call("other", tenant="zeta"),
    )
    book.say(topics.MODEL_FALLBACK_USED, good(ModelFallbackUsed, invocation_id="fallback-too"))
    book.say(
        topics.MODEL_QUALITY_OBSERVED,
        good(ModelQualityObserved, event_id="1", n=1, hits=1, invocation_id="judged-win"),
        good(ModelQualityObserved, event_id="2", n=1, hits=1, invocation_id="poor"),
        good(ModelQualityObserved, event_id="3", n=2, hits=1, invocation_id="poor"),
        good(ModelQualityObserved, event_id="4", tenant="zeta", n=1, hits=0, invocation_id="win"),
    )
    assert book.rows(
        "SELECT tenant, trials, wins, losses, failed, by_fallback, poor, judged"
        " FROM tenant_win_loss ORDER BY tenant"
    ) == [("acme", 6, 2, 4, 1, 2, 1, 2), ("zeta", 1, 1, 0, 0, 0, 0, 0)]


def test_service_levels_and_expected_latency_are_those_of_a_plain_recomputation(
    book: Book,
) -> None:
    rng = random.Random(5)
    prices = {"INPUT_TOKEN": 150_000_000_001, "OUTPUT_TOKEN": 600_000_000_007}
    for version, factor in ((1, 3), (2, 1)):  # of two cards the higher version counts
        book.say(
            topics.RATE_CARD_UPDATED,
            *(
                good(
                    RateCardUpdated,
                    event_id=f"{unit}{version}",
                    unit=unit,
                    price_picousd_per_million=price * factor,
                    version=version,
                    model="m",
                )
                for unit, price in prices.items()
            ),
        )
    book.say(
        topics.SCORING_POLICY_UPDATED,
        good(
            ScoringPolicyUpdated,
            sla_latency_us=900_000,
            window_panes=2,
            evidence_modes=["prod"],
            severity="PAGE",
            occurred_at_ms=START,
        ),
    )
    outcomes = [Outcome.SUCCESS] * 8 + [Outcome.FAILURE, Outcome.RATE_LIMITED]
    calls = [
        call(
            f"e{i}",
            START + i * 4 * PANE // 400,  # in order: none is late
            mode=rng.choice(["prod", "qa"]),
            model=rng.choice(["m", "unpriced"]),
            outcome=rng.choice(outcomes),
            input_tokens=rng.randrange(3000),
            output_tokens=rng.randrange(3000),
            latency_us=rng.randrange(1, 1_000_000),
            reported_cost_picousd=rng.choice([None, None, rng.randrange(10**9)]),
        )
        for i in range(400)
    ]
    book.call(*calls)
    found = {(row["mode"], row["model"]): row for row in book.table("SELECT * FROM slis")}
    assert len(found) == 4
    for (mode, model), row in found.items():
        mine = [c for c in calls if c.model == model and (mode == "TEST") is (c.mode == "qa")]
        done = [c for c in mine if c.outcome in COMPLETE]
        failed = [c for c in mine if c.outcome in FAILED]
        assert (row["trials"], row["complete"]) == (len(done) + len(failed), len(done))
        assert row["success_percent"] == 100 * len(done) / (len(done) + len(failed))
        for pct in (50, 95, 99):
            assert row[f"p{pct}_us"] == estimate([c.latency_us for c in done], pct)
        cost = sum(
            Fraction(c.reported_cost_picousd)
            if c.reported_cost_picousd is not None
            else Fraction(
                c.input_tokens * prices["INPUT_TOKEN"] + c.output_tokens * prices["OUTPUT_TOKEN"],
                10**6,
            )
            for c in done
        )
        tokens = sum(c.input_tokens + c.output_tokens for c in done)
        wanted = round(1000 * cost / tokens * 10**9) / 10**9
        assert row["cost_picousd_per_1k_tokens"] == (wanted if model == "m" else None)

    observed = {row["model"]: row for row in book.table("SELECT * FROM expected_latency")}
    for model, row in observed.items():
        latencies = [
            c.latency_us
            for c in calls
            if c.model == model
            and c.mode == "prod"
            and c.outcome in COMPLETE
            and c.occurred_at_ms >= START + 2 * PANE
        ]
        assert row["n"] == len(latencies)
        assert row["observed_p99_us"] == estimate(latencies, 99)
        broken = row["observed_p99_us"] > 900_000
        assert (row["broken"], row["severity"]) == (broken, "PAGE" if broken else None)
    assert len(observed) == 2


def estimate(latencies: list[int], pct: int) -> float:
    value = sorted(latencies)[pct * (len(latencies) - 1) // 100]
    i = next(i for i in range(1102) if 101**i // 99**i >= value)
    return round(Fraction(99 * 101**i, 100 * 99**i) * 10**9) / 10**9


def test_views_can_be_read_from_an_empty_file(tmp_path: Path) -> None:
    db = store.connect(tmp_path / store.FILE)
    views = db.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    assert {"slis", "trend", "modes", "profiles"} <= {name for (name,) in views}
    for (name,) in views:
        assert db.execute(f"SELECT * FROM {name}").fetchall() == []
    db.close()


def test_a_file_opens_read_only_with_its_views(tmp_path: Path) -> None:
    store.connect(tmp_path / store.FILE).close()
    with duckdb.connect(str(tmp_path / store.FILE), read_only=True) as db:
        assert db.execute("SELECT percentile_us('r', NULL, 'p', 'm', 0, 1, 95)").fetchall() == [
            (None,)
        ]

"""Rankings from the projector's panes are those that the facts of the meter give."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processors.benchmarks import Benchmarks
from processors.columns import columns_of, observed_columns
from processors.digest import state_hash
from processors.evidence import Cards, Panel, add_panel, panel_of
from processors.explain import explain
from processors.pane_fold import PartitionFold, Stretch
from processors.scoring import measure, rank
from projections.queries import ask
from schemas import (
    LlmInvocation,
    ModelQualityObserved,
    Position,
    RateCardUpdated,
    Recorded,
    ScoringPolicyUpdated,
    SlmBenchmarkResults,
)
from schemas.avro import encode
from schemas.values import OUTCOMES, Outcome, canonical_mode, canonical_role
from streams import topics
from tests.support.book import APPENDED, Book
from tests.support.events import good
from tools import rankings

PANE = 300_000
START = 1_771_200_000_000 // PANE * PANE
POLICY = good(
    ScoringPolicyUpdated,
    event_id="policy",
    occurred_at_ms=0,
    role="chat",
    deployment_mode="prod",
    evidence_modes=["prod", "qa"],
    window_panes=6,
    latency_percentile=99,
    min_samples=5,
    min_trials=5,
    benchmarks=[
        {"name": "rouge", "weight": 1, "floor_e9": 0, "target_e9": 900_000_000},
    ],
)
ROUGE = good(
    SlmBenchmarkResults,
    event_id="rouge",
    occurred_at_ms=1,
    role=None,
    provider="p",
    model="m1",
    name="rouge",
    value=0.45,
    scale="UNIT",
    direction="HIGHER",
    ci_low=0.4,
    ci_high=0.5,
    signature=None,
)


def card(event_id: str, unit: str, price: int, **fields: Any) -> RateCardUpdated:
    named = {"event_id": event_id, "unit": unit, "price_picousd_per_million": price, **fields}
    return good(RateCardUpdated, **{"model": "m1", "valid_from_ms": 0, **named})


CARDS = [
    card("a", "INPUT_TOKEN", 150_000_000_001),
    card("b", "OUTPUT_TOKEN", 600_000_000_003),
    card("c", "INPUT_TOKEN", 90_000_000_001, valid_from_ms=START + 4 * PANE, version=2),
    card("d", "INPUT_TOKEN", 70_000_000_001, model="m2"),
    card("e", "OUTPUT_TOKEN", 20_000_000_003, model="m2"),
]


def traffic(rng: random.Random) -> tuple[list[LlmInvocation], list[ModelQualityObserved]]:
    """Ten panes of events, out of order by up to a minute and sometimes by half an hour, with
    repeated and conflicting ids."""
    calls: list[LlmInvocation] = []
    bits: list[ModelQualityObserved] = []
    for i in range(900):
        at = START + i * 10 * PANE // 900 + rng.randrange(-60_000, 1)
        if rng.random() < 0.03:
            at -= 1_800_000
        shared = {
            "event_id": f"e{i if rng.random() < 0.95 else rng.randrange(i + 1)}",
            "occurred_at_ms": at,
            "tenant": rng.choice(["acme", "acme", "zeta"]),
            "role": rng.choice(["chat", "dialogue", "code"]),
            "mode": rng.choice(["prod", "qa", "local", None]),
            "provider": "p",
            "model": rng.choice(["m1", "m2", "unpriced"]),
        }
        if rng.random() < 0.2:
            metric = rng.choice(["quality", "policy_compliance", "other"])
            bits.append(good(ModelQualityObserved, **shared, metric=metric, n=3, hits=i % 4))
            continue
        calls.append(
            good(
                LlmInvocation,
                **shared,
                outcome=rng.choice([Outcome.SUCCESS] * 9 + [Outcome.REFUSAL, *OUTCOMES[3:]]),
                input_tokens=rng.randrange(4000),
                output_tokens=rng.randrange(900),
                latency_us=rng.randrange(1, 3_000_000),
                reported_cost_picousd=rng.choice([None, None, rng.randrange(10**10)]),
            )
        )
        if rng.random() < 0.02:
            calls.append(calls[-1])
    return calls, bits


def rows(events: list[Any]) -> list[dict[str, Any]]:
    """Events as a partition of the meter sees them."""
    return [
        {
            **event.model_dump(),
            "offset": i,
            "append_ms": APPENDED,
            "body": encode(event),
            "role": canonical_role(event.role),
            "mode": canonical_mode(event.mode or ""),
            "reported": getattr(event, "reported_cost_picousd", None),
        }
        for i, event in enumerate(events)
    ]


def panel(calls: list[Any], bits: list[Any], window: tuple[int, int]) -> Panel:
    """Evidence of the role dialogue from the meter's facts."""
    cards = Cards()
    for i, event in enumerate(CARDS):
        cards.add(Recorded(event, Position(topics.RATE_CARD_UPDATED.name, 0, i, i), b"k"))
    found: Panel = {}
    for columns in (columns_of(rows(calls)), observed_columns(rows(bits))):
        fold = PartitionFold("source", 0, 2, None)
        fold.fold(Stretch(columns, [], [], max(len(calls), len(bits))))
        for fact in fold.facts():
            if fact.role != "dialogue" or fact.mode not in ("PRODUCTION", "TEST"):
                continue
            if window[0] <= fact.pane_start_ms < window[1]:
                facts = [(fact.pane_start_ms, totals) for totals in fact.models]
                add_panel(found, panel_of(facts, cards))
    return found


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    made.say(topics.SCORING_POLICY_UPDATED, POLICY)
    made.say(topics.RATE_CARD_UPDATED, *CARDS)
    made.say(topics.SLM_BENCHMARK_RESULTS, ROUGE)
    yield made
    made.db.close()


def asked(book: Book, *question: Any) -> Any:
    """Through JSON, as over HTTP."""

    def rows_of(sql: str, most: int) -> list[dict[str, Any]]:
        answer = ask(book.db.cursor(), sql, most)
        plain = json.loads(json.dumps(answer.rows))
        return [dict(zip(answer.columns, row, strict=True)) for row in plain]

    return rankings.rankings(rows_of, *question)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("tenant", [None, "acme", "zeta"])
def test_a_ranking_from_panes_is_that_of_the_meters_facts(
    book: Book, seed: int, tenant: str | None
) -> None:
    calls, bits = traffic(random.Random(seed))
    book.call(*calls)
    book.say(topics.MODEL_QUALITY_OBSERVED, *bits)
    (found,) = asked(book, tenant, None, None)
    newest = min(max(e.occurred_at_ms for e in events) for events in (calls, bits))
    end = (newest - 60_001 - 600_000) // PANE * PANE
    assert (found.window_start_ms, found.window_end_ms) == (end - 6 * PANE, end)

    counted = panel_of_tenant(calls, bits, (end - 6 * PANE, end), tenant)
    benchmarks = Benchmarks()
    benchmarks.add(Recorded(ROUGE, Position("b", 0, 0, 0), b"k"))
    entries = rank(
        counted,
        POLICY,
        lambda who: measure(counted[who], POLICY.latency_percentile, POLICY.cost_unit),
        lambda who: benchmarks.prior(who, "dialogue", POLICY, end),
    )
    assert len(entries) == 3
    assert found.entries == entries
    assert found.state_hash == state_hash(counted)
    assert (found.tenant, found.role, found.deployment_mode) == (tenant, "dialogue", "PRODUCTION")


def panel_of_tenant(
    calls: list[Any], bits: list[Any], window: tuple[int, int], tenant: str | None
) -> Panel:
    """Others' events keep their places in the log, and so their say in what is late, but stand
    for another role."""

    def masked(events: list[Any]) -> list[Any]:
        return [
            e if tenant in (None, e.tenant) else e.model_copy(update={"role": "embedding"})
            for e in events
        ]

    return panel(masked(calls), masked(bits), window)


def test_a_statement_whose_id_was_there_before_changes_nothing(book: Book) -> None:
    calls, bits = traffic(random.Random(4))
    book.call(*calls)
    book.say(topics.MODEL_QUALITY_OBSERVED, *bits)
    before = asked(book, None, None, None)
    other = {"weight_quality": POLICY.weight_cost, "weight_cost": POLICY.weight_quality}
    assert POLICY.model_copy(update=other) != POLICY
    book.say(topics.SCORING_POLICY_UPDATED, POLICY, POLICY.model_copy(update=other))
    book.say(
        topics.RATE_CARD_UPDATED,
        *(c.model_copy(update={"price_picousd_per_million": 1, "version": 9}) for c in CARDS),
    )
    book.say(topics.SLM_BENCHMARK_RESULTS, ROUGE.model_copy(update={"value": 0.9, "ci_high": 0.95}))
    again = asked(book, None, None, None)
    positions = {"inputs"}  # how far was read is another place now
    assert [r.model_dump(exclude=positions) for r in again] == [
        r.model_dump(exclude=positions) for r in before
    ]
    assert again[0].policy_version == 1
    assert book.rows("SELECT version FROM policy_versions") == [(1,)]


def test_an_earlier_moment_has_its_own_window_and_none_before_the_first_pane(book: Book) -> None:
    calls, bits = traffic(random.Random(4))
    book.call(*calls)
    book.say(topics.MODEL_QUALITY_OBSERVED, *bits)
    at = START + 5 * PANE + 600_000
    (found,) = asked(book, "acme", "chat", "prod", at)
    assert (found.as_of_ms, found.window_end_ms) == (at, START + 5 * PANE)
    (before,) = asked(book, "acme", "chat", "prod", at - 1)
    assert before.window_end_ms == START + 4 * PANE
    assert asked(book, "acme", "chat", "prod", START - 10 * PANE) == []
    assert asked(book, "nobody", None, None) == []
    assert asked(book, "acme", "code", None) == []  # no policy


def test_a_ranking_of_one_tenant_is_explained_like_a_published_one(book: Book) -> None:
    calls, bits = traffic(random.Random(4))
    book.call(*calls)
    book.say(topics.MODEL_QUALITY_OBSERVED, *bits)
    (found,) = asked(book, "acme", None, None)
    rules = Recorded(POLICY, Position("scoring.policy.updated", 0, 0, 0), b"k")
    told = json.loads(json.dumps(explain(found, rules).plain()))
    assert len(told["models"]) == len(found.entries) == 3
    first = found.entries[0]
    assert [t["contribution"] for t in told["models"][0]["terms"]] == [
        t.contribution for t in first.terms
    ]


def test_without_any_event_there_is_no_ranking(book: Book) -> None:
    assert asked(book, None, None, None) == []

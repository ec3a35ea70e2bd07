"""What happens to a deployment, told from its beginning to the ranking that must come of it.

Three models: `good` is dear, `cheap` is not as good, and `brief` comes and goes. Every call of a
model is like the others, so the order follows from the weights alone.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from processors.columns import columns_of
from processors.meter import late_event
from processors.pane_fold import Stretch
from projections.queries import ask
from schemas import (
    LlmInvocation,
    ModeChanged,
    ModelProfileScored,
    Recorded,
    SlmBenchmarkResults,
)
from schemas.envelope import Position
from schemas.model_profile import RankingStatus
from schemas.values import FUTURE_LIMIT_MS, Outcome
from streams import topics
from streams.codec import Undecodable, decode_value, encode, tenant_key
from streams.registry import Catalogue, Registry
from tests.processors.test_pane_fold import event
from tests.processors.test_scorer import P0, PANE, Log, at, of
from tests.support.book import Book
from tests.support.events import good
from tools.published import Tables, chosen

MINUTE = 60_000
DAY = 86_400_000
CLOSES = 600_000 + 60_001  # event time after the end of a pane at which it is closed
QUALITY = {"weight_quality": 7000, "weight_cost": 1000}
COST = {"weight_quality": 1000, "weight_cost": 7000}
RULES = {
    "weight_latency": 1000,
    "weight_reliability": 1000,
    "benchmarks": ({"name": "rouge", "weight": 1, "floor_e9": 0, "target_e9": 10**9},),
    "emit_min_interval_ms": 10**12,  # finals are what these stories are about
    "heartbeat_ms": 10**12,
}
MODELS = {"good": (0.9, 8 * 10**9), "cheap": (0.5, 10**9), "brief": (0.95, 2 * 10**9)}
"""Share of what the benchmark asks for, pico-USD of a call."""


class World(Log):
    """A log of calls of these models, with their benchmarks and one policy."""

    def __init__(self, **rules: Any) -> None:
        super().__init__(**{**RULES, **rules})
        self.benchmarks = 0
        for model, (value, _) in MODELS.items():
            self.add_benchmark(model, value)

    def add_benchmark(self, model: str, value: float) -> None:
        """What a model reached, give or take .01."""
        said = good(
            SlmBenchmarkResults,
            event_id=f"rouge-{model}",
            role=None,
            model=model,
            name="rouge",
            value=value,
            scale="UNIT",
            direction="HIGHER",
            ci_low=value - 0.01,
            ci_high=value + 0.01,
        )
        where = at(topics.SLM_BENCHMARK_RESULTS.name, self.benchmarks)
        self.benchmarks += 1
        self.scorer.benchmark(Recorded(said, where, b"k"))

    def weigh(self, weights: dict[str, int], **rules: Any) -> tuple[ModelProfileScored, ...]:
        """A further policy."""
        return self.set_policy(**{"role": "code", **RULES, **weights, **rules})

    def close(self, pane: int) -> list[ModelProfileScored]:
        """Time moves on until a pane is closed; its finals."""
        return of(self.tick(P0 + (pane + 1) * PANE + CLOSES), RankingStatus.FINAL)


def calls(*models: str, pane: int = 0, n: int = 60, **changes: Any) -> list[dict[str, Any]]:
    """Calls of each model in the middle of a pane."""
    second = pane * PANE // 1000 + 150
    return [
        event(0, second, model=m, reported=MODELS[m][1], latency_us=1_000_000, **changes)
        for m in models
        for _ in range(n)
    ]


def order(ranking: ModelProfileScored) -> list[str]:
    """Models in display order, those with a score."""
    return [entry.model for entry in ranking.entries if entry.score is not None]


def leader(ranking: ModelProfileScored) -> str | None:
    return None if ranking.leader is None else ranking.leader.model


def result(ranking: ModelProfileScored) -> dict[str, Any]:
    """What a ranking says, without where in the log it was decided."""
    return ranking.model_dump(exclude={"event_id", "revision", "marks", "inputs"})


# --- policies


def test_a_late_policy_corrects_the_final_it_would_have_made() -> None:
    world = World(**QUALITY)
    world.events(*calls("good", "cheap"))
    (first,) = world.close(0)
    assert (order(first), leader(first), first.revision) == (["good", "cheap"], "good", 0)

    (corrected,) = world.weigh(COST, occurred_at_ms=P0 + PANE)  # the window's end is its moment
    assert (order(corrected), leader(corrected)) == (["cheap", "good"], "cheap")
    assert (corrected.revision, corrected.policy_version) == (1, 2)
    assert corrected.as_of_ms == first.as_of_ms

    in_time = World(**QUALITY)
    in_time.weigh(COST, occurred_at_ms=P0 + PANE)
    in_time.events(*calls("good", "cheap"))
    assert [result(f) for f in in_time.close(0)] == [result(corrected)]

    assert world.weigh(QUALITY, occurred_at_ms=P0) == ()  # later still, and of an earlier time
    world.events(*calls("good", "cheap", pane=1))
    (second,) = world.close(1)
    assert (order(second), second.policy_version) == (["cheap", "good"], 2)


def test_a_policy_in_the_future_waits_for_its_time_and_the_leader_for_the_proof() -> None:
    world = World(**QUALITY)
    world.weigh(COST, occurred_at_ms=P0 + PANE + 1)
    told = []
    for pane in range(8):
        world.events(*calls("good", "cheap", pane=pane))
        (final,) = world.close(pane)
        told.append((order(final)[0], final.policy_version, leader(final)))
    assert told == [
        ("good", 1, "good"),
        *[("cheap", 2, "good")] * 5,  # three finals running, but not yet for half an hour
        *[("cheap", 2, "cheap")] * 2,
    ]


# --- modes


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    yield made
    made.db.close()


def changed(number: int, at_ms: int, to: str) -> ModeChanged:
    return good(ModeChanged, event_id=f"mode{number}", occurred_at_ms=at_ms, to_mode=to)


def in_force(book: Book, at_ms: int) -> tuple[str, list[str], list[str]]:
    """Mode of the deployment at a moment, and the ranking of the role code then: who has a score,
    who does not."""
    within = f"from_ms <= {at_ms} AND (to_ms IS NULL OR {at_ms} < to_ms)"
    ((mode,),) = book.rows(f"SELECT mode FROM modes WHERE deployment = 'main' AND {within}")

    def rows(text: str, most: int) -> list[dict[str, Any]]:
        found = ask(book.db.cursor(), text, most)
        return [dict(zip(found.columns, row, strict=True)) for row in found.rows]

    wanted = chosen("code", mode, status=("FINAL",), at_ms=at_ms)
    (ranking,) = Tables(rows).standing(wanted)
    ranked = [e.model for e in ranking.entries if e.status == "ranked"]
    return mode, ranked, [e.model for e in ranking.entries if e.model not in ranked]


def test_a_mode_change_inside_a_pane_switches_weights_and_gates_at_its_own_moment(
    book: Book,
) -> None:
    world = World(deployment_mode="PRODUCTION", **QUALITY, min_quality=6000)
    world.weigh(COST, deployment_mode="qa")
    said: list[ModelProfileScored] = []
    for pane in range(4):
        for mode in ("PRODUCTION", "TEST"):  # each half of the evidence, pooled for both
            world.events(*calls("good", "cheap", pane=pane, mode=mode, n=30))
        said += world.close(pane)
    assert [f.deployment_mode for f in said] == ["PRODUCTION", "TEST"] * 4
    for production, test in zip(said[::2], said[1::2], strict=True):
        assert production.state_hash == test.state_hash
        assert {e.complete for f in (production, test) for e in f.entries} == {
            60 * (1 + (production.window_end_ms - P0) // PANE - 1)
        }

    book.say(topics.MODEL_PROFILE_SCORED, *said)
    moment = said[-1].as_of_ms + 100_000  # inside a pane, and nothing has come in since
    book.say(topics.MODE_CHANGED, changed(0, 0, "prod"), changed(1, moment, "qa"))
    assert in_force(book, moment - 1) == ("PRODUCTION", ["good"], ["cheap"])
    assert in_force(book, moment) == ("TEST", ["cheap", "good"], [])

    earlier = said[2].as_of_ms + 1
    book.say(topics.MODE_CHANGED, changed(2, earlier, "qa"), changed(3, earlier + 10, "prod"))
    assert in_force(book, earlier + 9)[0] == "TEST"  # it was told late, and counts from its time
    assert in_force(book, earlier + 10)[0] == "PRODUCTION"
    assert in_force(book, moment)[0] == "TEST"


# --- models


def panes_of(world: World, *models: Iterable[str]) -> list[ModelProfileScored]:
    """Finals of panes with these models each."""
    said = []
    for pane, present in enumerate(models):
        world.events(*calls(*present, pane=pane))
        said += world.close(pane)
    return said


def test_a_model_that_appears_and_vanishes_leaves_no_trace() -> None:
    both = ["good", "cheap"]
    rules = {"window_panes": 3, **QUALITY}
    with_it = panes_of(World(**rules), both, [*both, "brief"], both, both, both, both)
    without = panes_of(World(**rules), *[both] * 6)
    assert [order(f)[0] for f in with_it] == ["good", *["brief"] * 3, "good", "good"]
    assert [leader(f) for f in with_it] == ["good"] * 6  # no challenger for half an hour
    assert [f.leader and f.leader.closes for f in with_it] == [0, 1, 2, 3, 0, 0]
    same = [a.state_hash == b.state_hash for a, b in zip(with_it, without, strict=True)]
    assert same == [True, False, False, False, True, True]
    for a, b in zip(with_it[4:], without[4:], strict=True):
        assert a.entries == b.entries
        assert a.leader == b.leader
    for a, b in zip(with_it, without, strict=True):
        others = [e.model_copy(update={"rank": None}) for e in a.entries if e.model != "brief"]
        assert others == [e.model_copy(update={"rank": None}) for e in b.entries]


def test_a_leader_that_vanishes_is_replaced_when_its_last_pane_leaves() -> None:
    rules = {"window_panes": 2, **QUALITY}
    said = panes_of(World(**rules), ["brief", "cheap"], ["cheap"], ["cheap"], ["cheap", "brief"])
    assert [leader(f) for f in said] == ["brief", "brief", "cheap", "cheap"]
    assert said[2].leader is not None and said[2].leader.since_ms == said[2].as_of_ms


@pytest.mark.parametrize("seed", range(6))
def test_models_that_share_a_rank_never_switch(seed: int) -> None:
    """Eight hours of two models that differ by chance alone: the order turns, the leader stays,
    unless chance holds for three finals running."""
    rng = random.Random(seed)
    world = World(**QUALITY, window_panes=12)
    world.add_benchmark("twin", MODELS["good"][0])
    said = []
    for pane in range(96):
        rows = calls("good", pane=pane, n=40)
        for row in rows:
            row["model"] = rng.choice(("good", "twin"))
            row["latency_us"] = int(1_500_000 * rng.lognormvariate(0, 0.5))
            row["outcome"] = Outcome.FAILURE if rng.random() < 0.05 else Outcome.SUCCESS
        world.events(*rows)
        said += world.close(pane)
    ranks = [{e.model: e.rank for e in final.entries} for final in said]
    assert sum(len(set(order(a)[:1] + order(b)[:1])) > 1 for a, b in pairwise(said)) >= 5
    for number, (a, b) in enumerate(pairwise(said)):
        before, after = leader(a), leader(b)
        if before is not None and before != after:
            assert after is not None
            assert all(r[before] == 2 and r[after] == 1 for r in ranks[number - 1 : number + 2])
    assert len({leader(final) for final in said} - {None}) <= 2


# --- time


def test_an_hour_without_traffic_says_what_goes_and_that_it_lives() -> None:
    """Window of half an hour: finals where the pane comes and goes, and a heartbeat after each
    quarter of an hour of silence."""
    quiet = {"heartbeat_ms": 15 * MINUTE, "emit_min_interval_ms": 10_000, "window_panes": 6}
    world = World(**{**QUALITY, **quiet})
    told = [
        (said.status.value, minute, len(said.entries))
        for minute in range(61)
        for said in (
            world.events(*calls("good", "cheap"))
            if minute == 0
            else world.tick(P0 + 150_000 + minute * MINUTE)
        )
    ]
    # The clock of provisionals stands a minute behind; the pane of minute 0 ends 2.5 min later.
    assert told == [
        ("PROVISIONAL", 0, 2),
        ("FINAL", 14, 2),
        ("HEARTBEAT", 29, 2),
        ("FINAL", 44, 0),
        ("HEARTBEAT", 59, 0),
    ]


class Skewed:
    """A world whose records pass the codec, as the meter's do; appended when they were made."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.world = World(**QUALITY)
        self.dead: list[Undecodable] = []

    def call(self, model: str, made_ms: int, skew_ms: int, n: int) -> list[ModelProfileScored]:
        """Calls of a producer whose clock is wrong by so much; the finals that follow."""
        rows, dead = [], []
        for _ in range(n):
            call = good(
                LlmInvocation,
                event_id=f"e{self.world.offset}",
                occurred_at_ms=made_ms + skew_ms,
                model=model,
                latency_us=1_000_000,
                reported_cost_picousd=MODELS[model][1],
            )
            where = Position("llm.invocation", 0, self.world.offset, made_ms)
            value = encode(self.catalogue, topics.LLM_INVOCATION, call)
            item = decode_value(self.catalogue, where, tenant_key(call), value)
            if isinstance(item, Undecodable):
                self.dead.append(item)
                dead.append(self.world.offset)
            else:
                fields = {
                    **call.model_dump(),
                    "offset": self.world.offset,
                    "append_ms": made_ms,
                    "body": value,
                    "mode": "PRODUCTION",
                    "reported": call.reported_cost_picousd,
                }
                rows.append(fields)
            self.world.offset += 1
        said = self.world.take(Stretch(columns_of(rows), [], dead, self.world.offset - 1))
        return of(said, RankingStatus.FINAL)


@pytest.fixture
def skewed(registry: str) -> Iterator[Skewed]:
    with Registry(registry) as client:
        yield Skewed(Catalogue(client, [topics.LLM_INVOCATION]))


def story(skewed: Skewed, skew_ms: int) -> list[ModelProfileScored]:
    """Two hours; in each pane a producer of `brief` with a wrong clock speaks among the others.
    0: it keeps silent."""
    said: list[ModelProfileScored] = []
    for pane in range(24):
        now = P0 + pane * PANE + 150_000
        for model in ("good", "cheap"):
            said += skewed.call(model, now, 0, 30)
            said += skewed.call("brief", now, skew_ms, 5 if skew_ms else 0)
    return said + skewed.world.close(23)


@pytest.mark.parametrize("days", [1, -1])
def test_a_producer_whose_clock_is_a_day_off_moves_no_ranking(skewed: Skewed, days: int) -> None:
    alone = story(Skewed(skewed.catalogue), 0)
    assert [order(f) for f in alone] == [["good", "cheap"]] * 24
    assert [result(f) for f in story(skewed, days * DAY)] == [result(f) for f in alone]
    law = skewed.world.fold.mark(None, "test")
    assert (law.applied, law.consumed) == (24 * 60, 24 * 70 + 1)
    if days > 0:
        assert {(d.reason, d.at.append_ms) for d in skewed.dead} == {
            ("ts_future", P0 + pane * PANE + 150_000) for pane in range(24)
        }
        assert (law.dead_lettered, law.late) == (240, 0)
        letter = skewed.dead[0].as_event("roster-meter")
        assert f"occurred_at_ms={P0 + 150_000 + DAY}" in (letter.detail or "")
        assert str(P0 + 150_000 + FUTURE_LIMIT_MS) in (letter.detail or "")
        return
    assert (law.dead_lettered, law.late) == (0, 240)
    told = [late_event(("llm.invocation", 0), late, 2) for late in skewed.world.late]
    assert len({late.event_id for late in told}) == 240
    first = told[0]
    assert first.late_event_id == f"e{first.origin_offset}"
    assert first.pane_start_ms == (P0 + 150_000 - DAY) // PANE * PANE
    assert first.watermark_ms == P0 + 150_000 - 60_001

"""A ranking at a moment is the same computed live, by a scorer started again, and in SQL."""

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from processors.columns import columns_of, observed_columns
from processors.pane_fold import PartitionFold, Stretch
from processors.scorer import Scorer
from schemas import (
    Event,
    LlmInvocation,
    MeterMark,
    ModelProfileScored,
    ModelQualityObserved,
    PaneFact,
    Position,
    Recorded,
    ScoringPolicyUpdated,
)
from schemas.model_profile import RankingStatus
from streams.topics import (
    LLM_INVOCATION,
    MODEL_QUALITY_OBSERVED,
    RATE_CARD_UPDATED,
    SCORING_POLICY_UPDATED,
    SLM_BENCHMARK_RESULTS,
    Topic,
)
from tests.support.book import Book
from tests.support.events import good
from tests.tools.test_rankings import CARDS, PANE, POLICY, ROUGE, START, asked, rows, traffic

FAST = {"hysteresis_closes": 2, "hysteresis_min_ms": 2 * PANE, "latency_percentile": 50}
LATER = {
    "event_id": "later",
    "occurred_at_ms": START + 5 * PANE,
    "weight_quality": 0,
    "weight_cost": 5500,
    "window_panes": 4,
    "evidence_modes": [],
}
POLICIES = [
    POLICY.model_copy(update=FAST),
    good(ScoringPolicyUpdated, **{**POLICY.model_dump(), **FAST, **LATER}),
]
COLUMNS: dict[Topic, Any] = {
    LLM_INVOCATION: columns_of,
    MODEL_QUALITY_OBSERVED: observed_columns,
}
Entry = PaneFact | MeterMark


def told(topic: Topic, events: Sequence[Event]) -> list[Recorded[Any]]:
    return [Recorded(e, Position(topic.name, 0, i, i), b"key") for i, e in enumerate(events)]


def scorer() -> Scorer:
    """One that knows every statement, the policy of a later time among them."""
    made = Scorer({topic.name: 1 for topic in COLUMNS}, 2)
    made.statements(
        told(SCORING_POLICY_UPDATED, POLICIES),
        told(RATE_CARD_UPDATED, CARDS),
        told(SLM_BENCHMARK_RESULTS, [ROUGE]),
    )
    return made


def happened(rng: random.Random) -> dict[Topic, list[Any]]:
    """Events of both topics; the last of each closes all panes, and the windows behind them."""
    calls, bits = traffic(rng)
    end = {"event_id": "end", "occurred_at_ms": START + 40 * PANE, "role": "embedding"}
    return {
        LLM_INVOCATION: [*calls, good(LlmInvocation, **end)],
        MODEL_QUALITY_OBSERVED: [*bits, good(ModelQualityObserved, **end)],
    }


def metered(events: dict[Topic, list[Any]], rng: random.Random) -> list[Entry]:
    """What the meter writes, batch by batch of both topics in any order."""
    waiting = {topic: rows(found) for topic, found in events.items()}
    folds = {topic: PartitionFold(topic.name, 0, 2, None) for topic in waiting}
    log: list[Entry] = []
    while open_ := [topic for topic, found in waiting.items() if found]:
        topic = rng.choice(open_)
        size = rng.randrange(1, 60)
        some, waiting[topic] = waiting[topic][:size], waiting[topic][size:]
        fold = folds[topic]
        fold.fold(Stretch(COLUMNS[topic](some), [], [], some[-1]["offset"]))
        log += [*fold.facts(), fold.mark(None, "test")]
        fold.committed()
    return log


def scored(by: Scorer, log: Sequence[Entry]) -> Iterator[tuple[int, ModelProfileScored]]:
    """(position of the mark, final) as a scorer reads a log."""
    for position, entry in enumerate(log):
        if isinstance(entry, PaneFact):
            by.fact(entry)
            continue
        for said in by.mark(entry, catching_up=False):
            if said.status is RankingStatus.FINAL:
                yield position, said


def compacted(log: Sequence[Entry], cut: int) -> list[Entry]:
    """The log when of each key below the cut only the newest record is left."""
    newest = {entry.key(): position for position, entry in enumerate(log[:cut])}
    return [e for i, e in enumerate(log) if i >= cut or newest[e.key()] == i]


def content(scored: ModelProfileScored) -> dict[str, Any]:
    return scored.model_dump(exclude={"marks"})


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1), st.booleans())
def test_a_scorer_started_again_at_any_mark_says_what_was_left_to_say(
    seed: int, share: float, is_compacted: bool
) -> None:
    rng = random.Random(seed)
    log = metered(happened(rng), rng)
    live = list(scored(scorer(), log))
    assert len(live) > 10
    marks = [i for i, entry in enumerate(log) if isinstance(entry, MeterMark)]
    cut = marks[int(share * (len(marks) - 1))]
    again = scorer()
    before = [final for position, final in live if position <= cut]
    for final in before:
        again.published(final)
    left = compacted(log, cut + 1) if is_compacted else log
    after = [final for _, final in scored(again, left)]
    assert [content(f) for f in [*before, *after]] == [content(f) for _, f in live]


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**32))
def test_a_final_is_what_sql_answers_for_its_moment(seed: int) -> None:
    rng = random.Random(seed)
    events = happened(rng)
    finals = [final for _, final in scored(scorer(), metered(events, rng))]
    with tempfile.TemporaryDirectory() as folder:
        book = Book(Path(folder))
        book.say(SCORING_POLICY_UPDATED, *POLICIES)
        book.say(RATE_CARD_UPDATED, *CARDS)
        book.say(SLM_BENCHMARK_RESULTS, ROUGE)
        book.call(*events[LLM_INVOCATION])
        book.say(MODEL_QUALITY_OBSERVED, *events[MODEL_QUALITY_OBSERVED])
        for final in finals:
            found = asked(book, None, final.role, final.deployment_mode, final.as_of_ms)
            if not final.entries:
                assert found == []  # nobody has called in the window
                continue
            (answer,) = found
            same = ("entries", "state_hash", "omitted", "policy_event_id", "policy_version")
            when = ("as_of_ms", "window_start_ms", "window_end_ms", "role", "deployment_mode")
            for name in (*same, *when):
                assert getattr(answer, name) == getattr(final, name), name
        assert {f.policy_version for f in finals} == {1, 2}
        book.db.close()


def test_what_is_compared_has_entries_and_leaders() -> None:
    rng = random.Random(3)
    finals = [final for _, final in scored(scorer(), metered(happened(rng), rng))]
    assert sum(len(final.entries) == 3 for final in finals) >= 10
    assert {f.leader.model for f in finals if f.leader is not None} >= {"m2", None}

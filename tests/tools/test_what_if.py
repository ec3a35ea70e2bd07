"""What-if over the projector's tables and over the log's finals."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from processors.evidence import add_panel
from processors.what_if import Assumptions
from projections import history, panes, store
from projections.queries import ask as asked
from schemas import Recorded
from schemas.envelope import Event, Position
from streams.topics import SCORING_POLICY_UPDATED
from tests.support.rankings import policy
from tools import rankings
from tools.published import Ask, Row, Tables
from tools.what_if import Stretch, TooMuch, from_panes, from_published, panels

PANE, GRACE = 300_000, 600_000
FIRST = 1_700_000_100_000
CLOSES = 6
STRETCH = Stretch("dialogue", "PRODUCTION", FIRST + PANE + GRACE, FIRST + CLOSES * PANE + GRACE + 1)
RULES = policy(window_panes=3, min_samples=1, min_trials=1, hysteresis_min_ms=0)


def cell(pane: int, model: str, cost: int, hits: int, tenant: str = "acme") -> Row:
    """Sixty complete responses with a reported cost in one pane."""
    n, tokens = 60, 1_000
    found: dict[str, Any] = dict.fromkeys(rankings.SUMMED, 0)
    return {
        **found,
        "tenant": tenant,
        "pane_start_ms": pane,
        "role": "dialogue",
        "mode": "PRODUCTION",
        "provider": "p",
        "model": model,
        "success": n,
        "input_tokens": n * tokens,
        "reported_n": n,
        "reported_cost": n * cost,
        "reported_tokens": n * tokens,
        "reported_cost_cost": n * cost * cost,
        "reported_cost_tokens": n * cost * tokens,
        "reported_tokens_tokens": n * tokens * tokens,
        "latency_buckets": [745],
        "latency_counts": [n],
    }


def bits(row: Row, hits: int) -> Row:
    key = {name: row[name] for name in panes.KEY}
    return {**key, "metric": "quality", "n": 60, "hits": hits}


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Two models over six panes, two tenants; the good one is gone from the fourth on."""
    file = store.opened(tmp_path_factory.mktemp("panes") / store.FILE)
    panes.load(file.db, panes.Cut(), {})
    rows, quality = [], []
    for i in range(CLOSES):
        pane = FIRST + i * PANE
        for tenant in ("acme", "globex"):
            models: Mapping[str, tuple[int, int]] = {
                "good": (8 * 10**9, 57),
                "cheap": (3 * 10**9, 30),
            }
            for model, (cost, hits) in models.items():
                if model == "good" and i >= 3:
                    continue
                row = cell(pane, model, cost, hits, tenant)
                rows.append(row)
                quality.append(bits(row, hits))
    newest = FIRST + CLOSES * PANE + GRACE + 60_001
    with store.transaction(file.db):
        file.db.executemany(
            f"INSERT INTO metrics_panes ({', '.join(rows[0])})"
            f" VALUES ({', '.join('?' * len(rows[0]))})",
            [list(row.values()) for row in rows],
        )
        store.insert(file.db, "quality_panes", quality)
        said: list[Recorded[Event]] = [
            Recorded(RULES, Position(SCORING_POLICY_UPDATED.name, 0, 0, 1), b"k")
        ]
        history.file(file.db, SCORING_POLICY_UPDATED.name, said, [b"body"])
        for topic, partitions in (("llm.invocation", 8), ("model.quality.observed", 4)):
            for partition in range(partitions):
                moved(file.db, topic, partition, newest)

    def question(text: str, most: int) -> list[Row]:
        found = asked(file.db.cursor(), text, most)
        return [dict(zip(found.columns, row, strict=True)) for row in found.rows]

    yield question
    file.close()


def moved(db: Any, topic: str, partition: int, newest_ms: int) -> None:
    """A partition that has been read up to that event time."""
    columns = [name for name, *_ in db.execute("DESCRIBE projection_offsets").fetchall()]
    row: Row = dict.fromkeys(columns, 0)
    row |= {"topic": topic, "partition": partition, "newest_ms": newest_ms}
    db.execute(
        f"INSERT OR REPLACE INTO projection_offsets ({', '.join(row)})"
        f" VALUES ({', '.join('?' * len(row))})",
        list(row.values()),
    )


def test_panes_one_by_one_add_up_to_the_evidence_of_their_window(ask: Ask) -> None:
    on = rankings.basis(ask)
    assert on is not None
    span = (FIRST, FIRST + CLOSES * PANE)
    by_pane = panels(ask, on.cards, "dialogue", (), span)
    assert sorted(by_pane) == [FIRST + i * PANE for i in range(CLOSES)]
    total: Any = {}
    for one in by_pane.values():
        add_panel(total, one)
    whole = rankings.evidence(ask, on.cards, "dialogue", (), span, None)
    assert set(total) == set(whole) == {("p", "good"), ("p", "cheap")}
    for who, found in whole.items():
        mine = total[who]
        for name in ("invocations", "tokens", "cost", "cost_cost", "cost_tokens", "quality"):
            assert getattr(mine, name) == getattr(found, name), name
        assert (mine.counts == found.counts).all()


def test_what_does_not_fit_one_answer_is_asked_in_halves(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = rankings.basis(ask)
    assert on is not None
    span = (FIRST, FIRST + CLOSES * PANE)
    whole = panels(ask, on.cards, "dialogue", (), span)
    monkeypatch.setattr("tools.what_if.MOST", 3)
    halved = panels(ask, on.cards, "dialogue", (), span)
    assert {p: sorted(found) for p, found in halved.items()} == {
        p: sorted(found) for p, found in whole.items()
    }


def test_history_over_panes_and_over_the_finals_made_of_them_has_the_same_leaders(
    ask: Ask,
) -> None:
    told = from_panes(ask, STRETCH, Assumptions(drop=frozenset({"p/good"})))
    assert told is not None
    assert told.closes == CLOSES
    assert [s.was.model for s in told.steps] == ["p/good"] * 5 + ["p/cheap"]
    assert {s.would.model for s in told.steps} == {"p/cheap"}
    assert told.was.breaches is None

    class Finals:
        """The rankings that SQL makes of the same panes, as if they had been published."""

        def history(self, wanted: object) -> list[Any]:
            made = []
            for i in range(CLOSES):
                at = FIRST + (i + 1) * PANE + GRACE
                (found,) = rankings.rankings(ask, None, "dialogue", "PRODUCTION", at)
                made.append(found)
            return made

        def policy(self, event_id: str) -> Any:
            return Tables(ask).policy(event_id)

    finals: Any = Finals()
    published = from_published(finals, STRETCH, Assumptions(drop=frozenset({"p/good"})))
    assert [s.was.model for s in published.steps] == [s.was.model for s in told.steps]
    assert [s.would.model for s in published.steps] == [s.would.model for s in told.steps]
    for a, b in zip(published.steps, told.steps, strict=True):
        assert (a.as_of_ms, a.was) == (b.as_of_ms, b.was)


def test_a_stretch_that_is_too_long_is_refused(ask: Ask) -> None:
    ages = Stretch("dialogue", "PRODUCTION", 0, STRETCH.to_ms)
    with pytest.raises(TooMuch, match="allowed: 10000"):
        from_panes(ask, ages, Assumptions())


def test_nothing_is_told_of_panes_that_are_not_closed(ask: Ask) -> None:
    later = Stretch("dialogue", "PRODUCTION", STRETCH.to_ms + PANE, STRETCH.to_ms + 2 * PANE)
    assert from_panes(ask, later, Assumptions()) is None

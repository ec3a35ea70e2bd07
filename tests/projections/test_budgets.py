from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from projections import budgets, history, store
from projections.budgets import Budgets, period_start
from projections.ledger import Spend
from schemas import BudgetThresholdCrossed, BudgetUpdated, Event, Position, Recorded
from schemas.budget import BudgetPeriod, CapAction
from streams.topics import BUDGET_UPDATED

HOUR = 3_600_000
NOON = 1_771_200_000_000 // HOUR * HOUR


@pytest.fixture
def db(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    made = store.connect(tmp_path / store.FILE)
    yield made
    made.close()


def budget(event_id: str = "b1", cap: int = 1000, **more: Any) -> BudgetUpdated:
    fields = {
        "occurred_at_ms": NOON,
        "source": "test",
        "tenant": "acme",
        "budget": "main",
        "period": BudgetPeriod.HOUR,
        "at_cap": CapAction.DENY,
        "actor": "someone",
    }
    return BudgetUpdated(event_id=event_id, cap_picousd=cap, **{**fields, **more})


def spend(
    db: duckdb.DuckDBPyConnection, state: Budgets, cost: int, at_ms: int = NOON, *new: BudgetUpdated
) -> list[BudgetThresholdCrossed]:
    """Adds spend as the ledger does, and asks what it crosses."""
    pane = at_ms // 300_000 * 300_000
    if cost:
        db.execute(
            "INSERT INTO cost_panes VALUES ('acme', ?, 'code', '', 'p', 'm', 1, 0, 1, 0, 1, ?)",
            [pane, cost],
        )
    spends = [Spend("acme", pane, cost, at_ms)] if cost else []
    return budgets.crossed(db, state, new, spends, ())


def crossings(found: list[BudgetThresholdCrossed]) -> list[tuple[int, int, int]]:
    return [(c.period_start_ms, c.threshold_percent, c.spent_picousd) for c in found]


def test_each_threshold_is_crossed_once_when_the_spend_reaches_it(
    db: duckdb.DuckDBPyConnection,
) -> None:
    state = Budgets()
    assert spend(db, state, 799, NOON, budget()) == []
    assert crossings(spend(db, state, 1)) == [(NOON, 80, 800)]
    assert crossings(spend(db, state, 100)) == []
    assert crossings(spend(db, state, 100)) == [(NOON, 100, 1000)]
    assert crossings(spend(db, state, 5000)) == []
    assert crossings(spend(db, state, 1000, NOON + HOUR)) == [
        (NOON + HOUR, 80, 1000),
        (NOON + HOUR, 100, 1000),
    ]


def test_a_new_cap_is_judged_by_what_has_been_spent_before(db: duckdb.DuckDBPyConnection) -> None:
    state = Budgets()
    spend(db, state, 900)
    spend(db, state, 10, NOON - HOUR)
    assert crossings(spend(db, state, 0, NOON, budget())) == [(NOON, 80, 900)]
    assert crossings(spend(db, state, 0, NOON, budget("b2", 10))) == [
        (NOON - HOUR, 80, 10),
        (NOON - HOUR, 100, 10),
        (NOON, 80, 900),
        (NOON, 100, 900),
    ]


def test_the_newest_budget_in_the_log_is_in_force(db: duckdb.DuckDBPyConnection) -> None:
    state = Budgets()
    assert spend(db, state, 0, NOON, budget("b1", 10), budget("b2", 10_000)) == []
    assert spend(db, state, 100) == []


def test_what_was_decided_is_known_after_a_restart(db: duckdb.DuckDBPyConnection) -> None:
    recorded: Recorded[Event] = Recorded(budget(), Position(BUDGET_UPDATED.name, 0, 0, NOON), b"k")
    history.file(db, BUDGET_UPDATED.name, [recorded], [b"body"])
    state = Budgets()
    (crossing,) = spend(db, state, 900, NOON, budget())
    db.execute(
        "INSERT INTO outbox VALUES (?, 'budget.threshold.crossed', 'k', 'v')", [crossing.event_id]
    )
    again = budgets.load(db)
    assert again.in_force[("acme", "main")] == budget()
    assert again.decided == {crossing.event_id}
    assert crossings(spend(db, again, 99)) == []
    assert crossings(spend(db, again, 1)) == [(NOON, 100, 1000)]


def test_periods_are_aligned_in_utc_and_sql_agrees(db: duckdb.DuckDBPyConnection) -> None:
    for at_ms in (0, NOON, 951_782_399_999, 951_782_400_000, 4_102_444_799_999):
        for period in (BudgetPeriod.HOUR, BudgetPeriod.DAY, BudgetPeriod.MONTH):
            by_sql = db.execute("SELECT period_start(?, ?)", [str(period), at_ms]).fetchall()
            assert by_sql == [(period_start(period, at_ms),)]
    assert period_start(BudgetPeriod.MONTH, 951_782_400_000) == 949_363_200_000  # February 2000


def test_spend_without_a_price_crosses_nothing_and_is_counted(
    db: duckdb.DuckDBPyConnection,
) -> None:
    recorded: Recorded[Event] = Recorded(budget(), Position(BUDGET_UPDATED.name, 0, 0, NOON), b"k")
    history.file(db, BUDGET_UPDATED.name, [recorded], [b"body"])
    db.execute(
        "INSERT INTO cost_panes VALUES ('acme', ?, 'c', '', 'p', 'm', 3, 2, 1, 0, 1, 5)", [NOON]
    )
    assert db.execute(
        "SELECT period_start_ms, spent_picousd, n, unpriced_n FROM budget_spend"
    ).fetchall() == [(NOON, 5, 3, 2)]

"""Budgets: what each period has spent, and which thresholds that crosses.

Decided in the transaction that adds the spend. A crossing is known by (budget, period, threshold,
budget event), so it is concluded once, whatever is read again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import duckdb

from projections.ledger import Spend
from schemas import BudgetThresholdCrossed, BudgetUpdated
from schemas.budget import BudgetPeriod, SourceOffset
from schemas.values import MAX_PICOUSD, derived_id

SOURCE: Final = "projector"
LENGTH_MS: Final = {BudgetPeriod.HOUR: 3_600_000, BudgetPeriod.DAY: 86_400_000}
Place = tuple[str, BudgetPeriod, int]
"""Tenant, period and its start."""


def period_start(period: BudgetPeriod, at_ms: int) -> int:
    """Start of the period that contains a time, milliseconds UTC."""
    if period in LENGTH_MS:
        return at_ms - at_ms % LENGTH_MS[period]
    when = datetime.fromtimestamp(at_ms // 1000, UTC)
    return int(datetime(when.year, when.month, 1, tzinfo=UTC).timestamp()) * 1000


def crossing_id(budget: BudgetUpdated, period_start_ms: int, threshold: int) -> str:
    """Id of a crossing: the same whenever it is concluded again."""
    return derived_id(
        "budget.threshold.crossed",
        budget.tenant,
        budget.budget,
        period_start_ms,
        threshold,
        budget.event_id,
    )


@dataclass(slots=True)
class Budgets:
    """The budgets in force, and the spend of the periods met so far.

    A cache of the file's state: after a rollback it must be loaded again.
    """

    in_force: dict[tuple[str, str], BudgetUpdated] = field(default_factory=dict)
    spent: dict[Place, int] = field(default_factory=dict)
    decided: set[str] = field(default_factory=set)

    def tenants(self) -> set[str]:
        """Tenants that have a budget."""
        return {tenant for tenant, _ in self.in_force}


def load(db: duckdb.DuckDBPyConnection) -> Budgets:
    """The state that the file holds."""
    found = db.execute(
        "SELECT b.tenant, b.budget, b.cap_picousd, b.period, b.thresholds, b.at_cap, b.actor,"
        " b.budget_event_id, b.occurred_at_ms, u.source"
        " FROM budgets b JOIN budget_updates u ON u.src_offset = b.src_offset"
    ).fetchall()
    names = ("tenant", "budget", "cap_picousd", "period", "thresholds", "at_cap", "actor")
    budgets = Budgets()
    for row in found:
        fields = dict(zip((*names, "event_id", "occurred_at_ms", "source"), row, strict=True))
        budgets.in_force[row[0], row[1]] = BudgetUpdated.model_validate(fields)
    decided = db.execute(
        "SELECT event_id FROM budget_thresholds"
        " UNION ALL SELECT event_id FROM outbox WHERE topic = 'budget.threshold.crossed'"
    ).fetchall()
    budgets.decided = {row[0] for row in decided}
    return budgets


def crossed(
    db: duckdb.DuckDBPyConnection,
    budgets: Budgets,
    updates: Sequence[BudgetUpdated],
    spends: Iterable[Spend],
    at_offsets: tuple[SourceOffset, ...],
) -> list[BudgetThresholdCrossed]:
    """Takes new budgets and new spend; returns the thresholds that are now crossed.

    updates: in log order. spends: what the same transaction has just added, for all tenants of
    Budgets.tenants() and of updates; the sums per pane must hold it already.
    """
    newest: dict[Place, int] = {}
    place: Place
    for update in updates:
        budgets.in_force[update.tenant, update.budget] = update
    for update in updates:
        for start in _periods_with_spend(db, update):
            place = (update.tenant, update.period, start)
            newest[place] = max(newest.get(place, 0), update.occurred_at_ms)
    watched: dict[str, set[BudgetPeriod]] = {}
    for budget in budgets.in_force.values():
        watched.setdefault(budget.tenant, set()).add(budget.period)
    for spend in spends:
        for period in watched.get(spend.tenant, ()):
            place = (spend.tenant, period, period_start(period, spend.pane_start_ms))
            newest[place] = max(newest.get(place, 0), spend.newest_ms)
            if place in budgets.spent:
                budgets.spent[place] += spend.cost_picousd
    for place in newest:
        if place not in budgets.spent:  # read after the new spend was added
            budgets.spent[place] = _spent(db, place)
    return _crossings(budgets, newest, at_offsets)


def _crossings(
    budgets: Budgets, newest: dict[Place, int], at_offsets: tuple[SourceOffset, ...]
) -> list[BudgetThresholdCrossed]:
    found = []
    for budget in budgets.in_force.values():
        places = [p for p in newest if p[:2] == (budget.tenant, budget.period)]
        for place in sorted(places, key=lambda p: p[2]):
            for threshold in budget.thresholds:
                if budgets.spent[place] * 100 < threshold * budget.cap_picousd:
                    break  # they ascend
                event_id = crossing_id(budget, place[2], threshold)
                if event_id in budgets.decided:
                    continue
                budgets.decided.add(event_id)
                found.append(
                    BudgetThresholdCrossed(
                        event_id=event_id,
                        occurred_at_ms=newest[place],
                        source=SOURCE,
                        tenant=budget.tenant,
                        budget=budget.budget,
                        budget_event_id=budget.event_id,
                        period_start_ms=place[2],
                        threshold_percent=threshold,
                        spent_picousd=min(budgets.spent[place], MAX_PICOUSD),  # a long on the wire
                        cap_picousd=budget.cap_picousd,
                        at_offsets=at_offsets,
                    )
                )
    return found


def _periods_with_spend(db: duckdb.DuckDBPyConnection, budget: BudgetUpdated) -> list[int]:
    found = db.execute(
        "SELECT DISTINCT period_start(?, pane_start_ms) FROM cost_panes WHERE tenant = ?"
        " ORDER BY 1",
        [str(budget.period), budget.tenant],
    ).fetchall()
    return [int(row[0]) for row in found]


def _spent(db: duckdb.DuckDBPyConnection, place: Place) -> int:
    tenant, period, start = place
    found = db.execute(
        "SELECT coalesce(sum(cost_picousd), 0) FROM cost_panes"
        " WHERE tenant = ? AND period_start(?, pane_start_ms) = ?",
        [tenant, str(period), start],
    ).fetchall()
    return int(found[0][0])

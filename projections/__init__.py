"""FILES FOR PEOPLE: the log as DuckDB tables, asked over HTTP while they are written.

runner.py     the process: one fetch, one transaction, for ever      python -m projections.runner
intake.py     the log, from the positions that the file holds
filing.py     a fetch -> rows, sums, conclusions, counters, offsets
ledger.py     llm.invocation          -> invocations, cost_panes (.sql: cost_hourly, cost_daily)
panes.py      it and model.quality.observed, as the meter counts -> metrics_panes, quality_panes
views.sql     ready-made answers: percentile_us, slis, profiles, modes, trend, tenant_win_loss ...
known_ids.py  ids as UUIDs, and which of them may have been filed before
budgets.py    budget.updated          -> thresholds crossed (.sql: budgets, budget_spend)
history.py    every other topic       -> one table each (.sql; notable, final_rankings)
outbox.py     conclusions on their way into the log: dead letters, thresholds
store.py      the file: opened, written, copied (.sql: projection_offsets, outbox)
reader.py     the API
queries.py    one reading statement, bounded
"""

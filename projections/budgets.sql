-- Every budget.updated is filed; the newest of (tenant, budget) in the log is in force, for all
-- periods. Thresholds are decided in the transaction that adds the spend.
CREATE TABLE IF NOT EXISTS budget_updates (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    verdict         VARCHAR NOT NULL,
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR NOT NULL,
    persona         VARCHAR,
    mode            VARCHAR,
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,
    budget          VARCHAR NOT NULL,
    cap_picousd     BIGINT NOT NULL,
    period          VARCHAR NOT NULL,
    thresholds      INTEGER[] NOT NULL,
    at_cap          VARCHAR NOT NULL,
    actor           VARCHAR NOT NULL
);

CREATE TABLE IF NOT EXISTS budget_thresholds (
    src_partition     INTEGER NOT NULL,
    src_offset        BIGINT NOT NULL,
    append_ms         BIGINT NOT NULL,
    event_id          VARCHAR NOT NULL,
    occurred_at_ms    BIGINT NOT NULL,
    source            VARCHAR NOT NULL,
    tenant            VARCHAR NOT NULL,
    persona           VARCHAR,
    mode              VARCHAR,
    trace_id          VARCHAR,
    budget_trace_id   VARCHAR,
    body_hash         UUID NOT NULL,
    budget            VARCHAR NOT NULL,
    budget_event_id   VARCHAR NOT NULL,
    period_start_ms   BIGINT NOT NULL,
    threshold_percent INTEGER NOT NULL,
    spent_picousd     BIGINT NOT NULL,
    cap_picousd       BIGINT NOT NULL,
    at_offsets        JSON NOT NULL
);

CREATE OR REPLACE MACRO period_start(period, at_ms) AS
    CASE period
        WHEN 'HOUR' THEN at_ms // 3600000 * 3600000
        WHEN 'DAY' THEN at_ms // 86400000 * 86400000
        ELSE epoch_ms(date_trunc('month', make_timestamp_ms(at_ms))::TIMESTAMP)
    END;

CREATE OR REPLACE VIEW budgets AS
SELECT tenant, budget, event_id AS budget_event_id, cap_picousd, period, thresholds, at_cap, actor,
       occurred_at_ms, src_offset
FROM budget_updates
WHERE verdict = 'applied'
QUALIFY row_number() OVER (PARTITION BY tenant, budget ORDER BY src_offset DESC) = 1;

-- Spend of every period of every budget in force in which anything was spent.
CREATE OR REPLACE VIEW budget_spend AS
SELECT b.tenant, b.budget, b.budget_event_id, b.period,
       period_start(b.period, p.pane_start_ms) AS period_start_ms,
       b.cap_picousd, sum(p.cost_picousd)::HUGEINT AS spent_picousd,
       sum(p.n)::BIGINT AS n, sum(p.unpriced_n)::BIGINT AS unpriced_n
FROM budgets b JOIN cost_panes p USING (tenant)
GROUP BY ALL;

-- One row per invocation that is charged: unique for ever on (src_partition, tenant, source,
-- event_id), kept so by the projector's anti-join and not by an index, which would halve its speed.
-- Money is in pico-USD (1e-12 USD). Times are milliseconds since 1970-01-01 UTC.
CREATE TABLE IF NOT EXISTS invocations (
    src_partition         INTEGER NOT NULL,  -- of llm.invocation
    src_offset            BIGINT NOT NULL,
    append_ms             BIGINT NOT NULL,
    occurred_at_ms        BIGINT NOT NULL,
    event_id              VARCHAR NOT NULL,
    id                    UUID NOT NULL,     -- event_id if it is a UUID, else its uuid5
    source                VARCHAR NOT NULL,
    tenant                VARCHAR NOT NULL,
    persona               VARCHAR,
    mode                  VARCHAR NOT NULL,  -- canonical; '': none was given
    role                  VARCHAR NOT NULL,  -- canonical
    provider              VARCHAR NOT NULL,
    model                 VARCHAR NOT NULL,
    outcome               VARCHAR NOT NULL,
    input_tokens          BIGINT NOT NULL,
    cached_tokens         BIGINT NOT NULL,
    output_tokens         BIGINT NOT NULL,
    latency_us            BIGINT NOT NULL,
    first_token_us        BIGINT,
    gpu_ms                BIGINT,
    reported_cost_picousd BIGINT,            -- as the provider said
    card_cost_picousd     HUGEINT,           -- by rate cards; NULL: a unit has no card
    cost_picousd          HUGEINT,           -- charged: reported, else by cards; NULL: unpriced
    error_code            VARCHAR,
    attempt               INTEGER NOT NULL,
    request_id            VARCHAR,
    profile_key           VARCHAR,
    profile_version       BIGINT,
    trace_id              VARCHAR,
    budget_trace_id       VARCHAR,
    body_hash             UUID NOT NULL      -- xxh3_128 of the record's value
);

-- Partial sums per pane of 300 s, appended by the transaction that appends the rows, and merged now
-- and then: always sum over them.
CREATE TABLE IF NOT EXISTS cost_panes (
    tenant        VARCHAR NOT NULL,
    pane_start_ms BIGINT NOT NULL,
    role          VARCHAR NOT NULL,
    mode          VARCHAR NOT NULL,
    provider      VARCHAR NOT NULL,
    model         VARCHAR NOT NULL,
    n             BIGINT NOT NULL,
    unpriced_n    BIGINT NOT NULL,
    input_tokens  BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cost_picousd  HUGEINT NOT NULL
);

-- Exact: 38 digits of which 12 are decimals.
CREATE OR REPLACE MACRO usd(picousd) AS
    (picousd // 1000000000000)::DECIMAL(38, 12)
    + (picousd % 1000000000000)::DECIMAL(18, 0) * 0.000000000001::DECIMAL(13, 12);

CREATE OR REPLACE VIEW cost_hourly AS
SELECT tenant, pane_start_ms // 3600000 * 3600000 AS hour_ms, role, mode, provider, model,
       sum(n)::BIGINT AS n, sum(unpriced_n)::BIGINT AS unpriced_n,
       sum(input_tokens)::HUGEINT AS input_tokens, sum(cached_tokens)::HUGEINT AS cached_tokens,
       sum(output_tokens)::HUGEINT AS output_tokens, sum(cost_picousd)::HUGEINT AS cost_picousd
FROM cost_panes GROUP BY ALL;

CREATE OR REPLACE VIEW cost_daily AS
SELECT tenant, pane_start_ms // 86400000 * 86400000 AS day_ms, role, mode, provider, model,
       sum(n)::BIGINT AS n, sum(unpriced_n)::BIGINT AS unpriced_n,
       sum(input_tokens)::HUGEINT AS input_tokens, sum(cached_tokens)::HUGEINT AS cached_tokens,
       sum(output_tokens)::HUGEINT AS output_tokens, sum(cost_picousd)::HUGEINT AS cost_picousd
FROM cost_panes GROUP BY ALL;

CREATE OR REPLACE VIEW cost_hourly_usd AS
SELECT make_timestamp_ms(hour_ms) AS hour_utc, * EXCLUDE (hour_ms, cost_picousd),
       usd(cost_picousd) AS cost_usd
FROM cost_hourly;

CREATE OR REPLACE VIEW cost_daily_usd AS
SELECT make_timestamp_ms(day_ms)::DATE AS day_utc, * EXCLUDE (day_ms, cost_picousd),
       usd(cost_picousd) AS cost_usd
FROM cost_daily;

CREATE OR REPLACE VIEW invocations_usd AS
SELECT make_timestamp_ms(occurred_at_ms) AS occurred_at_utc,
       * EXCLUDE (occurred_at_ms, reported_cost_picousd, card_cost_picousd, cost_picousd),
       usd(reported_cost_picousd) AS reported_cost_usd, usd(card_cost_picousd) AS card_cost_usd,
       usd(cost_picousd) AS cost_usd
FROM invocations;

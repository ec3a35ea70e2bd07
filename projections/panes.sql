-- Evidence per pane of event time and tenant, as the meter counts it: without late events and
-- repeats within a pane. Partial rows, appended by the transaction that files the events and merged
-- now and then: always sum over them.
CREATE TABLE IF NOT EXISTS metrics_panes (
    tenant               VARCHAR NOT NULL,
    pane_start_ms        BIGINT NOT NULL,
    role                 VARCHAR NOT NULL,  -- canonical
    mode                 VARCHAR NOT NULL,  -- canonical; '': none was given
    provider             VARCHAR NOT NULL,
    model                VARCHAR NOT NULL,
    unknown              BIGINT NOT NULL,   -- invocations by outcome
    success              BIGINT NOT NULL,
    refusal              BIGINT NOT NULL,
    failure              BIGINT NOT NULL,
    timeout              BIGINT NOT NULL,
    rate_limited         BIGINT NOT NULL,
    caller_error         BIGINT NOT NULL,
    config_error         BIGINT NOT NULL,
    cancelled            BIGINT NOT NULL,
    input_tokens         BIGINT NOT NULL,   -- of all invocations
    cached_tokens        BIGINT NOT NULL,
    output_tokens        BIGINT NOT NULL,
    priced_n             BIGINT NOT NULL,   -- complete responses without a reported cost: tokens,
    priced_input         BIGINT NOT NULL,   -- and sums of products of the kinds of tokens, so that
    priced_cached        BIGINT NOT NULL,   -- any price gives a mean cost and its error
    priced_output        BIGINT NOT NULL,
    priced_input_input   HUGEINT NOT NULL,
    priced_input_cached  HUGEINT NOT NULL,
    priced_input_output  HUGEINT NOT NULL,
    priced_cached_cached HUGEINT NOT NULL,
    priced_cached_output HUGEINT NOT NULL,
    priced_output_output HUGEINT NOT NULL,
    reported_n           BIGINT NOT NULL,   -- complete responses with a reported cost (pico-USD):
    reported_cost        HUGEINT NOT NULL,  -- cost, tokens, and sums of their products
    reported_tokens      BIGINT NOT NULL,
    reported_cost_cost   BIGNUM NOT NULL,
    reported_cost_tokens HUGEINT NOT NULL,
    reported_tokens_tokens HUGEINT NOT NULL,
    latency_buckets      SMALLINT[] NOT NULL,  -- of complete responses: ascending; latency_panes
    latency_counts       BIGINT[] NOT NULL     -- has them as rows
);

-- The same, one row per key.
CREATE OR REPLACE VIEW metrics_totals AS
SELECT tenant, pane_start_ms, role, mode, provider, model,
       sum(unknown)::BIGINT AS unknown, sum(success)::BIGINT AS success,
       sum(refusal)::BIGINT AS refusal, sum(failure)::BIGINT AS failure,
       sum(timeout)::BIGINT AS timeout, sum(rate_limited)::BIGINT AS rate_limited,
       sum(caller_error)::BIGINT AS caller_error, sum(config_error)::BIGINT AS config_error,
       sum(cancelled)::BIGINT AS cancelled, sum(input_tokens)::BIGINT AS input_tokens,
       sum(cached_tokens)::BIGINT AS cached_tokens, sum(output_tokens)::BIGINT AS output_tokens,
       sum(priced_n)::BIGINT AS priced_n, sum(priced_input)::BIGINT AS priced_input,
       sum(priced_cached)::BIGINT AS priced_cached, sum(priced_output)::BIGINT AS priced_output,
       sum(priced_input_input)::HUGEINT AS priced_input_input,
       sum(priced_input_cached)::HUGEINT AS priced_input_cached,
       sum(priced_input_output)::HUGEINT AS priced_input_output,
       sum(priced_cached_cached)::HUGEINT AS priced_cached_cached,
       sum(priced_cached_output)::HUGEINT AS priced_cached_output,
       sum(priced_output_output)::HUGEINT AS priced_output_output,
       sum(reported_n)::BIGINT AS reported_n, sum(reported_cost)::HUGEINT AS reported_cost,
       sum(reported_tokens)::BIGINT AS reported_tokens,
       sum(reported_cost_cost)::BIGNUM AS reported_cost_cost,
       sum(reported_cost_tokens)::HUGEINT AS reported_cost_tokens,
       sum(reported_tokens_tokens)::HUGEINT AS reported_tokens_tokens
FROM metrics_panes GROUP BY ALL;

-- Complete responses per bucket of latency_buckets.
CREATE OR REPLACE VIEW latency_panes AS
SELECT tenant, pane_start_ms, role, mode, provider, model,
       unnest(latency_buckets) AS bucket, unnest(latency_counts) AS n
FROM metrics_panes;

CREATE OR REPLACE VIEW latency_totals AS
SELECT tenant, pane_start_ms, role, mode, provider, model, bucket, sum(n)::BIGINT AS n
FROM latency_panes GROUP BY ALL;

-- Observed quality: n observations, of which hits were good.
CREATE TABLE IF NOT EXISTS quality_panes (
    tenant        VARCHAR NOT NULL,
    pane_start_ms BIGINT NOT NULL,
    role          VARCHAR NOT NULL,
    mode          VARCHAR NOT NULL,
    provider      VARCHAR NOT NULL,
    model         VARCHAR NOT NULL,
    metric        VARCHAR NOT NULL,
    n             BIGINT NOT NULL,
    hits          BIGINT NOT NULL
);

-- Ids that were charged in one pane and came again in another: counted there too, once.
CREATE TABLE IF NOT EXISTS pane_strays (
    topic         VARCHAR NOT NULL,
    src_partition INTEGER NOT NULL,
    tenant        VARCHAR NOT NULL,
    source        VARCHAR NOT NULL,
    event_id      VARCHAR NOT NULL,
    pane_start_ms BIGINT NOT NULL
);

-- How the panes of this file are cut; one row.
CREATE TABLE IF NOT EXISTS pane_rule (
    pane_ms  BIGINT NOT NULL,
    bound_ms BIGINT NOT NULL,
    grace_ms BIGINT NOT NULL
);

-- Other names of modes, in lower case.
CREATE TABLE IF NOT EXISTS mode_aliases (
    alias VARCHAR NOT NULL,
    mode  VARCHAR NOT NULL
);

-- (lower_us, upper_us] in microseconds; the last bucket is open. estimate_us: what percentiles say.
CREATE TABLE IF NOT EXISTS latency_buckets (
    bucket      SMALLINT NOT NULL,
    lower_us    BIGINT NOT NULL,
    upper_us    BIGINT,
    estimate_e9 BIGINT NOT NULL,  -- in 1e-9 microseconds
    estimate_us DOUBLE NOT NULL
);

-- The log of every topic but llm.invocation and the budgets', one row per record, as it was said.
-- Repeats are filed where a fold might take them (verdict), elsewhere the first of an id counts.

CREATE TABLE IF NOT EXISTS fallbacks (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    role             VARCHAR NOT NULL,  -- canonical
    from_model       VARCHAR NOT NULL,
    to_model         VARCHAR NOT NULL,
    reason           VARCHAR NOT NULL,
    chain            VARCHAR[] NOT NULL,
    attempt          INTEGER NOT NULL,
    added_latency_us BIGINT NOT NULL,
    added_cost_picousd BIGINT,
    request_id       VARCHAR,
    invocation_id    VARCHAR
);

CREATE TABLE IF NOT EXISTS profile_changes (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    verdict         VARCHAR NOT NULL,  -- applied; duplicate, conflict: the id was there before
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    profile_key      VARCHAR NOT NULL,  -- scope/role/mode as sent
    scope            VARCHAR NOT NULL,
    role             VARCHAR NOT NULL,
    deployment_mode  VARCHAR NOT NULL,
    action           VARCHAR NOT NULL,
    model            VARCHAR NOT NULL,
    fallbacks        VARCHAR[] NOT NULL,
    base_url         VARCHAR NOT NULL,
    temperature      DOUBLE NOT NULL,
    max_tokens       BIGINT,
    extra            VARCHAR NOT NULL,
    credential_ref   VARCHAR,
    actor            VARCHAR NOT NULL,
    reason           VARCHAR,
    expected_version BIGINT
);

CREATE TABLE IF NOT EXISTS profile_rejections (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    scope             VARCHAR NOT NULL,
    role              VARCHAR NOT NULL,
    deployment_mode   VARCHAR NOT NULL,
    rejected_event_id VARCHAR NOT NULL,
    kind              VARCHAR NOT NULL,
    field             VARCHAR,
    value             VARCHAR,
    allowed           VARCHAR,
    expected_version  BIGINT,
    actual_version    BIGINT NOT NULL,
    actor             VARCHAR NOT NULL,
    cause_topic       VARCHAR NOT NULL,
    cause_partition   INTEGER NOT NULL,
    cause_offset      BIGINT NOT NULL
);

CREATE TABLE IF NOT EXISTS mode_changes (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    verdict         VARCHAR NOT NULL,  -- applied; duplicate, conflict: the id was there before
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    deployment VARCHAR NOT NULL,
    to_mode    VARCHAR NOT NULL,       -- canonical
    actor      VARCHAR NOT NULL,
    reason     VARCHAR
);

CREATE TABLE IF NOT EXISTS model_registrations (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    verdict         VARCHAR NOT NULL,  -- applied; duplicate, conflict: the id was there before
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    provider            VARCHAR NOT NULL,
    model               VARCHAR NOT NULL,
    action              VARCHAR NOT NULL,
    tier                VARCHAR,
    quantization        VARCHAR,
    licence             VARCHAR,
    parameters_millions BIGINT,
    context_tokens      BIGINT,
    max_output_tokens   BIGINT,
    roles               VARCHAR[] NOT NULL,  -- canonical
    capabilities        VARCHAR[] NOT NULL,
    allowed_personas    VARCHAR[] NOT NULL,  -- empty: all
    revision            VARCHAR,
    strengths           VARCHAR,
    notes               VARCHAR,
    actor               VARCHAR NOT NULL,
    reason              VARCHAR
);

CREATE TABLE IF NOT EXISTS policies (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    verdict         VARCHAR NOT NULL,  -- applied; duplicate, conflict: the id was there before
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    role                   VARCHAR NOT NULL,  -- canonical
    deployment_mode        VARCHAR NOT NULL,  -- canonical
    weight_quality         INTEGER NOT NULL,
    weight_cost            INTEGER NOT NULL,
    weight_latency         INTEGER NOT NULL,
    weight_reliability     INTEGER NOT NULL,
    cost_unit              VARCHAR NOT NULL,
    reference_cost_picousd BIGINT NOT NULL,
    reference_latency_us   BIGINT NOT NULL,
    latency_percentile     INTEGER NOT NULL,
    max_ratio_percent      INTEGER NOT NULL,
    prior_quality          INTEGER NOT NULL,
    prior_reliability      INTEGER NOT NULL,
    prior_strength         INTEGER NOT NULL,
    min_quality            INTEGER NOT NULL,
    min_reliability        INTEGER NOT NULL,
    min_samples            BIGINT NOT NULL,
    min_trials             BIGINT NOT NULL,
    emit_epsilon_e9        BIGINT NOT NULL,
    emit_min_interval_ms   BIGINT NOT NULL,
    heartbeat_ms           BIGINT NOT NULL,
    evidence_modes         VARCHAR[] NOT NULL,
    actor                  VARCHAR NOT NULL,
    window_panes           INTEGER NOT NULL,
    part_availability      INTEGER NOT NULL,
    part_policy_compliance INTEGER NOT NULL,
    part_refusal_accuracy  INTEGER NOT NULL,
    quality_metrics        VARCHAR[] NOT NULL,
    benchmarks             JSON NOT NULL,
    hysteresis_margin_e9   BIGINT NOT NULL,
    hysteresis_closes      INTEGER NOT NULL,
    hysteresis_min_ms      BIGINT NOT NULL,
    sla_success            INTEGER,
    sla_latency_us         BIGINT,
    sla_cost_picousd_per_1k BIGINT,
    severity               VARCHAR NOT NULL
);

CREATE TABLE IF NOT EXISTS rate_cards (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    verdict         VARCHAR NOT NULL,  -- applied; duplicate, conflict: the id was there before
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    provider                  VARCHAR NOT NULL,
    model                     VARCHAR NOT NULL,
    unit                      VARCHAR NOT NULL,
    price_picousd_per_million BIGINT NOT NULL,
    currency                  VARCHAR NOT NULL,
    valid_from_ms             BIGINT NOT NULL,
    valid_to_ms               BIGINT,
    version                   BIGINT NOT NULL,
    origin                    VARCHAR
);

CREATE TABLE IF NOT EXISTS rankings (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    role            VARCHAR NOT NULL,
    deployment_mode VARCHAR NOT NULL,
    status          VARCHAR NOT NULL,
    as_of_ms        BIGINT NOT NULL,
    window_start_ms BIGINT NOT NULL,
    window_end_ms   BIGINT NOT NULL,
    revision        BIGINT NOT NULL,
    generation      BIGINT NOT NULL,
    policy_event_id VARCHAR NOT NULL,
    policy_version  BIGINT NOT NULL,
    marks           JSON NOT NULL,
    inputs          JSON NOT NULL,
    state_hash      VARCHAR NOT NULL,  -- of the evidence behind all entries; empty: none was given
    omitted         BIGINT NOT NULL,
    leader_provider VARCHAR,           -- NULL: no model has qualified yet
    leader_model    VARCHAR,
    leader_since_ms BIGINT,
    challenger_provider VARCHAR,
    challenger_model    VARCHAR,
    challenger_closes   INTEGER,       -- NULL: there was no final before
    leader_before   JSON
);

-- One row per model of a ranking; (src_partition, src_offset) is that of the ranking.
CREATE TABLE IF NOT EXISTS ranking_entries (
    src_partition              INTEGER NOT NULL,
    src_offset                 BIGINT NOT NULL,
    event_id                   VARCHAR NOT NULL,
    role                       VARCHAR NOT NULL,
    deployment_mode            VARCHAR NOT NULL,
    ranking_status             VARCHAR NOT NULL,
    as_of_ms                   BIGINT NOT NULL,
    position                   INTEGER NOT NULL,  -- in the ranking, from 0
    provider                   VARCHAR NOT NULL,
    model                      VARCHAR NOT NULL,
    status                     VARCHAR NOT NULL,
    reason                     VARCHAR,
    rank                       INTEGER,
    score                      DOUBLE,
    score_se                   DOUBLE,
    score_raw                  DOUBLE,
    invocations                BIGINT NOT NULL,
    complete                   BIGINT NOT NULL,
    trials                     BIGINT NOT NULL,
    hits                       BIGINT NOT NULL,
    rate_limited               BIGINT NOT NULL,
    latency_us                 DOUBLE,
    latency_low_us             DOUBLE,
    latency_high_us            DOUBLE,
    cost_picousd_per_request   DOUBLE,
    cost_picousd_per_1k_tokens DOUBLE,
    reliability                DOUBLE,
    quality                    DOUBLE,
    prior_only                 BOOLEAN NOT NULL,
    flags                      VARCHAR[] NOT NULL,
    quality_n                  BIGINT NOT NULL,
    quality_hits               BIGINT NOT NULL,
    quality_prior              DOUBLE,
    success_low                DOUBLE,
    success_high               DOUBLE,
    terms                      JSON NOT NULL,
    benchmarks                 JSON NOT NULL,
    parts                      JSON NOT NULL
);

CREATE TABLE IF NOT EXISTS recommendations (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    role               VARCHAR NOT NULL,
    deployment_mode    VARCHAR NOT NULL,
    provider           VARCHAR NOT NULL,
    model              VARCHAR NOT NULL,
    score              DOUBLE NOT NULL,
    score_se           DOUBLE NOT NULL,
    samples            BIGINT NOT NULL,
    leads_since_ms     BIGINT NOT NULL,
    current_model      VARCHAR,           -- of the profile in force; NULL: there was none
    current_status     VARCHAR,
    current_score      DOUBLE,
    current_score_se   DOUBLE,
    profile_key        VARCHAR,
    profile_version    BIGINT,
    ranking_event_id   VARCHAR NOT NULL,
    ranking_as_of_ms   BIGINT NOT NULL,
    policy_event_id    VARCHAR NOT NULL,
    policy_version     BIGINT NOT NULL
);

CREATE TABLE IF NOT EXISTS quality_observations (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    role            VARCHAR NOT NULL,  -- canonical
    provider        VARCHAR NOT NULL,
    model           VARCHAR NOT NULL,
    metric          VARCHAR NOT NULL,
    n               INTEGER NOT NULL,
    hits            INTEGER NOT NULL,  -- good ones among n
    invocation_id   VARCHAR,
    judge           VARCHAR
);

CREATE TABLE IF NOT EXISTS benchmark_results (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    verdict         VARCHAR NOT NULL,  -- applied; duplicate, conflict: the id was there before
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    role               VARCHAR,           -- canonical; NULL: it counts for every role
    provider           VARCHAR NOT NULL,
    model              VARCHAR NOT NULL,
    name               VARCHAR NOT NULL,
    value              DOUBLE NOT NULL,
    scale              VARCHAR NOT NULL,
    direction          VARCHAR NOT NULL,
    n                  BIGINT,
    ci_low             DOUBLE,
    ci_high            DOUBLE,
    tool               VARCHAR,
    tool_version       VARCHAR,
    signature          VARCHAR,
    dataset_id         VARCHAR,
    dataset_hash       VARCHAR,
    split              VARCHAR,
    prompt_set_version VARCHAR,
    seed               BIGINT,
    judge_model        VARCHAR
);

CREATE TABLE IF NOT EXISTS late_events (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    late_event_id    VARCHAR NOT NULL,
    origin_topic     VARCHAR NOT NULL,
    origin_partition INTEGER NOT NULL,
    origin_offset    BIGINT NOT NULL,
    pane_start_ms    BIGINT NOT NULL,
    watermark_ms     BIGINT NOT NULL,
    generation       BIGINT NOT NULL
);

CREATE TABLE IF NOT EXISTS dead_letters (
    src_partition   INTEGER NOT NULL,
    src_offset      BIGINT NOT NULL,
    append_ms       BIGINT NOT NULL,
    event_id        VARCHAR NOT NULL,
    occurred_at_ms  BIGINT NOT NULL,
    source          VARCHAR NOT NULL,
    tenant          VARCHAR,
    persona         VARCHAR,
    mode            VARCHAR,           -- canonical; NULL: none was given
    trace_id        VARCHAR,
    budget_trace_id VARCHAR,
    body_hash       UUID NOT NULL,     -- xxh3_128 of the record's value
    origin_topic     VARCHAR NOT NULL,
    origin_partition INTEGER NOT NULL,
    origin_offset    BIGINT NOT NULL,
    origin_append_ms BIGINT NOT NULL,
    reason           VARCHAR NOT NULL,
    detail           VARCHAR NOT NULL,
    schema_id        BIGINT,
    record_key       BLOB,
    value            BLOB,
    value_sha256     VARCHAR,
    value_length     BIGINT,
    headers          JSON NOT NULL      -- values in base64
);

-- Invocations that missed their pane: the ledger charges them, rankings leave them out (M10).
CREATE OR REPLACE VIEW late_hourly AS
SELECT i.tenant, i.occurred_at_ms // 3600000 * 3600000 AS hour_ms, i.role, i.mode, i.provider,
       i.model, count(*) AS late_n
FROM late_events l
JOIN invocations i ON i.src_partition = l.origin_partition AND i.src_offset = l.origin_offset
WHERE l.origin_topic = 'llm.invocation'
GROUP BY ALL;

-- The newest final ranking of every role and mode: of its newest time the highest revision.
CREATE OR REPLACE VIEW final_rankings AS
SELECT * FROM rankings WHERE status = 'FINAL'
QUALIFY row_number() OVER (
    PARTITION BY role, deployment_mode ORDER BY as_of_ms DESC, revision DESC, src_offset
) = 1;

-- Statements as folds take them: of an id that is said again only the first counts.
CREATE OR REPLACE VIEW counted_policies AS FROM policies WHERE verdict = 'applied';
CREATE OR REPLACE VIEW counted_rate_cards AS FROM rate_cards WHERE verdict = 'applied';
CREATE OR REPLACE VIEW counted_benchmarks AS FROM benchmark_results WHERE verdict = 'applied';

-- The catalogue of models: the newest registration of each that was not taken back since.
CREATE OR REPLACE VIEW registered_models AS
FROM (
    FROM model_registrations WHERE verdict = 'applied'
    QUALIFY row_number() OVER (PARTITION BY provider, model ORDER BY src_offset DESC) = 1
)
WHERE action = 'SET';

-- What a person watching wants to hear of, whatever topic it came from.
CREATE OR REPLACE VIEW notable AS
SELECT append_ms, occurred_at_ms, 'mode' AS kind, deployment AS subject,
       'switched to ' || to_mode || ' by ' || actor AS what,
       'mode.changed' AS topic, src_partition, src_offset
FROM mode_changes
UNION ALL BY NAME
SELECT append_ms, occurred_at_ms, 'profile' AS kind, profile_key AS subject,
       CASE action WHEN 'DELETE' THEN 'deleted' ELSE 'set to ' || model END || ' by ' || actor
           AS what,
       'model.profile.updated' AS topic, src_partition, src_offset
FROM profile_changes
UNION ALL BY NAME
SELECT append_ms, occurred_at_ms, 'rejection' AS kind,
       scope || '/' || role || '/' || deployment_mode AS subject,
       CASE kind
           WHEN 'CONFLICT' THEN 'change of ' || actor || ' refused: it expected version '
               || coalesce(expected_version::VARCHAR, '?') || ', there is ' || actual_version
           ELSE 'change of ' || actor || ' refused: ' || coalesce(field, 'record') || ' is '
               || coalesce(value, 'missing') || '; allowed: ' || coalesce(allowed, '?')
       END AS what,
       'model.profile.rejected' AS topic, src_partition, src_offset
FROM profile_rejections
UNION ALL BY NAME
SELECT append_ms, occurred_at_ms, 'policy' AS kind, role || '/' || deployment_mode AS subject,
       'weights ' || weight_quality || '/' || weight_cost || '/' || weight_latency || '/'
           || weight_reliability || ' by ' || actor AS what,
       'scoring.policy.updated' AS topic, src_partition, src_offset
FROM policies
UNION ALL BY NAME
SELECT append_ms, occurred_at_ms, 'threshold' AS kind, tenant || '/' || budget AS subject,
       threshold_percent || ' % of the budget is spent' AS what,
       'budget.threshold.crossed' AS topic, src_partition, src_offset
FROM budget_thresholds
UNION ALL BY NAME
SELECT append_ms, occurred_at_ms, 'recommendation' AS kind,
       role || '/' || deployment_mode AS subject,
       provider || '/' || model || ' leads, in force is ' || coalesce(current_model, 'no profile')
           AS what,
       'model.profile.recommended' AS topic, src_partition, src_offset
FROM recommendations;

-- Ready-made answers over the tables. Times are milliseconds since 1970-01-01 UTC, money is in
-- pico-USD; a number that a ranking also shows has the same digits here.

-- The rule of every half: to the even neighbour. d above 0.
CREATE OR REPLACE MACRO half_even(n, d) AS
    n // d + CASE WHEN 2 * (n % d) > d OR (2 * (n % d) = d AND (n // d) % 2 = 1) THEN 1 ELSE 0 END;

-- Percentile of call durations of complete responses, as rankings say it: the estimate of the
-- bucket at position floor(pct * (n - 1) / 100) of the sorted values. from_ms <= pane < to_ms.
-- NULL for a mode or a tenant: all of them. Roles and modes by their canonical names.
CREATE OR REPLACE MACRO percentile_us(
    of_role, of_mode, of_provider, of_model, from_ms, to_ms, pct, of_tenant := NULL
) AS (
    SELECT min(b.estimate_us)
    FROM (
        SELECT bucket, sum(sum(n)) OVER (ORDER BY bucket) AS running, sum(sum(n)) OVER () AS total
        FROM latency_panes
        WHERE role = of_role AND (of_mode IS NULL OR mode = of_mode)
          AND provider = of_provider AND model = of_model
          AND pane_start_ms >= from_ms AND pane_start_ms < to_ms
          AND (of_tenant IS NULL OR tenant = of_tenant)
        GROUP BY bucket
    ) h JOIN latency_buckets b USING (bucket)
    WHERE running > pct * (total - 1) // 100
);

-- Prices of a model's tokens in a pane: cards in force at its start, whenever they were appended.
-- NULL: there is none.
CREATE OR REPLACE VIEW pane_prices AS
SELECT p.provider, p.model, p.pane_start_ms,
       max_by(price_picousd_per_million, (version, src_offset))
           FILTER (unit = 'INPUT_TOKEN') AS input_price,
       max_by(price_picousd_per_million, (version, src_offset))
           FILTER (unit = 'CACHED_TOKEN') AS cached_price,
       max_by(price_picousd_per_million, (version, src_offset))
           FILTER (unit = 'OUTPUT_TOKEN') AS output_price
FROM (SELECT DISTINCT provider, model, pane_start_ms FROM metrics_panes) p
LEFT JOIN counted_rate_cards c
    ON c.provider = p.provider AND c.model = p.model AND c.valid_from_ms <= p.pane_start_ms
   AND (c.valid_to_ms IS NULL OR p.pane_start_ms < c.valid_to_ms)
GROUP BY ALL;

-- Complete responses with their cost, per row of metrics_panes. cost_e6: in 1e-6 pico-USD; NULL: a
-- unit has no price.
CREATE OR REPLACE VIEW priced_panes AS
SELECT m.* EXCLUDE (latency_buckets, latency_counts),
       priced_input + priced_cached + priced_output + reported_tokens AS tokens,
       CASE WHEN priced_input > 0 THEN priced_input::HUGEINT * input_price ELSE 0 END
     + CASE WHEN priced_cached > 0 THEN priced_cached::HUGEINT * cached_price ELSE 0 END
     + CASE WHEN priced_output > 0 THEN priced_output::HUGEINT * output_price ELSE 0 END
     + reported_cost * 1000000 AS cost_e6
FROM metrics_panes m JOIN pane_prices USING (provider, model, pane_start_ms);

-- Service levels of every model between two times (panes that start in between), of one tenant or
-- of all. success_percent: complete responses among trials, 429 and callers' errors are none.
CREATE OR REPLACE MACRO slis_between(from_ms, to_ms, of_tenant := NULL) AS TABLE
WITH sums AS (
    SELECT role, mode, provider, model, sum(priced_n + reported_n)::BIGINT AS complete,
           sum(success + refusal + failure + timeout + config_error)::BIGINT AS trials,
           sum(rate_limited)::BIGINT AS rate_limited, sum(tokens)::HUGEINT AS tokens,
           CASE WHEN count(cost_e6) = count(*) THEN sum(cost_e6) END AS cost_e6
    FROM priced_panes
    WHERE pane_start_ms >= from_ms AND pane_start_ms < to_ms
      AND (of_tenant IS NULL OR tenant = of_tenant)
    GROUP BY ALL
), running AS (
    SELECT role, mode, provider, model, bucket,
           sum(sum(n)) OVER (PARTITION BY role, mode, provider, model ORDER BY bucket) AS running,
           sum(sum(n)) OVER (PARTITION BY role, mode, provider, model) AS total
    FROM latency_panes
    WHERE pane_start_ms >= from_ms AND pane_start_ms < to_ms
      AND (of_tenant IS NULL OR tenant = of_tenant)
    GROUP BY role, mode, provider, model, bucket
), percentiles AS (
    SELECT role, mode, provider, model,
           min(estimate_us) FILTER (running > 50 * (total - 1) // 100) AS p50_us,
           min(estimate_us) FILTER (running > 95 * (total - 1) // 100) AS p95_us,
           min(estimate_us) FILTER (running > 99 * (total - 1) // 100) AS p99_us
    FROM running JOIN latency_buckets USING (bucket)
    GROUP BY ALL
)
SELECT role, mode, provider, model, trials, complete, rate_limited, p50_us, p95_us, p99_us,
       CASE WHEN trials > 0 THEN 100 * complete / trials END AS success_percent,
       CASE WHEN tokens > 0 AND complete > 0
            THEN half_even(cost_e6 * 1000000, tokens) / 1000000000
       END AS cost_picousd_per_1k_tokens
FROM sums LEFT JOIN percentiles USING (role, mode, provider, model);

-- The same over the 24 hours up to the newest pane (R45).
CREATE OR REPLACE VIEW slis AS
SELECT * FROM slis_between(
    (SELECT max(pane_start_ms) + any_value(pane_ms) - 86400000 FROM metrics_panes, pane_rule),
    (SELECT max(pane_start_ms) + 1 FROM metrics_panes)
);

-- Every version of a profile, by key in the order of the log: what was accepted. A change counts
-- until its rejection has been read.
CREATE OR REPLACE VIEW profile_versions AS
SELECT profile_key, scope, role, deployment_mode,
       row_number() OVER (PARTITION BY profile_key ORDER BY src_partition, src_offset) AS version,
       action, model, fallbacks, base_url, temperature, max_tokens, extra, credential_ref, actor,
       reason, event_id, occurred_at_ms, append_ms AS from_append_ms,
       lead(append_ms) OVER (PARTITION BY profile_key ORDER BY src_partition, src_offset)
           AS until_append_ms,
       src_partition, src_offset
FROM profile_changes c
ANTI JOIN (
    SELECT cause_partition AS src_partition, cause_offset AS src_offset FROM profile_rejections
    WHERE cause_topic = 'model.profile.updated'
) r USING (src_partition, src_offset)
WHERE verdict = 'applied';

-- The profiles in force.
CREATE OR REPLACE VIEW profiles AS
SELECT * EXCLUDE (action, until_append_ms) FROM profile_versions
WHERE until_append_ms IS NULL AND action = 'SET';

-- Which mode a deployment was in, by event time: from_ms <= t < to_ms; NULL: still.
CREATE OR REPLACE VIEW modes AS
SELECT * FROM (
    SELECT deployment, to_mode AS mode, occurred_at_ms AS from_ms,
           lead(occurred_at_ms) OVER (
               PARTITION BY deployment ORDER BY occurred_at_ms, src_partition, src_offset
           ) AS to_ms,
           actor, reason, event_id
    FROM mode_changes WHERE verdict = 'applied'
) WHERE to_ms IS NULL OR from_ms < to_ms;

-- Policies with their version (their number in the log of their key) and the event time in which
-- they are in force: from_ms <= t < to_ms; NULL: still. Those that never are have from_ms = to_ms.
CREATE OR REPLACE VIEW policy_versions AS
SELECT row_number() OVER (
           PARTITION BY role, deployment_mode ORDER BY src_partition, src_offset
       ) AS version,
       occurred_at_ms AS from_ms,
       lead(occurred_at_ms) OVER (
           PARTITION BY role, deployment_mode ORDER BY occurred_at_ms, src_partition, src_offset
       ) AS to_ms,
       *
FROM counted_policies;

-- Every final ranking that counts: of each time the newest generation's highest revision.
CREATE OR REPLACE VIEW finals AS
SELECT * FROM rankings WHERE status = 'FINAL'
QUALIFY row_number() OVER (
    PARTITION BY role, deployment_mode, as_of_ms
    ORDER BY generation DESC, revision DESC, src_partition, src_offset
) = 1;

-- How models have fared, final by final. latency_us: of the policy's percentile.
CREATE OR REPLACE VIEW trend AS
SELECT f.role, f.deployment_mode, f.as_of_ms, f.window_end_ms, f.revision, e.provider, e.model,
       e.status, e.reason, e.rank, e.score, e.score_se, p.latency_percentile, e.latency_us,
       e.cost_picousd_per_1k_tokens, e.cost_picousd_per_request, e.reliability, e.quality,
       e.invocations, f.leader_provider = e.provider AND f.leader_model = e.model AS leads
FROM finals f
JOIN ranking_entries e USING (src_partition, src_offset)
LEFT JOIN (SELECT DISTINCT event_id, role, deployment_mode, latency_percentile
           FROM counted_policies) p
    ON p.event_id = f.policy_event_id AND p.role = f.role
   AND p.deployment_mode = f.deployment_mode;

-- Where a final's model does not keep the service level of its policy by the tests of M21, which
-- compare the cautious bound. certain: the other bound breaks it too. expected, observed: share of
-- successes, microseconds, pico-USD per 1,000 tokens.
CREATE OR REPLACE VIEW sla_breaches AS
WITH told AS (
    SELECT f.as_of_ms, f.window_end_ms, f.role, f.deployment_mode, e.provider, e.model, e.status,
           p.severity, p.sla_success / 10000 AS sla_success, p.sla_latency_us,
           p.sla_cost_picousd_per_1k, e.success_low, e.success_high, e.latency_low_us,
           e.latency_high_us, e.cost_picousd_per_1k_tokens, f.event_id AS ranking_event_id, f.policy_event_id
    FROM finals f
    JOIN ranking_entries e USING (src_partition, src_offset)
    JOIN (
        SELECT * FROM counted_policies
        QUALIFY row_number() OVER (
            PARTITION BY event_id, role, deployment_mode ORDER BY src_partition, src_offset
        ) = 1
    ) p ON p.event_id = f.policy_event_id AND p.role = f.role
       AND p.deployment_mode = f.deployment_mode
)
SELECT as_of_ms, window_end_ms, role, deployment_mode, provider, model, status, severity, sla,
       expected, observed, certain, ranking_event_id, policy_event_id
FROM (
    SELECT *, 'success' AS sla, sla_success AS expected, success_low AS observed,
           success_high < sla_success AS certain
    FROM told WHERE success_low < sla_success
    UNION ALL
    SELECT *, 'latency', sla_latency_us, latency_high_us,
           coalesce(latency_low_us > sla_latency_us, false)
    FROM told WHERE latency_high_us > sla_latency_us
    UNION ALL
    SELECT *, 'cost', sla_cost_picousd_per_1k, cost_picousd_per_1k_tokens, true
    FROM told WHERE cost_picousd_per_1k_tokens > sla_cost_picousd_per_1k
);

-- Observed p99 beside what a role's policy expects (R37): its limit of latency, else its target, on
-- the evidence and in the window of that policy, up to the newest pane.
CREATE OR REPLACE VIEW expected_latency AS
WITH newest AS (
    SELECT max(pane_start_ms) AS pane, any_value(pane_ms) AS pane_ms FROM metrics_panes, pane_rule
), wanted AS (
    SELECT role, deployment_mode, event_id AS policy_event_id, severity,
           coalesce(sla_latency_us, reference_latency_us) AS expected_us,
           pane - (window_panes - 1) * pane_ms AS from_ms, evidence_modes
    FROM policy_versions, newest
    WHERE from_ms <= pane + pane_ms AND (to_ms IS NULL OR pane + pane_ms < to_ms)
), named AS (
    SELECT role, deployment_mode, unnest(evidence_modes) AS name FROM wanted
), admitted AS (
    SELECT role, deployment_mode, coalesce(a.mode, name) AS mode
    FROM named LEFT JOIN mode_aliases a ON a.alias = lower(name)
    UNION
    SELECT role, deployment_mode, m.mode FROM wanted, (SELECT DISTINCT mode FROM metrics_panes) m
    WHERE len(evidence_modes) = 0
), running AS (
    SELECT w.role, w.deployment_mode, l.provider, l.model, l.bucket,
           sum(sum(l.n)) OVER (
               PARTITION BY w.role, w.deployment_mode, l.provider, l.model ORDER BY l.bucket
           ) AS running,
           sum(sum(l.n)) OVER (
               PARTITION BY w.role, w.deployment_mode, l.provider, l.model
           ) AS total
    FROM wanted w
    JOIN admitted a USING (role, deployment_mode)
    JOIN latency_panes l
        ON l.role = w.role AND l.mode = a.mode AND l.pane_start_ms >= w.from_ms
    GROUP BY w.role, w.deployment_mode, l.provider, l.model, l.bucket
)
SELECT w.role, w.deployment_mode, r.provider, r.model, max(r.total)::BIGINT AS n, w.expected_us,
       min(b.estimate_us) FILTER (r.running > 99 * (r.total - 1) // 100) AS observed_p99_us,
       observed_p99_us > w.expected_us AS broken,
       CASE WHEN observed_p99_us > w.expected_us THEN w.severity END AS severity,
       w.policy_event_id
FROM wanted w JOIN running r USING (role, deployment_mode) JOIN latency_buckets b USING (bucket)
GROUP BY w.role, w.deployment_mode, r.provider, r.model, w.expected_us, w.severity,
         w.policy_event_id;

-- Wins and losses of models with each tenant, per day (R44). A win was served at the first attempt
-- and not found poor; every other trial is a loss, for the first of its reasons: it failed, it came
-- as a fallback, it was found poor. judged: those of which quality was observed.
CREATE OR REPLACE VIEW tenant_win_loss AS
WITH judged AS (
    SELECT tenant, invocation_id AS event_id, bool_or(hits < n) AS poor
    FROM quality_observations WHERE invocation_id IS NOT NULL GROUP BY ALL
), replaced AS (
    SELECT DISTINCT tenant, invocation_id AS event_id FROM fallbacks
    WHERE invocation_id IS NOT NULL
), told AS (
    SELECT i.tenant, i.occurred_at_ms // 86400000 * 86400000 AS day_ms, i.role, i.mode, i.provider,
           i.model, i.outcome NOT IN ('SUCCESS', 'REFUSAL') AS failed,
           i.attempt > 1 OR r.event_id IS NOT NULL AS by_fallback,
           coalesce(q.poor, false) AS poor, q.event_id IS NOT NULL AS judged
    FROM invocations i
    LEFT JOIN judged q ON q.tenant = i.tenant AND q.event_id = i.event_id
    LEFT JOIN replaced r ON r.tenant = i.tenant AND r.event_id = i.event_id
    WHERE i.outcome IN ('SUCCESS', 'REFUSAL', 'FAILURE', 'TIMEOUT', 'CONFIG_ERROR')
)
SELECT tenant, day_ms, role, mode, provider, model, count(*) AS trials,
       count(*) FILTER (NOT failed AND NOT by_fallback AND NOT poor) AS wins,
       count(*) FILTER (failed OR by_fallback OR poor) AS losses,
       count(*) FILTER (failed) AS failed,
       count(*) FILTER (NOT failed AND by_fallback) AS by_fallback,
       count(*) FILTER (NOT failed AND NOT by_fallback AND poor) AS poor,
       count(*) FILTER (judged) AS judged
FROM told GROUP BY tenant, day_ms, role, mode, provider, model;

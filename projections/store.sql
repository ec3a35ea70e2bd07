-- How far each partition of the log has been filed, committed with the rows it led to.
-- consumed = next_offset - first_offset
--          = applied + duplicate + late + dead_lettered + conflict + control
-- (control: ticks, and offsets without a record, which are markers of transactions).
CREATE TABLE IF NOT EXISTS projection_offsets (
    topic         VARCHAR NOT NULL,
    partition     INTEGER NOT NULL,
    next_offset   BIGINT NOT NULL,
    consumed      BIGINT NOT NULL,
    applied       BIGINT NOT NULL,
    duplicate     BIGINT NOT NULL,
    late          BIGINT NOT NULL,  -- judged by the meter; the ledger charges late events too
    dead_lettered BIGINT NOT NULL,
    conflict      BIGINT NOT NULL,
    control       BIGINT NOT NULL,
    first_offset  BIGINT NOT NULL,
    newest_ms     BIGINT,           -- latest event or tick: W_p is that less the bound and 1 ms
    PRIMARY KEY (topic, partition)
);

-- What this projection concluded and has not yet read back from the log. Sent after the commit,
-- deleted by the transaction that files it from its topic.
CREATE TABLE IF NOT EXISTS outbox (
    event_id   VARCHAR NOT NULL,
    topic      VARCHAR NOT NULL,
    record_key BLOB NOT NULL,
    value      BLOB NOT NULL
);

CREATE TABLE IF NOT EXISTS projection_format (version INTEGER NOT NULL);

-- The ledger: the event store and the audit chain, which the database itself keeps append-only, and what is projected
-- from them. Generated columns repeat what a run's JSON says, so that they can never say something else.

-- Offsets start again when a broker is lost: the cluster's id tells which counting a position belongs to.
CREATE TABLE broker_epochs (
    epoch       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cluster_id  text        NOT NULL UNIQUE,
    first_seen  timestamptz NOT NULL DEFAULT now()
);

-- Every event of runyard.runs, numbered per run in partition order. `value` holds the very bytes, whatever their type;
-- `data` the same for queries (JSON null where Postgres cannot hold it). `hash` chains the events of one run.
CREATE TABLE run_events (
    run_id        text        NOT NULL,
    version       integer     NOT NULL CHECK (version >= 1),
    event_id      uuid        NOT NULL UNIQUE,
    type          text        NOT NULL,
    source        text        NOT NULL,
    subject       text        NOT NULL,
    occurred_at   timestamptz NOT NULL,
    value         bytea       NOT NULL,
    data          jsonb       NOT NULL,
    traceparent   text,
    stale         text,
    broker_epoch  integer     NOT NULL REFERENCES broker_epochs,
    topic         text        NOT NULL,
    partition     integer     NOT NULL,
    kafka_offset  bigint      NOT NULL,
    stored_at     timestamptz NOT NULL,
    hash          text        NOT NULL,
    PRIMARY KEY (run_id, version)
);

-- The folded run. A row exists for every run of which any event is stored, and is the lock under which they are
-- numbered; `run` is null until its TrainingRequested is there.
CREATE TABLE runs (
    run_id           text    PRIMARY KEY,
    run              jsonb,
    last_version     integer NOT NULL DEFAULT 0,
    last_hash        text    NOT NULL,
    tenant_id        text    GENERATED ALWAYS AS (run ->> 'tenant_id') STORED,
    model_id         text    GENERATED ALWAYS AS (run ->> 'model_id') STORED,
    status           text    GENERATED ALWAYS AS (run ->> 'status') STORED,
    attempt          integer GENERATED ALWAYS AS ((run ->> 'attempt')::integer) STORED,
    output_sequence  bigint  GENERATED ALWAYS AS ((run ->> 'output_sequence')::bigint) STORED
);

-- Output may arrive before the run is known here, so nothing refers to `runs`.
CREATE TABLE log_lines (
    run_id          text        NOT NULL,
    attempt         integer     NOT NULL,
    sequence        bigint      NOT NULL,
    stream          text        NOT NULL,
    text            text        NOT NULL,
    at              timestamptz NOT NULL,
    truncated       boolean     NOT NULL,
    dropped_before  bigint      NOT NULL,
    PRIMARY KEY (run_id, attempt, sequence)
);

CREATE TABLE metric_points (
    run_id    text             NOT NULL,
    attempt   integer          NOT NULL,
    sequence  bigint           NOT NULL,
    name      text             NOT NULL,
    value     double precision NOT NULL,
    step      bigint,
    at        timestamptz      NOT NULL,
    PRIMARY KEY (run_id, attempt, sequence)
);

-- Events on runyard.output of a type that this code does not know, kept as they are for a newer one.
CREATE TABLE unread_output (
    event_id     uuid        PRIMARY KEY,
    run_id       text        NOT NULL,
    type         text        NOT NULL,
    source       text        NOT NULL,
    occurred_at  timestamptz NOT NULL,
    value        bytea       NOT NULL
);

-- Each entry holds the hash of the one before it, and the hash of the event that it follows from, which in turn covers
-- all earlier events of that run.
CREATE TABLE audit_entries (
    index          bigint      PRIMARY KEY CHECK (index >= 1),
    action         text        NOT NULL,
    tenant_id      text        NOT NULL,
    actor          text        NOT NULL,
    model_id       text        NOT NULL,
    run_id         text        NOT NULL,
    request_id     text,
    event_id       uuid        NOT NULL UNIQUE,
    event_hash     text        NOT NULL,
    occurred_at    timestamptz NOT NULL,
    details        jsonb       NOT NULL,
    previous_hash  text        NOT NULL UNIQUE,
    hash           text        NOT NULL UNIQUE
);

CREATE UNIQUE INDEX audit_entries_once ON audit_entries (run_id, action)
    WHERE action <> 'model.custom_training_cancellation_requested';
CREATE INDEX audit_entries_tenant ON audit_entries (tenant_id, index);

-- The one row that is locked while entries are appended.
CREATE TABLE audit_head (
    only_one  boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    index     bigint  NOT NULL,
    hash      text    NOT NULL
);
INSERT INTO audit_head (index, hash) VALUES (0, repeat('0', 64));

-- Append-only: the role has no right to change them, and the triggers refuse the owner, too.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON run_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

REVOKE UPDATE, DELETE, TRUNCATE ON run_events, audit_entries, broker_epochs FROM runyard_auditor;
REVOKE INSERT, DELETE, TRUNCATE ON audit_head FROM runyard_auditor;

ALTER TABLE runs SET (autovacuum_vacuum_scale_factor = 0.02, fillfactor = 80);
ALTER TABLE audit_head SET (autovacuum_vacuum_scale_factor = 0.01, fillfactor = 10);

-- What the scheduler knows: who leads, every run as folded from the topic, and which runner holds which attempt.
-- Ended runs stay for ever, so that a TrainingRequested that is replayed starts nothing.

CREATE TABLE leadership (
    single  boolean PRIMARY KEY DEFAULT true CHECK (single),
    epoch   bigint NOT NULL
);
INSERT INTO leadership (epoch) VALUES (0);
REVOKE INSERT, DELETE ON leadership FROM runyard_scheduler;

-- `state` is `schemas.run.Run`; the generated columns are what queries need of it.
-- `pending` is the id of a decision that was written and has not come back on the topic yet.
-- `told_*` is the RunWaiting last written for the current wait, before it is folded.
CREATE TABLE runs (
    run_id                  text PRIMARY KEY,
    state                   jsonb       NOT NULL,
    requested_at            timestamptz NOT NULL,
    traceparent             text,
    pending                 uuid,
    told_reason             text,
    told_estimate_at        timestamptz,
    told_count              integer     NOT NULL DEFAULT 0,
    ended_at                timestamptz,
    swept                   boolean     NOT NULL DEFAULT false,
    status                  text        NOT NULL GENERATED ALWAYS AS (state ->> 'status') STORED,
    attempt                 integer     NOT NULL GENERATED ALWAYS AS ((state ->> 'attempt')::integer) STORED,
    attempt_lost            boolean     NOT NULL GENERATED ALWAYS AS ((state ->> 'attempt_lost')::boolean) STORED,
    cancellation_requested  boolean     NOT NULL
        GENERATED ALWAYS AS ((state ->> 'cancellation_requested')::boolean) STORED,
    cpu_cores   integer NOT NULL GENERATED ALWAYS AS ((state #>> '{spec,compute,cpu_cores}')::integer) STORED,
    memory_gb   integer NOT NULL GENERATED ALWAYS AS ((state #>> '{spec,compute,memory_gb}')::integer) STORED,
    gpu         boolean NOT NULL GENERATED ALWAYS AS ((state #>> '{spec,compute,gpu}')::boolean) STORED,
    runtime     text    NOT NULL GENERATED ALWAYS AS (state #>> '{spec,runtime}') STORED,
    timeout_s   integer NOT NULL GENERATED ALWAYS AS ((state #>> '{spec,timeout_s}')::integer) STORED,
    duration_s  double precision,
    CHECK ((ended_at IS NOT NULL) = (state ->> 'status' IN ('succeeded', 'failed', 'cancelled')))
);

CREATE INDEX runs_waiting ON runs (requested_at, run_id) WHERE status = 'queued' AND pending IS NULL;
CREATE INDEX runs_durations ON runs (ended_at) WHERE duration_s IS NOT NULL;
CREATE INDEX runs_to_sweep ON runs (ended_at) WHERE NOT swept AND ended_at IS NOT NULL;

-- An attempt holds its runner's compute from the decision until `over_at`: until the fold shows its end.
CREATE TABLE assignments (
    run_id              text        NOT NULL REFERENCES runs,
    attempt             integer     NOT NULL CHECK (attempt >= 1),
    runner_id           text        NOT NULL,
    dispatch_partition  integer,
    assigned_at         timestamptz NOT NULL DEFAULT now(),
    revoked             boolean     NOT NULL DEFAULT false,
    over_at             timestamptz,
    PRIMARY KEY (run_id, attempt)
);

CREATE UNIQUE INDEX assignments_open ON assignments (run_id) WHERE over_at IS NULL;

ALTER TABLE runs SET (autovacuum_vacuum_scale_factor = 0.01, fillfactor = 80);
ALTER TABLE assignments SET (autovacuum_vacuum_scale_factor = 0.01);

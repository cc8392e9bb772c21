-- The registry: datasets, models, assets, runs as clients see them, versions. What must never break, the database
-- refuses too: one open run per model, one version per run, an end that has its time.
CREATE TABLE datasets (
    dataset_id  text        PRIMARY KEY,
    tenant_id   text        NOT NULL,
    name        text        NOT NULL,
    created_at  timestamptz NOT NULL,
    filename    text,
    sha256      text,
    size_bytes  bigint,
    CHECK ((filename IS NULL) = (sha256 IS NULL) AND (sha256 IS NULL) = (size_bytes IS NULL))
);

CREATE INDEX datasets_listing ON datasets (tenant_id, created_at DESC, dataset_id DESC);

-- A model has no status of its own: it is training while a run holds the claim, trained once it has a version, and a
-- draft before. So none of the three can be at odds with the others.
CREATE TABLE models (
    model_id        text        PRIMARY KEY,
    tenant_id       text        NOT NULL,
    name            text        NOT NULL,
    model_type      text        NOT NULL CHECK (model_type IN ('custom', 'auto')),
    dataset_id      text        REFERENCES datasets,
    created_at      timestamptz NOT NULL,
    active_run_id   text,
    latest_version  integer     NOT NULL DEFAULT 0
);

CREATE INDEX models_listing ON models (tenant_id, created_at DESC, model_id DESC);

CREATE TABLE assets (
    asset_id    text        PRIMARY KEY,
    model_id    text        NOT NULL REFERENCES models,
    asset_type  text        NOT NULL CHECK (asset_type IN ('script', 'requirements', 'data')),
    filename    text        NOT NULL,
    sha256      text        NOT NULL,
    size_bytes  bigint      NOT NULL,
    created_at  timestamptz NOT NULL,
    UNIQUE (model_id, asset_type, filename)
);

-- `state` is the run folded from its events (schemas/run.py); the other columns are what statements look for.
CREATE TABLE runs (
    run_id          text        PRIMARY KEY,
    tenant_id       text        NOT NULL,
    model_id        text        NOT NULL REFERENCES models,
    status          text        NOT NULL
        CHECK (status IN ('queued', 'starting', 'running', 'succeeded', 'failed', 'cancelled')),
    state           jsonb       NOT NULL,
    created_at      timestamptz NOT NULL,
    end_seen_at     timestamptz,
    variables_held  boolean     NOT NULL,
    outbox_swept    boolean     NOT NULL DEFAULT false,
    CHECK ((status IN ('succeeded', 'failed', 'cancelled')) = (end_seen_at IS NOT NULL))
);

CREATE UNIQUE INDEX runs_one_open_per_model ON runs (model_id) WHERE end_seen_at IS NULL;
CREATE INDEX runs_listing ON runs (model_id, created_at DESC, run_id DESC);
CREATE INDEX runs_with_leftover_variables ON runs (run_id) WHERE variables_held AND end_seen_at IS NOT NULL;
CREATE INDEX runs_with_leftover_outbox ON runs (end_seen_at) WHERE NOT outbox_swept AND end_seen_at IS NOT NULL;

ALTER TABLE models ADD FOREIGN KEY (active_run_id) REFERENCES runs DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE versions (
    model_id    text        NOT NULL REFERENCES models,
    version     integer     NOT NULL CHECK (version >= 1),
    run_id      text        NOT NULL UNIQUE REFERENCES runs,
    kind        text        NOT NULL CHECK (kind IN ('file', 'folder')),
    sha256      text        NOT NULL,
    size_bytes  bigint      NOT NULL,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (model_id, version)
);

CREATE TABLE idempotency_keys (
    tenant_id    text        NOT NULL,
    path         text        NOT NULL,
    key          text        NOT NULL,
    fingerprint  bytea       NOT NULL,
    status       integer,
    body         text,
    location     text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, path, key)
);

CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
CREATE INDEX datasets_content ON datasets (sha256);
CREATE INDEX assets_content ON assets (sha256);
CREATE INDEX versions_content ON versions (sha256);

CREATE VIEW shown_models AS
SELECT
    model_id,
    tenant_id,
    name,
    model_type,
    CASE WHEN active_run_id IS NOT NULL THEN 'training' WHEN latest_version > 0 THEN 'trained' ELSE 'draft' END AS status,
    dataset_id,
    created_at,
    NULLIF(latest_version, 0) AS latest_version,
    (
        SELECT jsonb_build_object(
            'run_id', run_id, 'status', status, 'reason', state -> 'reason', 'version', state -> 'version',
            'ended_at', state -> 'ended_at'
        )
        FROM runs WHERE runs.model_id = models.model_id ORDER BY runs.created_at DESC, runs.run_id DESC LIMIT 1
    ) AS last_run
FROM models;

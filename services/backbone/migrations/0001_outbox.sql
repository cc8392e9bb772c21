-- The outbox of a service: events that were decided in the same transaction as the state that they tell of.
-- Rows are marked when Kafka has acknowledged them, never skipped by position: what commits late is found.
CREATE TABLE outbox (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id    uuid        NOT NULL,
    subject     text        NOT NULL,
    topic       text        NOT NULL,
    key         text        NOT NULL,
    partition   integer,
    headers     jsonb       NOT NULL,
    value       text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    sent_at     timestamptz
);

CREATE INDEX outbox_unsent ON outbox (id) WHERE sent_at IS NULL;
CREATE INDEX outbox_subject ON outbox (subject);

ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.02);

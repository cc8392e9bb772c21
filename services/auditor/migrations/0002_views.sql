-- What the api may read, and all that it may read. A change of a column's meaning is a new view, `…_v2`.
-- Output rows get their tenant from the run; until the run is known they belong to nobody.
CREATE VIEW run_events_v1 AS
SELECT e.run_id, r.tenant_id, e.version, e.event_id, e.type, e.source, e.occurred_at, e.stale, e.data,
       e.topic, e.partition, e.kafka_offset, e.stored_at
FROM run_events e LEFT JOIN runs r USING (run_id);

CREATE VIEW log_lines_v1 AS
SELECT l.run_id, r.tenant_id, l.attempt, l.sequence, l.stream, l.text, l.at, l.truncated, l.dropped_before
FROM log_lines l LEFT JOIN runs r USING (run_id);

CREATE VIEW metric_points_v1 AS
SELECT m.run_id, r.tenant_id, m.attempt, m.sequence, m.name, m.value, m.step, m.at
FROM metric_points m LEFT JOIN runs r USING (run_id);

-- `stored_output_sequence` is the highest stored sequence of the run's current (at the end: final) attempt. Log lines
-- and points share one sequence, and a run's output comes by one partition in that order, so when the highest is there
-- all before it are: output is complete once it reaches `output_sequence`, which only an ended run has.
CREATE VIEW runs_v1 AS
SELECT r.run_id, r.tenant_id, r.status, r.attempt, r.output_sequence, r.last_version AS last_event_version,
       greatest(
           (SELECT max(l.sequence) FROM log_lines l WHERE l.run_id = r.run_id AND l.attempt = r.attempt),
           (SELECT max(m.sequence) FROM metric_points m WHERE m.run_id = r.run_id AND m.attempt = r.attempt),
           0
       ) AS stored_output_sequence
FROM runs r;

CREATE VIEW audit_log_v1 AS
SELECT index, action, tenant_id, actor, model_id, run_id, request_id, occurred_at, details, hash, previous_hash
FROM audit_entries;

GRANT USAGE ON SCHEMA ledger TO runyard_api;
GRANT SELECT ON run_events_v1, log_lines_v1, metric_points_v1, runs_v1, audit_log_v1 TO runyard_api;

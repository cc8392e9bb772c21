-- A log line may hold several metrics (metric definitions): their points share the line's sequence, and `place` tells them
-- apart. A point of its own (METRICS_PATH) has place 0. The new key is built under a lock: for a big ledger allow minutes.
ALTER TABLE metric_points ADD COLUMN place integer NOT NULL DEFAULT 0;
ALTER TABLE metric_points DROP CONSTRAINT metric_points_pkey, ADD PRIMARY KEY (run_id, attempt, sequence, place);

CREATE OR REPLACE VIEW metric_points_v1 AS
SELECT m.run_id, r.tenant_id, m.attempt, m.sequence, m.name, m.value, m.step, m.at, m.place
FROM metric_points m LEFT JOIN runs r USING (run_id);

-- As before, `stored_output_sequence` is the highest stored sequence of output. Points of lines do not count, since they
-- may be stored before their lines are. Only points behind the last line are looked at: of those of lines these are few.
CREATE OR REPLACE VIEW runs_v1 AS
SELECT r.run_id, r.tenant_id, r.status, r.attempt, r.output_sequence, r.last_version AS last_event_version,
       greatest(
           lines.last,
           (
               SELECT max(m.sequence) FROM metric_points m
               WHERE m.run_id = r.run_id AND m.attempt = r.attempt AND m.sequence > lines.last AND m.place = 0
           )
       ) AS stored_output_sequence
FROM runs r CROSS JOIN LATERAL (
    SELECT coalesce(max(l.sequence), 0) AS last FROM log_lines l WHERE l.run_id = r.run_id AND l.attempt = r.attempt
) AS lines;

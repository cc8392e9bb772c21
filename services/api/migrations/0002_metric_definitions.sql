-- Metrics that are found in the logs of a model's runs: [{"name": …, "regex": …}], in the order that gives them their
-- places. A run pins them when it is accepted.
ALTER TABLE models ADD COLUMN metric_definitions jsonb NOT NULL DEFAULT '[]';

CREATE OR REPLACE VIEW shown_models AS
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
    ) AS last_run,
    metric_definitions
FROM models;

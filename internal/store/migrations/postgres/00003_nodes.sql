-- +goose Up

-- node_id is who holds a segment, or validates a batch, and not who did: so the rows of nodes that have
-- ended can go.
UPDATE segments SET node_id = NULL WHERE sealed_at IS NOT NULL AND node_id IS NOT NULL;
UPDATE batches SET node_id = NULL WHERE status <> 'validating' AND node_id IS NOT NULL;
DROP INDEX segments_held;
CREATE INDEX segments_node ON segments (node_id) WHERE node_id IS NOT NULL;
CREATE INDEX batches_node ON batches (node_id) WHERE node_id IS NOT NULL;
